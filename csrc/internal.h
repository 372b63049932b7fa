/* internal.h: macros, and the types that files of the extension share. */
#ifndef FL_INTERNAL_H
#define FL_INTERNAL_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "api.h"
#include "pool.h"
#include "tuning.h"

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))

/* EACH(i, n): a loop over i = 0..n-1 that the compiler unrolls completely; n is a constant after inlining. A tile's
 * accumulators stay in registers only where such loops are gone. */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif
#define EACH(i, n) UNROLL for (int i = 0; i < (n); i++)

/* Target regions: with them no file needs compiler flags of its own, and one command builds every instruction set. */
#if defined(__clang__)
#define TARGET_BEGIN(features)                                                                                         \
    _Pragma(FL_STRING(clang attribute push(__attribute__((target(features))), apply_to = function)))
#define TARGET_END _Pragma("clang attribute pop")
#else
#define TARGET_BEGIN(features) _Pragma("GCC push_options") _Pragma(FL_STRING(GCC target(features)))
#define TARGET_END _Pragma("GCC pop_options")
#endif
#define FL_STRING(...) #__VA_ARGS__
#define FL_STRING_OF(x) FL_STRING(x)

INLINE ptrdiff_t fl_min(ptrdiff_t a, ptrdiff_t b) { return a < b ? a : b; }
INLINE ptrdiff_t fl_max(ptrdiff_t a, ptrdiff_t b) { return a > b ? a : b; }
INLINE ptrdiff_t fl_ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }
INLINE ptrdiff_t fl_round16(ptrdiff_t floats) { return (floats + 15) / 16 * 16; } /* whole cache lines */

/* ---- facts of an equation ---- */

INLINE int fl_gate_count(const fl_spec *s) { return s->kind == FL_LSTM ? 4 : s->kind == FL_GRU ? 3 : 1; }

/* A GRU whose candidate multiplies r * h: its second product waits for the first one's gates. */
INLINE int fl_two_phases(const fl_spec *s) { return s->kind == FL_GRU && !s->reset_after; }

/* Products of a step that wait for one another. */
INLINE int fl_phase_count(const fl_spec *s) { return 1 + (fl_two_phases(s) || s->projected); }

/* Floats of a stage's part of a record. */
INLINE ptrdiff_t fl_part_of(const fl_stage *stage) {
    if (stage->kind == FL_STAGE_CONTEXT)
        return stage->U - stage->I;
    const fl_spec *s = stage->kind == FL_STAGE_CELL ? &stage->block->spec : NULL;
    return s ? s->R + (s->kind == FL_LSTM ? s->H : 0) : 0;
}

/* ---- scratch memory ---- */

/* Scratch memory is handed out piece by piece. memory is NULL where only the size is wanted. */
typedef struct {
    float *memory;
    ptrdiff_t used; /* floats */
} fl_supply;

INLINE float *fl_take(fl_supply *from, ptrdiff_t floats) {
    float *taken = from->memory ? from->memory + from->used : NULL;
    from->used += fl_round16(floats);
    return taken;
}

/* Memory that one thread writes again and again: apart from what lies before it (see FL_APART). */
INLINE float *fl_take_padded(fl_supply *from, ptrdiff_t floats) {
    from->used += FL_APART;
    return fl_take(from, floats);
}

/* ---- recurrent calls ---- */

/* One direction of a layer in one call. The tape's parts are NULL in inference, and where the spec has none. */
typedef struct {
    const fl_block *block;
    float *h, *c;                            /* (B, R), (B, H) state; c: LSTM only */
    float *gates, *tape_c, *tape_h, *tape_m; /* tape: (N, 4H), (N, H), (N, R), (N, H) */
    float *h0, *c0;                          /* tape: (B, R), (B, H) the initial state */
} fl_pass;

/* Batch rows b0..b1 of one direction, and the memory that only this chunk's tasks write. */
typedef struct {
    int direction;
    ptrdiff_t b0, b1;
    float *h, *c;           /* (n, R), (n, H) rows of the state: the pass's own, or copies of them */
    float *h_new, *m, *z;   /* forward: (n, R), (n, H), (n, H); backward: m alone */
    float *start;           /* forward: start values of a stretch, where the plan hoists */
    float *gathered;        /* forward: (hoisted_rows, I) inputs that are not contiguous in x */
    ptrdiff_t hoisted_rows; /* forward: see fl_hoisted_rows */
    float *quantised;       /* forward, integers: fl_quantised_floats for each worker that may quantise at a time */
} fl_chunk;

/* Whether the other operand of a storage's weights is rounded to integers. */
INLINE int fl_quantises(int storage) { return storage == FL_INT8 || storage == FL_INT16; }

/* Bytes of a quantised row of K numbers: of 16 bits in two planes of bytes, of 16 bits, or of 8 bits. */
INLINE ptrdiff_t fl_row_bytes(const fl_block *k, ptrdiff_t K, int planes) {
    return (planes == 2 || k->storage == FL_INT16 ? 2 : 1) * (fl_round16(fl_ceil_div(K, 4)) * 4);
}

/* Floats in which a worker quantises the operands of a chunk's products: rows of x, of a stretch where the input's product
 * is hoisted; rows of h or m; and the units of both. */
