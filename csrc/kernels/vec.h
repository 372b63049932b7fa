/* vec.h: the vector words in which the kernels are written, for VL = 1, 4, 8 or 16. Part of kernels.h.
 * V is a vector of VL floats. Words ending in N touch only the first n (1..VL) lanes in memory; the others read as 0.
 * MAX and MIN give their second operand where either is NaN, as x86 does: write the constant first to pass NaN on.
 *
 * VI is a vector of VL int32, for the reduced storages (storage.h). BYTE_BIAS is what an integer of an operand is stored
 * with added to it: 128 where the instruction set multiplies unsigned bytes by signed ones. */

#if VL == 1
typedef float V;
#define V_SET1(s) (s)
#define V_LOAD(p) (*(p))
#define V_STORE(p, v) (*(p) = (v))
#define V_LOADN(p, n) ((void)(n), *(p))
#define V_STOREN(p, v, n) ((void)(n), *(p) = (v))
#define V_ADD(a, b) ((a) + (b))
#define V_SUB(a, b) ((a) - (b))
#define V_MUL(a, b) ((a) * (b))
#define V_DIV(a, b) ((a) / (b))
#define V_FMA(a, b, c) ((a) * (b) + (c)) /* two roundings: contraction is off, so the same bits everywhere */
#define V_MAX(a, b) ((a) > (b) ? (a) : (b))
#define V_MIN(a, b) ((a) < (b) ? (a) : (b))
#define V_ABS(a) fabsf(a)
#define V_COPYSIGN(a, sign) copysignf(a, sign)                /* a >= 0 with the sign of another */
#define V_SELECT_GT(a, b, yes, no) ((a) > (b) ? (yes) : (no)) /* a > b ? yes : no, lane by lane */
#define V_SELECT_EQ(a, b, yes, no) ((a) == (b) ? (yes) : (no))
INLINE V scalar_shift23(V a) {
    union {
        float f;
        uint32_t bits;
    } both = {a};
    both.bits <<= 23;
    return both.f;
}
#define V_SHIFT23(a) scalar_shift23(a) /* the bits, 23 places to the left: from a number's lowest bits to an exponent */

typedef int32_t VI;
enum { BYTE_BIAS = 128 };
INLINE VI scalar_word(const void *p) {
    VI word;
    memcpy(&word, p, sizeof word);
    return word;
}
INLINE VI scalar_size(V a) {
    const V size = fabsf(a);
    return scalar_word(&size);
}
/* A float16: its numbers below 2^-14 are whole multiples of 2^-24; the exponent of the others is 112 less than float32's,
 * and 31 for infinity and NaN. */
INLINE V scalar_half(const void *p) {
    uint16_t half;
    memcpy(&half, p, sizeof half);
    const uint32_t sign = (uint32_t)(half & 0x8000) << 16, rest = half & 0x7fff;
    const uint32_t bits = (rest << 13) + (rest < 0x7c00 ? UINT32_C(112) << 23 : UINT32_C(224) << 23);
    V v;
    memcpy(&v, &bits, sizeof v);
    return copysignf(rest < 0x400 ? (float)rest * 0x1p-24f : v, sign ? -1.0f : 1.0f);
}
#define V_LOADH(p) scalar_half(p) /* VL float16 from any address */
#define VI_ZERO 0
#define VI_LOAD(p) scalar_word(p)                    /* from any address */
#define VI_WORD(p) scalar_word(p)                    /* the 4 bytes at p, in every lane */
#define VI_BYTE(p, j) ((VI)((const int8_t *)(p))[j]) /* byte j (0..3) of each of VL words at p, with its sign */
#define VI_SHORT(p, j)                                                                                                 \
    ((VI)((const int16_t *)(const void *)(p))[j]) /* int16_t number j (0, 1) of each of VL words at p */
