/* Preloaded into User-mode Linux by scripts/lab/nfs, on processors with AMX.
 *
 * UML of 6.1 keeps 2696 bytes of a process's registers: all but those of AMX, which lie behind. Where the
 * processor has AMX, its kernel takes them back only whole (11008 bytes), and UML dies at its first process:
 * "ptrace set fp regs failed, errno = 14". So what is missing is added here, as it is at a process's start:
 * not in use.
 */
#define _GNU_SOURCE
#include <elf.h>
#include <errno.h>
#include <stdarg.h>
#include <stdint.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define LARGEST 65536
/* where an XSAVE area says which of its parts are in use: Intel's manual, volume 1, 13.4 */
#define IN_USE 512
#define AMX ((uint64_t)3 << 17)

/* not on the stack: UML's are small. It has one thread */
static unsigned char whole[LARGEST] __attribute__((aligned(64)));

long ptrace(enum __ptrace_request request, ...) {
  va_list arguments;
  va_start(arguments, request);
  pid_t pid = va_arg(arguments, pid_t);
  void *address = va_arg(arguments, void *), *data = va_arg(arguments, void *);
  va_end(arguments);

  long peeked;
  /* as the C library does it */
  if (request == PTRACE_PEEKTEXT || request == PTRACE_PEEKDATA || request == PTRACE_PEEKUSER)
    return syscall(SYS_ptrace, request, pid, address, &peeked) < 0 ? -1 : (errno = 0, peeked);
  if (request != PTRACE_SETREGSET || address != (void *)NT_X86_XSTATE)
    return syscall(SYS_ptrace, request, pid, address, data);

  struct iovec *given = data, all = {whole, LARGEST};
  if (given->iov_len >= LARGEST || syscall(SYS_ptrace, PTRACE_GETREGSET, pid, address, &all) < 0) return -1;
  if (given->iov_len < all.iov_len) {
    uint64_t in_use;
    memset(whole, 0, all.iov_len);
    memcpy(whole, given->iov_base, given->iov_len);
    memcpy(&in_use, whole + IN_USE, sizeof in_use);
    in_use &= ~AMX;
    memcpy(whole + IN_USE, &in_use, sizeof in_use);
    given = &all;
  }
  return syscall(SYS_ptrace, PTRACE_SETREGSET, pid, address, given);
}
