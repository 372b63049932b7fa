/* fastlstm.h: recurrent networks in programs without Python.
 *
 *     fastlstm_model *model;
 *     fastlstm_error error;
 *     if (fastlstm_model_load("model.safetensors", NULL, &model, &error))
 *         return complain(error.message);
 *     fastlstm_stream *stream;
 *     if (fastlstm_stream_new(model, &stream))
 *         ...
 *     fastlstm_step(stream, x, y);      (x: input_size numbers, y: output_size numbers; see fastlstm_model_info)
 *
 * Files are those of Python's layer.save() and Sequential.save(), quantised models too.
 * Outputs and states have the bits that Python's streams have on the same processor.
 *
 * Rules
 * - A model never changes after loading. It is counted (retain, release), and any number of threads may use it at a time.
 * - A stream and a batch may move between threads, but are used by one thread at a time: there is no lock inside. Streams
 *   and batches of one model are independent of one another.
 * - A step neither allocates memory nor takes a lock nor calls the system; the same holds for run, reset, copy, export and
 *   import of a stream. With more than one thread (options) a batch's step wakes the library's threads and waits for them.
 * - Memory is allocated by fastlstm_model_load, _from_memory, _stream_new, _batch_new and _batch_open, which return
 *   FASTLSTM_MEMORY where there is none.
 * - No function prints, exits, aborts, or sets a signal handler or the locale; loading a file may change errno. No thread
 *   is started unless options.threads is more than 1.
 * - A forked child may go on with the models, streams and batches that it has inherited.
 * - Whatever fails leaves states, and what its pointers for results point to, as they were. Functions return FASTLSTM_OK,
 *   which is 0, or another code of the enumeration below. An error that is not NULL gets the code and one English sentence
 *   with the sizes or names in question; it is written also on success (code 0, an empty message).
 * - Pointers for input and output are to memory without particular alignment, in native byte order, and do not overlap.
 *   Numbers are float32, matrices are row-major; (n, I) is a shape.
 * - Denormal numbers count as 0 during a step; the processor's mode is put back afterwards. NaN in a row stays in its
 *   stream.
 * - Passing NULL where a model, stream or batch is wanted gives FASTLSTM_ARGUMENT; *_release and *_free take NULL. */
#ifndef FASTLSTM_H
#define FASTLSTM_H

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define FASTLSTM_API __attribute__((visibility("default")))
#else
#define FASTLSTM_API
#endif

/* Raised when a program that was compiled with an older header would no longer work with the library. */
#define FASTLSTM_ABI 1

typedef struct fastlstm_model fastlstm_model;   /* weights; never changes */
typedef struct fastlstm_stream fastlstm_stream; /* one sequence: the state between its steps */
typedef struct fastlstm_batch fastlstm_batch;   /* many sequences, stepped together */
typedef uint64_t fastlstm_handle;               /* a sequence of a batch. 0 is never one */

enum {
    FASTLSTM_OK = 0,
    FASTLSTM_ARGUMENT = 1,    /* an argument is NULL or outside its range */
    FASTLSTM_MEMORY = 2,      /* no memory is left */
    FASTLSTM_FILE = 3,        /* a file cannot be opened or read */
    FASTLSTM_FORMAT = 4,      /* a file is damaged, cut short, or none of fastlstm's */
    FASTLSTM_VERSION = 5,     /* a file or a state is of a format that only a newer library reads */
    FASTLSTM_UNSUPPORTED = 6, /* a model cannot run step by step (two directions, ...), or needs what is not in C */
    FASTLSTM_SHAPE = 7,       /* sizes do not fit one another */
    FASTLSTM_STATE = 8,       /* bytes of a state are damaged, or of another model or other weights */
    FASTLSTM_CLOSED = 9,      /* a handle's sequence is closed, or there never was one */
    FASTLSTM_FULL = 10,       /* a batch has as many open sequences as it may have */
    FASTLSTM_TWICE = 11       /* a handle comes twice in one step */
};

typedef struct {
    int code;
    char message[252]; /* ends with 0; UTF-8 */
} fastlstm_error;

/* What a code means, in a few words; never NULL. */
FASTLSTM_API const char *fastlstm_strerror(int code);