#define VI_ROUND(a) ((VI)lrintf(a))               /* to the nearest integer, halves to even; anything for NaN */
#define VI_FLOAT(i) ((float)(i))                  /* to the nearest float, halves to even */
#define VI_SIZE(a) scalar_size(a)                 /* the bits of |a|: ordered as the numbers are, and NaN last */
#define VI_MAX(a, b) ((a) > (b) ? (a) : (b))
#define VI_LARGEST(a) (a) /* the largest lane */
#define VI_ADD(a, b) ((a) + (b))
#define VI_256(i) ((i) * 256)
#define VI_LOW(i)                                                                                                      \
    ((VI)(int8_t)(i)) /* the lowest byte, with its sign; and the integer i is VI_LOW(i) + 256 VI_HIGH(i) */
#define VI_HIGH(i) (((i) + 128) >> 8)
#define VI_PUT(p, i) (*(uint8_t *)(p) = (uint8_t)((i) + BYTE_BIAS))  /* VL integers in -128..127 as bytes, biased */
#define VI_PUT_SHORT(p, i) (*(int16_t *)(void *)(p) = (int16_t)(i))  /* VL integers of 16 bits */
#define V_DEQUANTISE(i, scale, start) fmaf((float)(i), scale, start) /* one rounding, as everywhere */

#elif VL == 4
typedef float32x4_t V;
#define V_SET1(s) vdupq_n_f32(s)
#define V_LOAD(p) vld1q_f32(p)
#define V_STORE(p, v) vst1q_f32(p, v)
INLINE V neon_loadn(const float *p, int n) { /* no masked loads here: lane by lane */
    if (n == VL)
        return vld1q_f32(p);
    V v = vld1q_lane_f32(p, vdupq_n_f32(0), 0);
    v = n > 1 ? vld1q_lane_f32(p + 1, v, 1) : v;
    return n > 2 ? vld1q_lane_f32(p + 2, v, 2) : v;
}
INLINE void neon_storen(float *p, V v, int n) {
    if (n == VL) {
        vst1q_f32(p, v);
        return;
    }
    vst1q_lane_f32(p, v, 0);
    if (n > 1)
        vst1q_lane_f32(p + 1, v, 1);
    if (n > 2)
        vst1q_lane_f32(p + 2, v, 2);
}
#define V_LOADN(p, n) neon_loadn(p, n)
#define V_STOREN(p, v, n) neon_storen(p, v, n)
#define V_ADD(a, b) vaddq_f32(a, b)
#define V_SUB(a, b) vsubq_f32(a, b)
#define V_MUL(a, b) vmulq_f32(a, b)
#define V_DIV(a, b) vdivq_f32(a, b)
#define V_FMA(a, b, c) vfmaq_f32(c, a, b)
#define V_MAX(a, b) V_SELECT_GT(a, b, a, b) /* vmaxq gives NaN where either is NaN: not our rule */
#define V_MIN(a, b) V_SELECT_GT(b, a, a, b)
#define V_ABS(a) vabsq_f32(a)
#define V_COPYSIGN(a, sign) vbslq_f32(vdupq_n_u32(0x80000000u), sign, a)
#define V_SELECT_GT(a, b, yes, no) vbslq_f32(vcgtq_f32(a, b), yes, no)
#define V_SELECT_EQ(a, b, yes, no) vbslq_f32(vceqq_f32(a, b), yes, no)
#define V_SHIFT23(a) vreinterpretq_f32_u32(vshlq_n_u32(vreinterpretq_u32_f32(a), 23))

