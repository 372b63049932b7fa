/* state.c: a sequence's state as bytes. All numbers are little-endian, as is every processor that this is built for:
 *
 *     4 bytes   "FLST"
 *     u16       version, 1
 *     u16       dtype: 1 float32
 *     u16       parts
 *     u16       0
 *     u64       steps that the sequence has done
 *     16 bytes  the number of equation and weights
 *     u32 each  width of each part
 *     floats    the parts, one after the other
 *     u32       CRC-32 of all bytes before it */
#include <string.h>

#include "handles.h"

#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "states and weights are read as they lie in memory, little-endian"
#endif

enum { HEAD = 36, CRC = 4, NEWEST = 1, OF_FLOAT32 = 1 };

typedef struct {
    char magic[4];
    uint16_t version, dtype, parts, zero;
} head;

void lib_state_write(const fastlstm_model *model, const float *record, uint64_t steps, void *memory) {
    unsigned char *const to = memory;
    const head begin = {{'F', 'L', 'S', 'T'}, NEWEST, OF_FLOAT32, (uint16_t)model->parts, 0};
    const size_t widths = 4 * model->parts, numbers = 4 * (size_t)model->record;
    memcpy(to, &begin, sizeof begin);
    memcpy(to + 12, &steps, sizeof steps);
    memcpy(to + 20, model->program.weights_id, 16);
    memcpy(to + HEAD, model->widths, widths);
    if (numbers)
        memcpy(to + HEAD + widths, record, numbers);
    const uint32_t crc = lib_crc32(0, to, HEAD + widths + numbers);
    memcpy(to + HEAD + widths + numbers, &crc, sizeof crc);
}

int lib_state_export(const fastlstm_model *model, const float *record, uint64_t steps, void *memory, size_t room,
                     size_t *need) {
    if (need)
        *need = model->state_bytes;
    if (!memory)
        return need && room == 0 ? FASTLSTM_OK : FASTLSTM_ARGUMENT;
    if (room < model->state_bytes)
        return FASTLSTM_SHAPE;
    lib_state_write(model, record, steps, memory);
    return FASTLSTM_OK;
}

int lib_state_read(const fastlstm_model *model, const void *bytes, size_t length, unsigned flags, float *record,
                   uint64_t *steps, fastlstm_error *error) {
    const unsigned char *const from = bytes;
    const size_t widths = 4 * model->parts, numbers = 4 * (size_t)model->record;
    head begin;
    uint32_t crc;
    if (!bytes || flags & ~(unsigned)FASTLSTM_OTHER_WEIGHTS)
        return lib_fail(error, FASTLSTM_ARGUMENT, bytes ? "flags has unknown bits" : "bytes is NULL");
    if (length < HEAD + CRC || memcmp(from, "FLST", 4) != 0)
        return lib_fail(error, FASTLSTM_STATE, "the %zu bytes are no state of a stream", length);
    memcpy(&begin, from, sizeof begin);
    if (begin.version != NEWEST)
        return lib_fail(error, FASTLSTM_VERSION, "the state has version %d of the format, and this library reads %d",
                        begin.version, NEWEST);
    memcpy(&crc, from + length - CRC, CRC);
    if (crc != lib_crc32(0, from, length - CRC))
        return lib_fail(error, FASTLSTM_STATE,
                        "the state is damaged or cut short: its %zu bytes do not have the checksum that was written "
                        "with them",
                        length);
    if (begin.dtype != OF_FLOAT32 || begin.parts != model->parts || length != model->state_bytes ||
        (widths && memcmp(from + HEAD, model->widths, widths) != 0))
        return lib_fail(error, FASTLSTM_STATE,
                        "the state is of another model: it has %zu bytes in %d parts, and this model's has %zu in %zu",
                        length, begin.parts, model->state_bytes, model->parts);
    if (!(flags & FASTLSTM_OTHER_WEIGHTS) && memcmp(from + 20, model->program.weights_id, 16) != 0)
        return lib_fail(error, FASTLSTM_STATE,
                        "the state belongs to other weights than these. To go on with it nevertheless, give "
                        "FASTLSTM_OTHER_WEIGHTS");
    memcpy(steps, from + 12, sizeof *steps);
    if (numbers)
        memcpy(record, from + HEAD + widths, numbers);
    return lib_fine(error);
}
