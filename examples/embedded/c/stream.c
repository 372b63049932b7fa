/* Frames of float32 numbers from the standard input through a model that Python has saved; a line of outputs for each.
 *
 *     cc stream.c -o stream $(fastlstm info --cflags --libs)
 *     ./stream model.safetensors [state.bin] < frames.f32
 *
 * With a second argument the sequence goes on from the state in that file, if there is one, and leaves its state there. */
#include <stdio.h>
#include <stdlib.h>

#include <fastlstm.h>

static int fail(const char *what, const char *why) {
    fprintf(stderr, "%s: %s\n", what, why);
    return 1;
}

/* Takes up the state in a file; a missing file is no error. */
static int restore(fastlstm_stream *stream, const char *path, void *bytes, size_t room) {
    fastlstm_error error;
    FILE *const file = fopen(path, "rb");
    if (!file)
        return 0;
    const size_t length = fread(bytes, 1, room, file);
    fclose(file);
    return fastlstm_state_import(stream, bytes, length, 0, &error) ? fail(path, error.message) : 0;
}

static int keep(const fastlstm_stream *stream, const char *path, void *bytes, size_t length) {
    const int code = fastlstm_state_export(stream, bytes, length, NULL);
    if (code)
        return fail(path, fastlstm_strerror(code));
    FILE *const file = fopen(path, "wb");
    const int whole = file && fwrite(bytes, 1, length, file) == length;
    return (file && fclose(file)) || !whole ? fail(path, "cannot be written") : 0;
}

int main(int argc, char **argv) {
    if (argc < 2)
        return fail(argv[0], "give the file of a model");
    fastlstm_error error;
    fastlstm_info info = FASTLSTM_INFO_INIT;
    fastlstm_model *model = NULL;
    fastlstm_stream *stream = NULL;
    if (fastlstm_model_load(argv[1], NULL, &model, &error))
        return fail(argv[0], error.message); /* it names the file */
    fastlstm_model_info(model, &info);
    float *const x = malloc(info.input_size * sizeof *x), *const y = malloc(info.output_size * sizeof *y);
    void *const state = malloc(info.state_bytes);
    int failed = !x || !y || !state || fastlstm_stream_new(model, &stream);
    if (failed)
        fail(argv[1], "no memory is left");
    if (!failed && argc > 2)
        failed = restore(stream, argv[2], state, info.state_bytes);
    const size_t frame = info.input_size * sizeof *x;
    size_t got = 0; /* bytes */
    while (!failed && (got = fread(x, 1, frame, stdin)) == frame) {
        const int code = fastlstm_step(stream, x, y);
        failed = code ? fail("step", fastlstm_strerror(code)) : 0;
        for (size_t i = 0; !failed && i < info.output_size; i++)
            printf("%.9g%c", y[i], i + 1 < info.output_size ? ' ' : '\n');
    }
    if (!failed && got)
        failed = fail(argv[0], "the last frame is cut short");
    if (!failed && argc > 2)
        failed = keep(stream, argv[2], state, info.state_bytes);
    fastlstm_stream_free(stream);
    fastlstm_model_release(model);
    free(x), free(y), free(state);
    return failed;
}
