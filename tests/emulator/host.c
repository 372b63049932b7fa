/* host.c: the surroundings of test_kernels.c on a bare x86-64 processor: console, pages, one thread, and the few library
 * functions that the compiler and csrc call. (The C library's own would need its start-up code.) */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include "host.h"
#include "pool.h"

/* ------------------------------------------------------------------------------------------------------ console: COM1 */

enum { PORT = 0x3F8, LINE_STATUS = PORT + 5, CAN_SEND = 0x20, ALL_SENT = 0x40 };

static void out(int port, int value) { __asm__ volatile("outb %b0, %w1" : : "a"(value), "Nd"(port)); }
static int in(int port) {
    uint8_t value;
    __asm__ volatile("inb %w1, %b0" : "=a"(value) : "Nd"(port));
    return value;
}

static void open_console(void) {
    static const uint8_t settings[][2] = {{1, 0}, {3, 0x80}, {0, 1}, {1, 0}, {3, 3}, {2, 0xC7}}; /* 115200 baud, 8N1 */
    for (unsigned i = 0; i < sizeof settings / sizeof *settings; i++)
        out(PORT + settings[i][0], settings[i][1]);
}

static void say_text(const char *text) {
    while (*text) {
        while (!(in(LINE_STATUS) & CAN_SEND))
            ;
        out(PORT, *text++);
    }
}

static void say_int(long value) {
    char text[24], *at = text + sizeof text - 1;
    unsigned long rest = value < 0 ? 0 - (unsigned long)value : (unsigned long)value;
    *at = 0;
    do
        *--at = (char)('0' + rest % 10);
    while (rest /= 10);
    if (value < 0)
        *--at = '-';
    say_text(at);
}

static void say_double(double value) { /* six digits and a power of ten */
    int exponent = 0;
    if (value != value || value - value != 0) {
        say_text(value != value ? "nan" : value < 0 ? "-inf" : "inf");
        return;
    }
    for (; value != 0 && (value < 0 ? -value : value) < 1e5; exponent--)
        value *= 10;
    for (; (value < 0 ? -value : value) >= 1e6; exponent++)
        value /= 10;
    say_int((long)(value + (value < 0 ? -0.5 : 0.5)));
    say_text("e");
    say_int(exponent);
}

void host_say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    for (char letter[2] = {0}; (letter[0] = *format); format++) {
        if (letter[0] != '%')
            say_text(letter);
        else if (*++format == 's')
            say_text(va_arg(arguments, const char *));
        else if (*format == 'd')
            say_int(va_arg(arguments, int));
        else
            say_double(va_arg(arguments, double));
    }
    va_end(arguments);
}

/* -------------------------------------------------------------------------------------------------------------- pages */

/* A stretch of memory with small pages of its own, given out from front to back. */
enum { PAGE = 4096, LARGE_PAGE = 512 * PAGE, LARGE_PAGES = 32 };
static char *const REGION = (char *)(128 << 20);
static const uint64_t PRESENT = 3; /* and writable */

extern uint64_t page_directory[];                                         /* in start.S */
static uint64_t tables[LARGE_PAGES * 512] __attribute__((aligned(PAGE))); /* an entry for each small page */
static ptrdiff_t pages_used;

static void set_page(ptrdiff_t page, uint64_t flags) {
    tables[page] = flags ? (uint64_t)(REGION + page * PAGE) | flags : 0;
    __asm__ volatile("invlpg (%0)" : : "r"(REGION + page * PAGE) : "memory");
}

static void open_pages(void) {
    for (ptrdiff_t page = 0; page < LARGE_PAGES * 512; page++)
        set_page(page, PRESENT);
    for (ptrdiff_t i = 0; i < LARGE_PAGES; i++)
        page_directory[(uintptr_t)REGION / LARGE_PAGE + (uintptr_t)i] = (uint64_t)(tables + i * 512) | PRESENT;
    __asm__ volatile("mov %%cr3, %%rax; mov %%rax, %%cr3" : : : "rax", "memory");
}

