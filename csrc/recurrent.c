/* recurrent.c: packing, forward and backward of recurrent layers: plans a call, places its memory and runs it. */
#include "internal.h"

ptrdiff_t fl_pack_size(const fl_block *block, int panels) { return fl_isa_at(block->isa)->pack_size(block, panels); }

void fl_pack(fl_block *block, const fl_params *params, int panels, void *memory) {
    fl_isa_at(block->isa)->pack(block, params, panels, memory);
}

/* ---------------------------------------------------------------------------------------------------- tape and states */

/* Takes a part of a tape, if the tape has it. */
static float *next_part(float **tape, int has, ptrdiff_t floats) {
    float *const part = has ? *tape : NULL;
    *tape += has ? floats : 0;
    return part;
}

/* A direction with the parts of its tape, in the order of Spec.tape and Spec.initial; *tape moves on to their end. */
static fl_pass taped_pass(const fl_block *block, float *h, float *c, float **tape, ptrdiff_t N, ptrdiff_t B) {
    const fl_spec *s = &block->spec;
    const int lstm = s->kind == FL_LSTM;
    fl_pass pass = fl_untaped_pass(block, h, c);
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

/* Gives a chunk its rows of the state: the pass's own or, where several threads write the state, copies: one of h and
 * `copies` of c. */
static void place_state(fl_chunk *chunk, const fl_pass *pass, int copies, fl_supply *from) {
    const fl_spec *s = &pass->block->spec;
    const ptrdiff_t n = chunk->b1 - chunk->b0;
    chunk->h = copies ? fl_take_padded(from, n * s->R) : pass->h + chunk->b0 * s->R;
    chunk->c = !pass->c ? NULL : copies ? fl_take(from, copies * fl_copy_of_c(n, s->H)) : pass->c + chunk->b0 * s->H;
}

/* Copies the state to the chunks' copies, or (`back`) from them: h, and c if so. */
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

/* Copies the chunks' rows of the initial state to the tape, if there is one. */
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

/* ----------------------------------------------------------------------------------------------------------- forward */

/* Workers that quantise operands of a chunk at the same time: the parts of a split by units; in a pipeline two that take
 * the input's product, and one that walks. */
static int quantisers(const fl_plan *plan) {
    return plan->split == FL_BY_UNITS ? plan->parts : plan->split == FL_PIPELINED ? FL_WALKER + 1 : 1;
}

/* Scratch memory of a chunk: h_new, m and z of a step; where the input's product is hoisted, start values and gathered
 * inputs too; quantised operands of integers. Every worker of a split by units has start values of its own. */
static void place_forward(fl_chunk *chunk, const fl_forward_job *job, fl_supply *from) {
    const fl_block *k = job->passes[chunk->direction].block;
    const fl_isa *isa = fl_isa_at(k->isa);
    const ptrdiff_t n = chunk->b1 - chunk->b0, H = k->spec.H, R = k->spec.R, I = k->spec.I;
    chunk->h_new = fl_take_padded(from, n * R);
    chunk->m = fl_take(from, n * H);
    chunk->z = fl_take(from, n * H);
    if (fl_hoists(job->rows, n, isa->rows)) {
        const ptrdiff_t width = isa->start_width(k), rows = chunk->hoisted_rows = fl_hoisted_rows(n, width, I);
        const ptrdiff_t apart = job->plan->split == FL_BY_UNITS ? job->plan->parts * FL_APART : 0;
        chunk->start = fl_take(from, fl_round16(rows * width) + apart);
        chunk->gathered = fl_take(from, rows * I);
    }
    if (fl_quantises(k->storage))
        chunk->quantised = fl_take_padded(from, quantisers(job->plan) * fl_quantised_floats(k, chunk));
}

/* Copies of c that each chunk has: with one thread, or few steps, none. */
static int state_copies(const fl_plan *plan) {
    if (plan->threads == 1 || plan->T < FL_LEAST_STEPS)
        return 0;
    return plan->split == FL_BY_UNITS ? plan->parts : plan->chunk_count > 1;
}

ptrdiff_t fl_run_forward(fl_forward_job *job, fl_scratch scratch) {
    const fl_plan *plan = job->plan;
    const fl_pass *passes = job->passes;
    const int count = plan->chunk_count, copies = state_copies(plan), by_units = plan->split == FL_BY_UNITS;
    fl_supply from = {scratch.memory, 0};
    for (fl_chunk *chunk = plan->chunks; chunk < plan->chunks + count; chunk++) {
        place_state(chunk, &passes[chunk->direction], copies, &from);
        place_forward(chunk, job, &from);
    }
    if (from.used > scratch.size)
        return from.used;
    keep_initial(plan->chunks, count, passes);
    copy_states(plan->chunks, count, passes, !by_units, 0); /* by units, the workers copy c */
    const fl_isa *isa = fl_isa_at(passes[0].block->isa);
    const uint64_t waited = fl_run(isa->forward, job, plan->steps, plan->pieces, plan->threads);
    fl_note_barriers(plan, waited);
    for (int i = 0; i < count && by_units && plan->T % 2; i++) /* h alternates between two places, see walk.h */
        plan->chunks[i].h = plan->chunks[i].h_new;
    copy_states(plan->chunks, count, passes, !by_units, 1);
    return from.used;
}

ptrdiff_t fl_forward(const fl_call *call) {
    const fl_block *first = call->first, *second = call->second;
    const fl_spec *s = &first->spec;
    const ptrdiff_t N = fl_row_count(&call->rows), B = call->rows.batch_sizes[0];
    const int D = second ? 2 : 1;
    float *tapes = call->tapes;
    fl_pass passes[2] = {taped_pass(first, call->h, call->c, &tapes, N, B)};
    if (second)
        passes[1] = taped_pass(second, call->h + B * s->R, call->c ? call->c + B * s->H : NULL, &tapes, N, B);
    fl_chunk chunks[FL_MAX_CHUNKS];
    fl_plan plan = {.chunks = chunks};
    fl_plan_forward(&plan, first, &call->rows, N, D, call->threads);
    fl_forward_job job = {.plan = &plan,
                          .passes = passes,
                          .rows = &call->rows,
                          .N = N,
                          .y = call->y,
                          .ldy = D * s->R,
                          .row_map = call->row_map.sequences ? &call->row_map : NULL};
    return fl_run_forward(&job, call->scratch);
}

void fl_set(fl_call *call, const fl_block *first, const float *x, const int64_t *ids, float *h, float *c, float *tapes,
            float *y) {
    call->first = first;
    call->rows.x = x, call->rows.ids = ids;
    call->h = h, call->c = c;
    call->tapes = tapes, call->y = y;
}

ptrdiff_t flq_forward(fl_call *call, const fl_block *first, const float *x, const int64_t *ids, float *h, float *c,
                      float *tapes, float *y) {
    fl_set(call, first, x, ids, h, c, tapes, y);
    return fl_forward(call);
}

/* ---------------------------------------------------------------------------------------------------------- backward */

/* Floats that hold n things of a size. */
static ptrdiff_t floats_of(ptrdiff_t n, size_t size) { return n * (ptrdiff_t)(size / sizeof(float)); }

/* Where the value of the step before lies, for each packed row, in the direction's own order of steps: in `kept`, or, for
 * a sequence's first step, in `initial`. */
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

/* Places all scratch memory of a backward call. */
static void place_backward(fl_backward_job *job, fl_back_plan *plan, ptrdiff_t N, fl_supply *from) {
    const fl_spec *s = &job->pass->block->spec;
    const ptrdiff_t H = s->H;
    job->h_prev = (const float **)fl_take(from, floats_of(N, sizeof(float *)));
    if (s->kind == FL_LSTM)
        job->c_prev = (const float **)fl_take(from, floats_of(N, sizeof(float *)));
    plan->stretches = (fl_stretch *)fl_take(from, floats_of(fl_stretch_limit(job->rows, N), sizeof(fl_stretch)));
    if (s->projected)
        job->dh_all = fl_take(from, N * s->R);
    job->dgates = s->kind == FL_RNN ? fl_take(from, N * H) : job->pass->gates;
    job->ld_gates = s->kind == FL_RNN ? H : 4 * H;
    for (fl_chunk *chunk = plan->chunks; chunk < plan->chunks + plan->chunk_count; chunk++) {
        place_state(chunk, job->pass, plan->chunk_count > 1, from);
        chunk->m = fl_take_padded(from, (chunk->b1 - chunk->b0) * H);
    }
    job->workspace_size = fl_round16(fl_isa_at(job->pass->block->isa)->gradient_scratch(s)) + FL_APART;
    job->workspace = fl_take(from, plan->threads * job->workspace_size);
}

ptrdiff_t fl_backward(const fl_backward_call *call) {
    const fl_block *block = call->block;
    const fl_rows *rows = &call->rows;
    const fl_spec *s = &block->spec;
    const ptrdiff_t N = fl_row_count(rows);
    float *tape = call->tape;
    const fl_pass pass = taped_pass(block, call->h, call->c, &tape, N, rows->batch_sizes[0]);
    fl_chunk chunks[FL_MAX_CHUNKS];
    fl_back_plan plan = {.chunks = chunks};
    fl_plan_backward(&plan, block, rows, N, call->dx != NULL, call->threads);
    fl_backward_job job = {.plan = &plan,
                           .pass = &pass,
                           .rows = rows,
                           .dy = call->dy,
                           .ldy = call->ldy,
                           .dx = call->dx,
                           .grads = call->grads};
    fl_supply from = {call->scratch.memory, 0};
    place_backward(&job, &plan, N, &from);
    if (from.used > call->scratch.size)
        return from.used;
    find_previous(job.h_prev, rows, block->reverse, pass.tape_h, pass.h0, s->R);
    if (s->kind == FL_LSTM)
        find_previous(job.c_prev, rows, block->reverse, pass.tape_c, pass.c0, s->H);
    plan.stretch_count = fl_find_stretches(plan.stretches, rows, N, block->reverse);
    copy_states(chunks, plan.chunk_count, &pass, 1, 0);
    fl_run(fl_isa_at(block->isa)->backward, &job, 2 * plan.stretch_count, plan.pieces, plan.threads);
    copy_states(chunks, plan.chunk_count, &pass, 1, 1);
    return from.used;
}
