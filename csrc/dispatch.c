/* dispatch.c: which instruction set runs, and how a call is cut into pieces for the threads. */
#include <stdatomic.h>

#include "internal.h"

#if defined(__x86_64__)
#include <cpuid.h>
#endif

/* Best first. */
static const fl_isa *const isas[] = {
#if defined(__x86_64__)
    &fl_isa_avx512,
    &fl_isa_avx2,
#elif defined(__aarch64__)
    &fl_isa_neon, /* every such processor has it */
#endif
    &fl_isa_scalar,
};
enum { ISA_COUNT = sizeof isas / sizeof *isas };
static int chosen = -1;

const char *fl_isa_name(int isa) { return isa >= 0 && isa < ISA_COUNT ? isas[isa]->name : NULL; }

#if defined(__x86_64__)
/* Not every compiler's __builtin_cpu_supports knows the name f16c. */
static int has_f16c(void) {
    unsigned a, b, c, d;
    return __get_cpuid(1, &a, &b, &c, &d) && (c & bit_F16C);
}
#endif

int fl_isa_usable(int isa) {
    if (isa < 0 || isa >= ISA_COUNT)
        return 0;
#if defined(__x86_64__)
    if (isas[isa] == &fl_isa_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vl") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq");
    if (isas[isa] == &fl_isa_avx2)
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c();
#endif
    return 1;
}

int fl_isa_chosen(void) {
    if (chosen < 0) {
        int isa = 0;
        while (!fl_isa_usable(isa))
            isa++;
        chosen = isa;
    }
    return chosen;
}

void fl_isa_choose(int isa) { chosen = isa; }

/* ----------------------------------------------------------------------------------------------------------- packing */

ptrdiff_t fl_pack_size(const fl_block *block, int backward) {
    return isas[block->isa]->pack_size(&block->spec, backward);
}

void fl_pack(fl_block *block, const fl_params *params, int backward, float *memory) {
    isas[block->isa]->pack(block, params, backward, memory);
}

/* ------------------------------------------------------------------------------------------------- cutting into pieces */

/* The C tests set this to 0: then the smallest call is split. */
#ifndef FL_LEAST
#define FL_LEAST 1
#endif

/* Multiply-adds of a call below which a second thread costs more than it brings: about 10 us of one core. */
static const double LEAST_WORK = FL_LEAST * 4e5;

/* Multiply-adds of a step from which a team's members do not mostly wait for one another: about 2 us of one core. */
static const double LEAST_STEP = FL_LEAST * 1e5;

/* The same of one sequence, which cannot be cut into rows instead, without an input that is prepared for many steps at
 * once: where its members gain anyway, and where they do if they meet quickly. A meeting takes some 100 ns, or 300 to 600
 * where cores share no cache, which in virtual machines may change from one second to the next. */
static const double LEAST_STEP_OF_ONE = FL_LEAST * 6.6e4, SHORT_STEP_OF_ONE = FL_LEAST * 3e4;
enum { SLOW_MEETING_NS = 350 };

/* Teams of short steps are tried from then on (fl_now): a while after some in a row whose meetings were slow. (One may
 * have been held up by anything.) */
static atomic_uint_least64_t short_teams_from;
static atomic_int slow_teams;
enum { SLOW_TEAMS = 3, SHORT_TEAMS_REST_NS = 20000000 };

/* Multiply-adds of one sequence's input that are worth preparing on another thread. */
static const double LEAST_INPUT = FL_LEAST * 1e6;

/* Scratch memory that is handed out piece by piece; NULL where only its size is asked for. */
typedef struct {
    float *memory;
    ptrdiff_t used;
} supply;

static float *take(supply *from, ptrdiff_t floats) {
    float *taken = from->memory ? from->memory + from->used : NULL;
    from->used += fl_round16(floats);
    return taken;
}

/* The same for what one of several threads writes again and again. Hardware fetches some lines beyond those that a thread
 * asks for: were they another one's, each would take them from the other in every step. */
