/* checks.h: what the files of the C library share about errors, and the checksum. */
#ifndef LIB_CHECKS_H
#define LIB_CHECKS_H

#include <stddef.h>
#include <stdint.h>

#include "fastlstm.h"

/* Sets an error, unless it is NULL, and returns its code. The format has %s, %.*s, %zu, %d and the like, no %f: that would
 * follow the locale. */
int lib_fail(fastlstm_error *error, int code, const char *format, ...) __attribute__((format(printf, 3, 4)));

/* Sets an error to "no error"; returns FASTLSTM_OK. */
int lib_fine(fastlstm_error *error);

/* CRC-32 as in zlib. `before` is 0 for the first bytes, then the result for the bytes so far. */
uint32_t lib_crc32(uint32_t before, const void *bytes, size_t length);

#endif