typedef int32x4_t VI;
enum { BYTE_BIAS = 0 };
INLINE VI neon_word(const void *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return vdupq_n_s32(word);
}
INLINE V neon_half(const void *p) {
    uint16x4_t half;
    memcpy(&half, p, sizeof half);
    return vcvt_f32_f16(vreinterpret_f16_u16(half));
}
INLINE void neon_put(void *p, VI i) {
    const int16x4_t narrow = vqmovn_s32(i);
    const int32x2_t bytes = vreinterpret_s32_s8(vqmovn_s16(vcombine_s16(narrow, narrow)));
    const int32_t word = vget_lane_s32(bytes, 0);
    memcpy(p, &word, sizeof word);
}
#define V_LOADH(p) neon_half(p)
#define VI_ZERO vdupq_n_s32(0)
#define VI_LOAD(p) vreinterpretq_s32_u8(vld1q_u8((const uint8_t *)(p)))
#define VI_WORD(p) neon_word(p)
#define VI_BYTE(p, j) vshrq_n_s32(vshlq_s32(VI_LOAD(p), vdupq_n_s32(24 - 8 * (int)(j))), 24)
#define VI_SHORT(p, j) vshrq_n_s32(vshlq_s32(VI_LOAD(p), vdupq_n_s32(16 - 16 * (int)(j))), 16)
#define VI_ROUND(a) vcvtnq_s32_f32(a)
#define VI_FLOAT(i) vcvtq_f32_s32(i)
#define VI_SIZE(a) vreinterpretq_s32_f32(vabsq_f32(a))
#define VI_MAX(a, b) vmaxq_s32(a, b)
#define VI_LARGEST(a) vmaxvq_s32(a)
#define VI_ADD(a, b) vaddq_s32(a, b)
#define VI_256(i) vshlq_n_s32(i, 8)
#define VI_LOW(i) vshrq_n_s32(vshlq_n_s32(i, 24), 24)
#define VI_HIGH(i) vshrq_n_s32(vaddq_s32(i, vdupq_n_s32(128)), 8)
#define VI_PUT(p, i) neon_put(p, i)
#define VI_PUT_SHORT(p, i) vst1_s16((int16_t *)(void *)(p), vqmovn_s32(i))
#define V_DEQUANTISE(i, scale, start) V_FMA(VI_FLOAT(i), scale, start)

#elif VL == 8
typedef __m256 V;
#define V_SET1(s) _mm256_set1_ps(s)
#define V_LOAD(p) _mm256_loadu_ps(p)
#define V_STORE(p, v) _mm256_storeu_ps(p, v)
static const int32_t tail_mask[16] = {-1, -1, -1, -1, -1, -1, -1, -1, 0, 0, 0, 0, 0, 0, 0, 0};
#define V_MASK(n) _mm256_loadu_si256((const __m256i *)(tail_mask + 8 - (n)))
#define V_LOADN(p, n) ((n) == VL ? _mm256_loadu_ps(p) : _mm256_maskload_ps(p, V_MASK(n)))
#define V_STOREN(p, v, n)                                                                                              \
    do {                                                                                                               \
        if ((n) == VL)                                                                                                 \
            _mm256_storeu_ps(p, v);                                                                                    \
        else                                                                                                           \
            _mm256_maskstore_ps(p, V_MASK(n), v);                                                                      \
    } while (0)
#define V_ADD(a, b) _mm256_add_ps(a, b)
#define V_SUB(a, b) _mm256_sub_ps(a, b)
#define V_MUL(a, b) _mm256_mul_ps(a, b)
#define V_DIV(a, b) _mm256_div_ps(a, b)
#define V_FMA(a, b, c) _mm256_fmadd_ps(a, b, c)
#define V_MAX(a, b) _mm256_max_ps(a, b)
#define V_MIN(a, b) _mm256_min_ps(a, b)
#define V_ABS(a) _mm256_andnot_ps(_mm256_set1_ps(-0.0f), a)
#define V_COPYSIGN(a, sign) _mm256_or_ps(_mm256_and_ps(_mm256_set1_ps(-0.0f), sign), a)
#define V_SELECT_GT(a, b, yes, no) _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_GT_OQ))
#define V_SELECT_EQ(a, b, yes, no) _mm256_blendv_ps(no, yes, _mm256_cmp_ps(a, b, _CMP_EQ_OQ))
#define V_SHIFT23(a) _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(a), 23))