static float *take_apart(supply *from, ptrdiff_t floats) {
    from->used += FL_APART;
    return take(from, floats);
}

static ptrdiff_t row_count(const fl_rows *rows) {
    ptrdiff_t N = 0;
    for (ptrdiff_t t = 0; t < rows->T; t++)
        N += rows->batch_sizes[t];
    return N;
}

/* Multiply-adds of one row of one direction: of its input, and in all. Token ids have no product with the input matrix. */
static double input_work(const fl_spec *s) { return fl_gate_count(s) * (double)s->H * (double)s->I; }
static double row_work(const fl_spec *s, int of_ids) {
    return fl_gate_count(s) * (double)s->H * (double)s->R + (of_ids ? 0 : input_work(s));
}

/* Threads worth waking for N rows of D directions. */
static int worthwhile(const fl_spec *s, int of_ids, ptrdiff_t N, int D, int threads) {
    return (double)N * D * row_work(s, of_ids) < LEAST_WORK ? 1 : threads;
}

/* Chunks of batch rows with about equal numbers of steps, `parts` for each direction. */
static int cut(fl_chunk *chunks, const fl_rows *rows, ptrdiff_t N, int D, ptrdiff_t parts) {
    const ptrdiff_t B = rows->batch_sizes[0];
    parts = fl_max(1, fl_min(fl_min(B, parts), FL_MAX_CHUNKS / D));
    ptrdiff_t steps = rows->T, done = 0, b = 0; /* of sequence b; of all before it */
    int count = 0;
    for (ptrdiff_t part = 1; part <= parts; part++) {
        const ptrdiff_t b0 = b;
        for (; b < B - (parts - part) && (b == b0 || part == parts || done < N * part / parts); b++, done += steps)
            while (rows->batch_sizes[steps - 1] <= b)
                steps--;
        chunks[count++] = (fl_chunk){.b0 = b0, .b1 = b};
    }
    for (int d = 1; d < D; d++)
        for (int i = 0; i < parts; i++) {
            chunks[count] = chunks[i];
            chunks[count++].direction = d;
        }
    return count;
}

/* Fewer steps do not gain by copies of the state. */
enum { LEAST_STEPS = 4 };

/* Gives a chunk its rows of the state: the pass's own or, where several threads write theirs, copies, of c so many. */
static void place_state(fl_chunk *chunk, const fl_pass *pass, int copies, supply *from) {
    const fl_spec *s = &pass->block->spec;
    const ptrdiff_t n = chunk->b1 - chunk->b0;
    chunk->h = copies ? take_apart(from, n * s->R) : pass->h + chunk->b0 * s->R;
    chunk->c = !pass->c ? NULL : copies ? take(from, copies * fl_copy_of_c(n, s->H)) : pass->c + chunk->b0 * s->H;
}

/* Copies the passes' rows of h, and of c if so, to such copies, or back. */
static void copy_states(const fl_chunk *chunks, int count, const fl_pass *passes, int of_c, int back) {
    for (const fl_chunk *k = chunks; k < chunks + count; k++) {
        const fl_pass *pass = &passes[k->direction];
        const fl_spec *s = &pass->block->spec;
        const size_t n = (size_t)(k->b1 - k->b0);
        float *const h = pass->h + k->b0 * s->R, *const c = pass->c ? pass->c + k->b0 * s->H : NULL;
        if (k->h != h)
            memcpy(back ? h : k->h, back ? k->h : h, n * (size_t)s->R * sizeof *h);
        if (of_c && k->c != c)
            memcpy(back ? c : k->c, back ? k->c : c, n * (size_t)s->H * sizeof *c);
    }
}

/* ----------------------------------------------------------------------------------------------------------- forward */

/* Multiply-adds of a row, so numbers of a direction's weights, above which these stay in no cache from step to step: not
 * every thread should fetch them all. And up to which a core's own cache holds the recurrent half. */
static const double LARGE_ROW = 6e6, SMALL_ROW = 6e5;

/* Whether a chunk of rows reads all weights for much less work than they could serve: for fewer than two tiles, unless
 * they are at hand and serve one that is nearly full. */
