/* model.c: models from files. */
#include "handles.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#ifndef FL_VERSION
#error "the build gives FL_VERSION, the package's version as a string"
#endif

int fastlstm_abi(void) { return FASTLSTM_ABI; }
const char *fastlstm_version(void) { return FL_VERSION; }

/* ----------------------------------------------------------------------------------------------------------- options */

static int check_options(const fastlstm_options *given, int *threads, int *isa, fastlstm_error *error) {
    *threads = 1, *isa = fl_isa_chosen();
    if (!given)
        return FASTLSTM_OK;
    if (given->size < sizeof *given)
        return lib_fail(error, FASTLSTM_ARGUMENT, "options.size is %zu: begin with FASTLSTM_OPTIONS_INIT", given->size);
    if (given->threads < 0 || given->threads > 256)
        return lib_fail(error, FASTLSTM_ARGUMENT, "options.threads must be 0 to 256, got %d", given->threads);
    *threads = given->threads ? given->threads : 1;
    if (!given->isa)
        return FASTLSTM_OK;
    for (int i = 0; fl_isa_name(i); i++)
        if (strcmp(given->isa, fl_isa_name(i)) == 0) {
            *isa = i;
            return fl_isa_usable(i)
                       ? FASTLSTM_OK
                       : lib_fail(error, FASTLSTM_UNSUPPORTED,
                                  "instruction set %s cannot be used: this processor does not have it", given->isa);
        }
    return lib_fail(error, FASTLSTM_ARGUMENT, "instruction set %.40s is not known: take avx512, avx2, neon or scalar",
                    given->isa);
}

/* ------------------------------------------------------------------------------------------------------------ making */

static void free_model(fastlstm_model *model) {
    for (int i = 0; model->packed && i < model->native.S; i++)
        free(model->packed[i].memory);
    free(model->packed);
    free(model->stages);
    free(model->widths);
    program_free(&model->program);
    free(model);
}

/* The form of a state, and what goes in and comes out. */
static void measure(fastlstm_model *m) {
    const fl_stage *const first = &m->stages[0];
    m->U = (size_t)m->stages[m->native.S - 1].U;
    m->I = first->kind == FL_STAGE_LOOKUP ? 0 : (size_t)first->I;
    m->vocabulary =
        first->kind == FL_STAGE_LOOKUP || (first->kind == FL_STAGE_CELL && !first->skip) ? (size_t)first->I : 0;
    for (int i = 0; i < m->native.S; i++) {
        m->weight_bytes += m->packed[i].bytes;
        if (m->stages[i].kind != FL_STAGE_CELL)
            continue;
        const fl_spec *const spec = &m->packed[i].block.spec;
        m->widths[m->parts++] = (uint32_t)spec->R;
        if (spec->kind == FL_LSTM)
            m->widths[m->parts++] = (uint32_t)spec->H;
    }
    m->record = fl_record_width(&m->native);
    m->state_bytes = 36 + 4 * m->parts + 4 * (size_t)m->record + 4;
}

/* Whether each stage takes what the one before gives. */
static int check_chain(const fastlstm_model *m, fastlstm_error *error) {
    if (m->stages[0].kind == FL_STAGE_POINTWISE)
        return lib_fail(error, FASTLSTM_FORMAT, "the model begins with an activation, whose width is not known");
    for (int i = 1; i < m->native.S; i++)
        if (m->stages[i - 1].U != m->stages[i].I || m->stages[i].kind == FL_STAGE_LOOKUP)
            return lib_fail(error, FASTLSTM_SHAPE, "step %d gives %td numbers, but step %d takes %td%s", i - 1,
                            m->stages[i - 1].U, i, m->stages[i].I,
                            m->stages[i].kind == FL_STAGE_LOOKUP ? " token ids" : "");
    return FASTLSTM_OK;
}

static int pack_steps(fastlstm_model *m, const tensor_file *file, fastlstm_error *error) {
    const size_t count = m->program.count;
    m->packed = calloc(count, sizeof *m->packed);
    m->stages = calloc(count, sizeof *m->stages);
    m->widths = calloc(2 * count, sizeof *m->widths);
    if (!m->packed || !m->stages || !m->widths)
        return lib_fail(error, FASTLSTM_MEMORY, "no memory is left for a model of %zu steps", count);
    m->native.stages = m->stages;
    m->native.S = (int)count;
    size_t held = 0, packed = 0;
    for (size_t i = 0; i < file->count; i++)
        held += file->tensors[i].size;
    for (size_t i = 0; i < count; i++) {
        const int code = step_pack(&m->program.steps[i], file, m->native.isa, &m->packed[i], &m->stages[i], error);
        if (code)
            return code;
        packed += m->packed[i].bytes; /* 64 times an array's bytes where a panel's 64 outputs hold a single one */
        if (packed > 64 * held + 4096 * count)
            return lib_fail(error, FASTLSTM_FORMAT,
                            "steps use the same arrays again and again: %zu bytes of a file take %zu", held, packed);
    }
    return check_chain(m, error);
}

