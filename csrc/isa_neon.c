/* isa_neon.c: 64-bit ARM; 32 registers of 4 floats. NEON belongs to the base there, so no target region is opened. */
#include "internal.h"

#if defined(__aarch64__)
#include <arm_neon.h>

#define ISA neon
#define VL 4
#define ROWS 6
#define GRAD_ROWS 8
#include "kernels/kernels.h"
#endif
