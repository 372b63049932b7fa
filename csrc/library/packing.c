/* packing.c: the weights of a file's step, checked and packed. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "program.h"

void *lib_aligned(size_t bytes) {
    void *memory = NULL;
    const size_t whole = bytes < SIZE_MAX - 64 ? (bytes / 64 + 1) * 64 : 0;
    return whole && posix_memalign(&memory, 64, whole) == 0 ? memory : NULL;
}

/* ------------------------------------------------------------------------------------------------------------ arrays */

static const char *const dtype_of[] = {"f4", "f2", "|i1", "i2"}; /* by enum fl_storage */

/* Reading a step's arrays: each is copied to memory at a cache line, which is freed after packing. */
typedef struct {
    const program_step *step;
    const tensor_file *file;
    void *copies[STEP_ARRAYS];
    fastlstm_error *error;
    int code; /* of the first error */
} supply;

static void fail_shape(supply *from, const tensor *a, size_t rows, size_t columns) {
    from->code = lib_fail(from->error, FASTLSTM_SHAPE,
                          "array %.*s has dtype %s and %d axes (%zu, %zu), and the step takes (%zu, %zu)",
                          (int)(a->name.length < 60 ? a->name.length : 60), a->name.at, a->dtype, a->axes,
                          a->axes > 0 ? a->shape[0] : 0, a->axes > 1 ? a->shape[1] : 0, rows, columns);
}

/* A copy of an array (rows, columns), or (rows) where columns is 0. NULL where the step has none, or with an error. */
static const void *array(supply *from, int which, int storage, size_t rows, size_t columns) {
    const json_slice name = from->step->arrays[which];
    if (from->code || !name.at)
        return NULL;
    const tensor *const a = tensors_find(from->file, name);
    if (!a) {
        from->code = lib_fail(from->error, FASTLSTM_FORMAT, "the file lacks the array %.*s that a step names",
                              (int)(name.length < 100 ? name.length : 100), name.at);
        return NULL;
    }
    const int axes = columns ? 2 : 1;
    if (a->axes != axes || a->shape[0] != rows || (columns && a->shape[1] != columns) ||
        strcmp(a->dtype, dtype_of[storage]) != 0) {
        fail_shape(from, a, rows, columns);
        return NULL;
    }
    void *const copy = lib_aligned(a->size);
    if (!copy) {
        from->code = lib_fail(from->error, FASTLSTM_MEMORY, "no memory is left for an array of %zu bytes", a->size);
        return NULL;
    }
    free(from->copies[which]);
    return from->copies[which] = memcpy(copy, a->bytes, a->size);
}

/* The same, which the step must have. */
static const void *needed(supply *from, int which, int storage, size_t rows, size_t columns) {
    const void *const a = array(from, which, storage, rows, columns);
    if (!a && !from->code)
        from->code = lib_fail(from->error, FASTLSTM_FORMAT, "a step lacks one of its arrays (number %d)", which);
    return a;
}

static void free_copies(supply *from) {
    for (int i = 0; i < STEP_ARRAYS; i++)
        free(from->copies[i]);
}

/* Whether all integers of a matrix are within the range of quantize(): sums of larger ones could overflow. */
static int integers_fit(const void *w, int storage, size_t rows, size_t columns) {
    if (storage == FL_INT16) {
        const int16_t *const q = w;
        for (size_t i = 0; i < rows * columns; i++)
            if (q[i] < -8191 || q[i] > 8191)
                return 0;
        return 1;
    }
    for (size_t row = 0; row < rows; row++) {
        const int8_t *const q = (const int8_t *)w + row * columns;
        for (size_t k = 0; k < columns; k++)
            if (q[k] == -128)
                return 0;
        for (size_t k = 0; k + 1 < columns; k += 2)
            if (q[k] + q[k + 1] > 128 || q[k] + q[k + 1] < -128)
                return 0;
    }
    return 1;
}

