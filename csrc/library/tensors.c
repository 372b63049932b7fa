/* tensors.c: see tensors.h. */
#include "tensors.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const struct {
    const char *name, *numpy;
    size_t bytes;
} dtypes[] = {
    {"F32", "f4", 4}, {"F16", "f2", 2}, {"I8", "|i1", 1}, {"I16", "i2", 2}, {"F64", "f8", 8},   {"I64", "i8", 8},
    {"I32", "i4", 4}, {"U8", "|u1", 1}, {"U16", "u2", 2}, {"U32", "u4", 4}, {"BOOL", "|b1", 1}, {"U64", "u8", 8},
};

static int damaged(fastlstm_error *error, const char *why) {
    return lib_fail(error, FASTLSTM_FORMAT, "the file is damaged, cut short, or no safetensors file: %s", why);
}

/* ------------------------------------------------------------------------------------------------------- one array */

static int read_dtype(json_text *t, tensor *to) {
    json_slice name;
    if (!json_string(t, &name))
        return 0;
    for (size_t i = 0; i < sizeof dtypes / sizeof *dtypes; i++)
        if (json_is(name, dtypes[i].name)) {
            to->dtype = dtypes[i].numpy, to->number = dtypes[i].bytes;
            return 1;
        }
    t->wrong = "an array has an unknown dtype";
    return 0;
}

static int read_sizes(json_text *t, size_t *to, int most, int *count) {
    *count = 0;
    if (!json_open(t, '['))
        return 0;
    while (json_more(t)) {
        int64_t n;
        if (!json_whole(t, &n))
            return 0;
        if (n < 0 || *count == most) {
            t->wrong = n < 0 ? "an array has a negative size or place" : "an array has too many axes";
            return 0;
        }
        to[(*count)++] = (size_t)n;
    }
    return !t->wrong;
}

/* Bytes of an array by its shape; SIZE_MAX where they are more than any file has. */
static size_t bytes_of(const tensor *a) {
    size_t bytes = a->number;
    for (int i = 0; i < a->axes; i++)
        if (__builtin_mul_overflow(bytes, a->shape[i], &bytes))
            return SIZE_MAX;
    return bytes;
}

/* An array's entry; `data` is where the arrays begin. */
static int read_tensor(json_text *t, tensor *to, const unsigned char *data, size_t data_length) {
    size_t place[2] = {0, 0};
    int places = 0, shapes = 0;
    if (!json_open(t, '{'))
        return 0;
    while (json_more(t)) {
        const json_slice key = json_key(t);
        if (json_is(key, "dtype"))
            read_dtype(t, to);
        else if (json_is(key, "shape"))
            shapes += read_sizes(t, to->shape, TENSOR_AXES, &to->axes);
        else if (json_is(key, "data_offsets"))
            read_sizes(t, place, 2, &places);
        else
            json_skip(t);
    }
    if (t->wrong)
        return 0;
    if (!to->dtype || places != 2 || shapes != 1)
        t->wrong = "an array lacks its dtype, shape or place";
    else if (place[0] > place[1] || place[1] > data_length)
        t->wrong = "an array lies beyond the file's end";
    else if (place[1] - place[0] != bytes_of(to))
        t->wrong = "an array's shape does not fit its bytes";
    to->bytes = data + place[0], to->size = place[1] - place[0];
    return !t->wrong;
}

/* ---------------------------------------------------------------------------------------------------------- the table */

static int read_metadata(json_text *t, json_slice *config) {
    if (!json_open(t, '{'))
        return 0;
    while (json_more(t)) {
        json_slice text;
        const json_slice key = json_key(t);
        if (json_string(t, &text) && json_is(key, "fastlstm"))
            *config = text;
    }
    return !t->wrong;
}

/* Walks the header: counts its arrays, or reads them where `to` is not NULL. */
static size_t walk(json_text *t, tensor *to, json_slice *config, const unsigned char *data, size_t data_length) {
    size_t count = 0;
    if (!json_open(t, '{'))
        return 0;
    while (json_more(t)) {
        const json_slice name = json_key(t);
        if (json_is(name, "__metadata__")) {
            read_metadata(t, config);
            continue;
        }
        if (to) {
            to[count] = (tensor){.name = name};
            read_tensor(t, &to[count], data, data_length);
        } else {
            json_skip(t);
        }
        count++;
    }
    json_end(t);
    return count;
}

static int compare(json_slice a, json_slice b) {
    const size_t least = a.length < b.length ? a.length : b.length;
    const int order = memcmp(a.at, b.at, least);
    return order ? order : (a.length > b.length) - (a.length < b.length);
}

