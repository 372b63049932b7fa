/* checks.c: errors, their texts, the checksum. */
#include "checks.h"

#include <stdarg.h>
#include <stdio.h>

static const char *const texts[] = {
    [FASTLSTM_OK] = "no error",
    [FASTLSTM_ARGUMENT] = "an argument is NULL or outside its range",
    [FASTLSTM_MEMORY] = "no memory is left",
    [FASTLSTM_FILE] = "the file cannot be opened or read",
    [FASTLSTM_FORMAT] = "the file is damaged, cut short, or none of fastlstm's",
    [FASTLSTM_VERSION] = "the file or state has a format that only a newer library reads",
    [FASTLSTM_UNSUPPORTED] = "the model cannot run step by step, or needs what the C library does not have",
    [FASTLSTM_SHAPE] = "sizes do not fit one another",
    [FASTLSTM_STATE] = "the bytes of a state are damaged, or of another model or other weights",
    [FASTLSTM_CLOSED] = "the handle's sequence is closed, or there never was one",
    [FASTLSTM_FULL] = "the batch has as many open sequences as it may have",
    [FASTLSTM_TWICE] = "a handle comes twice in one step",
};

const char *fastlstm_strerror(int code) {
    const int known = code >= 0 && code < (int)(sizeof texts / sizeof *texts);
    return known ? texts[code] : "an unknown code: the library is newer than the program";
}

int lib_fail(fastlstm_error *error, int code, const char *format, ...) {
    if (error) {
        va_list arguments;
        va_start(arguments, format);
        error->code = code;
        vsnprintf(error->message, sizeof error->message, format, arguments);
        va_end(arguments);
    }
    return code;
}

int lib_fine(fastlstm_error *error) {
    if (error) {
        error->code = FASTLSTM_OK;
        error->message[0] = 0;
    }
    return FASTLSTM_OK;
}

/* Four bits at a time, by a table of 16 numbers: one for whole bytes has a kilobyte, too much for a short state. */
uint32_t lib_crc32(uint32_t before, const void *bytes, size_t length) {
    static const uint32_t of_half[16] = {
        0x00000000, 0x1db71064, 0x3b6e20c8, 0x26d930ac, 0x76dc4190, 0x6b6b51f4, 0x4db26158, 0x5005713c,
        0xedb88320, 0xf00f9344, 0xd6d6a3e8, 0xcb61b38c, 0x9b64c2b0, 0x86d3d2d4, 0xa00ae278, 0xbdbdf21c,
    };
    const unsigned char *const at = bytes;
    uint32_t crc = ~before;
    for (size_t i = 0; i < length; i++) {
        crc ^= at[i];
        crc = crc >> 4 ^ of_half[crc & 15];
        crc = crc >> 4 ^ of_half[crc & 15];
    }
    return ~crc;
}
