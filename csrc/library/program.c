/* program.c: the configuration of a file, which is not trusted, as plain data. */
#include "program.h"

#include <stdlib.h>
#include <string.h>

enum { NEWEST_FILE = 2, NEWEST_STEPS = 1 }; /* versions */

static const char *const kinds[] = {"lookup", "cell", "dense", "pointwise"}; /* enum fl_stage_kind */
static const char *const cells[] = {"lstm", "gru", "rnn"};                   /* enum fl_kind */
static const char *const storages[] = {"float32", "float16", "int8", "int16"};
static const char *const activations[] = {/* enum fl_activation */
                                          "sigmoid",     "tanh",         "relu",
                                          "identity",    "hard_sigmoid", "hard_sigmoid_keras2",
                                          "affine",      "leaky_relu",   "thresholded_relu",
                                          "scaled_tanh", "elu",          "softsign",
                                          "softplus"};
static const char *const names[STEP_ARRAYS] = {"weight_ih", "weight_hh",   "bias_ih",  "bias_hh",
                                               "weight_hr", "weight_peep", "scale_ih", "scale_hh",
                                               "scale_hr",  "weight",      "bias"};
#define COUNT(list) (sizeof(list) / sizeof *(list))

/* The place of a word in a list; -1 where it is not there. */
static int find(json_slice word, const char *const *list, size_t count) {
    for (size_t i = 0; i < count; i++)
        if (list[i] && json_is(word, list[i]))
            return (int)i;
    return -1;
}

static int one_of(json_text *t, const char *const *list, size_t count, const char *wrong, int *to) {
    json_slice word;
    if (!json_string(t, &word))
        return 0;
    *to = find(word, list, count);
    if (*to < 0)
        t->wrong = wrong;
    return *to >= 0;
}

/* A float32 as the whole number of its bits: no decimal fraction is read, whose form would follow the locale. */
static int float_bits(json_text *t, float *to) {
    int64_t bits;
    if (!json_whole(t, &bits))
        return 0;
    if (bits < 0 || bits > UINT32_MAX) {
        t->wrong = "a number does not have a float32's bits";
        return 0;
    }
    const uint32_t of_float = (uint32_t)bits;
    memcpy(to, &of_float, sizeof of_float);
    return 1;
}

/* [name, alpha, beta] */
static int read_activation(json_text *t, fl_act *to) {
    json_slice name;
    int at = 0;
    if (!json_open(t, '['))
        return 0;
    for (; json_more(t); at++) {
        if (at == 0) {
            if (!json_string(t, &name))
                return 0;
            to->id = json_is(name, "softmax") ? FL_SOFTMAX : find(name, activations, COUNT(activations));
        } else if (at < 3) {
            float_bits(t, at == 1 ? &to->alpha : &to->beta);
        } else {
            json_skip(t);
        }
    }
    if (!t->wrong && (at != 3 || to->id < 0))
        t->wrong = "an activation is not known";
    return !t->wrong;
}

static int read_activations(json_text *t, program_step *to) {
    if (!json_open(t, '['))
        return 0;
    for (to->acts = 0; json_more(t); to->acts++) {
        if (to->acts == 3) {
            t->wrong = "a step has too many activations";
            return 0;
        }
        read_activation(t, &to->spec.act[to->acts]);
    }
    return !t->wrong;
}

static int read_least(json_text *t, program_step *to) {
    int at = 0;
    if (!json_open(t, '['))
        return 0;
    for (; json_more(t); at++)
        if (at < 3)
            float_bits(t, &to->least[at]);
        else
            json_skip(t);
    if (!t->wrong && at != 3)
        t->wrong = "a step's roundings are not three";
    return !t->wrong;
}

static int read_arrays(json_text *t, program_step *to) {
    if (!json_open(t, '{'))
        return 0;
    while (json_more(t)) {
        const int at = find(json_key(t), names, STEP_ARRAYS);
        if (at >= 0)
            json_string(t, &to->arrays[at]);
        else if (!t->wrong)
            t->wrong = "a step has an unknown array";
    }
    return !t->wrong;
}

static int read_planes(json_text *t, program_step *to) {
    int64_t planes;
    if (!json_whole(t, &planes))
        return 0;
    if (planes != 1 && planes != 2)
        t->wrong = "a step's inputs are rounded in an unknown way";
    to->planes = (int)planes;
    return !t->wrong;
}

