/* isa_avx512.c: x86 with AVX-512 (F, VL, BW, DQ: every such server since Skylake); 32 registers of 16 floats. */
#include "internal.h"

#if defined(__x86_64__)
#include <immintrin.h>

#define ISA avx512
#define VL 16
#define ROWS 6
#define GRAD_ROWS 8
TARGET_BEGIN("avx512f,avx512vl,avx512bw,avx512dq,avx2,fma,f16c")
#include "kernels/kernels.h"
TARGET_END
#endif