char *host_pages(ptrdiff_t bytes, ptrdiff_t *size) {
    const ptrdiff_t pages = (bytes + PAGE - 1) / PAGE, first = pages_used + 1;
    pages_used = first + pages;
    if (pages_used >= LARGE_PAGES * 512) {
        host_say("emulator/host.c: out of pages\n");
        __builtin_trap();
    }
    set_page(first - 1, 0);
    set_page(pages_used, 0);
    *size = pages * PAGE;
    return REGION + first * PAGE;
}

void host_release(void) {
    for (; pages_used >= 0; pages_used--)
        set_page(pages_used, PRESENT);
    pages_used = 0;
}

/* ------------------------------------------------------------------------------------------------------ one thread only */

uint64_t fl_now(void) { return __builtin_ia32_rdtsc(); } /* not in nanoseconds; only differences matter */

uint64_t fl_run(fl_piece_fn fn, void *arg, int steps, int pieces, int threads) {
    (void)threads;
    for (int step = 0; step < steps; step++)
        for (int piece = 0; piece < pieces; piece++)
            fn(arg, step, piece, 0);
    return 0;
}

/* ------------------------------------------------------------------------------------------------------------- library */

void *memset(void *to, int value, size_t size) {
    void *at = to;
    __asm__ volatile("rep stosb" : "+D"(at), "+c"(size) : "a"(value) : "memory");
    return to;
}

void *memcpy(void *restrict to, const void *restrict from, size_t size) {
    void *at = to;
    __asm__ volatile("rep movsb" : "+D"(at), "+S"(from), "+c"(size) : : "memory");
    return to;
}

int memcmp(const void *a, const void *b, size_t size) {
    const unsigned char *p = a, *q = b;
    for (; size; size--, p++, q++)
        if (*p != *q)
            return *p - *q;
    return 0;
}

int strcmp(const char *a, const char *b) {
    for (; *a && *a == *b; a++)
        b++;
    return *a - *b;
}

/* e^x - 1: the series for x / 1024, then (1 + y)^2 - 1 = y (2 + y) ten times. */
static double exponential_less_1(double x) {
    x = (x < -100 ? -100 : x > 100 ? 100 : x) / 1024;
    double y = x * (1 + x / 2 * (1 + x / 3 * (1 + x / 4 * (1 + x / 5 * (1 + x / 6)))));
    for (int i = 0; i < 10; i++)
        y *= 2 + y;
    return y;
}

/* One rounding, by the processor's instruction. */
float fmaf(float x, float y, float z) {
    __asm__("vfmadd213ss %2, %1, %0" : "+x"(x) : "x"(y), "x"(z));
    return x;
}

float expm1f(float x) { return (float)exponential_less_1((double)x); }
float expf(float x) { return (float)(1 + exponential_less_1((double)x)); }
float tanhf(float x) {
    const double y = exponential_less_1(2 * (double)x);
    return (float)(y / (y + 2));
}

/* Newton's method for e^y = 1 + x; halves what is far from 1. */
double log(double x) {
    const double log2 = 0.693147180559945309417;
    double y = x - 1;
    if (x > 1.5)
        return log(x / 2) + log2;
    for (int i = 0; i < 6; i++)
        y -= 1 - x / (exponential_less_1(y) + 1);
    return y;
}
float log1pf(float x) { return (float)log(1 + (double)x); }

/* ---------------------------------------------------------------------------------------------------------------- main */

/* As many as take about two minutes. */
enum { CASES = 36, BROKEN_CASES = 1 };
void kmain(void) {
    open_console();
    open_pages();
    __builtin_cpu_init();
    __builtin_ia32_ldmxcsr(0x9FC0); /* as the thread pool does: no exceptions, denormals are zero */
    if (test_kernels((Options){.cases = BROKEN_CASES, .only = "avx512", .broken = 1}) == 0) {
        host_say("one weight was changed: that should have failed\n0 passed, 1 failed\n");
    } else {
        host_say("that was with one weight changed; and as it is:\n");
        test_kernels((Options){.cases = CASES, .only = "avx512"});
    }
    while (!(in(LINE_STATUS) & ALL_SENT))
        ;
}
