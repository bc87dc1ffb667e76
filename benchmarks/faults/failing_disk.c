/* A disk that fails and a clock that is set back, for a command that is started with LD_PRELOAD.

   The first byte of the file $FAULTS_CONTROL says what happens from now on to files below
   $FAULTS_FOLDER: 'f' the disk is full, 'e' one access in four is an I/O error, 's' writes are
   short; and 'c' sets the clock back by an hour. See injection.py. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static volatile const char *control;
static const char *folder;

__attribute__((constructor)) static void begin(void) {
  const char *path = getenv("FAULTS_CONTROL");
  folder = getenv("FAULTS_FOLDER");
  int file = path && folder ? open(path, O_RDONLY | O_CLOEXEC) : -1;
  if (file < 0) return;
  void *page = mmap(0, 1, PROT_READ, MAP_SHARED, file, 0);
  if (page != MAP_FAILED) control = page;
  close(file);
}

static char fault(void) { return control ? *control : 0; }

static int is_below(const char *path) { return !strncmp(path, folder, strlen(folder)); }

/* Whether an open file is below the folder. */
static int is_ours(int file) {
  char link[64], path[PATH_MAX] = "";
  char *end = link + sizeof link - 1;
  *end = 0;
  unsigned number = file;
  do *--end = '0' + number % 10;
  while (number /= 10);
  end -= strlen("/proc/self/fd/");
  memcpy(end, "/proc/self/fd/", strlen("/proc/self/fd/"));
  int saved = errno, is = readlink(end, path, sizeof path - 1) > 0 && is_below(path);
  errno = saved;
  return is;
}

/* Whether this access is the one in four that fails. */
static int is_unlucky(void) {
  static _Atomic unsigned count;
  unsigned x = count++ * 2654435761u;
  return (x >> 16) % 4 == 0;
}

static int fails(int is_of_folder, int writes) {
  if (!is_of_folder) return 0;
  if (fault() == 'f' && writes) return errno = ENOSPC;
  if (fault() == 'e' && is_unlucky()) return errno = EIO;
  return 0;
}

static size_t length(size_t count) { return fault() == 's' && count > 1 ? (count + 1) / 2 : count; }

#define NEXT(name) \
  static __typeof__(name) *next; \
  if (!next) next = dlsym(RTLD_NEXT, #name)
#define BROKEN(file) (fault() && is_ours(file))

ssize_t write(int file, const void *data, size_t count) {
  NEXT(write);
  if (!BROKEN(file)) return next(file, data, count);
  return fails(1, 1) ? -1 : next(file, data, length(count));
}

ssize_t writev(int file, const struct iovec *parts, int count) {
  NEXT(writev);
  if (!BROKEN(file)) return next(file, parts, count);
  if (fails(1, 1)) return -1;
  return next(file, parts, fault() == 's' && count > 1 ? count - 1 : count);
}

ssize_t pwrite(int file, const void *data, size_t count, off_t at) {
  NEXT(pwrite);
  if (!BROKEN(file)) return next(file, data, count, at);
  return fails(1, 1) ? -1 : next(file, data, length(count), at);
}

ssize_t pwrite64(int file, const void *data, size_t count, off64_t at) {
  return pwrite(file, data, count, at);
}

ssize_t sendfile(int to, int from, off_t *at, size_t count) {
  NEXT(sendfile);
  return BROKEN(to) && fails(1, 1) ? -1 : next(to, from, at, count);
}

ssize_t sendfile64(int to, int from, off64_t *at, size_t count) {
  return sendfile(to, from, at, count);
}

ssize_t read(int file, void *data, size_t count) {
  NEXT(read);
  if (!BROKEN(file)) return next(file, data, count);
  return fails(1, 0) ? -1 : next(file, data, length(count));
}

ssize_t pread(int file, void *data, size_t count, off_t at) {
  NEXT(pread);
  if (!BROKEN(file)) return next(file, data, count, at);
  return fails(1, 0) ? -1 : next(file, data, length(count), at);
}

ssize_t pread64(int file, void *data, size_t count, off64_t at) {
  return pread(file, data, count, at);
}

int fsync(int file) {
  NEXT(fsync);
  return BROKEN(file) && fails(1, 1) ? -1 : next(file);
}

int mkdir(const char *path, mode_t mode) {
  NEXT(mkdir);
  return fault() && fails(is_below(path), 1) ? -1 : next(path, mode);
}

int rename(const char *from, const char *to) {
  NEXT(rename);
  return fault() == 'e' && fails(is_below(to), 1) ? -1 : next(from, to);
}

/* --- the clock --- */

static time_t back(void) { return fault() == 'c' ? 3600 : 0; }

int clock_gettime(clockid_t clock, struct timespec *now) {
  NEXT(clock_gettime);
  int result = next(clock, now);
  if (clock == CLOCK_REALTIME) now->tv_sec -= back();
  return result;
}

int gettimeofday(struct timeval *now, void *zone) {
  NEXT(gettimeofday);
  int result = next(now, zone);
  now->tv_sec -= back();
  return result;
}

/* The kernel's clock is as before: by it, a time of the clock that was set back is over, and who
   waits until then would not wait at all. */
static const struct timespec *forth(const struct timespec *end, struct timespec *moved) {
  if (!end) return end;
  *moved = (struct timespec){end->tv_sec + back(), end->tv_nsec};
  return moved;
}

int pthread_cond_timedwait(pthread_cond_t *changed, pthread_mutex_t *lock,
                           const struct timespec *end) {
  static int (*next)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
  if (!next) next = dlvsym(RTLD_NEXT, __func__, "GLIBC_2.3.2"); /* not the older one */
  if (!next) next = dlsym(RTLD_NEXT, __func__);
  struct timespec moved;
  return next(changed, lock, forth(end, &moved));
}

long syscall(long number, ...) {
  NEXT(syscall);
  long x[6];
  va_list rest;
  va_start(rest, number);
  for (int i = 0; i < 6; i++) x[i] = va_arg(rest, long);
  va_end(rest);
  struct timespec moved;
  if (number == SYS_futex && x[1] & FUTEX_CLOCK_REALTIME)
    x[3] = (long)forth((const struct timespec *)x[3], &moved);
  return next(number, x[0], x[1], x[2], x[3], x[4], x[5]);
}

time_t time(time_t *now) {
  struct timespec exact;
  clock_gettime(CLOCK_REALTIME, &exact);
  if (now) *now = exact.tv_sec;
  return exact.tv_sec;
}