static int too_few(ptrdiff_t rows, const fl_isa *isa, double of_row) {
    const int one_tile = rows >= 4 && rows <= isa->rows;
    return of_row > LARGE_ROW || (rows < 2 * isa->rows && !(one_tile && of_row <= SMALL_ROW));
}

/* Whether members of a team would gain by steps of so many multiply-adds a row. */
static int team_gains(fl_forward_job *job, double of_row) {
    const fl_block *k = job->passes[0].block;
    const ptrdiff_t B = job->rows->batch_sizes[0];
    if (B > 1)
        return (double)B * of_row >= LEAST_STEP;
    const double step = of_row - (isas[k->isa]->hoists(job->rows, B) ? input_work(&k->spec) : 0);
    job->short_steps = step < LEAST_STEP_OF_ONE;
    return !job->short_steps || (step >= SHORT_STEP_OF_ONE && fl_now() >= short_teams_from);
}

/* Directions first (nobody waits), then batch rows (nobody waits), then, for dense batches of too few rows, hidden units
 * (a barrier each phase and step). */
static void cut_forward(fl_forward_job *job, int D, int threads) {
    const fl_block *k = job->passes[0].block;
    const fl_isa *isa = isas[k->isa];
    const fl_rows *rows = job->rows;
    const ptrdiff_t N = job->N, B = rows->batch_sizes[0];
    const int dense = rows->batch_sizes[rows->T - 1] == B;
    const int of_ids = rows->ids != NULL;
    threads = worthwhile(&k->spec, of_ids, N, D, threads);
    const int each = (threads + D - 1) / D;
    /* Parts that still have some panels each: four or, of one sequence, which cannot be cut into rows, two. */
    const ptrdiff_t most = fl_max(k->spec.H / (4 * isa->vl), B == 1 && k->spec.H >= 5 * isa->vl ? 2 : 1);
    const double of_row = row_work(&k->spec, of_ids);
    if (dense && threads >= 2 * D && too_few(B / each, isa, of_row) && most >= 2 && team_gains(job, of_row))
        job->way = FL_TEAM, job->parts = (int)fl_min(threads / D, most);
    else if (threads > 1 && D == 1 && B == 1 && rows->T > 1 && rows->x &&
             (double)N * input_work(&k->spec) >= LEAST_INPUT)
        job->way = FL_PAIR;
    job->chunk_count = cut(job->chunks, rows, N, D, job->way == FL_CHUNKS ? each : 1);
}

/* Takes a part of a tape, if it has that part. */
static float *next_part(float **tape, int has, ptrdiff_t floats) {
    float *const part = has ? *tape : NULL;
    *tape += has ? floats : 0;
    return part;
}

/* With the parts of its tape, which lie as Spec.tape and Spec.initial say; *tape, if not NULL, is then at their end. */
static fl_pass make_pass(const fl_block *block, float *h, float *c, float **tape, ptrdiff_t N, ptrdiff_t B) {
    const fl_spec *s = &block->spec;
    const int lstm = s->kind == FL_LSTM;
    fl_pass pass = {.block = block, .reverse = block->reverse, .h = h, .c = c};
    if (!*tape)
        return pass;
    pass.gates = next_part(tape, s->kind != FL_RNN, N * 4 * s->H);
    pass.tape_c = next_part(tape, lstm, N * s->H);
    pass.tape_h = next_part(tape, 1, N * s->R);
    pass.tape_m = next_part(tape, s->projected, N * s->H);
    pass.h0 = next_part(tape, 1, B * s->R);
    pass.c0 = next_part(tape, lstm, B * s->H);
    return pass;
}