static int by_name(const void *a, const void *b) {
    return compare(((const tensor *)a)->name, ((const tensor *)b)->name);
}

static int by_place(const void *a, const void *b) {
    const tensor *const one = a, *const other = b;
    if (one->bytes != other->bytes)
        return one->bytes < other->bytes ? -1 : 1;
    return (one->size > other->size) - (one->size < other->size);
}

/* Reads the arrays and the configuration of a header. */
static int read_header(const char *header, size_t length, const unsigned char *data, size_t data_length,
                       tensor_file *file, fastlstm_error *error) {
    json_slice config = {NULL, 0};
    json_text first = json_of(header, length), second = first;
    file->count = walk(&first, NULL, &config, data, data_length);
    if (first.wrong)
        return damaged(error, first.wrong);
    file->tensors = calloc(file->count ? file->count : 1, sizeof *file->tensors);
    file->config = config.at ? malloc(config.length + 1) : NULL;
    if (!file->tensors || (config.at && !file->config))
        return lib_fail(error, FASTLSTM_MEMORY, "no memory is left for the file's table of %zu arrays", file->count);
    walk(&second, file->tensors, &config, data, data_length);
    if (second.wrong)
        return damaged(error, second.wrong);
    if (config.at) {
        const ptrdiff_t plain = json_plain(config, file->config);
        if (plain < 0)
            return damaged(error, "its configuration has a wrong escape");
        file->config_length = (size_t)plain;
    }
    qsort(file->tensors, file->count, sizeof *file->tensors, by_place);
    const unsigned char *end = data;
    for (size_t i = 0; i < file->count; end = file->tensors[i].bytes + file->tensors[i].size, i++)
        if (file->tensors[i].bytes != end)
            return damaged(error,
                           file->tensors[i].bytes < end ? "its arrays overlap" : "there are bytes between its arrays");
    if (end != data + data_length)
        return damaged(error, "bytes are left over behind its arrays");
    qsort(file->tensors, file->count, sizeof *file->tensors, by_name);
    for (size_t i = 1; i < file->count; i++)
        if (by_name(&file->tensors[i - 1], &file->tensors[i]) == 0)
            return damaged(error, "two arrays have the same name");
    return FASTLSTM_OK;
}

int tensors_read(const void *bytes, size_t length, tensor_file *file, fastlstm_error *error) {
    const unsigned char *const at = bytes;
    *file = (tensor_file){0};
    uint64_t header = 0;
    if (length < 8)
        return damaged(error, "it has fewer than 8 bytes");
    for (int i = 0; i < 8; i++)
        header |= (uint64_t)at[i] << (8 * i);
    if (header > length - 8)
        return damaged(error, "it ends within its header");
    const unsigned char *const data = at + 8 + header;
    const int code = read_header((const char *)at + 8, (size_t)header, data, length - 8 - (size_t)header, file, error);
    if (code)
        tensors_free(file);
    return code;
}

void tensors_free(tensor_file *file) {
    free(file->tensors);
    free(file->config);
    *file = (tensor_file){0};
}

const tensor *tensors_find(const tensor_file *file, json_slice name) {
    size_t low = 0, high = file->count;
    while (low < high) {
        const size_t middle = (low + high) / 2;
        const int order = compare(file->tensors[middle].name, name);
        if (order == 0)
            return &file->tensors[middle];
        *(order < 0 ? &low : &high) = order < 0 ? middle + 1 : middle;
    }
    return NULL;
}

/* "NAME DTYPE (2, 3)", as Python writes a tuple. */
static uint32_t crc_of_form(uint32_t crc, const tensor *a) {
    char text[TENSOR_AXES * 24 + 16];
    int used = snprintf(text, sizeof text, " %s (", a->dtype);
    for (int i = 0; i < a->axes; i++)
        used += snprintf(text + used, sizeof text - (size_t)used, i ? ", %zu" : "%zu", a->shape[i]);
    used += snprintf(text + used, sizeof text - (size_t)used, a->axes == 1 ? ",)" : ")");
    return lib_crc32(lib_crc32(crc, a->name.at, a->name.length), text, (size_t)used);
}

uint32_t tensors_crc32(const tensor_file *file, const char *rest, size_t length) {
    uint32_t crc = lib_crc32(lib_crc32(0, "{", 1), rest, length);
    for (size_t i = 0; i < file->count; i++)
        crc = lib_crc32(crc_of_form(crc, &file->tensors[i]), file->tensors[i].bytes, file->tensors[i].size);
    return crc;
}
