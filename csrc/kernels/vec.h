/* vec.h: the vector words in which the kernels are written, for VL = 1, 4, 8 or 16. Part of kernels.h.
 * V is a vector of VL floats. Words ending in N touch only the first n (1..VL) lanes in memory; the others read as 0.
 * MAX and MIN give their second operand where either is NaN, as x86 does: write the constant first to pass NaN on. */

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
/* Only here: a table of 16 floats is a register, looked up at once in every lane by the lowest 4 bits of VI's. */
typedef __m512i VI;
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