/* Puts the chunks' rows of the initial state on the tape, if there is one. */
static void keep_initial(const fl_chunk *chunks, int count, const fl_pass *passes) {
    for (const fl_chunk *k = chunks; k < chunks + count; k++) {
        const fl_pass *pass = &passes[k->direction];
        const ptrdiff_t H = pass->block->spec.H, R = pass->block->spec.R;
        const size_t n = (size_t)(k->b1 - k->b0);
        if (pass->h0)
            memcpy(pass->h0 + k->b0 * R, pass->h + k->b0 * R, n * (size_t)R * sizeof(float));
        if (pass->c0)
            memcpy(pass->c0 + k->b0 * H, pass->c + k->b0 * H, n * (size_t)H * sizeof(float));
    }
}

/* A team does the job, and what its meetings took is remembered. */
static void run_team(fl_forward_job *job, int threads) {
    const fl_isa *isa = isas[job->passes[0].block->isa];
    const int steps = isa->team_steps(job);
    const uint64_t waited = fl_run(isa->forward_team, job, steps, job->chunk_count * job->parts, threads);
    if (!job->short_steps || waited == 0) /* who was alone met nobody */
        return;
    slow_teams = waited > (uint64_t)steps * SLOW_MEETING_NS ? slow_teams + 1 : 0;
    if (slow_teams >= SLOW_TEAMS) {
        slow_teams = 0;
        short_teams_from = fl_now() + SHORT_TEAMS_REST_NS;
    }
}

/* Does the job, cut into chunks, if there is so much scratch memory as it needs, which it returns. */
static ptrdiff_t forward(fl_forward_job *job, int threads, float *scratch, ptrdiff_t size) {
    const fl_pass *passes = job->passes;
    const fl_isa *isa = isas[passes[0].block->isa];
    const fl_rows *rows = job->rows;
    const int count = job->chunk_count;
    const int copies = threads == 1 || rows->T < LEAST_STEPS ? 0 : job->way == FL_TEAM ? job->parts : count > 1;
    supply from = {scratch, 0};
    for (int i = 0; i < count; i++) {
        fl_chunk *chunk = &job->chunks[i];
        const fl_pass *pass = &passes[chunk->direction];
        place_state(chunk, pass, copies, &from);
        chunk->scratch = take_apart(&from, isa->forward_scratch(pass->block, chunk->b1 - chunk->b0, rows, job->parts));
    }
    if (from.used > size)
        return from.used;
    keep_initial(job->chunks, count, passes);
    const int team = job->way == FL_TEAM; /* whose members copy c themselves */
    copy_states(job->chunks, count, passes, !team, 0);
    if (team)
        run_team(job, threads);
    else if (job->way == FL_PAIR)
        fl_run(isa->forward_pair, job, isa->pair_steps(job), 2, 2);
    else
        fl_run(isa->forward_chunk, job, 1, count, count > 1 ? threads : 1);
    for (int i = 0; i < count && team && rows->T % 2; i++) /* an odd number of steps ends in the scratch memory */
        job->chunks[i].h = job->chunks[i].scratch;
    copy_states(job->chunks, count, passes, !team, 1);
    return from.used;
}

ptrdiff_t flq_forward(const fl_block *first, const fl_block *second, const float *x, const int64_t *ids,
                      const int64_t *batch_sizes, ptrdiff_t T, float *h, float *c, float *tapes, float *y,
                      const fl_places *places, int threads, float *scratch, ptrdiff_t size) {
    const fl_spec *s = &first->spec;
    const fl_rows rows = {.x = x, .ids = ids, .batch_sizes = batch_sizes, .T = T};
    const ptrdiff_t N = row_count(&rows), B = batch_sizes[0];
    const int D = second ? 2 : 1;
    fl_pass passes[2] = {make_pass(first, h, c, &tapes, N, B)};
    if (second)
        passes[1] = make_pass(second, h + B * s->R, c ? c + B * s->H : NULL, &tapes, N, B);
    fl_chunk chunks[FL_MAX_CHUNKS];
    fl_forward_job job = {
        .passes = passes, .rows = &rows, .N = N, .y = y, .ldy = D * s->R, .places = places, .chunks = chunks};
    cut_forward(&job, D, threads);
    return forward(&job, threads, scratch, size);
}

