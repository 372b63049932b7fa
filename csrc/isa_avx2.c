/* isa_avx2.c: x86 with AVX2 and FMA; 16 registers of 8 floats. */
#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define ISA avx2
#define VL 8
#define ROWS 3
#define GRAD_ROWS 4
TARGET_BEGIN("avx2,fma,f16c")
#include "kernels/kernels.h"
TARGET_END
#endif