/* FASTLSTM_ABI of the library that is loaded, and its version, such as "0.2.0". */
FASTLSTM_API int fastlstm_abi(void);
FASTLSTM_API const char *fastlstm_version(void);

/* Ends the library's threads, if there are any, and frees their memory: for a program that unloads the library. Call it
 * when no other thread is in a call of the library. Models, streams and batches stay usable; a step that wants threads
 * starts them anew. */
FASTLSTM_API void fastlstm_shutdown(void);

/* ------------------------------------------------------------------------------------------------------------ models */

/* Begin with FASTLSTM_OPTIONS_INIT: a later version may have further fields. */
typedef struct {
    size_t size;     /* sizeof(fastlstm_options) */
    int threads;     /* most threads of a batch's step; 0 means 1 */
    const char *isa; /* "avx512", "avx2", "neon" or "scalar"; NULL: the best that this processor has */
} fastlstm_options;
#define FASTLSTM_OPTIONS_INIT {sizeof(fastlstm_options), 0, NULL}

/* Load a model from a file, or from the bytes of one, which may be freed or changed afterwards. `options` may be NULL.
 * The caller owns what is returned in *model and gives it back by fastlstm_model_release. Errors: ARGUMENT, MEMORY, FILE,
 * FORMAT, VERSION, UNSUPPORTED, SHAPE. A file need not be trusted: its weights take at most some 64 times its length in
 * memory, as narrow layers are widened to whole vectors. */
FASTLSTM_API int fastlstm_model_load(const char *path, const fastlstm_options *options, fastlstm_model **model,
                                     fastlstm_error *error);
FASTLSTM_API int fastlstm_model_from_memory(const void *bytes, size_t length, const fastlstm_options *options,
                                            fastlstm_model **model, fastlstm_error *error);

/* Streams and batches hold a model too: it may be released as soon as it has them. retain returns its argument. */
FASTLSTM_API fastlstm_model *fastlstm_model_retain(fastlstm_model *model);
FASTLSTM_API void fastlstm_model_release(fastlstm_model *model);

/* Set `size` to sizeof(fastlstm_info) beforehand (FASTLSTM_INFO_INIT): no more than that is written. Texts live as long as
 * the model. */
typedef struct {
    size_t size;
    size_t input_size;            /* I: numbers of x in one step; 0: the model takes token ids only */
    size_t output_size;           /* U: numbers of y in one step */
    size_t vocabulary;            /* token ids are 0 .. vocabulary - 1; 0: the model takes no ids */
    size_t layers;                /* recurrent layers */
    size_t state_numbers;         /* float32 numbers of a sequence's state */
    size_t state_bytes;           /* length of an exported state */
    size_t weight_bytes;          /* memory of the packed weights */
    int threads;                  /* as the options say */
    unsigned char weights_id[16]; /* the number of equation and weights that exported states carry */
    const char *isa;              /* the instruction set in use */
    const char *description;      /* such as "LSTM(40, 128), Dense(128, 2, 'softmax')" */
} fastlstm_info;
#define FASTLSTM_INFO_INIT {sizeof(fastlstm_info), 0, 0, 0, 0, 0, 0, 0, 0, {0}, NULL, NULL}
FASTLSTM_API int fastlstm_model_info(const fastlstm_model *model, fastlstm_info *info);

/* ----------------------------------------------------------------------------------------------------------- streams */

/* A new stream's state is 0. stream_new allocates it. stream_init puts it in the caller's memory, of which it wants
 * fastlstm_stream_size bytes (any alignment; ARGUMENT if there are fewer), and which must stay until stream_free. Both
 * retain the model; stream_free releases it, and frees memory that stream_new has allocated. */
FASTLSTM_API int fastlstm_stream_new(fastlstm_model *model, fastlstm_stream **stream);
FASTLSTM_API size_t fastlstm_stream_size(const fastlstm_model *model);
FASTLSTM_API int fastlstm_stream_init(fastlstm_model *model, void *memory, size_t size, fastlstm_stream **stream);
FASTLSTM_API void fastlstm_stream_free(fastlstm_stream *stream);

