/* api.h: the whole C interface. Declarations only and no preprocessor lines: C and cffi's cdef read this same text.
 *
 * Alphabet: T steps, B batch, N packed rows, I inputs, H hidden units, R width of h (H, or the projection's size),
 * G gates, D directions, U outputs of a dense layer. Matrices are row-major float32; (N, H) after a pointer is the shape
 * of what it points to. Memory that two pointers of a call name does not overlap, unless the field says otherwise.
 * Activations =, parameters +=: outputs, states and tape are overwritten; gradients of parameters and of the input are
 * added to.
 * No function prints or aborts. What outlives a call: the thread pool, the chosen instruction set, and how quickly the
 * workers of short calls met (recurrent.c). */

enum fl_kind { FL_LSTM, FL_GRU, FL_RNN };

/* In the order of ACTIVATIONS in spec.py. */
enum fl_activation {
    FL_SIGMOID,
    FL_TANH,
    FL_RELU,
    FL_IDENTITY,
    FL_HARD_SIGMOID,
    FL_HARD_SIGMOID_KERAS2,
    FL_AFFINE,
    FL_LEAKY_RELU,
    FL_THRESHOLDED_RELU,
    FL_SCALED_TANH,
    FL_ELU,
    FL_SOFTSIGN,
    FL_SOFTPLUS
};

typedef struct {
    int id;            /* enum fl_activation */
    float alpha, beta; /* ONNX's meaning */
} fl_act;

/* The equation of one direction of one layer: Spec in spec.py. */
typedef struct {
    int kind; /* enum fl_kind */
    int projected, peepholes, reset_after;
    int input_forget; /* LSTM: f = 1 - i, and the rows of f have no effect */
    float clip;       /* bound of the gates' pre-activations; 0: none */
    ptrdiff_t I, H, R;
    fl_act act[3]; /* gates, candidate, output; RNN: its only one first */
} fl_spec;

/* How the weights of forward panels are stored. FL_FLOAT16 keeps the arithmetic of float32. With FL_INT8 and FL_INT16 both
 * operands of a product are integers, and their sums exact; kernels/storage.h has the equations. */
enum fl_storage { FL_FLOAT32, FL_FLOAT16, FL_INT8, FL_INT16 };

/* Packed weights of one direction of one layer; panels are described in kernels/kernels.h. fl_pack sets the pointers;
 * a pointer is NULL where the spec has no such matrix. */
typedef struct {
    fl_spec spec;
    int isa;     /* index of the instruction set that the panels are packed for */
    int storage; /* enum fl_storage, of the forward panels */
    int reverse; /* 1: the direction walks from the last step to the first */
    /* Integers: a row of x, h or m has the scale of its largest number, or of this one if it is larger: 1 where the equation
     * keeps the numbers within -1..1, so that the scale is always the same; else 0. m: a second product's operand. */
    float x_least, h_least, m_least;
    int x_planes;                       /* FL_INT8: 1, x has 8 bits; 2, 16 bits */
    const float *bias;                  /* start values of the accumulators: per panel, per gate */
    const void *w_x, *w_h, *w_n, *w_r;  /* forward panels: input, recurrent, GRU's second phase, projection */
    const void *x_n;                    /* GRU with reset_after = 0: forward panels of the candidate's input */
    const float *bias_n;                /* GRU with reset_after = 0: the candidate's bias */
    const float *peep;                  /* (3, H): i, f, o */
    const float *v_x, *v_h, *v_n, *v_r; /* backward panels of the transposed matrices; NULL until packed */
    float ends[2][2];                   /* act[0] and act[1] at -clip and clip, if the spec has a clip */
} fl_block;

/* Canonical parameters (PyTorch's shapes); NULL where absent. Weights are float32, or for forward panels the storage's
 * numbers: uint16_t with a float16's bits; int8_t or int16_t, with a scale for each row. Everything else is float32. */
typedef struct {
    const void *weight_ih;    /* (G*H, I) */
    const void *weight_hh;    /* (G*H, R) */
    const float *bias_ih;     /* (G*H) */
    const float *bias_hh;     /* (G*H) */
    const void *weight_hr;    /* (R, H) */
    const float *weight_peep; /* (3, H) */
    const float *scale_ih;    /* (G*H) integers: what a weight of 1 stands for */
    const float *scale_hh;    /* (G*H) */
    const float *scale_hr;    /* (R) */
} fl_params;

