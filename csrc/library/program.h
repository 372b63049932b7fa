/* program.h: the list of steps that Python writes into a file's configuration (fastlstm/step_files.py has its form), read
 * as plain data; and its weights packed as the stages of a model. */
#ifndef LIB_PROGRAM_H
#define LIB_PROGRAM_H

#include "native.h"
#include "tensors.h"

enum { PROGRAM_STEPS = 1024, STEP_ARRAYS = 12 };

/* The arrays of a step, in this order in `arrays`. */
enum { WEIGHT_IH, WEIGHT_HH, BIAS_IH, BIAS_HH, WEIGHT_HR, WEIGHT_PEEP, SCALE_IH, SCALE_HH, SCALE_HR, WEIGHT, BIAS };

/* One step as the file tells of it. */
typedef struct {
    int kind; /* enum fl_stage_kind */
    int skip;
    int64_t I, U, H;
    fl_spec spec; /* CELL: all but the sizes */
    int acts;     /* activations that were given; of other kinds than CELL, `act` is the first */
    int storage, planes;
    float least[3]; /* x, h, m */
    json_slice arrays[STEP_ARRAYS];
} program_step;

typedef struct {
    program_step *steps; /* (count) */
    size_t count;
    unsigned char weights_id[16];
    char *description; /* (description_length + 1) */
} program;

/* Reads the configuration of a file. Errors: FORMAT, VERSION, UNSUPPORTED, MEMORY. */
int program_read(const tensor_file *file, program *program, fastlstm_error *error);
void program_free(program *program);

/* A step's packed weights. */
typedef struct {
    fl_block block;
    fl_dense dense;
    void *memory;
    size_t bytes;
} packed_step;

/* Packs the weights of a step for the instruction set `isa`, and fills a stage. Errors: FORMAT, SHAPE, MEMORY. */
int step_pack(const program_step *step, const tensor_file *file, int isa, packed_step *packed, fl_stage *stage,
              fastlstm_error *error);

/* `bytes` of memory, at least 1, that begins at a cache line; NULL where there is none. Given back by free(). */
void *lib_aligned(size_t bytes);

#endif
