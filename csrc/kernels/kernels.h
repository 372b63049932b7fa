/* kernels.h: the arithmetic, once for every instruction set. An isa_*.c file sets
 *
 *   ISA        its name, as in fl_isa_<name>
 *   VL         floats of a vector (vec.h)
 *   ROWS       rows of a tile: as many as keep ROWS x 4 accumulators in registers
 *   GRAD_ROWS  rows of a weight gradient's tile, which is FL_GRAD_C vectors wide
 *
 * opens a target region and includes this file. Contract: pointers are valid and do not overlap; sizes are positive;
 * nothing outside the shapes given is read or written; no allocation.
 *
 * Panels. A weight matrix is packed so that a tile reads it front to back: for each panel, for each k, its C vectors
 * side by side, padded with zeros: (panels, K, C, VL). A gate panel holds all gates of VL units (C = 4 for LSTM, 3 for
 * GRU; with reset_after = 0 the two gates of 2 VL units), so that a tile's accumulators hold complete gates. The last
 * panel of an LSTM, if it has a few units only, has two gates or four to a vector. A plain panel holds 4 VL outputs; the
 * last plain panel is as narrow as fits.
 *
 * Reproducibility. Every element is its start value, then the terms of a in order of k, then those of b: one fused
 * multiply-add each. No tile's shape, batch size, thread count or stretch of time changes that order. (Gradients of a
 * single sequence have an order of their own; see walk_back.h.)
 */

#if !defined(ISA)
#error "isa_*.c sets ISA"
#endif
#if !defined(VL) || (VL != 1 && VL != 4 && VL != 8 && VL != 16)
#error "vec.h has words for VL = 1, 4, 8 and 16"
#endif
#if !defined(ROWS) || (ROWS != 3 && ROWS != 6)
#error "tiles.h has tiles of 3 and of 6 rows"
#endif
#if !defined(GRAD_ROWS) || (GRAD_ROWS != 4 && GRAD_ROWS != 8)
#error "a weight gradient's tile has 4 or 8 rows: FL_GRAD_PACK is a multiple of both"
#endif

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

#include "vec.h"

#include "vmath.h"

#include "tiles.h"

#include "storage.h"

#include "products.h"

#include "ways.h"

#include "pack.h"

#include "step.h"

#include "cell_lstm.h"

#include "cell_gru.h"

#include "cell_rnn.h"

#include "phases.h"

#if !FL_INFERENCE_ONLY
#include "walk.h"

#include "walk_back.h"

#include "sums.h"
#endif

#include "dense.h"

#include "rows.h"

#if !FL_INFERENCE_ONLY
#include "head.h"

#include "optimisers.h"

#include "checksum.h"
#endif

const fl_isa JOIN(fl_isa_, ISA) = {
    .name = FL_STRING_OF(ISA),
    .vl = VL,
    .rows = ROWS,
    .pack_size = pack_size,
    .pack = pack,
    .dense_size = dense_size,
    .dense_pack = dense_pack,
    .step_rows = step_rows,
    .dots_agree = dots_agree,
#if !FL_INFERENCE_ONLY
    .start_width = start_width,
    .gradient_scratch = gradient_scratch,
    .dense_scratch = dense_scratch,
    .forward = forward,
    .backward = backward,
    .dense_forward = dense_forward,
    .dense_backward = dense_backward,
    .dense_cross_entropy = dense_cross_entropy,
    .span_update = span_update,
    .span_squares = span_squares,
    .span_scale = span_scale,
    .checksum = checksum,
    .dots_peak = dots_peak,
#endif
};
