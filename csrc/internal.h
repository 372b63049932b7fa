/* internal.h: what the files of the extension share. */
#ifndef FL_INTERNAL_H
#define FL_INTERNAL_H

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include "api.h"
#include "pool.h"

#define INLINE static inline __attribute__((always_inline))
#define NOINLINE __attribute__((noinline))

/* Before loops over a tile's accumulators, which stay in registers only where these loops are gone. (clang accepts gcc's
 * form and ignores it.) */
#if defined(__clang__)
#define UNROLL _Pragma("clang loop unroll(full)")
#else
#define UNROLL _Pragma("GCC unroll 32")
#endif

/* Target regions, so that no file needs flags of its own and one compiler call builds every instruction set. */
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
INLINE ptrdiff_t fl_round16(ptrdiff_t floats) { return (floats + 15) / 16 * 16; } /* whole cache lines */

enum {
    FL_MAX_CHUNKS = 64,
    FL_GRAD_BLOCK = 128, /* rows that a weight gradient sums at once: its operands then fit the first-level cache */
    FL_APART = 1024      /* floats between what two threads write again and again; see take_apart */
};

INLINE int fl_gate_count(const fl_spec *s) { return s->kind == FL_LSTM ? 4 : s->kind == FL_GRU ? 3 : 1; }

/* Packed rows: float input (N, I), or integers (N); the other is NULL. */
typedef struct {
    const float *x;
    const int64_t *ids;
    const int64_t *batch_sizes; /* (T) non-increasing, each >= 1 */
    ptrdiff_t T;
} fl_rows;

/* One direction of one layer in one call. */
typedef struct {
    const fl_block *block;
    int reverse;
    float *h, *c;                            /* (B, R), (B, H); c: LSTM only */
    float *gates, *tape_c, *tape_h, *tape_m; /* (N, 4H), (N, H), (N, R), (N, H): the tape; NULL in inference */
    float *h0, *c0;                          /* (B, R), (B, H): its end, the initial state */
} fl_pass;

/* A stretch of batch rows of one direction: no other piece reads or writes them. */
typedef struct {
    int direction;
    ptrdiff_t b0, b1;
    float *h, *c; /* its rows of the state: the pass's own, or copies; then a team has one of c for each member */
    float *scratch;
} fl_chunk;

/* Floats from one copy of c to the next. */
INLINE ptrdiff_t fl_copy_of_c(ptrdiff_t B, ptrdiff_t H) { return fl_round16(B * H) + FL_APART; }

typedef struct {
    const fl_pass *passes;
    const fl_rows *rows;
    ptrdiff_t N;
    float *y; /* (N, D*R), or rows at places */
    ptrdiff_t ldy;
    const fl_places *places; /* NULL: packed */
    int chunk_count;
    fl_chunk *chunks; /* (FL_MAX_CHUNKS) outside, so that a short call does not fill it with zeros */
    enum { FL_CHUNKS, FL_PAIR, FL_TEAM } way; /* each its own; one thread walks and one prepares; units shared out */
    int parts;                                /* a team's members for each direction, */
    int short_steps;                          /* who gain only where they meet quickly */
    int turn;                                 /* 1: the first step walks the panels backwards; else the second does */
} fl_forward_job;

/* Steps t0..t1, packed rows row0..row1. */
typedef struct {
    ptrdiff_t t0, t1, row0, row1;
} fl_stretch;

typedef struct {
    const fl_pass *pass;
    const fl_rows *rows;
    ptrdiff_t N;
    const float *dy;
    ptrdiff_t ldy;
    float *dx;
    const fl_grads *grads;
    float *dh_all; /* (N, R) every h's gradient: projection only */
    float *dgates; /* (N, ld_gates): the tape's gates, in place; scratch for RNN */
    ptrdiff_t ld_gates;
    const float **h_prev;  /* (N) where each row's previous h, */
    const float **c_prev;  /* (N) and c lie */
    fl_stretch *stretches; /* in the order in which backward walks them */
    int stretch_count;
    float *workspace; /* of each worker */
    ptrdiff_t workspace_size;
    int pieces;
    int chunk_count;
    fl_chunk *chunks; /* (FL_MAX_CHUNKS) outside, so that a short call does not fill it with zeros */
} fl_backward_job;

typedef struct {
    const fl_dense *dense;
    ptrdiff_t N;
    const float *x;         /* (N, I) */
    float *y;               /* (N, U) */
    const int64_t *targets; /* (N) */
    double factor, *losses; /* (N) */
    const float *dy;        /* (N, U) */
    float *dx, *dweight, *dbias;
    float *workspace; /* of each worker */
    ptrdiff_t workspace_size;
    int pieces;
} fl_dense_job;

/* Numbers that go through an optimiser, a sum or a scaling as one piece: enough to be worth a piece, few enough for the
 * second-level cache. Sums are made block by block, so their bits do not depend on the threads. */
enum { FL_SPAN_BLOCK = 16384 };

typedef struct {
    const fl_span *spans;
    const fl_rule *rule;
    double *sums; /* of each block */
    float factor;
} fl_spans_job;

/* What an instruction set offers. One table each, made by kernels.h. */
typedef struct {
    const char *name;
    int vl;
    int rows; /* of a tile */
    ptrdiff_t (*pack_size)(const fl_spec *spec, int backward);
    void (*pack)(fl_block *block, const fl_params *params, int backward, float *memory);
    int (*hoists)(const fl_rows *rows, ptrdiff_t B); /* whether the input's product is made for many steps at once */
    ptrdiff_t (*forward_scratch)(const fl_block *block, ptrdiff_t B, const fl_rows *rows, int parts); /* of a chunk */
    fl_piece_fn forward_chunk; /* arg: fl_forward_job; piece: a chunk, through all time */
    fl_piece_fn forward_team;  /* arg: fl_forward_job; step: one of team_steps; piece: direction, part */
    int (*team_steps)(const fl_forward_job *job);
    fl_piece_fn forward_pair; /* arg: fl_forward_job; step: one of pair_steps; piece: walking or preparing */
    int (*pair_steps)(const fl_forward_job *job);
    ptrdiff_t (*backward_scratch)(const fl_spec *spec, ptrdiff_t B);
    ptrdiff_t (*gradient_scratch)(const fl_spec *spec); /* of each worker */
    fl_piece_fn backward; /* arg: fl_backward_job; step: a stretch's walk, then its sums; piece: a chunk or a share */
    ptrdiff_t (*dense_size)(const fl_dense *dense, int backward);
    void (*dense_pack)(fl_dense *dense, const float *weight, const float *bias, int backward, float *memory);
    ptrdiff_t (*dense_scratch)(const fl_dense *dense); /* of each worker */
    fl_piece_fn dense_forward, dense_backward;         /* arg: fl_dense_job; piece: a share */
    fl_piece_fn dense_cross_entropy;                   /* step: forward and loss, then backward */
    fl_piece_fn span_update, span_squares, span_scale; /* arg: fl_spans_job; piece: a block */
} fl_isa;

extern const fl_isa fl_isa_scalar, fl_isa_avx2, fl_isa_avx512, fl_isa_neon;

#endif