static int read_field(json_text *t, json_slice key, program_step *to) {
    fl_spec *const spec = &to->spec;
    const struct {
        const char *name;
        int64_t *whole;
        int *flag;
    } plain[] = {{"I", &to->I, NULL},
                 {"U", &to->U, NULL},
                 {"H", &to->H, NULL},
                 {"skip", NULL, &to->skip},
                 {"projected", NULL, &spec->projected},
                 {"peepholes", NULL, &spec->peepholes},
                 {"reset_after", NULL, &spec->reset_after},
                 {"input_forget", NULL, &spec->input_forget}};
    for (size_t i = 0; i < COUNT(plain); i++)
        if (json_is(key, plain[i].name))
            return plain[i].whole ? json_whole(t, plain[i].whole) : json_bool(t, plain[i].flag);
    if (json_is(key, "step"))
        return one_of(t, kinds, COUNT(kinds), "a step is of an unknown kind", &to->kind);
    if (json_is(key, "cell"))
        return one_of(t, cells, COUNT(cells), "a cell is of an unknown kind", &spec->kind);
    if (json_is(key, "storage"))
        return one_of(t, storages, COUNT(storages), "weights are kept in an unknown way", &to->storage);
    if (json_is(key, "clip"))
        return float_bits(t, &spec->clip);
    if (json_is(key, "activations"))
        return read_activations(t, to);
    if (json_is(key, "least"))
        return read_least(t, to);
    if (json_is(key, "planes"))
        return read_planes(t, to);
    if (json_is(key, "arrays"))
        return read_arrays(t, to);
    return json_skip(t);
}

static int read_step(json_text *t, program_step *to) {
    *to = (program_step){.kind = -1, .planes = 1};
    if (!json_open(t, '{'))
        return 0;
    while (json_more(t))
        read_field(t, json_key(t), to);
    if (!t->wrong && to->kind < 0)
        t->wrong = "a step does not tell its kind";
    return !t->wrong;
}

/* ---------------------------------------------------------------------------------------------------- configuration */

/* What the entries of a configuration tell, before its steps are read one by one. */
typedef struct {
    int64_t version, steps_version, crc32;
    int has_steps, has_layer;
    json_slice why_not, weights_id, description;
    json_text list; /* at the list of steps; at NULL: none */
} outline;

static int read_steps_entry(json_text *t, outline *to) {
    to->has_steps = 1;
    if (!json_open(t, '{'))
        return 0;
    while (json_more(t)) {
        const json_slice key = json_key(t);
        if (json_is(key, "version")) {
            json_whole(t, &to->steps_version);
        } else if (json_is(key, "list")) {
            json_kind(t); /* past white space */
            to->list = json_of(t->at, (size_t)(t->end - t->at));
            json_skip(t);
        } else if (json_is(key, "why_not")) {
            json_string(t, &to->why_not);
        } else if (json_is(key, "weights_id")) {
            json_string(t, &to->weights_id);
        } else if (json_is(key, "description")) {
            json_string(t, &to->description);
        } else {
            json_skip(t);
        }
    }
    return !t->wrong;
}

static int read_outline(json_text *t, outline *to) {
    if (!json_open(t, '{'))
        return 0;
    while (json_more(t)) {
        const json_slice key = json_key(t);
        if (json_is(key, "version"))
            json_whole(t, &to->version);
        else if (json_is(key, "crc32"))
            json_whole(t, &to->crc32);
        else if (json_is(key, "steps"))
            read_steps_entry(t, to);
        else
            to->has_layer |= json_is(key, "layer"), json_skip(t);
    }
    json_end(t);
    return !t->wrong;
}

/* Where the checksum is the first entry, as Python writes it: whether it agrees. */
static int agrees(const tensor_file *file, int64_t expected) {
    static const char begin[] = "{\"crc32\": ";
    const char *at = file->config, *const end = at + file->config_length;
    const size_t length = sizeof begin - 1;
    if (file->config_length < length || memcmp(at, begin, length) != 0)
        return 0;
    for (at += length; at < end && *at >= '0' && *at <= '9'; at++)
        ;
    if (end - at < 2 || at[0] != ',' || at[1] != ' ')
        return 0;
    return tensors_crc32(file, at + 2, (size_t)(end - at - 2)) == (uint32_t)expected;
}