static int make(fastlstm_model *m, const tensor_file *file, fastlstm_error *error) {
    int code = program_read(file, &m->program, error);
    if (!code)
        code = pack_steps(m, file, error);
    free(m->program.steps);
    m->program.steps = NULL;
    if (!code)
        measure(m);
    return code;
}

int fastlstm_model_from_memory(const void *bytes, size_t length, const fastlstm_options *options,
                               fastlstm_model **model, fastlstm_error *error) {
    int threads, isa;
    if (!bytes || !model)
        return lib_fail(error, FASTLSTM_ARGUMENT, "%s is NULL", bytes ? "model" : "bytes");
    int code = check_options(options, &threads, &isa, error);
    if (code)
        return code;
    fl_dots(isa); /* tries the processor's dot products once, which a step would do otherwise */
    tensor_file file;
    if ((code = tensors_read(bytes, length, &file, error)))
        return code;
    fastlstm_model *const made = calloc(1, sizeof *made);
    if (made) {
        atomic_init(&made->holders, 1);
        made->threads = threads, made->native.isa = isa;
        code = make(made, &file, error);
    } else {
        code = lib_fail(error, FASTLSTM_MEMORY, "no memory is left for a model");
    }
    tensors_free(&file);
    if (code && made)
        free_model(made);
    if (code)
        return code;
    *model = made;
    return lib_fine(error);
}

/* ------------------------------------------------------------------------------------------------------------- files */

/* Reads the rest of an open file of `size` bytes; fewer are an error. */
static int read_whole(int file, unsigned char *to, size_t size) {
    for (size_t have = 0; have < size;) {
        const ssize_t n = read(file, to + have, size - have);
        if (n == 0 || (n < 0 && errno != EINTR))
            return 0;
        have += n > 0 ? (size_t)n : 0;
    }
    return 1;
}

static int load_open(int file, const char *path, const fastlstm_options *options, fastlstm_model **model,
                     fastlstm_error *error) {
    struct stat about;
    if (fstat(file, &about) != 0 || !S_ISREG(about.st_mode))
        return lib_fail(error, FASTLSTM_FILE, "%.150s is no regular file", path);
    const size_t size = (size_t)about.st_size;
    unsigned char *const bytes = lib_aligned(size);
    if (!bytes)
        return lib_fail(error, FASTLSTM_MEMORY, "no memory is left for a file of %zu bytes", size);
    const int code = read_whole(file, bytes, size)
                         ? fastlstm_model_from_memory(bytes, size, options, model, error)
                         : lib_fail(error, FASTLSTM_FILE, "%.150s cannot be read (errno %d)", path, errno);
    free(bytes);
    return code;
}

int fastlstm_model_load(const char *path, const fastlstm_options *options, fastlstm_model **model,
                        fastlstm_error *error) {
    if (!path || !model)
        return lib_fail(error, FASTLSTM_ARGUMENT, "%s is NULL", path ? "model" : "path");
    int file;
    do /* O_NONBLOCK: a named pipe without a writer is refused and not awaited */
        file = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    while (file < 0 && errno == EINTR);
    if (file < 0)
        return lib_fail(error, FASTLSTM_FILE, "%.150s cannot be opened: %s (errno %d)", path,
                        errno == ENOENT   ? "there is no such file"
                        : errno == EACCES ? "it may not be read"
                                          : "the system refuses",
                        errno);
    const int code = load_open(file, path, options, model, error);
    close(file);
    return code;
}

/* ---------------------------------------------------------------------------------------------------------- counting */

fastlstm_model *fastlstm_model_retain(fastlstm_model *model) {
    if (model)
        atomic_fetch_add_explicit(&model->holders, 1, memory_order_relaxed);
    return model;
}

void fastlstm_model_release(fastlstm_model *model) {
    if (model && atomic_fetch_sub_explicit(&model->holders, 1, memory_order_acq_rel) == 1)
        free_model(model);
}

int fastlstm_model_info(const fastlstm_model *model, fastlstm_info *info) {
    if (!model || !info || info->size < sizeof(size_t))
        return FASTLSTM_ARGUMENT;
    size_t layers = 0;
    for (int i = 0; i < model->native.S; i++)
        layers += model->stages[i].kind == FL_STAGE_CELL;
    fastlstm_info all = {.size = info->size,
                         .input_size = model->I,
                         .output_size = model->U,
                         .vocabulary = model->vocabulary,
                         .layers = layers,
                         .state_numbers = (size_t)model->record,
                         .state_bytes = model->state_bytes,
                         .weight_bytes = model->weight_bytes,
                         .threads = model->threads,
                         .isa = fl_isa_name(model->native.isa),
                         .description = model->program.description};
    memcpy(all.weights_id, model->program.weights_id, sizeof all.weights_id);
    memcpy(info, &all, info->size < sizeof all ? info->size : sizeof all);
    return FASTLSTM_OK;
}

int lib_ids_fit(const fastlstm_model *model, const int64_t *ids, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint64_t)ids[i] >= model->vocabulary)
            return 0;
    return 1;
}