typedef __m256i VI;
enum { BYTE_BIAS = 128 };
INLINE VI avx2_word(const void *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm256_set1_epi32(word);
}
INLINE int32_t avx2_largest(VI a) {
    __m128i most = _mm_max_epi32(_mm256_castsi256_si128(a), _mm256_extracti128_si256(a, 1));
    most = _mm_max_epi32(most, _mm_shuffle_epi32(most, 0x4e));
    return _mm_cvtsi128_si32(_mm_max_epi32(most, _mm_shuffle_epi32(most, 0xb1)));
}
INLINE __m128i avx2_narrow(VI i) { return _mm_packs_epi32(_mm256_castsi256_si128(i), _mm256_extracti128_si256(i, 1)); }
INLINE void avx2_put(void *p, VI i) {
    const __m128i narrow = avx2_narrow(i);
    _mm_storel_epi64((__m128i *)p, _mm_xor_si128(_mm_packs_epi16(narrow, narrow), _mm_set1_epi8(-128)));
}
#define V_LOADH(p) _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(const void *)(p)))
#define VI_ZERO _mm256_setzero_si256()
#define VI_LOAD(p) _mm256_loadu_si256((const __m256i *)(const void *)(p))
#define VI_WORD(p) avx2_word(p)
#define VI_BYTE(p, j) _mm256_srai_epi32(_mm256_sll_epi32(VI_LOAD(p), _mm_cvtsi32_si128(24 - 8 * (int)(j))), 24)
#define VI_SHORT(p, j) _mm256_srai_epi32(_mm256_sll_epi32(VI_LOAD(p), _mm_cvtsi32_si128(16 - 16 * (int)(j))), 16)
#define VI_ROUND(a) _mm256_cvtps_epi32(a)
#define VI_FLOAT(i) _mm256_cvtepi32_ps(i)
#define VI_SIZE(a) _mm256_and_si256(_mm256_set1_epi32(INT32_MAX), _mm256_castps_si256(a))
#define VI_MAX(a, b) _mm256_max_epi32(a, b)
#define VI_LARGEST(a) avx2_largest(a)
#define VI_ADD(a, b) _mm256_add_epi32(a, b)
#define VI_256(i) _mm256_slli_epi32(i, 8)
#define VI_LOW(i) _mm256_srai_epi32(_mm256_slli_epi32(i, 24), 24)
#define VI_HIGH(i) _mm256_srai_epi32(_mm256_add_epi32(i, _mm256_set1_epi32(128)), 8)
#define VI_PUT(p, i) avx2_put(p, i)
#define VI_PUT_SHORT(p, i) _mm_storeu_si128((__m128i *)(void *)(p), avx2_narrow(i))
#define V_DEQUANTISE(i, scale, start) V_FMA(VI_FLOAT(i), scale, start)

#elif VL == 16
typedef __m512 V;
#define V_SET1(s) _mm512_set1_ps(s)
#define V_LOAD(p) _mm512_loadu_ps(p)
#define V_STORE(p, v) _mm512_storeu_ps(p, v)
#define V_MASK(n) ((__mmask16)((1u << (n)) - 1))
#define V_LOADN(p, n) ((n) == VL ? _mm512_loadu_ps(p) : _mm512_maskz_loadu_ps(V_MASK(n), p))
#define V_STOREN(p, v, n) /* a masked store is not forwarded to a later load */                                        \
    do {                                                                                                               \
        if ((n) == VL)                                                                                                 \
            _mm512_storeu_ps(p, v);                                                                                    \
        else                                                                                                           \
            _mm512_mask_storeu_ps(p, V_MASK(n), v);                                                                    \
    } while (0)
