/* quantised.c: see quantised.h. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "quantised.h"

#include "api.h"

/* The nearest float16, ties to even, of a number below its largest. */
static uint16_t to_half(float value) {
    const float size = fabsf(value);
    const uint16_t sign = signbit(value) ? 0x8000 : 0;
    int exponent = 0;
    frexpf(size, &exponent); /* size < 2^exponent */
    const int last = exponent < -13 ? -24 : exponent - 11; /* place of the last bit */
    const uint32_t units = (uint32_t)lrintf(ldexpf(size, -last));
    /* Whole multiples of 2^last; beyond 2^10 of them, bit 10 is the exponent's lowest bit. */
    return (uint16_t)(sign + (last == -24 ? units : units + (uint32_t)(last + 24) * 1024));
}

/* The scale of a row: its largest size, or largest sum of two neighbours of like sign, is 127. */
static float scale_of_row(const float *w, ptrdiff_t K) {
    float most = 0;
    for (ptrdiff_t k = 0; k < K; k++) {
        const float pair = k % 2 == 0 && k + 1 < K && w[k] * w[k + 1] > 0 ? w[k] + w[k + 1] : w[k];
        most = fmaxf(most, fmaxf(fabsf(w[k]), fabsf(pair)));
    }
    return most / 127;
}

Stored store(const float *w, ptrdiff_t M, ptrdiff_t K, int storage) {
    Stored to = {NULL, NULL, M * K * (storage == FL_FLOAT16 ? 2 : storage == FL_INT8 ? 1 : 4)};
    to.numbers = guarded(storage == FL_FLOAT32 ? w : NULL, to.bytes, storage == FL_FLOAT16 ? 2 : storage == FL_INT8 ? 1 : 4);
    if (storage == FL_INT8)
        to.scales = floats(NULL, M);
    for (ptrdiff_t i = 0; i < M; i++) {
        const float scale = scale_of_row(w + i * K, K);
        if (storage == FL_INT8)
            to.scales[i] = scale > 0 ? scale : 1;
        for (ptrdiff_t k = i * K; k < (i + 1) * K && storage != FL_FLOAT32; k++)
            if (storage == FL_FLOAT16)
                ((uint16_t *)to.numbers)[k] = to_half(w[k]);
            else
                ((int8_t *)to.numbers)[k] = (int8_t)lrintf(w[k] / to.scales[i]);
    }
    return to;
}

void model_product(float *out, const float *start, const int8_t *w, const float *scales, ptrdiff_t M, ptrdiff_t K,
                   const float *x, float least, int planes) {
    const float most = planes == 2 ? 8191 : 127;
    float m = least;
    for (ptrdiff_t k = 0; k < K; k++)
        m = fmaxf(m, fabsf(x[k]));
    for (ptrdiff_t i = 0; i < M; i++) {
        int64_t sum = 0;
        for (ptrdiff_t k = 0; k < K; k++)
            sum += (int64_t)w[i * K + k] * lrintf(x[k] * (most / m));
        const float factor = scales[i] * (m / most);
        out[i] = fmaf((float)sum, factor, start[i]);
    }
}
