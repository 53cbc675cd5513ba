/* A disk that fails: the n-th operation of one kind below a folder ends with a chosen error (LD_PRELOAD). */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <sys/uio.h>
#include <unistd.h>

enum { OPEN, READ, WRITE, RENAME, FSYNC, MKDIR, UNLINK, KINDS };

static char folder[PATH_MAX];
static size_t folder_length;
static int failing_kind = -1, failing_at, failing_errno, stays;
static atomic_int counts[KINDS];

/* kind: which operation; at: counted from 1; keeps: all later ones fail as well. */
void fault_set(const char *below, int kind, int at, int error, int keeps) {
    strncpy(folder, below, PATH_MAX - 1);
    folder_length = strlen(folder);
    failing_kind = kind, failing_at = at, failing_errno = error, stays = keeps;
    for (int i = 0; i < KINDS; i++) counts[i] = 0;
}

int fault_count(int kind) { return counts[kind]; }

static int fails(int kind, const char *path) {
    if (!folder_length || !path || strncmp(path, folder, folder_length)) return 0;
    int number = ++counts[kind];
    if (kind != failing_kind || !(stays ? number >= failing_at : number == failing_at)) return 0;
    errno = failing_errno;
    return 1;
}

static int fails_fd(int kind, int fd) {
    if (!folder_length) return 0;
    char link[32], path[PATH_MAX];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, PATH_MAX - 1);
    if (length <= 0) return 0;
    path[length] = 0;
    return fails(kind, path);
}

#define REAL(name) static __typeof__(name) *real; if (!real) real = dlsym(RTLD_NEXT, #name)

static int opening(int flags) { return flags & (O_WRONLY | O_RDWR | O_CREAT) ? OPEN : READ; }

#define OPENS(name) \
    int name(const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        return fails(opening(flags), path) ? -1 : real(path, flags, mode); \
    }
OPENS(open)
OPENS(open64)

#define OPENS_AT(name) \
    int name(int at, const char *path, int flags, ...) { \
        REAL(name); \
        va_list rest; va_start(rest, flags); mode_t mode = va_arg(rest, mode_t); va_end(rest); \
        return fails(opening(flags), path) ? -1 : real(at, path, flags, mode); \
    }
OPENS_AT(openat)
OPENS_AT(openat64)

ssize_t write(int fd, const void *data, size_t size) {
    REAL(write);
    return fails_fd(WRITE, fd) ? -1 : real(fd, data, size);
}
ssize_t pwrite64(int fd, const void *data, size_t size, off_t at) {
    REAL(pwrite64);
    return fails_fd(WRITE, fd) ? -1 : real(fd, data, size, at);
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
    REAL(writev);
    return fails_fd(WRITE, fd) ? -1 : real(fd, parts, count);
}
ssize_t sendfile64(int out, int in, off_t *at, size_t size) {
    REAL(sendfile64);
    return fails_fd(WRITE, out) ? -1 : real(out, in, at, size);
}
int rename(const char *from, const char *to) {
    REAL(rename);
    return fails(RENAME, to) ? -1 : real(from, to);
}
int fsync(int fd) {
    REAL(fsync);
    return fails_fd(FSYNC, fd) ? -1 : real(fd);
}
int mkdir(const char *path, mode_t mode) {
    REAL(mkdir);
    return fails(MKDIR, path) ? -1 : real(path, mode);
}
int unlink(const char *path) {
    REAL(unlink);
    return fails(UNLINK, path) ? -1 : real(path);
}