/* Gradients of the parameters, added to. Shapes as in fl_params; for token ids weight_ih is (rows, G*H). */
typedef struct {
    float *weight_ih, *weight_hh, *bias_ih, *bias_hh, *weight_hr, *weight_peep;
} fl_grads;

/* Packed weights of a dense layer, y = x weight' + bias. */
typedef struct {
    ptrdiff_t I, U;
    int isa;
    const float *forward;  /* panels of U outputs */
    const float *bias;     /* (U), padded; NULL without a bias */
    const float *backward; /* panels of I outputs; NULL until packed */
} fl_dense;

/* The coefficients of an optimiser's step. p is a parameter, g its gradient; the rules are in optim.py. */
enum fl_rule_kind { FL_SGD, FL_ADAM, FL_RMSPROP, FL_ADAGRAD };
typedef struct {
    int kind; /* enum fl_rule_kind */
    int nesterov;
    float lr, decay;                 /* decay * p is added to g */
    float momentum;                  /* SGD, RMSprop */
    float rate1, beta2, rate2, root; /* 1 - beta1, beta2, 1 - beta2, sqrt(1 - beta2^t) */
    float keep, eps;                 /* p is first multiplied by keep (Adam) */
} fl_rule;

/* n parameters that are contiguous in memory. */
typedef struct {
    float *p;
    const float *g; /* (n) the gradient of p */
    float *kept[3]; /* (n) each: SGD momentum; Adam m, v; RMSprop v, momentum, mean of g; Adagrad sum; or NULL */
    ptrdiff_t n;
} fl_span;

/* The compiled instruction sets, best first. fl_isa_name is NULL for an index outside the list; fl_isa_usable says
 * whether this processor has the instruction set. New weights are packed for the chosen one: the first usable one, until
 * fl_isa_choose names another. Any thread may call these functions at any time. */
const char *fl_isa_name(int isa);
int fl_isa_usable(int isa);
int fl_isa_chosen(void);
void fl_isa_choose(int isa);

/* Whether an instruction set that is usable here multiplies bytes by the processor's dot products (VNNI, AVX-VNNI, Armv8.2);
 * and whether it may, until another call of fl_dots_allow. They change no result. */
int fl_dots(int isa);
void fl_dots_allow(int allowed);

/* Panels of a block whose spec, isa and storage are set. fl_pack_size is the number of bytes that the panels take;
 * fl_pack writes them to `memory` (64-byte aligned) and sets the block's pointers. FL_BACKWARD_IDS leaves out the
 * input's panels: token ids have no gradient. */
enum fl_panels { FL_FORWARD, FL_BACKWARD, FL_BACKWARD_IDS };
ptrdiff_t fl_pack_size(const fl_block *block, int panels);
void fl_pack(fl_block *block, const fl_params *params, int panels, void *memory);

/* ---- calls ----
 *
 * A call is one struct, which the caller fills. Where the call needs scratch memory, the function returns the number of
 * floats that it needs; if scratch.size is less, the function has done nothing else. */

/* Packed rows, time-major: row b of step t follows row b-1 of step t; step t+1 follows step t. */
typedef struct {
    const float *x;             /* (N, I), or NULL */
    const int64_t *ids;         /* (N) token ids in place of x, or NULL */
    const int64_t *batch_sizes; /* (T) rows of each step; never growing, each >= 1 */
    ptrdiff_t T;
} fl_rows;

/* Which row of y an output goes to: step t of sequence b goes to row t * step + sequences[b]. */
typedef struct {
    ptrdiff_t step;
    const int64_t *sequences; /* (B); NULL: no map, y is packed as x is */
} fl_row_map;

typedef struct {
    float *memory;  /* 64-byte aligned */
    ptrdiff_t size; /* floats */
} fl_scratch;