ptrdiff_t fl_forward(const fl_block *first, const fl_block *second, const float *x, const int64_t *ids,
                     const int64_t *batch_sizes, ptrdiff_t T, float *h, float *c, float *tapes, float *y,
                     const fl_places *places, int threads, float *scratch, ptrdiff_t size) {
    return flq_forward(first, second, x, ids, batch_sizes, T, h, c, tapes, y, places, threads, scratch, size);
}

/* ---------------------------------------------------------------------------------------------------------- backward */

/* Multiply-adds of a call of one sequence, which nobody can walk back through but one thread, below which the others, who
 * then sum gradients of what that one has in its cache, cost more than they bring. */
static const double LEAST_SUMS = FL_LEAST * 5e6;

static void cut_backward(fl_backward_job *job, int threads) {
    const fl_spec *s = &job->pass->block->spec;
    const int of_ids = job->rows->ids != NULL;
    const int alone = job->rows->batch_sizes[0] == 1 && (double)job->N * row_work(s, of_ids) < LEAST_SUMS;
    job->pieces = alone ? 1 : worthwhile(s, of_ids, job->N, 2, threads);
    job->chunk_count = cut(job->chunks, job->rows, job->N, 1, job->pieces);
}

/* Rows of a stretch: few enough to stay in cache, enough to be worth a pass over the weights' gradients. */
static const ptrdiff_t STRETCH_ROWS = 2 * FL_GRAD_BLOCK;

static int stretch_limit(const fl_rows *rows, ptrdiff_t N) { return (int)fl_min(rows->T, N / STRETCH_ROWS + 1); }

/* Stretches of whole steps, last first; in reverse for a reverse direction, whose backward walks forth. */
static int find_stretches(fl_stretch *stretches, const fl_rows *rows, ptrdiff_t N, int reverse) {
    int count = 0;
    fl_stretch s = {rows->T, rows->T, N, N};
    if (reverse)
        s = (fl_stretch){0, 0, 0, 0};
    while (reverse ? s.t1 < rows->T : s.t0 > 0) {
        if (reverse)
            s.row1 += rows->batch_sizes[s.t1++];
        else
            s.row0 -= rows->batch_sizes[--s.t0];
        const int last = reverse ? s.t1 == rows->T : s.t0 == 0;
        if (s.row1 - s.row0 < STRETCH_ROWS && !last)
            continue;
        stretches[count++] = s;
        s = reverse ? (fl_stretch){s.t1, s.t1, s.row1, s.row1} : (fl_stretch){s.t0, s.t0, s.row0, s.row0};
    }
    return count;
}

/* Floats that hold n of something. */
static ptrdiff_t floats_of(ptrdiff_t n, size_t size) { return n * (ptrdiff_t)(size / sizeof(float)); }

/* Where each packed row's previous value lies, in the direction's own order of steps: in `kept`, or in `initial`. */
static void find_previous(const float **previous, const fl_rows *rows, int reverse, const float *kept,
                          const float *initial, ptrdiff_t width) {
    const int64_t *sizes = rows->batch_sizes;
    ptrdiff_t at = 0, before = 0; /* first row of step t, and of the step walked before it */
    for (ptrdiff_t t = 0; t < rows->T; at += sizes[t], t++) {
        const ptrdiff_t t_before = reverse ? t + 1 : t - 1;
        const ptrdiff_t alive = t_before < 0 || t_before >= rows->T ? 0 : sizes[t_before];
        if (reverse)
            before = at + sizes[t];
        for (ptrdiff_t b = 0; b < sizes[t]; b++)
            previous[at + b] = b < alive ? kept + (before + b) * width : initial + b * width;
        if (!reverse)
            before = at;
    }
}

