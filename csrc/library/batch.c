/* batch.c: many sequences, whose states lie in slabs of FL_SLAB records. */
#include <stdlib.h>
#include <string.h>

#include "handles.h"

struct fastlstm_batch {
    fastlstm_model *model;
    fl_streams slabs;
    float **records; /* (slabs.slabs) what slabs.records points to */
    fl_slot **slots; /* (slabs.slabs) */
    size_t most, open;
    size_t room;        /* rows of the scratch memory */
    uint64_t free_slot; /* the first one, plus 1; 0: none. A free slot's `steps` names the next one in this way */
    uint64_t counted[3];
};

enum { SLOT_BITS_MOST = 1 << FL_SLOT_BITS };

/* ------------------------------------------------------------------------------------------------------------- slots */

static fl_slot *slot_at(const fastlstm_batch *b, uint64_t slot) { return &b->slots[slot / FL_SLAB][slot % FL_SLAB]; }
static float *record_at(const fastlstm_batch *b, uint64_t slot) {
    return b->records[slot / FL_SLAB] + (ptrdiff_t)(slot % FL_SLAB) * b->slabs.stride;
}

/* The slot of an open sequence, or NULL. */
static fl_slot *find(const fastlstm_batch *b, fastlstm_handle handle, float **record) {
    const uint64_t slot = handle & (SLOT_BITS_MOST - 1), generation = handle >> FL_SLOT_BITS;
    if (slot >= (uint64_t)b->slabs.slabs * FL_SLAB || !(generation & 1))
        return NULL;
    fl_slot *const found = slot_at(b, slot);
    *record = record_at(b, slot);
    return (uint64_t)found->generation == generation ? found : NULL;
}

/* ------------------------------------------------------------------------------------------------------------- memory */

/* A longer copy of a list of pointers; NULL where there is no memory. */
static void *longer(void *list, ptrdiff_t count) {
    void **const made = malloc((size_t)(count + 1) * sizeof *made);
    if (made && count)
        memcpy(made, list, (size_t)count * sizeof *made);
    return made;
}

/* Makes the slots of slab number `slab` the free ones that are taken first, in their order. */
static void chain_slots(fastlstm_batch *b, ptrdiff_t slab) {
    for (int i = FL_SLAB - 1; i >= 0; i--) {
        b->slots[slab][i].steps = b->free_slot;
        b->free_slot = (uint64_t)slab * FL_SLAB + (uint64_t)i + 1;
    }
}

/* One slab more, and scratch memory for a step of all its sequences too. Nothing changes where memory is missing. */
static int grow(fastlstm_batch *b) {
    fl_streams *const s = &b->slabs;
    const size_t slabs = (size_t)s->slabs + 1, room = slabs * FL_SLAB;
    if (room > SLOT_BITS_MOST)
        return FASTLSTM_FULL;
    float **const records = longer(b->records, s->slabs);
    fl_slot **const slots = longer(b->slots, s->slabs);
    float *const numbers = lib_aligned((size_t)s->stride * FL_SLAB * sizeof(float));
    fl_slot *const of_slab = lib_aligned(FL_SLAB * sizeof(fl_slot));
    float *const scratch = lib_aligned((size_t)fl_rows_scratch(s, (ptrdiff_t)room) * sizeof(float));
    if (!records || !slots || !numbers || !of_slab || !scratch) {
        free(records), free(slots), free(numbers), free(of_slab), free(scratch);
        return FASTLSTM_MEMORY;
    }
    memset(of_slab, 0, FL_SLAB * sizeof(fl_slot));
    records[s->slabs] = numbers, slots[s->slabs] = of_slab;
    free(b->records), free(b->slots), free(s->scratch);
    b->records = records, b->slots = slots;
    s->records = records, s->slots = slots, s->scratch = scratch;
    s->slabs++;
    b->room = room;
    chain_slots(b, s->slabs - 1);
    return FASTLSTM_OK;
}

void fastlstm_batch_free(fastlstm_batch *b) {
    if (!b)
        return;
    for (ptrdiff_t i = 0; i < b->slabs.slabs; i++)
        free(b->records[i]), free(b->slots[i]);
    free(b->records), free(b->slots), free(b->slabs.scratch);
    fastlstm_model_release(b->model);
    free(b);
}

int fastlstm_batch_new(fastlstm_model *model, size_t capacity, size_t most, fastlstm_batch **batch) {
    if (!model || !batch || (most && capacity > most) || capacity > SLOT_BITS_MOST)
        return FASTLSTM_ARGUMENT;
    fastlstm_batch *const b = calloc(1, sizeof *b);
    if (!b)
        return FASTLSTM_MEMORY;
    b->model = fastlstm_model_retain(model);
    b->most = most ? most : SLOT_BITS_MOST;
    b->slabs.model = &model->native;
    b->slabs.threads = model->threads;
    b->slabs.stride = (model->record + 15) / 16 * 16;
    b->slabs.counted = b->counted;
    int code = FASTLSTM_OK;
    while (!code && b->room < capacity)
        code = grow(b);
    if (code)
        fastlstm_batch_free(b);
    else
        *batch = b;
    return code;
}

