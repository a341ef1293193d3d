/* Preloaded into fsx 0.3.2, which never unmaps what it has mapped for reading: the kernel would go through
 * hundreds of thousands of mappings at every truncation. fsx has one thread and is done with a mapping of
 * its file before it makes the next one. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stddef.h>
#include <sys/mman.h>

static void *last;
static size_t last_length;

int munmap(void *address, size_t length)
{
    static int (*next)(void *, size_t);
    if (!next)
        next = dlsym(RTLD_NEXT, "munmap");
    if (address == last)
        last = NULL;
    return next(address, length);
}

static void *map(const char *name, void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    void *(*next)(void *, size_t, int, int, int, off_t) = dlsym(RTLD_NEXT, name);
    if (fd < 0)
        return next(address, length, protection, flags, fd, offset);
    if (last)
        munmap(last, last_length);
    void *mapped = next(address, length, protection, flags, fd, offset);
    last = mapped == MAP_FAILED ? NULL : mapped;
    last_length = length;
    return mapped;
}

void *mmap(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return map("mmap", address, length, protection, flags, fd, offset);
}

void *mmap64(void *address, size_t length, int protection, int flags, int fd, off_t offset)
{
    return map("mmap64", address, length, protection, flags, fd, offset);
}
