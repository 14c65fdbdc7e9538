/* The system calls of a new add, and of a take with its ack, in C: bare PATH ELEMENTS prints the microseconds of each. */
#define _GNU_SOURCE
#include <dirent.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

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
    int tmp = folder("tmp"), drop = folder("drop"), keys = folder("keys"), pending = folder("pending"), inflight = folder("inflight");
    int sequence = open("sequence", O_RDWR | O_CREAT, 0600);
    char(*names)[64] = calloc(elements, sizeof *names);
    char payload[200], text[256], key[32], target[64], draft[64];
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
        readlinkat(keys, key, text, sizeof text);
        flock(sequence, LOCK_EX);
        fstat(sequence, &status);
        check(pread(sequence, text, 64, 0));
        readlinkat(keys, key, text, sizeof text);
        sprintf(target, "%019lld.abcdefgh", nanoseconds(CLOCK_REALTIME));
        check(pwrite(sequence, target, 28, 0));
        check(symlinkat(target, keys, key));
        flock(sequence, LOCK_UN);
        sprintf(names[i], "%.19s-%s", target, key);
        check(renameat(tmp, draft, pending, names[i]));
        check(readlinkat(keys, key, text, sizeof text));
        DIR *listing = fdopendir(openat(inflight, ".", O_RDONLY | O_DIRECTORY | O_CLOEXEC));
        while (readdir(listing)) continue;
        closedir(listing);
    }
    long long added = nanoseconds(CLOCK_MONOTONIC);
    for (int i = 0; i < elements; i++) {
        readlinkat(keys, names[i] + 20, text, sizeof text);
        check(renameat(pending, names[i], inflight, names[i]));
        check(unlinkat(keys, names[i] + 20, 0));
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