ptrdiff_t fl_backward(const fl_block *block, const float *x, const int64_t *ids, const int64_t *batch_sizes,
                      ptrdiff_t T, float *h, float *c, float *tape, const float *dy, ptrdiff_t ldy, float *dx,
                      const fl_grads *grads, int threads, float *scratch, ptrdiff_t size) {
    const fl_spec *s = &block->spec;
    const fl_isa *isa = isas[block->isa];
    const fl_rows rows = {.x = x, .ids = ids, .batch_sizes = batch_sizes, .T = T};
    const ptrdiff_t N = row_count(&rows);
    const fl_pass pass = make_pass(block, h, c, &tape, N, batch_sizes[0]);
    fl_chunk chunks[FL_MAX_CHUNKS];
    fl_backward_job job = {
        .pass = &pass, .rows = &rows, .N = N, .dy = dy, .ldy = ldy, .dx = dx, .grads = grads, .chunks = chunks};
    cut_backward(&job, threads);
    supply from = {scratch, 0};
    job.h_prev = (const float **)take(&from, floats_of(job.N, sizeof(float *)));
    if (s->kind == FL_LSTM)
        job.c_prev = (const float **)take(&from, floats_of(job.N, sizeof(float *)));
    job.stretches = (fl_stretch *)take(&from, floats_of(stretch_limit(&rows, job.N), sizeof(fl_stretch)));
    if (s->projected)
        job.dh_all = take(&from, job.N * s->R);
    job.dgates = s->kind == FL_RNN ? take(&from, job.N * s->H) : pass.gates;
    job.ld_gates = s->kind == FL_RNN ? s->H : 4 * s->H;
    for (int i = 0; i < job.chunk_count; i++) {
        fl_chunk *chunk = &job.chunks[i];
        place_state(chunk, &pass, job.chunk_count > 1, &from);
        chunk->scratch = take_apart(&from, isa->backward_scratch(s, chunk->b1 - chunk->b0));
    }
    job.workspace_size = fl_round16(isa->gradient_scratch(s)) + FL_APART;
    job.workspace = take(&from, threads * job.workspace_size);
    if (from.used > size)
        return from.used;
    find_previous(job.h_prev, &rows, pass.reverse, pass.tape_h, pass.h0, s->R);
    if (s->kind == FL_LSTM)
        find_previous(job.c_prev, &rows, pass.reverse, pass.tape_c, pass.c0, s->H);
    job.stretch_count = find_stretches(job.stretches, &rows, job.N, pass.reverse);
    copy_states(chunks, job.chunk_count, &pass, 1, 0);
    fl_run(isa->backward, &job, 2 * job.stretch_count, job.pieces, threads);
    copy_states(chunks, job.chunk_count, &pass, 1, 1);
    return from.used;
}

/* ------------------------------------------------------------------------------------------------------- dense layer */

ptrdiff_t fl_dense_size(const fl_dense *dense, int backward) { return isas[dense->isa]->dense_size(dense, backward); }

void fl_dense_pack(fl_dense *dense, const float *weight, const float *bias, int backward, float *memory) {
    isas[dense->isa]->dense_pack(dense, weight, bias, backward, memory);
}

/* Threads worth waking for `products` products of N rows with the weights. */
static int dense_threads(const fl_dense *k, ptrdiff_t N, int products, int threads) {
    return (double)N * (double)k->I * (double)k->U * products < LEAST_WORK ? 1 : threads;
}

void fl_dense_forward(const fl_dense *dense, const float *x, ptrdiff_t N, float *y, int threads) {
    fl_dense_job job = {.dense = dense, .N = N, .x = x, .y = y, .pieces = dense_threads(dense, N, 1, threads)};
    fl_run(isas[dense->isa]->dense_forward, &job, 1, job.pieces, threads);
}

/* Runs a job with a backward in it, if there is so much scratch memory as it needs, which it returns. */
static ptrdiff_t run_dense(fl_piece_fn fn, int steps, fl_dense_job *job, int threads, float *scratch, ptrdiff_t size) {
    job->pieces = dense_threads(job->dense, job->N, 2, threads);
    job->workspace = scratch;
    job->workspace_size = fl_round16(isas[job->dense->isa]->dense_scratch(job->dense)) + FL_APART;
    const ptrdiff_t need = job->pieces * job->workspace_size;
    if (need <= size)
        fl_run(fn, job, steps, job->pieces, job->pieces);
    return need;
}

