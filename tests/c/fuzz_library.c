/* fuzz_library.c: damaged files and states for the C library's readers. `fuzz_library [--cases N] [FILE ...]`; without a
 * file, one that is made here. A damaged file is refused with a code and a reason, or steps without harm; the sanitizers
 * watch. The checksum is made anew for every second case, so that the checks behind it are reached. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "checks.h"
#include "fastlstm.h"
#include "tensors.h"

#define CHECK(what)                                                                                                    \
    do {                                                                                                               \
        if (!(what)) {                                                                                                 \
            fprintf(stderr, "fuzz_library.c:%d: failed: %s\n", __LINE__, #what);                                       \
            exit(1);                                                                                                   \
        }                                                                                                              \
    } while (0)

static uint64_t seed = 1;
static unsigned draw(unsigned below) {
    seed = seed * 6364136223846793005u + 1442695040888963407u;
    return (unsigned)(seed >> 33) % below;
}

/* A file of an LSTM(2, 3), a dense layer and a softmax, as Python writes it. */
static size_t make_file(unsigned char *to) {
    static const char config[] =
        "{\\\"crc32\\\": 0000000000, \\\"format\\\": \\\"fastlstm layer\\\", \\\"steps\\\": {\\\"description\\\": "
        "\\\"made\\\", "
        "\\\"list\\\": [{\\\"I\\\": 2, \\\"H\\\": 3, \\\"U\\\": 3, \\\"step\\\": \\\"cell\\\", \\\"cell\\\": "
        "\\\"lstm\\\", "
        "\\\"projected\\\": false, \\\"peepholes\\\": true, \\\"reset_after\\\": false, \\\"input_forget\\\": false, "
        "\\\"clip\\\": 1065353216, \\\"activations\\\": [[\\\"sigmoid\\\", 0, 0], [\\\"tanh\\\", 0, 0], [\\\"elu\\\", "
        "1065353216, 0]], "
        "\\\"skip\\\": false, \\\"storage\\\": \\\"float32\\\", \\\"planes\\\": 1, \\\"least\\\": [0, 0, 0], "
        "\\\"arrays\\\": "
        "{\\\"weight_ih\\\": \\\"a\\\", \\\"weight_hh\\\": \\\"b\\\", \\\"bias_ih\\\": \\\"c\\\", \\\"weight_peep\\\": "
        "\\\"d\\\"}}, "
        "{\\\"I\\\": 3, \\\"U\\\": 2, \\\"step\\\": \\\"dense\\\", \\\"activations\\\": [[\\\"softmax\\\", 0, 0]], "
        "\\\"skip\\\": false, "
        "\\\"arrays\\\": {\\\"weight\\\": \\\"e\\\"}}], \\\"version\\\": 1, \\\"weights_id\\\": "
        "\\\"00112233445566778899aabbccddeeff\\\"}, \\\"version\\\": 1}";
    static const char arrays[] = "\"a\":{\"dtype\":\"F32\",\"shape\":[12,2],\"data_offsets\":[0,96]},"
                                 "\"b\":{\"dtype\":\"F32\",\"shape\":[12,3],\"data_offsets\":[96,240]},"
                                 "\"c\":{\"dtype\":\"F32\",\"shape\":[12],\"data_offsets\":[240,288]},"
                                 "\"d\":{\"dtype\":\"F32\",\"shape\":[3,3],\"data_offsets\":[288,324]},"
                                 "\"e\":{\"dtype\":\"F32\",\"shape\":[2,3],\"data_offsets\":[324,348]}}";
    char *const text = (char *)to + 8;
    const uint64_t length = (uint64_t)sprintf(text, "{\"__metadata__\":{\"fastlstm\":\"%s\"},%s", config, arrays);
    memcpy(to, &length, 8);
    for (int i = 0; i < 87; i++) {
        const float number = (float)(i % 13) / 13;
        memcpy(to + 8 + length + 4 * i, &number, 4);
    }
    return 8 + (size_t)length + 348;
}

/* Puts the checksum that belongs to the file into its ten digits, if it can be read so far. */
static void mend(unsigned char *bytes, size_t length) {
    tensor_file file;
    static const char begin[] = "crc32\\\": ";
    if (tensors_read(bytes, length, &file, NULL))
        return;
    for (size_t at = 8; file.config && at + 24 < length; at++)
        if (memcmp(bytes + at, begin, sizeof begin - 1) == 0) {
            const char *const rest = strchr(file.config, ',');
            char digits[16];
            if (rest && (size_t)(rest - file.config) + 2 <= file.config_length) {
                const size_t left = file.config_length - (size_t)(rest - file.config) - 2;
                sprintf(digits, "%010u", tensors_crc32(&file, rest + 2, left));
                memcpy(bytes + at + sizeof begin - 1, digits, 10);
            }
            break;
        }
    tensors_free(&file);
}

