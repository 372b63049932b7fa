/* rows.h: one step of rows whose states lie anywhere: the records of streams. Part of kernels.h.
 *
 * All panels read the h of the step before, so h' cannot take its place while they do. h is copied to contiguous memory
 * first, and h' and c are written where they belong: one copy of h, as in a step of contiguous states, which makes it
 * afterwards. Records that are needed next are asked for tile by tile, while the tile after it is computed: many at once
 * would hold up the computation. */

/* What a later layer, or the next block of rows, needs first: the h of each row and the first line of its c. */
typedef struct {
    float *const *records; /* (n) */
    ptrdiff_t n, at, floats;
    ptrdiff_t row, float_of_row; /* what is asked for next */
    ptrdiff_t lines;             /* to be asked for after each tile */
} Ahead;

static void ask_ahead(Ahead *a, ptrdiff_t lines) {
    for (; lines > 0 && a->row < a->n; lines--) {
        __builtin_prefetch(a->records[a->row] + a->at + a->float_of_row);
        a->float_of_row += 16;
        if (a->float_of_row >= a->floats)
            a->float_of_row = 0, a->row++;
    }
}

/* One layer's part of a block of rows. */
typedef struct {
    Step s;
    Epilogue inner; /* what completes a tile */
    Ahead *ahead;
    ptrdiff_t n;
    ptrdiff_t c_step; /* floats of c from one panel to the next one; 0 where there is no c */
} RowsOfLayer;

/* Completes a tile, and asks for what is needed later: the next panel's c of its rows, and a share of `ahead`. */
static void rows_tile(const void *context, const float *tile, ptrdiff_t panel, ptrdiff_t row, int rows) {
    const RowsOfLayer *const all = context;
    all->inner.tile(&all->s, tile, panel, row, rows);
    const ptrdiff_t next = all->s.at_c + panel * VL + all->c_step;
    for (int r = 0; r < rows && all->c_step; r++)
        __builtin_prefetch(all->s.records[row + r] + next);
    ask_ahead(all->ahead, all->ahead->lines);
}

/* One phase of a block of rows. */
static void rows_phase(RowsOfLayer *all, int number, const Input *in, int reversed) {
    Phase phase;
    make_phase(&phase, all->s.k, number, NULL, 0, 1);
    Product *const q = &phase.product;
    take_operands(&phase, &all->s, all->n, in);
    q->reversed_panels = reversed;
    if (all->n == 1) {
        product(q, 1, phase.epilogue, &all->s);
        return;
    }
    all->inner = *phase.epilogue;
    all->c_step = number || all->s.k->spec.kind != FL_LSTM ? 0 : reversed ? -VL : VL;
    tile_product(q, q->first_panel, q->end_panel, all->n, rows_tile, all);
}

/* Tiles of the first phase of a layer, which share the asking for what comes after the layer. */
static ptrdiff_t tiles_of(const fl_block *k, ptrdiff_t n) {
    Product q;
    first_phase(k, &q);
    return q.panels * fl_ceil_div(n, ROWS);
}

/* Floats of a layer's part of a record, and of what is needed of it first. */
static ptrdiff_t part_of(const fl_spec *s) { return s->R + (s->kind == FL_LSTM ? s->H : 0); }
static ptrdiff_t first_part_of(const fl_spec *s) { return s->R + (s->kind == FL_LSTM ? fl_min(s->H, VL) : 0); }

/* One layer of a block of rows. `ahead` is what comes after it. */
static void rows_layer(RowsOfLayer *rows, const Input *in, Ahead *ahead, int reversed) {
    const fl_block *k = rows->s.k;
    const ptrdiff_t R = k->spec.R, lines = fl_ceil_div(ahead->floats, 16);
    ahead->lines = fl_ceil_div(ahead->n * lines, tiles_of(k, rows->n));
    rows->ahead = ahead;
    for (ptrdiff_t r = 0; r < rows->n; r++)
        memcpy(rows->s.h + r * R, rows->s.records[r] + rows->s.at_h, (size_t)R * sizeof(float));
    for (int p = 0; p < fl_phase_count(&k->spec); p++)
        rows_phase(rows, p, in, reversed);
}

/* A block of rows through all layers; `next` is the number of rows of the block after it. */
static void rows_block(const fl_rows_job *job, ptrdiff_t r0, ptrdiff_t n, ptrdiff_t next, float *memory, int reversed) {
    float *const *const records = job->records + r0;
    Input in = {.x = job->x, .ids = job->ids ? job->ids + r0 : NULL};
    in.next_ids = in.ids;
    if (in.x)
        in.x += r0 * job->blocks[0]->spec.I;
    ptrdiff_t at = 0;
    for (int l = 0; l < job->L; l++) {
        const fl_block *k = job->blocks[l];
        const ptrdiff_t H = k->spec.H, R = k->spec.R;
        const int last = l == job->L - 1;
        fl_supply from = {memory, 0};
        float *const below[2] = {fl_take(&from, n * R), fl_take(&from, n * R)};
        RowsOfLayer rows = {.s = {.k = k,
                                  .h = fl_take(&from, n * R),
                                  .m = fl_take(&from, n * H),
                                  .z = fl_take(&from, n * H),
                                  .y = last ? job->y + r0 * R : below[l % 2],
                                  .ldy = R,
                                  .records = records,
                                  .at_h = at,
                                  .at_c = at + R},
                            .n = n};
        const fl_chunk of_integers = {.b1 = n, .quantised = fl_quantises(k->storage) ? from.memory + from.used : NULL};
        place_integers(k, &of_integers, 0, &rows.s.of_x, &rows.s.of_h);
        at += part_of(&k->spec);
        Ahead ahead = {.records = records, .n = n, .at = at};
        if (last)
            ahead = (Ahead){.records = records + n, .n = next};
        ahead.floats = first_part_of(&job->blocks[last ? 0 : l + 1]->spec);
        rows_layer(&rows, &in, &ahead, reversed);
        in = (Input){.x = rows.s.y};
    }
}

/* A piece: some blocks of rows. */
static void step_rows(void *arg, int step, int piece, int worker) {
    (void)step;
    const fl_rows_job *job = arg;
    const ptrdiff_t first = piece * job->piece, end = fl_min(job->n, first + job->piece);
    float *const memory = job->workspace + worker * job->workspace_size;
    Ahead begin = {.records = job->records + first,
                   .n = fl_min(job->block, end - first),
                   .floats = first_part_of(&job->blocks[0]->spec)};
    if (begin.n > 1)
        ask_ahead(&begin, begin.n * begin.floats);
    int reversed = job->reversed_panels;
    for (ptrdiff_t r = first, next; r < end; r = next) {
        next = fl_min(end, r + job->block);
        rows_block(job, r, next - r, fl_min(job->block, end - next), memory, reversed);
        reversed ^= 1;
    }
}