/* Forward through the one or two directions of a layer. */
typedef struct {
    const fl_block *first, *second; /* second: the other direction, or NULL */
    fl_rows rows;
    float *h, *c; /* (D, B, R), (D, B, H) initial state, overwritten with the final one; c: LSTM only, else NULL */
    float *tapes; /* (D, Spec.tape_size) overwritten, or NULL in inference */
    float *y;     /* (N, D*R), or NULL. With a row map: its rows, and zeros from a sequence's end up to step T */
    fl_row_map row_map;
    int threads;
    fl_scratch scratch;
} fl_call;

ptrdiff_t fl_forward(const fl_call *call);

/* fl_set sets the fields of a call that change from one call to the next; flq_forward does so too, runs the call and does
 * not release Python's lock: for calls below about 50 us. (From Python, arguments are ten times as quick to hand over as
 * fields of a struct.) */
void fl_set(fl_call *call, const fl_block *first, const float *x, const int64_t *ids, float *h, float *c, float *tapes,
            float *y);
ptrdiff_t flq_forward(fl_call *call, const fl_block *first, const float *x, const int64_t *ids, float *h, float *c,
                      float *tapes, float *y);

/* Backward through one direction of a layer and one stretch of time. */
typedef struct {
    const fl_block *block; /* with backward panels */
    fl_rows rows;          /* as in forward; ids hold the row of grads->weight_ih that each packed row adds to */
    float *h, *c;          /* (B, R), (B, H) gradient of the final state, overwritten with that of the initial one */
    float *tape;           /* (Spec.tape_size) of this direction; its gates are overwritten with their gradients */
    const float *dy;       /* (N, R) rows that are ldy floats apart, or NULL */
    ptrdiff_t ldy;
    float *dx; /* (N, I), or NULL */
    const fl_grads *grads;
    int threads;
    fl_scratch scratch;
} fl_backward_call;

ptrdiff_t fl_backward(const fl_backward_call *call);

/* A stream: the layers' blocks, the input, which every step reads, and the state, which every step overwrites. */
typedef struct {
    const fl_block *const *blocks; /* (L) */
    int L, threads;
    ptrdiff_t B;
    const float *x;     /* (B, I), or NULL */
    const int64_t *ids; /* (B), or NULL */
    float *h, *c;       /* (L, B, R), (L, B, H); c: LSTM only, else NULL */
    float *scratch;     /* (fl_step_scratch), 64-byte aligned */
    /* Set to 0 before the first step; stream.c alone changes them. */
    int reversed_panels;        /* whether the last step walked its panels from the last to the first */
    int taken;                  /* steps since prefetching was last tried */
    uint64_t prefetch_spent[2]; /* nanoseconds of the timed steps then: without and with prefetching */
    uint64_t ended;             /* when the last step ended (fl_now) */
    int followed;               /* steps of the present round: steps that followed one another without a pause */
    int round;                  /* steps of a round, where one thread was quicker; else 0 */
    uint64_t spent[2];          /* nanoseconds of the round's timed steps: with one thread, with all threads */
} fl_stream;

/* One step of all layers; the result is the last layer's h. flq_step does not release Python's lock: for steps below
 * about 50 us. */
ptrdiff_t fl_step_scratch(const fl_stream *stream); /* floats */
void fl_step(fl_stream *stream);
void flq_step(fl_stream *stream);

/* ---- models as lists of stages (rows.c) ---- */

/* What happens to a row of one time step. LOOKUP: an id becomes a row of a table. CELL: one layer of recurrent cells
 * advances, and its h is the output. DENSE: an activation of a product, of each frame of I / dense->I. POINTWISE: an
 * activation. CONTEXT: the last U - I numbers of the inputs before, then the input. GATHER: numbers of the input, or 0.
 * MAGNITUDE: each frame's first half are real parts, its second half imaginary ones. */
enum fl_stage_kind {
    FL_STAGE_LOOKUP,
    FL_STAGE_CELL,
    FL_STAGE_DENSE,
    FL_STAGE_POINTWISE,
    FL_STAGE_CONTEXT,
    FL_STAGE_GATHER,
    FL_STAGE_MAGNITUDE
};
enum { FL_SOFTMAX = 64 }; /* id of a stage's activation beside enum fl_activation: softmax over each frame */