/* One step: x (I), y (U). Several steps: x (steps, I), y (steps, U). Models that begin with an embedding take ids in place
 * of x, and so do recurrent layers without one, for which an id stands for a row of 0 with a single 1. ARGUMENT where the
 * model does not take this kind of input (see info), or an id is not below info.vocabulary; nothing is stepped then. */
FASTLSTM_API int fastlstm_step(fastlstm_stream *stream, const float *x, float *y);
FASTLSTM_API int fastlstm_run(fastlstm_stream *stream, const float *x, size_t steps, float *y);
FASTLSTM_API int fastlstm_step_id(fastlstm_stream *stream, int64_t id, float *y);
FASTLSTM_API int fastlstm_run_ids(fastlstm_stream *stream, const int64_t *ids, size_t steps, float *y);

/* Back to the state of a new stream; and the state of another stream of the same model (STATE if it is of another one). */
FASTLSTM_API int fastlstm_reset(fastlstm_stream *stream);
FASTLSTM_API int fastlstm_copy(fastlstm_stream *to, const fastlstm_stream *from);

/* A state as bytes: those of Python's StreamBatch.export, for any machine. *need (may be NULL) gets their number, which is
 * info.state_bytes; with memory NULL and room 0 nothing else is done. SHAPE if room is less. import refuses damaged bytes
 * and those of another model (STATE), of a newer format (VERSION) and, without FASTLSTM_OTHER_WEIGHTS, those of other
 * weights of the same sizes (STATE). */
enum { FASTLSTM_OTHER_WEIGHTS = 1 };
FASTLSTM_API int fastlstm_state_export(const fastlstm_stream *stream, void *memory, size_t room, size_t *need);
FASTLSTM_API int fastlstm_state_import(fastlstm_stream *stream, const void *bytes, size_t length, unsigned flags,
                                       fastlstm_error *error);

/* ----------------------------------------------------------------------------------------------------------- batches */

/* Room for `capacity` sequences is allocated at once, further room (256 sequences at a time) by batch_open. `most` is the
 * highest number of open sequences; 0: the library's limit, 2^26. `capacity` may be 0; ARGUMENT if it is above `most` or
 * that limit. */
FASTLSTM_API int fastlstm_batch_new(fastlstm_model *model, size_t capacity, size_t most, fastlstm_batch **batch);
FASTLSTM_API void fastlstm_batch_free(fastlstm_batch *batch);

/* A new sequence, with a state of 0. MEMORY, FULL. A handle is for one sequence only: after close it is refused (CLOSED),
 * whichever sequence has the memory then. */
FASTLSTM_API int fastlstm_batch_open(fastlstm_batch *batch, fastlstm_handle *handle);
FASTLSTM_API int fastlstm_batch_close(fastlstm_batch *batch, fastlstm_handle handle);
FASTLSTM_API size_t fastlstm_batch_count(const fastlstm_batch *batch); /* open sequences */

/* One step of n sequences: handles (n), x (n, I) or ids (n), y (n, U). Each sequence gets the bits that a stream alone
 * gets. n = 0 is allowed. CLOSED, TWICE or ARGUMENT: then no sequence has been stepped. MEMORY is not possible: room for
 * n rows was allocated when the sequences were opened. */
FASTLSTM_API int fastlstm_batch_step(fastlstm_batch *batch, const fastlstm_handle *handles, size_t n, const float *x,
                                     float *y);
FASTLSTM_API int fastlstm_batch_step_ids(fastlstm_batch *batch, const fastlstm_handle *handles, size_t n,
                                         const int64_t *ids, float *y);

/* As for streams, of one sequence. */
FASTLSTM_API int fastlstm_batch_reset(fastlstm_batch *batch, fastlstm_handle handle);
FASTLSTM_API int fastlstm_batch_export(const fastlstm_batch *batch, fastlstm_handle handle, void *memory, size_t room,
                                       size_t *need);
FASTLSTM_API int fastlstm_batch_import(fastlstm_batch *batch, fastlstm_handle handle, const void *bytes, size_t length,
                                       unsigned flags, fastlstm_error *error);

#ifdef __cplusplus
}
#endif

#endif
