/* plan.h: how a recurrent call is cut into pieces for the threads. Part of internal.h.
 *
 * A plan is made once, before any arithmetic. The pool then runs plan.steps steps of plan.pieces pieces, with a barrier
 * after each step; a piece may run on any worker. fl_decode says which task a piece of a step is: it is a pure function
 * and the only place with index arithmetic. Tasks are done by kernels/walk.h and kernels/walk_back.h.
 *
 *   FL_BY_ROWS    One step; a piece is a chunk of batch rows of one direction, through all time. No barriers.
 *   FL_PIPELINED  One sequence. One piece walks through a stretch of steps while the other takes the input's product for
 *                 the stretch after it.
 *   FL_BY_UNITS   A dense batch of few rows. Every direction's hidden units, so its panels, are shared out among `parts`
 *                 workers, with a barrier after each phase of each step.
 *
 * i counts steps in the order in which the direction walks; t is the step's place in the sequence. */

typedef struct {
    enum { FL_BY_ROWS, FL_PIPELINED, FL_BY_UNITS } split;
    int threads;       /* workers that take part */
    int steps, pieces; /* of fl_run */
    int parts;         /* by units: workers of each direction; else 1 */
    int cheap_steps;   /* by units: steps so short that the split pays only if barriers are cheap */
    int hoists;        /* not by rows: the input's product is taken for a stretch of steps at once */
    int phases;        /* products of a step that wait for one another */
    ptrdiff_t T;
    ptrdiff_t stretch; /* not by rows: steps of a stretch */
    int chunk_count;
    fl_chunk *chunks; /* by rows: one for each piece; else one for each direction */
} fl_plan;

/* The memory in which a task quantises operands: that of its part; in a pipeline the walk's is the third. */
enum { FL_WALKER = 2 };

typedef struct {
    enum {
        FL_IDLE,  /* nothing to do */
        FL_CHUNK, /* a chunk through all time; it takes the input's product by itself */
        FL_HOIST, /* the input's product of steps i0..i1, for one part of the panels */
        FL_WALK,  /* steps i0..i1 of a chunk, whose input's product has been taken */
        FL_PHASE  /* one phase of step i0, for one part of the panels */
    } kind;
    int chunk;
    int part, parts;      /* the share of the panels: number `part` of `parts` */
    int phase;            /* FL_PHASE only */
    int half;             /* 0 or 1: the half of the chunk's start values that the stretch uses */
    ptrdiff_t i0, i1;     /* steps */
    ptrdiff_t begin, end; /* FL_PHASE: the steps of its stretch */
} fl_task;

INLINE fl_task fl_decode_pipelined(const fl_plan *plan, int step, int piece) {
    const int walks = step > 0 && piece == 0; /* the first stretch's input is prepared by both */
    const ptrdiff_t stretch = step - walks, i0 = stretch * plan->stretch;
    const fl_task task = {.kind = i0 >= plan->T ? FL_IDLE
                                  : walks       ? FL_WALK
                                                : FL_HOIST,
                          .part = step == 0 ? piece : 0,
                          .parts = step == 0 ? 2 : 1,
                          .half = (int)(stretch % 2),
                          .i0 = i0,
                          .i1 = fl_min(plan->T, i0 + plan->stretch)};
    return task;
}

/* A stretch is `hoists` steps of the pool, then `phases` for each of its steps. */
INLINE fl_task fl_decode_units(const fl_plan *plan, int step, int piece) {
    const ptrdiff_t per_stretch = plan->hoists + plan->stretch * plan->phases;
    const ptrdiff_t begin = step / per_stretch * plan->stretch, end = fl_min(plan->T, begin + plan->stretch);
    const ptrdiff_t within = step % per_stretch - plan->hoists, i = begin + within / plan->phases;
    fl_task task = {.kind = FL_PHASE,
                    .chunk = piece / plan->parts,
                    .part = piece % plan->parts,
                    .parts = plan->parts,
                    .phase = (int)(within % plan->phases),
                    .i0 = i,
                    .i1 = i + 1,
                    .begin = begin,
                    .end = end};
    if (within < 0)
        task.kind = FL_HOIST, task.phase = 0, task.i0 = begin, task.i1 = end;
    return task;
}