ptrdiff_t fl_dense_backward(const fl_dense *dense, const float *x, ptrdiff_t N, const float *dy, float *dx,
                            float *dweight, float *dbias, int threads, float *scratch, ptrdiff_t size) {
    fl_dense_job job = {.dense = dense, .N = N, .x = x, .dy = dy, .dx = dx, .dweight = dweight, .dbias = dbias};
    return run_dense(isas[dense->isa]->dense_backward, 1, &job, threads, scratch, size);
}

ptrdiff_t fl_dense_cross_entropy(const fl_dense *dense, const float *x, ptrdiff_t N, const int64_t *targets,
                                 double factor, float *rows, double *losses, float *dx, float *dweight, float *dbias,
                                 int threads, float *scratch, ptrdiff_t size) {
    fl_dense_job job = {.dense = dense,
                        .N = N,
                        .x = x,
                        .y = rows,
                        .targets = targets,
                        .factor = factor,
                        .losses = losses,
                        .dy = rows,
                        .dx = dx,
                        .dweight = dweight,
                        .dbias = dbias};
    return run_dense(isas[dense->isa]->dense_cross_entropy, 2, &job, threads, scratch, size);
}

/* -------------------------------------------------------------------------------------------------------- optimisers */

ptrdiff_t fl_blocks(const fl_span *spans, int count) {
    ptrdiff_t blocks = 0;
    for (int i = 0; i < count; i++)
        blocks += (spans[i].n + FL_SPAN_BLOCK - 1) / FL_SPAN_BLOCK;
    return blocks;
}

/* Fewer blocks than these are done before a second thread is awake. */
enum { LEAST_BLOCKS = 4 };

static void run_blocks(fl_piece_fn fn, fl_spans_job *job, int count, int threads) {
    const ptrdiff_t blocks = fl_blocks(job->spans, count);
    fl_run(fn, job, 1, (int)blocks, blocks < LEAST_BLOCKS ? 1 : threads);
}

void fl_update(const fl_rule *rule, const fl_span *spans, int count, int threads) {
    fl_spans_job job = {.spans = spans, .rule = rule};
    run_blocks(isas[fl_isa_chosen()]->span_update, &job, count, threads);
}

double fl_square_sum(const fl_span *spans, int count, double *sums, int threads) {
    fl_spans_job job = {.spans = spans, .sums = sums};
    run_blocks(isas[fl_isa_chosen()]->span_squares, &job, count, threads);
    double sum = 0;
    for (ptrdiff_t i = 0, blocks = fl_blocks(spans, count); i < blocks; i++)
        sum += sums[i];
    return sum;
}

void fl_scale(const fl_span *spans, int count, float factor, int threads) {
    fl_spans_job job = {.spans = spans, .factor = factor};
    run_blocks(isas[fl_isa_chosen()]->span_scale, &job, count, threads);
}

typedef struct {
    float *p;
    const float *rows;
    const int64_t *ids;
    ptrdiff_t J, V, n;
    float lr;
} fl_columns_job;

enum {
    COLUMN_PIECE = 16, /* rows of p: a cache line of each gradient row */
    COLUMN_IDS = 128   /* gradient rows of a tile, which stays in the first-level cache */
};

static void update_columns(void *arg, int step, int piece, int worker) {
    (void)step, (void)worker;
    const fl_columns_job *job = arg;
    const ptrdiff_t J = job->J, j0 = piece * (ptrdiff_t)COLUMN_PIECE, count = fl_min(COLUMN_PIECE, J - j0);
    float tile[COLUMN_PIECE]
              [COLUMN_IDS]; /* read along the gradient's rows, whose columns share a few cache sets only */
    for (ptrdiff_t k0 = 0; k0 < job->n; k0 += COLUMN_IDS) {
        const ptrdiff_t n = fl_min(COLUMN_IDS, job->n - k0);
        const int64_t *const ids = job->ids + k0;
        for (ptrdiff_t k = 0; k < n; k++)
            for (ptrdiff_t j = 0; j < count; j++)
                tile[j][k] = job->lr * job->rows[(k0 + k) * J + j0 + j];
        for (ptrdiff_t j = 0; j < count; j++)
            for (ptrdiff_t k = 0; k < n; k++)
                job->p[(j0 + j) * job->V + ids[k]] -= tile[j][k];
    }
}