typedef struct {
    int kind;              /* enum fl_stage_kind */
    int skip;              /* 1: the input is added to the output (CELL, DENSE; I == U) */
    ptrdiff_t I, U;        /* width of the input, for LOOKUP the number of ids; and of the output */
    const fl_block *block; /* CELL: forward panels */
    const fl_dense *dense; /* DENSE: forward panels */
    const float *table;    /* LOOKUP: (I, U) */
    fl_act act;            /* DENSE, POINTWISE */
    ptrdiff_t frames;      /* POINTWISE, MAGNITUDE: equal parts of the output; 0 counts as 1 */
    const int32_t *runs; /* GATHER: (count, 2) place in the input and length of each run of numbers; place -1: zeros */
    ptrdiff_t count;
} fl_stage;

/* A stage takes the output of the one before. The first one takes numbers or, LOOKUP and CELL, ids from 0 to I - 1, which
 * no function checks. The record of a stream is its state: for each CELL h (R) and, for LSTM, c (H); for each CONTEXT
 * U - I numbers. */
typedef struct {
    const fl_stage *stages; /* (S) */
    int S;
    int isa; /* of all panels */
} fl_model;

ptrdiff_t fl_record_width(const fl_model *model); /* floats */

/* One step of n rows: x (n, I) of the first stage, or ids (n); y (n, U) of the last stage. A row's bits do not depend on
 * the other rows, nor on threads. flq_step_records does not release Python's lock: for steps below about 50 us. */
typedef struct {
    const fl_model *model;
    ptrdiff_t n;
    float *const *records; /* (n) in any order, each once; their floats are overwritten. NULL without a state */
    const float *x;        /* or NULL */
    const int64_t *ids;    /* or NULL */
    float *y;
    int threads;
    int reversed_panels; /* 0 or 1 by turns: the panels are walked backwards, so that a near cache has the first ones */
    float *scratch;      /* (fl_records_scratch), 64-byte aligned */
} fl_records;
ptrdiff_t fl_records_scratch(const fl_model *model, ptrdiff_t n, int threads); /* floats, for at most n rows */
void fl_step_records(const fl_records *step);
void flq_step_records(const fl_records *step);

/* ---- many streams in slabs (rows.c) ----
 *
 * A stream has a slot, and a slab is the memory of FL_SLAB slots. A handle is a slot (its lowest FL_SLOT_BITS bits) and,
 * above them, the slot's generation, which is odd while the slot is taken: another generation means another stream. */
enum { FL_SLAB = 256, FL_SLOT_BITS = 26 };

typedef struct {
    int64_t generation;
    double used;    /* the time of the last step, as the caller gives it */
    uint64_t steps; /* that the stream has done */
    uint64_t stamp; /* number of the last call that named the slot */
} fl_slot;

typedef struct {
    const fl_model *model;
    int threads;
    ptrdiff_t slabs;
    ptrdiff_t stride;      /* floats from one record to the next */
    float *const *records; /* (slabs) of (FL_SLAB, stride) */
    fl_slot *const *slots; /* (slabs) of (FL_SLAB) */
    uint64_t *counted;     /* (3) calls; rows of these calls; number of the last call, which slots are stamped with */
    float *scratch;        /* (fl_rows_scratch), 64-byte aligned */
} fl_streams;

/* One step of n streams: x (n, I) of the first stage or ids (n), y (n, U) of the last one. Returns 1; or 0, with nothing
 * changed but stamps, where a handle is not that of a taken slot or comes twice. flq_step_rows and flq_step_row (of one
 * stream) do not release Python's lock: for steps below about 50 us. */
ptrdiff_t fl_rows_scratch(const fl_streams *streams, ptrdiff_t n); /* floats, for at most n rows */
int fl_step_rows(fl_streams *streams, const int64_t *handles, ptrdiff_t n, const float *x, const int64_t *ids, float *y,
                 double now);
int flq_step_rows(fl_streams *streams, const int64_t *handles, ptrdiff_t n, const float *x, const int64_t *ids,
                  float *y, double now);
int flq_step_row(fl_streams *streams, int64_t handle, const float *x, float *y, double now);

/* A call below fl_locked_work multiply-adds takes less than about 50 us on one core, so that it may keep Python's lock;
 * each row counts for fl_row_work multiply-adds beside its own. fl_integers_speed(storage) multiply-adds of a storage take
 * as long as one of floats. */
