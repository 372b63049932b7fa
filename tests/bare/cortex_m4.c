/* Start of a program on a bare Cortex-M4 (QEMU's board mps2-an386): the vector table, and the end by semihosting. */
#include <stddef.h>

#include "model.h"

extern unsigned stack_top;
void start(void);

__attribute__((section(".vectors"), used)) static void *const vectors[] = {&stack_top, (void *)start};

/* gcc calls these for loops that copy or clear, without a library too. */
void *memset(void *to, int value, size_t n)
{
    volatile unsigned char *byte = to;
    while (n--) *byte++ = (unsigned char)value;
    return to;
}

void *memcpy(void *to, const void *from, size_t n)
{
    volatile unsigned char *byte = to;
    const unsigned char *source = from;
    while (n--) *byte++ = *source++;
    return to;
}

static void end(int status)
{
    /* Semihosting's SYS_EXIT: 0x20026 is status 0 of QEMU, 0x20023 is status 1. */
    register int operation __asm__("r0") = 0x18;
    register int reason __asm__("r1") = status == 0 ? 0x20026 : 0x20023;
    __asm__ volatile("bkpt 0xab" : : "r"(operation), "r"(reason) : "memory");
    for (;;) {
    }
}

void start(void)
{
    *(volatile unsigned *)0xe000ed88 |= 0xfu << 20; /* CPACR: the floating-point unit is on */
    __asm__ volatile("dsb\n\tisb");
    end(model_selftest());
}