INLINE ptrdiff_t fl_quantised_floats(const fl_block *k, const fl_chunk *chunk) {
    const ptrdiff_t n = chunk->b1 - chunk->b0, of_x = fl_max(n, chunk->hoisted_rows);
    return of_x * fl_row_bytes(k, k->spec.I, k->x_planes) / 4 +
           n * fl_row_bytes(k, fl_max(k->spec.H, k->spec.R), 1) / 4 + fl_round16(of_x) + fl_round16(n) + FL_APART;
}

/* Floats from one worker's copy of c to the next one's, where steps are split by units. */
INLINE ptrdiff_t fl_copy_of_c(ptrdiff_t n, ptrdiff_t H) { return fl_round16(n * H) + FL_APART; }

/* Most chunks of a call: more threads than this work on parts of them only. */
enum { FL_MAX_CHUNKS = 64 };

#include "plan.h"

/* A forward call as its tasks see it. */
typedef struct {
    const fl_plan *plan;
    const fl_pass *passes; /* (D) */
    const fl_rows *rows;
    ptrdiff_t N;
    float *y; /* (N, D*R) packed, or rows by row_map; or NULL */
    ptrdiff_t ldy;
    const fl_row_map *row_map; /* NULL: packed */
    int reversed_panels; /* 1: the first step walks the panels from the last to the first; 0: the second step does */
    int prefetches;      /* whether products of a single row ask for their weights ahead; see stream.c */
} fl_forward_job;

/* A step of many streams as its pieces see it. A piece goes block by block, each block through all stages. */
typedef struct {
    fl_records step;
    ptrdiff_t piece, block; /* rows of a piece and of a block; of the last one perhaps fewer */
    ptrdiff_t width;        /* floats of the widest row between two stages */
    float *workspace;       /* (workers, workspace_size) */
    ptrdiff_t workspace_size;
} fl_rows_job;

/* A backward call as its tasks see it. */
typedef struct {
    const fl_back_plan *plan;
    const fl_pass *pass;
    const fl_rows *rows;
    const float *dy; /* (N, ldy), or NULL */
    ptrdiff_t ldy;
    float *dx; /* (N, I), or NULL */
    const fl_grads *grads;
    float *dh_all; /* (N, R) the gradient of every h; projection only */
    float *dgates; /* (N, ld_gates) the tape's gates, in place; scratch memory for RNN */
    ptrdiff_t ld_gates;
    const float **h_prev, **c_prev; /* (N) where the h and c of the step before lie, for each row */
    float *workspace;               /* (workers, workspace_size) */
    ptrdiff_t workspace_size;
} fl_backward_job;

/* ---- dense layers and optimisers ---- */

typedef struct {
    fl_dense_call call; /* logits: also where dense_forward writes y */
    float *workspace;   /* (workers, workspace_size) */
    ptrdiff_t workspace_size;
    int pieces;
} fl_dense_job;

/* Sums are made block by block of FL_SPAN_BLOCK, so that their bits do not depend on the number of threads. */
typedef struct {
    const fl_span *spans;
    const fl_rule *rule;
    double *sums; /* of each block */
    float factor;
} fl_spans_job;

/* ---- instruction sets ---- */

/* What an instruction set offers: one table each, made by kernels/kernels.h. */
typedef struct {
    const char *name;
    int vl;   /* floats of a vector */
    int rows; /* rows of a tile */
    ptrdiff_t (*pack_size)(const fl_block *block, int panels);
    void (*pack)(fl_block *block, const fl_params *params, int panels, void *memory);
    ptrdiff_t (*start_width)(const fl_block *block);    /* floats of a row's start values */
    ptrdiff_t (*gradient_scratch)(const fl_spec *spec); /* floats of a worker's workspace */
    ptrdiff_t (*dense_size)(const fl_dense *dense, int backward);
    void (*dense_pack)(fl_dense *dense, const float *weight, const float *bias, int backward, void *memory);
    ptrdiff_t (*dense_scratch)(const fl_dense *dense); /* floats of a worker's workspace */
    fl_piece_fn forward;                               /* fl_forward_job */
    fl_piece_fn step_rows;                             /* fl_rows_job */
    fl_piece_fn backward;                              /* fl_backward_job */
    fl_piece_fn dense_forward, dense_backward;         /* fl_dense_job */
    fl_piece_fn dense_cross_entropy;                   /* fl_dense_job; step 0: forward and loss, step 1: backward */
    fl_piece_fn span_update, span_squares, span_scale; /* fl_spans_job; piece: a block */
    uint64_t (*checksum)(const void *memory, ptrdiff_t bytes);
    int (*dots_agree)(void); /* whether the processor's dot products of bytes are right; see kernels/ways.h */
    ptrdiff_t (*dots_peak)(int storage, ptrdiff_t rounds); /* does, for a storage of integers, so many multiply-adds */
} fl_isa;

extern const fl_isa fl_isa_scalar, fl_isa_avx2, fl_isa_avx512, fl_isa_neon;

/* The index comes from a block, or from fl_isa_chosen. */
const fl_isa *fl_isa_at(int isa);

/* Whether this processor has the dot products of bytes that belong to the instruction set, and they have passed a test. */
int fl_has_dots(const fl_isa *isa);

/* Does a planned forward call if `scratch` is large enough; returns the floats of scratch memory that it needs. */
ptrdiff_t fl_run_forward(fl_forward_job *job, fl_scratch scratch);

/* A direction of a call without tape. */
INLINE fl_pass fl_untaped_pass(const fl_block *block, float *h, float *c) {
    return (fl_pass){.block = block, .h = h, .c = c};
}

#endif