extern const ptrdiff_t fl_locked_work, fl_row_work;
double fl_integers_speed(int storage);

/* Panels of a dense layer whose isa and sizes are set: bytes, and packing, as above. backward: 0 or 1. */
ptrdiff_t fl_dense_size(const fl_dense *dense, int backward);
void fl_dense_pack(fl_dense *dense, const float *weight, const float *bias, int backward, void *memory);

/* y (N, U) = x (N, I) weight' + bias. */
void fl_dense_forward(const fl_dense *dense, const float *x, ptrdiff_t N, float *y, int threads);

/* The gradients of a dense layer: dweight and dbias are added to, dx is overwritten. */
typedef struct {
    const fl_dense *dense;
    const float *x; /* (N, I) */
    ptrdiff_t N;
    const float *dy;        /* (N, U); fl_dense_backward reads it */
    float *logits;          /* (N, U) overwritten with the logits' gradients times `factor`; fl_dense_cross_entropy */
    const int64_t *targets; /* (N) columns of the logits; fl_dense_cross_entropy */
    double factor;
    double *losses; /* (N) -log softmax[target] in nats; fl_dense_cross_entropy */
    float *dx;      /* (N, I) */
    float *dweight; /* (U, I) */
    float *dbias;   /* (U), or NULL */
    int threads;
    fl_scratch scratch;
} fl_dense_call;

ptrdiff_t fl_dense_backward(const fl_dense_call *call);

/* A classifier's head in one call: forward, softmax, cross-entropy and backward. */
ptrdiff_t fl_dense_cross_entropy(const fl_dense_call *call);

/* An optimiser's step, for all spans in one pass. */
void fl_update(const fl_rule *rule, const fl_span *spans, int count, int threads);

/* table (V, width)[ids[k]] += rows[k] (n, width), in the order of k: the gradient of an embedding. An id may come often. */
void fl_add_rows(float *table, ptrdiff_t width, const int64_t *ids, const float *rows, ptrdiff_t n);

/* p (J, V)[:, ids] -= lr * rows (n, J)': plain gradient descent on the columns ids (n), no two of which are equal. */
void fl_update_columns(float *p, ptrdiff_t J, ptrdiff_t V, const int64_t *ids, ptrdiff_t n, const float *rows, float lr,
                       int threads);

/* The sum of squares of all spans' p, in double, and the product of all p with a factor, in place. sums (fl_blocks) is
 * scratch memory. */
ptrdiff_t fl_blocks(const fl_span *spans, int count);
double fl_square_sum(const fl_span *spans, int count, double *sums, int threads);
void fl_scale(const fl_span *spans, int count, float factor, int threads);

/* A checksum of the bytes of some stretches of memory, at the speed at which one core reads them. It tells whether memory
 * has changed: the same bytes give the same number on every instruction set, others another one (but for 1 in 2^64).
 * flq_checksum does not release Python's lock: for less than about 1 MiB. */
typedef struct {
    const void *memory;
    ptrdiff_t bytes;
} fl_memory;
uint64_t fl_checksum(const fl_memory *stretches, int count);
uint64_t flq_checksum(const fl_memory *stretches, int count);

/* Lets calls of this thread, until flq_host(NULL, 0), run on `threads` threads of the program that called: parallel(fn,
 * data, threads, flags), which has the form of OpenMP's GOMP_parallel, runs fn(data) in each of them and in the calling
 * thread, and returns when all have returned. Results do not depend on it. A forked child, and a call after one that lost
 * time to a busy neighbour, use threads of our own. */
typedef void (*fl_parallel_fn)(void (*fn)(void *), void *data, unsigned threads, unsigned flags);
void flq_host(fl_parallel_fn parallel, int threads);

/* peak.c, for the reports: the most floating-point operations, operations on the integers of a storage (FL_INT8, FL_INT16),
 * and bytes read, in a second, that the calling thread reaches within about `seconds`. Reading runs again and again through
 * `bytes` of memory. 0 where the processor does not have the instruction set, or there is too little memory. */
double fl_measure_fma(int isa, double seconds);
double fl_measure_dots(int isa, int storage, double seconds);
double fl_measure_read(int isa, ptrdiff_t bytes, double seconds);
const char *fl_compiler(void); /* name and version of the compiler that built the extension */