#define V_ADD(a, b) _mm512_add_ps(a, b)
#define V_SUB(a, b) _mm512_sub_ps(a, b)
#define V_MUL(a, b) _mm512_mul_ps(a, b)
#define V_DIV(a, b) _mm512_div_ps(a, b)
#define V_FMA(a, b, c) _mm512_fmadd_ps(a, b, c)
#define V_MAX(a, b) _mm512_max_ps(a, b)
#define V_MIN(a, b) _mm512_min_ps(a, b)
#define V_ABS(a) _mm512_abs_ps(a)
#define V_COPYSIGN(a, sign) _mm512_or_ps(_mm512_and_ps(_mm512_set1_ps(-0.0f), sign), a)
#define V_SELECT_GT(a, b, yes, no) _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_GT_OQ), no, yes)
#define V_SELECT_EQ(a, b, yes, no) _mm512_mask_blend_ps(_mm512_cmp_ps_mask(a, b, _CMP_EQ_OQ), no, yes)
#define V_SHIFT23(a) _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(a), 23))

typedef __m512i VI;
enum { BYTE_BIAS = 128 };
INLINE VI avx512_word(const void *p) {
    int32_t word;
    memcpy(&word, p, sizeof word);
    return _mm512_set1_epi32(word);
}
#define V_LOADH(p) _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)(const void *)(p)))
#define VI_ZERO _mm512_setzero_si512()
#define VI_LOAD(p) _mm512_loadu_si512((const void *)(p))
#define VI_WORD(p) avx512_word(p)
#define VI_BYTE(p, j) _mm512_srai_epi32(_mm512_sll_epi32(VI_LOAD(p), _mm_cvtsi32_si128(24 - 8 * (int)(j))), 24)
#define VI_SHORT(p, j) _mm512_srai_epi32(_mm512_sll_epi32(VI_LOAD(p), _mm_cvtsi32_si128(16 - 16 * (int)(j))), 16)
#define VI_ROUND(a) _mm512_cvtps_epi32(a)
#define VI_FLOAT(i) _mm512_cvtepi32_ps(i)
#define VI_SIZE(a) _mm512_and_si512(_mm512_set1_epi32(INT32_MAX), _mm512_castps_si512(a))
#define VI_MAX(a, b) _mm512_max_epi32(a, b)
#define VI_LARGEST(a) _mm512_reduce_max_epi32(a)
#define VI_ADD(a, b) _mm512_add_epi32(a, b)
#define VI_256(i) _mm512_slli_epi32(i, 8)
#define VI_LOW(i) _mm512_srai_epi32(_mm512_slli_epi32(i, 24), 24)
#define VI_HIGH(i) _mm512_srai_epi32(_mm512_add_epi32(i, _mm512_set1_epi32(128)), 8)
#define VI_PUT(p, i)                                                                                                   \
    _mm_storeu_si128((__m128i *)(void *)(p), _mm_xor_si128(_mm512_cvtsepi32_epi8(i), _mm_set1_epi8(-128)))
#define VI_PUT_SHORT(p, i) _mm256_storeu_si256((__m256i *)(void *)(p), _mm512_cvtsepi32_epi16(i))
#define V_DEQUANTISE(i, scale, start) V_FMA(VI_FLOAT(i), scale, start)

/* Only here: a table of 16 floats is a register, looked up at once in every lane by the lowest 4 bits of VI's. */
#define V_LOOKUP(table, i) _mm512_permutexvar_ps(i, _mm512_load_ps(table))
/* The segment in which a size a >= 0 lies: its highest bits, at least `first`. */
#define V_SEGMENT(a, bits, first)                                                                                      \
    _mm512_max_epi32(_mm512_set1_epi32(first), _mm512_srli_epi32(_mm512_castps_si512(a), bits))
#endif

/* Makes the compiler load a vector once, into a register, where it would read memory again at each use. */
#if VL == 16
#define V_IN_REGISTER(v) __asm__("" : "+v"(v))
#elif VL == 8
#define V_IN_REGISTER(v) __asm__("" : "+x"(v))
#else
#define V_IN_REGISTER(v) ((void)(v))
#endif