/* --------------------------------------------------------------------------------------------------------- sequences */

int fastlstm_batch_open(fastlstm_batch *b, fastlstm_handle *handle) {
    if (!b || !handle)
        return FASTLSTM_ARGUMENT;
    if (b->open >= b->most)
        return FASTLSTM_FULL;
    const int code = b->free_slot ? FASTLSTM_OK : grow(b);
    if (code)
        return code;
    const uint64_t slot = b->free_slot - 1;
    fl_slot *const taken = slot_at(b, slot);
    b->free_slot = taken->steps;
    taken->generation++;
    taken->steps = 0;
    memset(record_at(b, slot), 0, (size_t)b->model->record * sizeof(float));
    b->open++;
    *handle = (uint64_t)taken->generation << FL_SLOT_BITS | slot;
    return FASTLSTM_OK;
}

int fastlstm_batch_close(fastlstm_batch *b, fastlstm_handle handle) {
    float *record;
    fl_slot *const slot = b ? find(b, handle, &record) : NULL;
    if (!slot)
        return b ? FASTLSTM_CLOSED : FASTLSTM_ARGUMENT;
    slot->generation++;
    slot->steps = b->free_slot;
    b->free_slot = (handle & (SLOT_BITS_MOST - 1)) + 1;
    b->open--;
    return FASTLSTM_OK;
}

size_t fastlstm_batch_count(const fastlstm_batch *b) { return b ? b->open : 0; }

/* ------------------------------------------------------------------------------------------------------------- steps */

/* Why handles are refused: a closed one, or one that comes twice. */
static int refusal(const fastlstm_batch *b, const fastlstm_handle *handles, size_t n) {
    float *record;
    for (size_t i = 0; i < n; i++)
        if (!find(b, handles[i], &record))
            return FASTLSTM_CLOSED;
    return FASTLSTM_TWICE;
}

static int step(fastlstm_batch *b, const fastlstm_handle *handles, size_t n, const float *x, const int64_t *ids,
                float *y) {
    if (n == 0)
        return FASTLSTM_OK;
    if (!handles || !y || (!x && !ids))
        return FASTLSTM_ARGUMENT;
    if (n > b->open || !fl_step_rows(&b->slabs, (const int64_t *)handles, (ptrdiff_t)n, x, ids, y, 0))
        return refusal(b, handles, n);
    return FASTLSTM_OK;
}

int fastlstm_batch_step(fastlstm_batch *b, const fastlstm_handle *handles, size_t n, const float *x, float *y) {
    if (!b || !b->model->I)
        return FASTLSTM_ARGUMENT;
    return step(b, handles, n, x, NULL, y);
}

int fastlstm_batch_step_ids(fastlstm_batch *b, const fastlstm_handle *handles, size_t n, const int64_t *ids, float *y) {
    if (!b || !b->model->vocabulary || (n && (!ids || !lib_ids_fit(b->model, ids, n))))
        return FASTLSTM_ARGUMENT;
    return step(b, handles, n, NULL, ids, y);
}

/* ------------------------------------------------------------------------------------------------------------ states */

int fastlstm_batch_reset(fastlstm_batch *b, fastlstm_handle handle) {
    float *record;
    fl_slot *const slot = b ? find(b, handle, &record) : NULL;
    if (!slot)
        return b ? FASTLSTM_CLOSED : FASTLSTM_ARGUMENT;
    memset(record, 0, (size_t)b->model->record * sizeof(float));
    slot->steps = 0;
    return FASTLSTM_OK;
}

int fastlstm_batch_export(const fastlstm_batch *b, fastlstm_handle handle, void *memory, size_t room, size_t *need) {
    float *record;
    const fl_slot *const slot = b ? find(b, handle, &record) : NULL;
    if (!slot)
        return b ? FASTLSTM_CLOSED : FASTLSTM_ARGUMENT;
    return lib_state_export(b->model, record, slot->steps, memory, room, need);
}

int fastlstm_batch_import(fastlstm_batch *b, fastlstm_handle handle, const void *bytes, size_t length, unsigned flags,
                          fastlstm_error *error) {
    float *record;
    if (!b)
        return lib_fail(error, FASTLSTM_ARGUMENT, "batch is NULL");
    fl_slot *const slot = find(b, handle, &record);
    if (!slot)
        return lib_fail(error, FASTLSTM_CLOSED, "%s", fastlstm_strerror(FASTLSTM_CLOSED));
    return lib_state_read(b->model, bytes, length, flags, record, &slot->steps, error);
}
