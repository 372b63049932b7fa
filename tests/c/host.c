/* host.c: the surroundings of test_kernels.c on an operating system.
 *
 * usage: test_kernels [--cases N] [--only ISA] [--break] [--verbose] */
#define _GNU_SOURCE
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "host.h"

/* Mappings are used again: making one costs more than a small test case. Sizes are powers of two, so that one fits. */
enum { MOST_MAPPINGS = 1024 };
static struct {
    char *at;
    ptrdiff_t size;
    int used;
} mappings[MOST_MAPPINGS];
static int mapping_count;

static char *map(ptrdiff_t size, ptrdiff_t page) {
    char *at = mmap(NULL, (size_t)(size + 2 * page), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (at == MAP_FAILED || mprotect(at + page, (size_t)size, PROT_READ | PROT_WRITE) != 0 ||
        mapping_count == MOST_MAPPINGS) {
        perror("host_pages");
        exit(2);
    }
    mappings[mapping_count].size = size;
    mappings[mapping_count].used = 1;
    return mappings[mapping_count++].at = at + page;
}

char *host_pages(ptrdiff_t bytes, ptrdiff_t *size) {
    const ptrdiff_t page = sysconf(_SC_PAGESIZE);
    *size = page;
    while (*size < bytes)
        *size *= 2;
    for (int i = 0; i < mapping_count; i++)
        if (!mappings[i].used && mappings[i].size == *size) {
            mappings[i].used = 1;
            return mappings[i].at;
        }
    return map(*size, page);
}

void host_release(void) {
    for (int i = 0; i < mapping_count; i++)
        mappings[i].used = 0;
}

void host_say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vprintf(format, arguments);
    va_end(arguments);
    fflush(stdout);
}

static void trapped(int number) {
    (void)number;
    test_kernels_trapped();
    _exit(2);
}

static void catch_traps(void) {
#if defined(__SANITIZE_ADDRESS__)
    (void)trapped; /* it tells more by itself */
#else
    signal(SIGSEGV, trapped);
    signal(SIGBUS, trapped);
#endif
}

int main(int argc, char **argv) {
    Options options = {.cases = 1200};
    for (int i = 1; i < argc; i++) {
        const int more = i + 1 < argc;
        if (!strcmp(argv[i], "--break")) {
            options.broken = 1;
        } else if (!strcmp(argv[i], "--verbose")) {
            options.verbose = 1;
        } else if (!strcmp(argv[i], "--cases") && more) {
            options.cases = atoi(argv[++i]);
        } else if (!strcmp(argv[i], "--only") && more) {
            options.only = argv[++i];
        } else {
            fprintf(stderr, "usage: %s [--cases N] [--only ISA] [--break] [--verbose]\n", argv[0]);
            return 2;
        }
    }
    catch_traps();
    return test_kernels(options) > 0;
}
