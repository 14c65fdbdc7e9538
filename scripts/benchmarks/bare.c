/* The system calls of a new add, and of a take with its ack, in C: bare PATH ELEMENTS prints the
   microseconds of each. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { BUCKETS = 128 };

static long long nanoseconds(clockid_t clock) {
    struct timespec now;
    clock_gettime(clock, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static int folder(const char *name) {
    if (mkdir(name, 0700)) exit(2);
    return open(name, O_RDONLY | O_DIRECTORY);
}

static void check(int result) {
    if (result < 0) exit(3);
}

int main(int count, char **words) {
    if (count != 3 || chdir(words[1])) return 2;
    int elements = atoi(words[2]);
    int tmp = folder("tmp"), drop = folder("drop");
    int pending = folder("pending"), inflight = folder("inflight");
    int index = open("index", O_RDWR | O_CREAT, 0600);
    if (posix_fallocate(index, 0, 64 + BUCKETS * 1024)) return 3;
    char(*names)[64] = calloc(elements, sizeof *names);
    char payload[200], text[256], key[32], target[64], draft[64], bucket[1024];
    struct stat status;
    memset(payload, 'x', sizeof payload);

    long long begun = nanoseconds(CLOCK_MONOTONIC);
    for (int i = 0; i < elements; i++) {
        sprintf(key, "key%d", i);
        sprintf(draft, "%d.%d", getpid(), i);
        int fd = openat(tmp, draft, O_WRONLY | O_CREAT | O_EXCL | O_NOFOLLOW | O_CLOEXEC, 0600);
        check(fd);
        check(write(fd, payload, sizeof payload));
        close(fd);
        fstatat(drop, key, &status, AT_SYMLINK_NOFOLLOW);
        flock(index, LOCK_EX);
        fstat(index, &status);
        check(pread(index, bucket, 64, 0));
        off_t home = 64 + i % BUCKETS * 1024; /* (a CRC would cost no call) */
        check(pread(index, bucket, 1024, home));
        sprintf(target, "%019lld abcdefgh 0000004096", nanoseconds(CLOCK_REALTIME));
        check(pwrite(index, target, 64, 0));
        check(pwrite(index, target, 32, home + i / BUCKETS % 32 * 32));
        sprintf(names[i], "%.19s-%s", target, key);
        check(renameat(tmp, draft, pending, names[i]));
        flock(index, LOCK_UN);
    }
    long long added = nanoseconds(CLOCK_MONOTONIC);
    for (int i = 0; i < elements; i++) {
        check(renameat(pending, names[i], inflight, names[i]));
        check(fstatat(inflight, names[i], &status, AT_SYMLINK_NOFOLLOW));
        int fd = openat(inflight, names[i], O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
        fstat(fd, &status);
        check(read(fd, text, sizeof text));
        close(fd);
        check(unlinkat(inflight, names[i], 0));
    }
    long long taken = nanoseconds(CLOCK_MONOTONIC);
    printf("%.2f %.2f\n", (added - begun) / 1e3 / elements, (taken - added) / 1e3 / elements);
    return 0;
}
