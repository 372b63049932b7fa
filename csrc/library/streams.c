/* streams.c: one sequence, in memory of its own or of the caller's. */
#include <stdlib.h>
#include <string.h>

#include "handles.h"
#include "pool.h"

struct fastlstm_stream {
    fastlstm_model *model;
    void *allocated; /* what stream_free frees, or NULL */
    uint64_t steps;
    float *record;
    fl_records step; /* x, ids and y are set by each step */
};

static size_t lines(size_t bytes) { return (bytes + 63) / 64 * 64; }

/* Bytes of a stream that begins at a cache line; its record lies behind the struct, its scratch memory behind that. */
static size_t record_at(void) { return lines(sizeof(fastlstm_stream)); }
static size_t scratch_at(const fastlstm_model *m) { return record_at() + lines((size_t)m->record * sizeof(float)); }
static size_t bytes_of(const fastlstm_model *m) {
    return scratch_at(m) + (size_t)fl_records_scratch(&m->native, 1, 1) * sizeof(float);
}

size_t fastlstm_stream_size(const fastlstm_model *model) { return model ? bytes_of(model) + 63 : 0; }

/* Sets up a stream in memory that begins at a cache line. */
static fastlstm_stream *place(fastlstm_model *model, void *memory) {
    fastlstm_stream *const s = memory;
    *s = (fastlstm_stream){.model = fastlstm_model_retain(model), .record = (float *)((char *)memory + record_at())};
    memset(s->record, 0, (size_t)model->record * sizeof(float));
    s->step = (fl_records){.model = &model->native,
                           .n = 1,
                           .records = &s->record,
                           .threads = 1,
                           .scratch = (float *)((char *)memory + scratch_at(model))};
    return s;
}

int fastlstm_stream_init(fastlstm_model *model, void *memory, size_t size, fastlstm_stream **stream) {
    if (!model || !memory || !stream || size < fastlstm_stream_size(model))
        return FASTLSTM_ARGUMENT;
    *stream = place(model, (char *)memory + (64 - (uintptr_t)memory % 64) % 64);
    return FASTLSTM_OK;
}

int fastlstm_stream_new(fastlstm_model *model, fastlstm_stream **stream) {
    if (!model || !stream)
        return FASTLSTM_ARGUMENT;
    void *const memory = lib_aligned(bytes_of(model));
    if (!memory)
        return FASTLSTM_MEMORY;
    *stream = place(model, memory);
    (*stream)->allocated = memory;
    return FASTLSTM_OK;
}

void fastlstm_stream_free(fastlstm_stream *stream) {
    if (!stream)
        return;
    fastlstm_model *const model = stream->model;
    stream->model = NULL;
    free(stream->allocated); /* the stream itself, where it has allocated its memory */
    fastlstm_model_release(model);
}

/* ------------------------------------------------------------------------------------------------------------- steps */

/* One step of checked input. */
static void step(fastlstm_stream *s, const float *x, const int64_t *id, float *y) {
    s->step.x = x, s->step.ids = id, s->step.y = y;
    s->step.reversed_panels ^= 1;
    fl_step_records(&s->step);
    s->steps++;
}

int fastlstm_step(fastlstm_stream *stream, const float *x, float *y) {
    if (!stream || !x || !y || !stream->model->I)
        return FASTLSTM_ARGUMENT;
    step(stream, x, NULL, y);
    return FASTLSTM_OK;
}

int fastlstm_run(fastlstm_stream *stream, const float *x, size_t steps, float *y) {
    if (!stream || ((!x || !y) && steps) || !stream->model->I)
        return FASTLSTM_ARGUMENT;
    for (size_t t = 0; t < steps; t++)
        step(stream, x + t * stream->model->I, NULL, y + t * stream->model->U);
    return FASTLSTM_OK;
}

int fastlstm_run_ids(fastlstm_stream *stream, const int64_t *ids, size_t steps, float *y) {
    if (!stream || ((!ids || !y) && steps) || !stream->model->vocabulary || !lib_ids_fit(stream->model, ids, steps))
        return FASTLSTM_ARGUMENT;
    for (size_t t = 0; t < steps; t++)
        step(stream, NULL, ids + t, y + t * stream->model->U);
    return FASTLSTM_OK;
}

int fastlstm_step_id(fastlstm_stream *stream, int64_t id, float *y) { return fastlstm_run_ids(stream, &id, 1, y); }

/* ------------------------------------------------------------------------------------------------------------ states */

int fastlstm_reset(fastlstm_stream *stream) {
    if (!stream)
        return FASTLSTM_ARGUMENT;
    memset(stream->record, 0, (size_t)stream->model->record * sizeof(float));
    stream->steps = 0;
    return FASTLSTM_OK;
}

int fastlstm_copy(fastlstm_stream *to, const fastlstm_stream *from) {
    if (!to || !from)
        return FASTLSTM_ARGUMENT;
    if (to->model != from->model)
        return FASTLSTM_STATE;
    memmove(to->record, from->record, (size_t)to->model->record * sizeof(float));
    to->steps = from->steps;
    return FASTLSTM_OK;
}

int fastlstm_state_export(const fastlstm_stream *stream, void *memory, size_t room, size_t *need) {
    return stream ? lib_state_export(stream->model, stream->record, stream->steps, memory, room, need)
                  : FASTLSTM_ARGUMENT;
}

int fastlstm_state_import(fastlstm_stream *stream, const void *bytes, size_t length, unsigned flags,
                          fastlstm_error *error) {
    return stream ? lib_state_read(stream->model, bytes, length, flags, stream->record, &stream->steps, error)
                  : lib_fail(error, FASTLSTM_ARGUMENT, "stream is NULL");
}

void fastlstm_shutdown(void) { fl_end_threads(); }