/* A weight matrix in the step's storage and, for integers, its scales. */
static const void *matrix(supply *from, int which, int scale, size_t rows, size_t columns, const float **scales) {
    const int storage = from->step->storage, integers = storage == FL_INT8 || storage == FL_INT16;
    const void *const w = needed(from, which, storage, rows, columns);
    *scales = integers ? needed(from, scale, FL_FLOAT32, rows, 0) : NULL;
    if (w && integers && !integers_fit(w, storage, rows, columns)) {
        from->code = lib_fail(from->error, FASTLSTM_FORMAT,
                              "a matrix has integers that its storage never has: they were changed after quantize()");
        return NULL;
    }
    return w;
}

/* ------------------------------------------------------------------------------------------------------------- kinds */

static int is_size(int64_t n) { return n >= 1 && n <= INT32_MAX; }

static int check_spec(const program_step *step, fastlstm_error *error) {
    const fl_spec *const s = &step->spec;
    const int lstm = s->kind == FL_LSTM, acts = lstm ? 3 : s->kind == FL_GRU ? 2 : 1;
    int wrong = step->acts != acts || (!lstm && (s->projected || s->peepholes || s->input_forget)) ||
                (s->kind != FL_GRU && s->reset_after) || !(s->clip >= 0 && s->clip <= 3.4028235e38f) ||
                (!s->projected && step->U != step->H);
    for (int i = 0; i < acts; i++)
        wrong |= s->act[i].id == FL_SOFTMAX;
    for (int i = 0; i < 3; i++)
        wrong |= !(step->least[i] >= 0 && step->least[i] <= 1);
    wrong |= step->planes == 2 && step->storage != FL_INT8;
    if (step->storage == FL_INT8 || step->storage == FL_INT16)
        for (int i = 0; i < 3; i++)
            wrong |= step->least[i] == 0;
    return wrong ? lib_fail(error, FASTLSTM_FORMAT, "a step's equation does not fit its kind of cell") : FASTLSTM_OK;
}

/* Allocates the bytes of a step's packed weights, and notes their number for the model's total. */
static int keep(packed_step *packed, ptrdiff_t bytes, fastlstm_error *error) {
    packed->bytes = (size_t)bytes;
    packed->memory = lib_aligned(packed->bytes);
    return packed->memory
               ? FASTLSTM_OK
               : lib_fail(error, FASTLSTM_MEMORY, "no memory is left for %zu bytes of weights", packed->bytes);
}

static int pack_cell(supply *from, packed_step *packed) {
    const program_step *const step = from->step;
    fl_block *const block = &packed->block;
    int code = check_spec(step, from->error);
    if (code)
        return code;
    block->spec = step->spec;
    block->spec.I = step->I, block->spec.H = step->H, block->spec.R = step->U;
    block->storage = step->storage;
    block->x_least = step->least[0], block->h_least = step->least[1], block->m_least = step->least[2];
    block->x_planes = step->planes;
    const size_t I = (size_t)step->I, H = (size_t)step->H, R = (size_t)step->U;
    const size_t GH = (step->spec.kind == FL_LSTM ? 4 : step->spec.kind == FL_GRU ? 3 : 1) * H;
    fl_params params = {0};
    params.weight_ih = matrix(from, WEIGHT_IH, SCALE_IH, GH, I, &params.scale_ih);
    params.weight_hh = matrix(from, WEIGHT_HH, SCALE_HH, GH, R, &params.scale_hh);
    if (step->spec.projected)
        params.weight_hr = matrix(from, WEIGHT_HR, SCALE_HR, R, H, &params.scale_hr);
    if (step->spec.peepholes)
        params.weight_peep = needed(from, WEIGHT_PEEP, FL_FLOAT32, 3, H);
    params.bias_ih = array(from, BIAS_IH, FL_FLOAT32, GH, 0);
    params.bias_hh = array(from, BIAS_HH, FL_FLOAT32, GH, 0);
    if (from->code)
        return from->code;
    if (params.bias_ih && !params.bias_hh) { /* packing adds two */
        params.bias_hh = from->copies[BIAS_HH] = lib_aligned(GH * sizeof(float));
        if (!params.bias_hh)
            return lib_fail(from->error, FASTLSTM_MEMORY, "no memory is left for a bias of %zu numbers", GH);
        memset(from->copies[BIAS_HH], 0, GH * sizeof(float));
    }
    code = keep(packed, fl_pack_size(block, FL_FORWARD), from->error);
    if (!code)
        fl_pack(block, &params, FL_FORWARD, packed->memory);
    return code;
}

