/* quantised.c: see quantised.h. */
#include <math.h>
#include <string.h>

#include "check.h"
#include "quantised.h"

#include "api.h"

static float larger(float a, float b) { return a > b ? a : b; }

/* 2^n for a normal number. */
static float power_of_2(int n) {
    const uint32_t bits = (uint32_t)(n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return power;
}

/* The nearest float16, ties to even, of a number below its largest. */
static uint16_t to_half(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    const int exponent = (int)(bits >> 23 & 255) - 127;          /* 2^exponent <= size */
    const int last = exponent < -14 ? -24 : exponent - 10;       /* place of the last bit */
    const long units = lrintf(fabsf(value) * power_of_2(-last)); /* beyond 2^10 of them, bit 10 is the exponent's */
    return (uint16_t)((bits >> 16 & 0x8000) + (uint32_t)units + (uint32_t)(last + 24) * 1024);
}

/* The scale of a row: its largest size is 8191 or, with FL_INT8, its largest size or sum of two neighbours is 127. */
static float scale_of_row(const float *w, ptrdiff_t K, int storage) {
    float most = 0;
    for (ptrdiff_t k = 0; k < K; k++) {
        const int pairs = storage == FL_INT8 && k % 2 == 0 && k + 1 < K;
        const float pair = pairs && w[k] * w[k + 1] > 0 ? w[k] + w[k + 1] : w[k];
        most = larger(most, larger(fabsf(w[k]), fabsf(pair)));
    }
    return most > 0 ? most / (storage == FL_INT8 ? 127 : 8191) : 1;
}

static ptrdiff_t bytes_of(int storage) { return storage == FL_INT8 ? 1 : storage == FL_FLOAT32 ? 4 : 2; }

Stored store(const float *w, ptrdiff_t M, ptrdiff_t K, int storage) {
    const int integers = storage == FL_INT8 || storage == FL_INT16;
    Stored to = {NULL, NULL, M * K * bytes_of(storage)};
    to.numbers = guarded(storage == FL_FLOAT32 ? w : NULL, to.bytes, bytes_of(storage));
    to.scales = integers ? floats(NULL, M) : NULL;
    for (ptrdiff_t i = 0; i < M; i++) {
        if (integers)
            to.scales[i] = scale_of_row(w + i * K, K, storage);
        for (ptrdiff_t k = i * K; k < (i + 1) * K; k++)
            switch (storage) {
            case FL_FLOAT16: ((uint16_t *)to.numbers)[k] = to_half(w[k]); break;
            case FL_INT8: ((int8_t *)to.numbers)[k] = (int8_t)lrintf(w[k] / to.scales[i]); break;
            case FL_INT16: ((int16_t *)to.numbers)[k] = (int16_t)lrintf(w[k] / to.scales[i]); break;
            default: break; /* copied */
            }
    }
    return to;
}

void model_product(float *out, const float *start, const Stored *w, int storage, ptrdiff_t M, ptrdiff_t K,
                   const float *x, int planes) {
    const float most = planes == 2 || storage == FL_INT16 ? 8191 : 127;
    const ptrdiff_t stretch = storage == FL_INT16 ? 32 : planes == 2 ? 2048 : 65536;
    float m = 0x1p-100f;
    for (ptrdiff_t k = 0; k < K; k++)
        m = larger(m, fabsf(x[k]));
    for (ptrdiff_t i = 0; i < M; i++) {
        const float factor = w->scales[i] * (m / most);
        out[i] = start[i];
        for (ptrdiff_t k0 = 0; k0 < K; k0 += stretch) {
            int64_t sum = 0;
            for (ptrdiff_t k = i * K + k0; k < i * K + K && k < i * K + k0 + stretch; k++) {
                const int q = storage == FL_INT8 ? ((const int8_t *)w->numbers)[k] : ((const int16_t *)w->numbers)[k];
                sum += (int64_t)q * lrintf(x[k - i * K] * (most / m));
            }
            out[i] = fmaf((float)sum, factor, out[i]);
        }
    }
}