/* The task of a piece of a step. */
INLINE fl_task fl_decode(const fl_plan *plan, int step, int piece) {
    switch (plan->split) {
    case FL_PIPELINED: return fl_decode_pipelined(plan, step, piece);
    case FL_BY_UNITS: return fl_decode_units(plan, step, piece);
    default: return (fl_task){.kind = FL_CHUNK, .chunk = piece, .parts = 1, .i1 = plan->T};
    }
}

/* The share of a range that part `part` of `parts` has, in whole grains. */
INLINE void fl_share(ptrdiff_t range, ptrdiff_t grain, int part, int parts, ptrdiff_t *from, ptrdiff_t *to) {
    const ptrdiff_t grains = fl_ceil_div(range, grain);
    *from = fl_min(range, grains * part / parts * grain);
    *to = fl_min(range, grains * (part + 1) / parts * grain);
}

/* Whether the input's product of chunks of B rows is taken for a stretch of steps at once: the rows of one step do not
 * fill two tiles. Token ids have no such product. */
INLINE int fl_hoists(const fl_rows *rows, ptrdiff_t B, int tile_rows) {
    return rows->T > 1 && rows->x && B <= 2 * tile_rows;
}

/* Rows of a stretch then: at least two steps'; neither their start values (start_width floats a row) nor their inputs,
 * where these have to be gathered, take more than FL_START_FLOATS. */
INLINE ptrdiff_t fl_hoisted_rows(ptrdiff_t B, ptrdiff_t start_width, ptrdiff_t I) {
    return fl_max(2 * B, FL_START_FLOATS / fl_max(start_width, I));
}

/* Steps t0..t1, packed rows row0..row1. */
typedef struct {
    ptrdiff_t t0, t1, row0, row1;
} fl_stretch;

/* Backward goes stretch by stretch: in one step of the pool the chunks walk back through the stretch, in the next one
 * the gradients of its rows are summed, shared out by outputs, while the rows are still in cache. */
typedef struct {
    int threads, pieces;
    int chunk_count;
    fl_chunk *chunks;
    int walks_with_dx;     /* chunks make dx of their own rows while they walk; else dx is made with the sums */
    fl_stretch *stretches; /* in the order of the walk */
    int stretch_count;
} fl_back_plan;

typedef struct {
    enum { FL_NO_WALK, FL_WALK_BACK, FL_SUM } kind;
    int chunk;       /* FL_WALK_BACK */
    int part, parts; /* FL_SUM */
    int stretch;
} fl_back_task;

INLINE fl_back_task fl_decode_back(const fl_back_plan *plan, int step, int piece) {
    const int sums = step % 2;
    const fl_back_task task = {.kind = sums                        ? FL_SUM
                                       : piece < plan->chunk_count ? FL_WALK_BACK
                                                                   : FL_NO_WALK,
                               .chunk = piece,
                               .part = piece,
                               .parts = plan->pieces,
                               .stretch = step / 2};
    return task;
}

/* ---- plan.c ---- */

/* Packed rows of a call. */
ptrdiff_t fl_row_count(const fl_rows *rows);

/* Multiply-adds of a row, of numbers or of a token id. */
double fl_work_of_row(const fl_block *block, int of_ids);

/* Threads worth waking for N rows of D directions. */
int fl_worthwhile(const fl_block *block, int of_ids, ptrdiff_t N, int D, int threads);

/* Plans a forward call of D directions like `block`; plan->chunks (FL_MAX_CHUNKS) is set by the caller. */
void fl_plan_forward(fl_plan *plan, const fl_block *block, const fl_rows *rows, ptrdiff_t N, int D, int threads);

/* How long the workers of a call split by units waited: cheap steps are split only while barriers are cheap. */
void fl_note_barriers(const fl_plan *plan, uint64_t waited_ns);

/* Plans a backward call but for its stretches, which need fl_stretch_limit entries and are found by fl_find_stretches:
 * whole steps, last first; for a reverse direction, whose backward walks forwards, first first. */
void fl_plan_backward(fl_back_plan *plan, const fl_block *block, const fl_rows *rows, ptrdiff_t N, int has_dx,
                      int threads);
int fl_stretch_limit(const fl_rows *rows, ptrdiff_t N);
int fl_find_stretches(fl_stretch *stretches, const fl_rows *rows, ptrdiff_t N, int reverse);
