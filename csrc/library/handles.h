/* handles.h: what is behind the handles of fastlstm.h. */
#ifndef LIB_HANDLES_H
#define LIB_HANDLES_H

#include <stdatomic.h>

#include "native.h"
#include "program.h"

struct fastlstm_model {
    atomic_size_t holders;
    fl_model native;
    fl_stage *stages;
    packed_step *packed; /* (native.S) */
    uint32_t *widths;    /* (parts) of each part of a state: for each cell h and, for LSTM, c */
    size_t parts;
    ptrdiff_t record;     /* floats of a state */
    size_t I, vocabulary; /* what a step takes; 0: not this kind */
    size_t U;
    size_t state_bytes, weight_bytes;
    int threads;
    program program; /* its steps are NULL */
};

/* ---- a state as bytes (state.c); the form is that of fastlstm/streams/records.py ---- */

/* Writes model->state_bytes bytes, of a state's numbers and the steps that it has done. */
void lib_state_write(const fastlstm_model *model, const float *record, uint64_t steps, void *memory);

/* The reverse; the numbers are written only where the bytes are right. */
int lib_state_read(const fastlstm_model *model, const void *bytes, size_t length, unsigned flags, float *record,
                   uint64_t *steps, fastlstm_error *error);

/* What export and import of a stream and of a batch share. */
int lib_state_export(const fastlstm_model *model, const float *record, uint64_t steps, void *memory, size_t room,
                     size_t *need);

/* Whether all ids (n) are below the vocabulary. */
int lib_ids_fit(const fastlstm_model *model, const int64_t *ids, size_t n);

#endif
