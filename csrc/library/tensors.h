/* tensors.h: the arrays and the configuration in the bytes of a safetensors file, which are not trusted.
 *
 *     8 bytes   N, little-endian
 *     N bytes   a JSON object: for each array its dtype, shape and place in what follows; "__metadata__": texts by name
 *     the rest  the arrays, little-endian, one after the other
 *
 * The configuration is the text "fastlstm" of the metadata, itself JSON. */
#ifndef LIB_TENSORS_H
#define LIB_TENSORS_H

#include "checks.h"
#include "json.h"

enum { TENSOR_AXES = 4 };

typedef struct {
    json_slice name;
    const char *dtype; /* NumPy's name without byte order: "f4", "f2", "|i1", "i2", ... */
    size_t number;     /* bytes of a number */
    int axes;          /* at most TENSOR_AXES */
    size_t shape[TENSOR_AXES];
    const unsigned char *bytes; /* without alignment */
    size_t size;                /* bytes */
} tensor;

typedef struct {
    tensor *tensors; /* (count), by name */
    size_t count;
    char *config; /* (config_length) the configuration, or NULL */
    size_t config_length;
} tensor_file;

/* Reads the table of a file; its bytes stay the caller's, and must outlive it. Errors: FORMAT, MEMORY, UNSUPPORTED. */
int tensors_read(const void *bytes, size_t length, tensor_file *file, fastlstm_error *error);
void tensors_free(tensor_file *file);

/* NULL where there is none of this name. */
const tensor *tensors_find(const tensor_file *file, json_slice name);

/* The checksum that Python's files carry: of the configuration without its entry "crc32" (`rest`, which begins behind it
 * with an opening brace left out) and of all arrays. */
uint32_t tensors_crc32(const tensor_file *file, const char *rest, size_t length);

#endif
