/* dense.c: entry points of the dense layer: how a call is shared out, and its scratch memory. */
#include "internal.h"

ptrdiff_t fl_dense_size(const fl_dense *dense, int backward) {
    return fl_isa_at(dense->isa)->dense_size(dense, backward);
}

void fl_dense_pack(fl_dense *dense, const float *weight, const float *bias, int backward, void *memory) {
    fl_isa_at(dense->isa)->dense_pack(dense, weight, bias, backward, memory);
}

/* Threads worth waking for `products` products of N rows with the weights. */
static int worthwhile(const fl_dense *k, ptrdiff_t N, int products, int threads) {
    return (double)N * (double)k->I * (double)k->U * products < FL_LEAST_WORK ? 1 : threads;
}

void fl_dense_forward(const fl_dense *dense, const float *x, ptrdiff_t N, float *y, int threads) {
    fl_dense_job job = {.call = {.dense = dense, .N = N, .x = x, .logits = y},
                        .pieces = worthwhile(dense, N, 1, threads)};
    fl_run(fl_isa_at(dense->isa)->dense_forward, &job, 1, job.pieces, threads);
}

/* Runs a job with a backward in it, if its scratch memory is large enough; returns the floats that it needs. */
static ptrdiff_t run(fl_piece_fn fn, int steps, fl_dense_job *job) {
    const fl_dense_call *call = &job->call;
    job->pieces = worthwhile(call->dense, call->N, 2, call->threads);
    job->workspace = call->scratch.memory;
    job->workspace_size = fl_round16(fl_isa_at(call->dense->isa)->dense_scratch(call->dense)) + FL_APART;
    const ptrdiff_t need = job->pieces * job->workspace_size;
    if (need <= call->scratch.size)
        fl_run(fn, job, steps, job->pieces, job->pieces);
    return need;
}

ptrdiff_t fl_dense_backward(const fl_dense_call *call) {
    fl_dense_job job = {.call = *call};
    return run(fl_isa_at(call->dense->isa)->dense_backward, 1, &job);
}

ptrdiff_t fl_dense_cross_entropy(const fl_dense_call *call) {
    fl_dense_job job = {.call = *call};
    job.call.dy = call->logits;
    return run(fl_isa_at(call->dense->isa)->dense_cross_entropy, 2, &job);
}
