/* stream.c: one step of all layers of a stream. */
#include "internal.h"

/* Does one step, if scratch memory of `size` floats suffices; returns the floats that it needs. Every second step walks
 * the panels from the last to the first: what the step before read last is still in a near cache. */
static ptrdiff_t one_step(const fl_stream *s, int threads, int prefetches, ptrdiff_t size) {
    const int64_t B = s->B;
    fl_rows rows = {.x = s->x, .ids = s->ids, .batch_sizes = &B, .T = 1};
    float *h = s->h, *c = s->c;
    ptrdiff_t most = 0;
    for (int l = 0; l < s->L; l++) {
        const fl_block *block = s->blocks[l];
        const fl_pass pass = fl_untaped_pass(block, h, c);
        fl_chunk chunks[FL_MAX_CHUNKS];
        fl_plan plan = {.chunks = chunks};
        fl_plan_forward(&plan, block, &rows, B, 1, threads);
        fl_forward_job job = {.plan = &plan,
                              .passes = &pass,
                              .rows = &rows,
                              .N = B,
                              .reversed_panels = s->reversed_panels,
                              .prefetches = prefetches};
        most = fl_max(most, fl_run_forward(&job, (fl_scratch){s->scratch, size}));
        rows.x = h, rows.ids = NULL;
        h += B * block->spec.R;
        if (c)
            c += B * block->spec.H;
    }
    return most;
}

ptrdiff_t fl_step_scratch(const fl_stream *stream) { return one_step(stream, stream->threads, 0, -1); }

/* Weights that a step asks for ahead come up to a fifth sooner on some processors, depending on what ran before, and up to
 * a quarter later on others. So from time to time steps are timed, by turns two without and two with prefetching, since
 * every second step walks the panels backwards; the others go the quicker way. Results are the same. */
static void take_step(fl_stream *s, int threads) {
    const int at = s->taken, tried = at < FL_PREFETCH_TRIED_STEPS;
    s->taken = at + 1 < FL_LONGEST_ROUND ? at + 1 : 0;
    s->reversed_panels ^= 1;
    if (!tried) {
        one_step(s, threads, s->prefetch_spent[1] < s->prefetch_spent[0], PTRDIFF_MAX);
        return;
    }
    if (at <= FL_PREFETCH_FIRST_STEPS)
        s->prefetch_spent[0] = s->prefetch_spent[1] = 0;
    const int prefetches = at / 2 & 1;
    const uint64_t begin = fl_now();
    one_step(s, threads, prefetches, PTRDIFF_MAX);
    s->prefetch_spent[prefetches] += fl_now() - begin;
}

void fl_step(fl_stream *stream) { take_step(stream, stream->threads); }

/* A short step gains from a second thread only while that thread is awake, which it is while one step follows the other,
 * and loses where the thread must be woken or shares its processor with another process. So the first steps of a round
 * are timed: some with all threads, of which the first ones wake the threads and do not count, then some with one thread.
 * The rest of the round goes the quicker way. After a round in which more threads did not help, both ways are tried again
 * soon, and then less and less often. */
void flq_step(fl_stream *stream) {
    if (fl_worthwhile(stream->blocks[0], stream->ids != NULL, stream->B, 1, stream->threads) == 1) {
        take_step(stream, 1);
        return;
    }
    const uint64_t begin = fl_now();
    const int follows = begin - stream->ended < FL_SPIN_NS, at = stream->followed;
    const int all_are_quicker = stream->spent[1] < stream->spent[0];
    const int all = follows && (at < FL_TRIED_WITH_ALL || (at >= FL_TRIED_STEPS && all_are_quicker));
    take_step(stream, all ? stream->threads : 1);
    stream->ended = fl_now();
    if (!follows)
        return;
    if (at == 0)
        stream->spent[0] = stream->spent[1] = 0;
    if (at >= FL_WAKING_STEPS && at < FL_TRIED_STEPS)
        stream->spent[all] += stream->ended - begin;
    if (at == FL_TRIED_STEPS)
        stream->round = all_are_quicker ? 0 : (int)fl_max(FL_LEAST_ROUND, fl_min(FL_LONGEST_ROUND, 2 * stream->round));
    const int round = stream->round ? stream->round : FL_LONGEST_ROUND;
    stream->followed = at < FL_TRIED_STEPS || at + 1 < round ? at + 1 : 0;
}
