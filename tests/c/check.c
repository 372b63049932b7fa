/* check.c: see check.h. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "host.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(at, size) ((void)(at), (void)(size))
#endif

/* As shares of the largest entry. */
static const double VALUES_WITHIN = 2e-6, GRADIENTS_WITHIN = 2e-5;

/* ----------------------------------------------------------------------------------------------------------- failures */

static const Family *present;
static const char *present_isa;
static int failures, said, most_said;

void begin_messages(int most) {
    said = 0;
    most_said = most;
}

void begin_failures(const Family *family, const char *isa) {
    present = family;
    present_isa = isa;
    failures = 0;
}

void describe(void) {
    present->describe();
    host_say(", %s: ", present_isa);
}

int failed(void) {
    failures++;
    if (++said <= most_said)
        describe();
    return said <= most_said;
}

int failure_count(void) { return failures; }

/* ------------------------------------------------------------------------------------------------------- plain memory */

static float store[8 << 20];
static ptrdiff_t store_used;

void *keep(const void *from, ptrdiff_t bytes) {
    char *to = (char *)(store + store_used);
    store_used += (bytes + 63) / 64 * 16;
    if (store_used > LENGTH(store)) {
        host_say("check.c: the store is too small\n");
        __builtin_trap();
    }
    return from ? memcpy(to, from, (size_t)bytes) : to;
}

ptrdiff_t keep_mark(void) { return store_used; }
void keep_from(ptrdiff_t mark) { store_used = mark; }

static uint64_t random_state;

void begin_random(int seed) { random_state = (uint64_t)seed * 77 + 1; }

double uniform(void) {
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (double)(int64_t)random_state / 9223372036854775808.0;
}

float *random_floats(ptrdiff_t count, double scale) {
    float *to = keep(NULL, count * (ptrdiff_t)sizeof *to);
    for (ptrdiff_t i = 0; i < count; i++)
        to[i] = (float)(scale * uniform());
    return to;
}

float *constant_floats(ptrdiff_t count, float value) {
    float *to = keep(NULL, count * (ptrdiff_t)sizeof *to);
    for (ptrdiff_t i = 0; i < count; i++)
        to[i] = value;
    return to;
}

/* ------------------------------------------------------------------------------------------------------ guarded memory */

enum { MOST_BUFFERS = 128, CANARY = 0xA5 };

static struct {
    char *pages, *at;
    ptrdiff_t size, bytes;
} buffers[MOST_BUFFERS];
static int buffer_count;
static int at_start;

void begin_guarded(int start) { at_start = start; }

/* What lies between the end of an aligned buffer and the page is looked at afterwards. */
void *guarded(const void *from, ptrdiff_t bytes, ptrdiff_t alignment) {
    ptrdiff_t size;
    char *pages = host_pages(bytes + alignment, &size),
         *at = at_start ? pages : pages + (size - bytes) / alignment * alignment;
    memset(pages, CANARY, (size_t)size);
    memset(at, 0xff, (size_t)bytes); /* NaN, or -1 */
    if (from)
        memcpy(at, from, (size_t)bytes);
    buffers[buffer_count].pages = pages;
    buffers[buffer_count].at = at;
    buffers[buffer_count].size = size;
    buffers[buffer_count++].bytes = bytes;
    ASAN_POISON_MEMORY_REGION(pages, (size_t)(at - pages));
    ASAN_POISON_MEMORY_REGION(at + bytes, (size_t)(pages + size - at - bytes));
    return at;
}

float *floats(const float *from, ptrdiff_t count) {
    return guarded(from, count * (ptrdiff_t)sizeof(float), sizeof(float));
}
float *maybe_floats(const float *from, ptrdiff_t count) { return from ? floats(from, count) : NULL; }
float *aligned_floats(ptrdiff_t count) { return aligned_bytes(count * (ptrdiff_t)sizeof(float)); }
void *aligned_bytes(ptrdiff_t bytes) { return guarded(NULL, bytes, 64); }

static int intact(const char *from, const char *to) {
    while (from < to && (unsigned char)*from == CANARY)
        from++;
    return from == to;
}

