/* kernels.h: the arithmetic, once for every instruction set. An isa_*.c file sets
 *
 *   ISA      its name, as in fl_isa_<name>
 *   VL       floats in a vector (vec.h)
 *   ROWS     rows of a tile: as many as keep ROWS x 4 accumulators in registers
 *   GRAD_ROWS  rows of a weight gradient's tile, which is GRAD_C vectors wide
 *
 * opens a target region and includes this file. Contract: pointers are valid and do not overlap; sizes are positive;
 * nothing outside the shapes given is read or written; no allocation.
 *
 * Panels. A weight matrix is packed so that a tile reads it front to back: for each panel, for each k, its C vectors
 * side by side, padded with zeros: (panels, K, C, VL). A gate panel holds all gates of VL units (C = 4 for LSTM, 3 for
 * GRU; with reset_after = 0 the two gates of 2 VL units), so that a tile's accumulators hold complete gates. The last of
 * an LSTM, of a few units only, may have two gates or four to a vector. A plain panel holds 4 VL outputs; the last one is
 * as narrow as fits.
 *
 * Bits. Every element is start, then the terms of a in order of k, then those of b: one fused multiply-add each. No
 * tile's shape, batch size, thread count or stretch of time changes that order. (Gradients of a lone sequence have an
 * order of their own; see recurrent_back.)
 */

#include "vec.h"

#include "vmath.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

static inline ptrdiff_t ceil_div(ptrdiff_t a, ptrdiff_t b) { return (a + b - 1) / b; }

/* The share of a range that one of `pieces` works on. */
static void share(ptrdiff_t range, ptrdiff_t grain, int piece, int pieces, ptrdiff_t *from, ptrdiff_t *to) {
    const ptrdiff_t units = ceil_div(range, grain);
    *from = fl_min(range, units * piece / pieces * grain);
    *to = fl_min(range, units * (piece + 1) / pieces * grain);
}

#include "products.h"

#include "forward.h"

#include "backward.h"

#include "train.h"

const fl_isa JOIN(fl_isa_, ISA) = {
    .name = FL_STRING_OF(ISA),
    .vl = VL,
    .rows = ROWS,
    .pack_size = pack_size,
    .pack = pack,
    .hoists = hoists,
    .forward_scratch = forward_scratch,
    .forward_chunk = forward_chunk,
    .forward_team = forward_team,
    .team_steps = team_steps,
    .forward_pair = forward_pair,
    .pair_steps = pair_steps,
    .backward_scratch = backward_scratch,
    .gradient_scratch = gradient_scratch,
    .backward = backward,
    .dense_size = dense_size,
    .dense_pack = dense_pack,
    .dense_scratch = dense_scratch,
    .dense_forward = dense_forward,
    .dense_backward = dense_backward,
    .dense_cross_entropy = dense_cross_entropy,
    .span_update = span_update,
    .span_squares = span_squares,
    .span_scale = span_scale,
};