/* Some changes: a bit, a byte, a digit, a copied stretch, an end that is cut off. */
static size_t damage(unsigned char *bytes, size_t length) {
    for (unsigned changes = 1 + draw(4); changes > 0; changes--) {
        const unsigned at = draw((unsigned)length), from = draw((unsigned)length), kind = draw(8);
        const size_t most = length - (at > from ? at : from), n = draw(16) < most ? draw(16) % (most + 1) : most;
        if (kind < 2)
            bytes[at] ^= (unsigned char)(1u << draw(8));
        else if (kind == 2)
            bytes[at] = (unsigned char)draw(256);
        else if (kind < 6)
            bytes[at] = (unsigned char)"0123456789-{}[],\":\\ null"[draw(24)];
        else if (kind == 6)
            memmove(bytes + at, bytes + from, n);
        else if (draw(4) == 0)
            length = at < 9 ? 9 : at;
    }
    return length;
}

/* Steps what has been loaded, and gives its stream damaged states. */
static void use(fastlstm_model *model) {
    fastlstm_info info = FASTLSTM_INFO_INIT;
    fastlstm_stream *stream;
    CHECK(fastlstm_model_info(model, &info) == FASTLSTM_OK && fastlstm_stream_new(model, &stream) == FASTLSTM_OK);
    const size_t wide = info.input_size > info.output_size ? info.input_size : info.output_size;
    float *const x = calloc(wide + 1, sizeof *x), *const y = calloc(wide + 1, sizeof *y);
    unsigned char *const state = malloc(info.state_bytes + 16);
    CHECK(x && y && state);
    const int code = info.input_size ? fastlstm_step(stream, x, y) : fastlstm_step_id(stream, 0, y);
    CHECK(code == FASTLSTM_OK);
    for (int i = 0; i < 4; i++) {
        fastlstm_error error;
        CHECK(fastlstm_state_export(stream, state, info.state_bytes, NULL) == FASTLSTM_OK);
        const size_t length = damage(state, info.state_bytes);
        const int refused = fastlstm_state_import(stream, state, length, 0, &error);
        CHECK(refused == error.code && (refused == 0) == (error.message[0] == 0));
    }
    free(x), free(y), free(state);
    fastlstm_stream_free(stream);
}

static size_t read_file(const char *path, unsigned char *to, size_t room) {
    FILE *const file = fopen(path, "rb");
    CHECK(file);
    const size_t n = fread(to, 1, room, file);
    fclose(file);
    return n;
}

int main(int argc, char **argv) {
    enum { ROOM = 1 << 20 };
    unsigned char *const whole = malloc(ROOM);
    long cases = 2000, taken = 0, refused[16] = {0};
    int first = 1;
    CHECK(whole);
    if (argc > 2 && strcmp(argv[1], "--cases") == 0)
        cases = atol(argv[2]), first = 3;
    for (int file = first; file == first || file < argc; file++) {
        const size_t length = file < argc ? read_file(argv[file], whole, ROOM) : make_file(whole);
        mend(whole, length);
        for (long i = 0; i < cases; i++) {
            fastlstm_model *model = NULL;
            fastlstm_error error;
            unsigned char *const bytes = malloc(length); /* of its own size, so that a read beyond it is noticed */
            CHECK(bytes);
            memcpy(bytes, whole, length);
            const size_t left = i ? damage(bytes, length) : length;
            unsigned char *const exact = realloc(bytes, left);
            CHECK(exact);
            if (i % 2)
                mend(exact, left);
            const int code = fastlstm_model_from_memory(exact, left, NULL, &model, &error);
            free(exact);
            CHECK(code == error.code && (code == 0) == (error.message[0] == 0) && (code == 0) == (model != NULL));
            CHECK(i || code == FASTLSTM_OK);
            refused[code]++;
            if (model) {
                use(model);
                taken++;
                fastlstm_model_release(model);
            }
        }
    }
    free(whole);
    printf("%ld files taken; refused:", taken);
    for (int code = 1; code < 16; code++)
        if (refused[code])
            printf(" %ld (%s)", refused[code], fastlstm_strerror(code));
    printf("\n");
    return 0;
}
