/* memory.c: whether memory has changed. */
#include "internal.h"

uint64_t fl_checksum(const fl_memory *stretches, int count) {
    uint64_t (*const of_one)(const void *, ptrdiff_t) = fl_isa_at(fl_isa_chosen())->checksum;
    uint64_t sum = 0;
    for (int i = 0; i < count; i++)
        sum = (sum << 1 | sum >> 63) + of_one(stretches[i].memory, stretches[i].bytes);
    return sum;
}

uint64_t flq_checksum(const fl_memory *stretches, int count) { return fl_checksum(stretches, count); }
