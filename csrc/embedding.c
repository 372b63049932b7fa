/* embedding.c: the gradient of a table of vectors. */
#include "internal.h"

void fl_add_rows(float *table, ptrdiff_t width, const int64_t *ids, const float *rows, ptrdiff_t n) {
    for (ptrdiff_t k = 0; k < n; k++) {
        float *restrict const sum = table + ids[k] * width;
        const float *restrict const row = rows + k * width;
        for (ptrdiff_t j = 0; j < width; j++)
            sum[j] += row[j];
    }
}