void end_guarded(void) {
    for (int i = 0; i < buffer_count; i++) {
        const char *pages = buffers[i].pages, *end = pages + buffers[i].size, *at = buffers[i].at;
        ASAN_UNPOISON_MEMORY_REGION(pages, (size_t)buffers[i].size);
        if (!(intact(pages, at) && intact(at + buffers[i].bytes, end)) && failed())
            host_say("wrote beside a buffer of %d bytes\n", (int)buffers[i].bytes);
    }
    buffer_count = 0;
    host_release();
}

/* ------------------------------------------------------------------------------------------------------------ results */

void record(Result *r, const char *name, int direction, const float *data, ptrdiff_t count, int is_gradient) {
    if (!data)
        return;
    r->parts[r->count++] = (Part){name, direction, keep(data, count * (ptrdiff_t)sizeof *data), count, is_gradient};
    for (ptrdiff_t i = 0; i < count; i++)
        if (data[i] != data[i]) {
            if (failed())
                host_say("%s (direction %d) [%d] is NaN: not written, or made from something uninitialised\n", name,
                         direction, (int)i);
            return;
        }
}

const Part *find(const Result *r, const char *name, int direction) {
    for (int i = 0; i < r->count; i++)
        if (!strcmp(r->parts[i].name, name) && r->parts[i].direction == direction)
            return &r->parts[i];
    return NULL;
}

void expect_bits(const char *what, const char *name, const float *got, const float *expected, ptrdiff_t count) {
    for (ptrdiff_t i = 0; i < count; i++)
        if (memcmp(got + i, expected + i, sizeof *got) != 0) {
            if (failed())
                host_say("%s: %s[%d] is %g, not %g bit for bit\n", what, name, (int)i, (double)got[i],
                         (double)expected[i]);
            return;
        }
}

void expect_same(const char *what, const Result *got, const Result *whole) {
    for (int i = 0; i < got->count; i++) {
        const Part *p = &got->parts[i];
        expect_bits(what, p->name, p->data, find(whole, p->name, p->direction)->data, p->count);
    }
}

static double larger(double a, double b) { return a > b ? a : b; }

static double largest(const Part *p) {
    double most = 0;
    for (ptrdiff_t i = 0; i < p->count; i++)
        most = larger(most, fabs((double)p->data[i]));
    return most;
}

/* What a part's error is a share of: its largest entry. All of a few entries may be small by chance, from large terms
 * that cancel; these count for a tenth of the largest entry in any array of their sort, at least. */
static double scale_of(const Result *r, const Part *p) {
    double scale = largest(p);
    if (p->count < 32)
        for (int i = 0; i < r->count; i++)
            if (r->parts[i].is_gradient == p->is_gradient)
                scale = larger(scale, largest(&r->parts[i]) / 10);
    return scale;
}

void expect_near(const Result *got, const Result *scalar) {
    for (int i = 0; i < got->count; i++) {
        const Part *p = &got->parts[i], *e = find(scalar, p->name, p->direction);
        const double scale = scale_of(scalar, e), within = p->is_gradient ? GRADIENTS_WITHIN : VALUES_WITHIN;
        for (ptrdiff_t j = 0; j < e->count; j++) {
            const double off = fabs((double)p->data[j] - (double)e->data[j]);
            if (off <= within * scale) /* never so for NaN */
                continue;
            if (failed())
                host_say("%s%s (direction %d) [%d] is %g, scalar %g: off by %g of the largest entry\n",
                         p->is_gradient ? "gradient of " : "", p->name, p->direction, (int)j, (double)p->data[j],
                         (double)e->data[j], off / scale);
            break;
        }
    }
}

/* `within` is a share of the largest entry. */
void expect_values(const char *name, const float *got, const float *expected, ptrdiff_t count, double within) {
    double scale = 1e-3;
    for (ptrdiff_t i = 0; i < count; i++)
        scale = larger(scale, fabs((double)expected[i]));
    for (ptrdiff_t i = 0; i < count; i++)
        if (!(fabs((double)got[i] - (double)expected[i]) <= within * scale)) {
            if (failed())
                host_say("%s[%d] is %g, not %g within %g\n", name, (int)i, (double)got[i], (double)expected[i], within);
            return;
        }
}