static int pack_dense(supply *from, packed_step *packed) {
    const program_step *const step = from->step;
    fl_dense *const dense = &packed->dense;
    dense->I = step->I, dense->U = step->U;
    const float *const weight = needed(from, WEIGHT, FL_FLOAT32, (size_t)step->U, (size_t)step->I);
    const float *const bias = array(from, BIAS, FL_FLOAT32, (size_t)step->U, 0);
    if (from->code)
        return from->code;
    const int code = keep(packed, fl_dense_size(dense, 0), from->error);
    if (!code)
        fl_dense_pack(dense, weight, bias, 0, packed->memory);
    return code;
}

static int pack_lookup(supply *from, packed_step *packed) {
    const program_step *const step = from->step;
    const float *const table = needed(from, WEIGHT, FL_FLOAT32, (size_t)step->I, (size_t)step->U);
    if (!table)
        return from->code;
    packed->memory = from->copies[WEIGHT];
    packed->bytes = (size_t)(step->I * step->U) * sizeof(float);
    from->copies[WEIGHT] = NULL;
    return FASTLSTM_OK;
}

static int pack_kind(supply *from, packed_step *packed) {
    switch (from->step->kind) {
    case FL_STAGE_LOOKUP: return pack_lookup(from, packed);
    case FL_STAGE_CELL: return pack_cell(from, packed);
    case FL_STAGE_DENSE: return pack_dense(from, packed);
    default: return FASTLSTM_OK;
    }
}

static int check_step(const program_step *s, fastlstm_error *error) {
    const int cell = s->kind == FL_STAGE_CELL, has_act = s->kind == FL_STAGE_DENSE || s->kind == FL_STAGE_POINTWISE;
    if (!is_size(s->I) || !is_size(s->U) || (cell && !is_size(s->H)))
        return lib_fail(error, FASTLSTM_FORMAT, "a step has the sizes %lld and %lld", (long long)s->I, (long long)s->U);
    if (has_act && s->acts != 1)
        return lib_fail(error, FASTLSTM_FORMAT, "a step has %d activations instead of 1", s->acts);
    if (s->kind == FL_STAGE_POINTWISE ? s->I != s->U : s->skip && (s->I != s->U || s->kind == FL_STAGE_LOOKUP))
        return lib_fail(error, FASTLSTM_SHAPE, "a step adds or keeps rows of %lld and %lld numbers", (long long)s->I,
                        (long long)s->U);
    if (!cell && s->storage != FL_FLOAT32)
        return lib_fail(error, FASTLSTM_UNSUPPORTED, "only recurrent layers have weights in a reduced storage here");
    return FASTLSTM_OK;
}

int step_pack(const program_step *step, const tensor_file *file, int isa, packed_step *packed, fl_stage *stage,
              fastlstm_error *error) {
    int code = check_step(step, error);
    if (code)
        return code;
    supply from = {.step = step, .file = file, .error = error};
    packed->block.isa = packed->dense.isa = isa;
    code = pack_kind(&from, packed);
    free_copies(&from);
    *stage = (fl_stage){.kind = step->kind,
                        .skip = step->skip,
                        .I = (ptrdiff_t)step->I,
                        .U = (ptrdiff_t)step->U,
                        .block = &packed->block,
                        .dense = &packed->dense,
                        .table = packed->memory,
                        .act = step->spec.act[0]};
    return code;
}