static int check_outline(const tensor_file *file, const outline *o, fastlstm_error *error) {
    if (o->version > NEWEST_FILE || o->steps_version > NEWEST_STEPS)
        return lib_fail(error, FASTLSTM_VERSION,
                        "the file has format version %lld (steps %lld), and this library reads up to %d (steps %d): "
                        "install a newer one",
                        (long long)o->version, (long long)o->steps_version, NEWEST_FILE, NEWEST_STEPS);
    if (o->crc32 >= 0 ? !agrees(file, o->crc32) : o->has_layer && o->has_steps)
        return lib_fail(error, FASTLSTM_FORMAT,
                        "the file was changed or damaged after it was written: its checksum does not agree");
    if (!o->has_steps)
        return lib_fail(error, FASTLSTM_UNSUPPORTED,
                        "the file has no list of steps: it holds no model, or was written by an earlier "
                        "fastlstm. Load the model in Python and save it again");
    if (o->why_not.at) {
        char plain[1024];
        const int fits = o->why_not.length <= sizeof plain;
        const ptrdiff_t length = fits ? json_plain(o->why_not, plain) : -1;
        return lib_fail(error, FASTLSTM_UNSUPPORTED, "%.*s", length < 0 ? 0 : (int)length, plain);
    }
    if (!o->list.at)
        return lib_fail(error, FASTLSTM_FORMAT, "the file's steps have no list");
    return FASTLSTM_OK;
}

static int read_weights_id(json_slice text, unsigned char *to) {
    if (text.length != 32)
        return 0;
    for (size_t i = 0; i < 32; i++) {
        static const char all[] = "0123456789abcdef";
        const char *const digit = text.at[i] ? strchr(all, text.at[i]) : NULL;
        if (!digit)
            return 0;
        to[i / 2] = (unsigned char)(to[i / 2] << 4 | (digit - all));
    }
    return 1;
}

/* The steps of a list, whose text has been found to be JSON. */
static int read_list(json_text list, program *to, fastlstm_error *error) {
    json_text count = list;
    if (json_open(&count, '['))
        for (; json_more(&count); to->count++)
            json_skip(&count);
    if (count.wrong)
        return lib_fail(error, FASTLSTM_FORMAT, "the file's list of steps is damaged: %s", count.wrong);
    if (to->count == 0 || to->count > PROGRAM_STEPS)
        return lib_fail(error, to->count ? FASTLSTM_UNSUPPORTED : FASTLSTM_FORMAT,
                        "the model has %zu steps, and the library takes 1 to %d", to->count, PROGRAM_STEPS);
    to->steps = calloc(to->count, sizeof *to->steps);
    if (!to->steps)
        return lib_fail(error, FASTLSTM_MEMORY, "no memory is left for %zu steps", to->count);
    json_open(&list, '[');
    for (size_t i = 0; json_more(&list); i++)
        read_step(&list, &to->steps[i]);
    if (list.wrong)
        return lib_fail(error, FASTLSTM_FORMAT, "the file's list of steps is damaged: %s", list.wrong);
    return FASTLSTM_OK;
}

static int read_whole(const tensor_file *file, program *to, fastlstm_error *error) {
    outline o = {.crc32 = -1};
    if (!file->config)
        return lib_fail(error, FASTLSTM_FORMAT,
                        "the file is a safetensors file, but none of fastlstm: its metadata has no configuration");
    json_text text = json_of(file->config, file->config_length);
    if (!read_outline(&text, &o))
        return lib_fail(error, FASTLSTM_FORMAT, "the file's configuration is damaged: %s", text.wrong);
    const int code = check_outline(file, &o, error);
    if (code)
        return code;
    if (!read_weights_id(o.weights_id, to->weights_id))
        return lib_fail(error, FASTLSTM_FORMAT, "the file's steps lack the number of their weights");
    to->description = calloc(o.description.length + 1, 1);
    if (!to->description)
        return lib_fail(error, FASTLSTM_MEMORY, "no memory is left for the model's description");
    const ptrdiff_t length = json_plain(o.description, to->description);
    to->description[length < 0 ? 0 : length] = 0;
    return read_list(o.list, to, error);
}

int program_read(const tensor_file *file, program *to, fastlstm_error *error) {
    *to = (program){0};
    const int code = read_whole(file, to, error);
    if (code)
        program_free(to);
    return code;
}

void program_free(program *program) {
    free(program->steps);
    free(program->description);
    program->steps = NULL, program->description = NULL;
}
