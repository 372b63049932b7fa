/* quantised.h: weights in a reduced storage for the cases of recurrent_cases.c, and a model of a product with them.
 * Written from the definitions in csrc/kernels/storage.h, with no code of the kernels. */
#ifndef FL_TEST_QUANTISED_H
#define FL_TEST_QUANTISED_H

#include <stddef.h>
#include <stdint.h>

/* A matrix (M, K) of floats in a storage (enum fl_storage): its numbers in guarded memory, and scales (M) of integers. */
typedef struct {
    void *numbers;
    float *scales;
    ptrdiff_t bytes;
} Stored;
Stored store(const float *w, ptrdiff_t M, ptrdiff_t K, int storage);

/* out (M) = start + w x for a row x (K) of floats and w (M, K) of FL_INT8 or FL_INT16. `planes` 2: x in 16 bits. */
void model_product(float *out, const float *start, const Stored *w, int storage, ptrdiff_t M, ptrdiff_t K,
                   const float *x, int planes);

#endif