void fl_update_columns(float *p, ptrdiff_t J, ptrdiff_t V, const int64_t *ids, ptrdiff_t n, const float *rows, float lr,
                       int threads) {
    fl_columns_job job = {.p = p, .rows = rows, .ids = ids, .J = J, .V = V, .n = n, .lr = lr};
    const int pieces = (int)((J + COLUMN_PIECE - 1) / COLUMN_PIECE);
    fl_run(update_columns, &job, 1, pieces, J * n < LEAST_BLOCKS * FL_SPAN_BLOCK ? 1 : threads);
}

/* --------------------------------------------------------------------------------------------------------- streaming */

/* Every second step walks the panels backwards: what the step before read last is still near. Returns how much scratch
 * memory is needed; where there is less, that is all. */
static ptrdiff_t step(const fl_stream *s, int threads, ptrdiff_t size) {
    const int64_t B = s->B;
    fl_rows rows = {.x = s->x, .ids = s->ids, .batch_sizes = &B, .T = 1};
    float *h = s->h, *c = s->c, *no_tape = NULL;
    ptrdiff_t most = 0;
    for (int l = 0; l < s->L; l++) {
        const fl_spec *of = &s->blocks[l]->spec;
        const fl_pass pass = make_pass(s->blocks[l], h, c, &no_tape, B, B);
        fl_chunk chunks[FL_MAX_CHUNKS];
        fl_forward_job job = {.passes = &pass, .rows = &rows, .N = B, .chunks = chunks, .turn = s->turn};
        cut_forward(&job, 1, threads);
        most = fl_max(most, forward(&job, threads, s->scratch, size));
        rows.x = h, rows.ids = NULL;
        h += B * of->R;
        if (c)
            c += B * of->H;
    }
    return most;
}

ptrdiff_t fl_step_scratch(const fl_stream *stream) { return step(stream, stream->threads, -1); }

static void take_step(fl_stream *s, int threads) {
    s->turn ^= 1;
    step(s, threads, PTRDIFF_MAX);
}

void fl_step(fl_stream *stream) { take_step(stream, stream->threads); }

/* A short step gains from threads that are awake, which they are while one step follows the other, and loses where they
 * must be woken, or share their processor with a neighbour. So the first steps of every round are timed: some with all
 * threads, of which the first wake them and do not count, then some alone; the rest go the quicker way. Threads that did
 * not help, perhaps for a moment only, are tried again soon, and then less and less often. */
enum { WAKING = 16, TRIED_WITH_ALL = 20, TRIED = 24, LEAST_ROUND = 256, MOST_ROUND = 4096 };
void flq_step(fl_stream *stream) {
    if (worthwhile(&stream->blocks[0]->spec, stream->ids != NULL, stream->B, 1, stream->threads) == 1) {
        take_step(stream, 1);
        return;
    }
    const uint64_t begin = fl_now();
    const int follows = begin - stream->ended < FL_SPIN_NS, at = stream->followed;
    const int quicker = stream->spent[1] < stream->spent[0];
    const int all = follows && (at < TRIED_WITH_ALL || (at >= TRIED && quicker));
    take_step(stream, all ? stream->threads : 1);
    stream->ended = fl_now();
    if (!follows)
        return;
    if (at == 0)
        stream->spent[0] = stream->spent[1] = 0;
    if (at >= WAKING && at < TRIED)
        stream->spent[all] += stream->ended - begin;
    if (at == TRIED)
        stream->alone = quicker ? 0 : (int)fl_max(LEAST_ROUND, fl_min(MOST_ROUND, 2 * stream->alone));
    const int round = stream->alone ? stream->alone : MOST_ROUND;
    stream->followed = at < TRIED || at + 1 < round ? at + 1 : 0;
}
