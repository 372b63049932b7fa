/* api.h: the whole C interface. Declarations only and no preprocessor lines: C and cffi's cdef read this same text.
 *
 * Alphabet: T steps, B batch, N packed rows, I inputs, H hidden units, R width of h (H, or the projection's size),
 * G gates, D directions. All matrices are row-major float32; (N, H) after a pointer is the shape of what it points to.
 * Activations =, parameters +=: states and tape are overwritten, gradients of parameters and input are added to.
 * No function prints, aborts or keeps state but the thread pool and the chosen instruction set. */

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

/* The equation of one direction of one layer: spec.Spec. */
typedef struct {
    int kind; /* enum fl_kind */
    int projected, peepholes, reset_after;
    ptrdiff_t I, H, R;
    fl_act act[3]; /* gates, candidate, output; RNN: its only one first */
} fl_spec;

/* Packed weights of one direction of one layer; panels are described in kernels.h. */
typedef struct {
    fl_spec spec;
    int isa;                            /* the instruction set whose panels these are */
    int reverse;                        /* walks from the last step to the first */
    const float *bias;                  /* as the accumulators start: per panel, per gate */
    const float *w_x, *w_h, *w_n, *w_r; /* forward panels: input, recurrent, GRU's second phase, projection */
    const float *x_n, *bias_n;          /* GRU with reset_after = 0: the candidate's input panels and bias */
    const float *peep;                  /* (3, H): i, f, o */
    const float *v_x, *v_h, *v_n, *v_r; /* backward panels: the transposed products; NULL until packed */
} fl_block;

/* Canonical parameters (PyTorch's shapes); NULL where absent. */
typedef struct {
    const float *weight_ih;   /* (G*H, I) */
    const float *weight_hh;   /* (G*H, R) */
    const float *bias_ih;     /* (G*H) */
    const float *bias_hh;     /* (G*H) */
    const float *weight_hr;   /* (R, H) */
    const float *weight_peep; /* (3, H) */
} fl_params;

/* Gradients of the same, added to. For token ids weight_ih is (rows, G*H). */
typedef struct {
    float *weight_ih, *weight_hh, *bias_ih, *bias_hh, *weight_hr, *weight_peep;
} fl_grads;

/* Packed weights of a fully connected layer, y = x weight' + bias, of U outputs. */
typedef struct {
    ptrdiff_t I, U;
    int isa;
    const float *forward, *bias; /* panels of U outputs; NULL without a bias */
    const float *backward;       /* panels of I outputs; NULL until packed */
} fl_dense;

/* An optimiser's step: what is the same for all numbers. Parameters p, gradient g; see optim.py for the rest. */
enum fl_rule_kind { FL_SGD, FL_ADAM, FL_RMSPROP, FL_ADAGRAD };
typedef struct {
    int kind; /* enum fl_rule_kind */
    int nesterov;
    float lr, decay;                 /* decay * p is added to g */
    float momentum;                  /* SGD, RMSprop */
    float rate1, beta2, rate2, root; /* 1 - beta1, beta2, 1 - beta2, sqrt(1 - beta2^t) */
    float keep, eps;                 /* p is first multiplied by keep (Adam) */
} fl_rule;

/* n numbers that lie together. */
typedef struct {
    float *p;
    const float *g; /* (n) the gradient of p */
    float *kept[3]; /* (n) each: SGD momentum; Adam m, v; RMSprop v, momentum, mean of g; Adagrad sum; or NULL */
    ptrdiff_t n;
} fl_span;

/* Instruction sets, best first: name, whether this machine can run it. Index out of range: NULL. */
const char *fl_isa_name(int isa);
int fl_isa_usable(int isa);
int fl_isa_chosen(void);
void fl_isa_choose(int isa);

/* Panels. A block with spec and isa filled in needs so many floats (64-byte aligned) for its forward, or its backward
 * panels; packing writes them and sets the block's pointers. Token ids have no gradient, so backward then does without
 * the input's panels. */
enum fl_panels { FL_FORWARD, FL_BACKWARD, FL_BACKWARD_IDS };
ptrdiff_t fl_pack_size(const fl_block *block, int backward);
void fl_pack(fl_block *block, const fl_params *params, int backward, float *memory);

/* Where outputs go that do not lie packed: step t of sequence b is row t * step + sequences[b] of y. */
typedef struct {
    ptrdiff_t step;
    const int64_t *sequences; /* (B) */
} fl_places;

/* The D directions of one layer, second being NULL where there is but one. Packed rows: batch_sizes (T) never grow, each
 * is >= 1, and the input is x (N, I) or ids (N), the other NULL. h (D, B, R) and, for LSTM, c (D, B, H): the initial
 * state, overwritten with the final one. tapes (D, Spec.tape_size), or NULL in inference. y (N, D*R) or NULL;
 * with places, its rows are where these say, and steps after a sequence's last, up to T, become zeros.
 * Both functions return how many floats of scratch memory (64-byte aligned) such a call needs. Where `size` is less,
 * they do nothing else. The flq_ form keeps Python's lock: for calls below about 50 us. */
ptrdiff_t fl_forward(const fl_block *first, const fl_block *second, const float *x, const int64_t *ids,
                     const int64_t *batch_sizes, ptrdiff_t T, float *h, float *c, float *tapes, float *y,
                     const fl_places *places, int threads, float *scratch, ptrdiff_t size);
ptrdiff_t flq_forward(const fl_block *first, const fl_block *second, const float *x, const int64_t *ids,
                      const int64_t *batch_sizes, ptrdiff_t T, float *h, float *c, float *tapes, float *y,
                      const fl_places *places, int threads, float *scratch, ptrdiff_t size);

/* One direction of one layer, one stretch of time. h (B, R) and c (B, H): the final state's gradient, overwritten with
 * the initial one's. dy (N, R) with row stride ldy, or NULL; dx (N, I) or NULL. For token ids, ids holds each row's row
 * of grads->weight_ih. */
ptrdiff_t fl_backward(const fl_block *block, const float *x, const int64_t *ids, const int64_t *batch_sizes,
                      ptrdiff_t T, float *h, float *c, float *tape, const float *dy, ptrdiff_t ldy, float *dx,
                      const fl_grads *grads, int threads, float *scratch, ptrdiff_t size);

/* A stream: a block of each layer, x (B, I) or ids (B), read at every step, the state h (L, B, R) and c (L, B, H), and
 * scratch memory of fl_step_scratch. */
typedef struct {
    const fl_block *const *blocks;
    int L, threads;
    ptrdiff_t B;
    const float *x;
    const int64_t *ids;
    float *h, *c, *scratch;
    int turn; /* 0 at first; changed by every step */
    /* Short steps only, all 0 at first: when the last one ended, how many followed one another, after how many both ways
     * are tried again if alone was quicker, and nanoseconds spent on those tried alone and with all threads. */
    uint64_t ended;
    int followed, alone;
    uint64_t spent[2];
} fl_stream;

/* One step of all layers; the result is the last layer's h. The flq_ form keeps Python's lock: for steps below about
 * 50 us. */
ptrdiff_t fl_step_scratch(const fl_stream *stream);
void fl_step(fl_stream *stream);
void flq_step(fl_stream *stream);

/* The dense layer: floats (64-byte aligned) for its forward or backward panels, and packing. */
ptrdiff_t fl_dense_size(const fl_dense *dense, int backward);
void fl_dense_pack(fl_dense *dense, const float *weight, const float *bias, int backward, float *memory);

/* y (N, U) = x (N, I) weight' + bias. */
void fl_dense_forward(const fl_dense *dense, const float *x, ptrdiff_t N, float *y, int threads);

/* dweight (U, I) and dbias (U; or NULL) are added to, dx (N, I) is overwritten. Scratch memory as for fl_forward. */
ptrdiff_t fl_dense_backward(const fl_dense *dense, const float *x, ptrdiff_t N, const float *dy, float *dx,
                            float *dweight, float *dbias, int threads, float *scratch, ptrdiff_t size);

/* A head: forward, softmax, cross-entropy and backward. rows (N, U) are overwritten with the logits' gradients times
 * factor, losses (N) with -log softmax[target], in nats. */
ptrdiff_t fl_dense_cross_entropy(const fl_dense *dense, const float *x, ptrdiff_t N, const int64_t *targets,
                                 double factor, float *rows, double *losses, float *dx, float *dweight, float *dbias,
                                 int threads, float *scratch, ptrdiff_t size);

/* An optimiser's step, for all spans in one pass. */
void fl_update(const fl_rule *rule, const fl_span *spans, int count, int threads);

/* p (J, V)[:, ids] -= lr * rows (n, J)': plain gradient descent where only the columns ids (n) have a gradient. No id
 * comes twice. */
void fl_update_columns(float *p, ptrdiff_t J, ptrdiff_t V, const int64_t *ids, ptrdiff_t n, const float *rows, float lr,
                       int threads);

/* Of the numbers p of all spans: the sum of squares, in double, and their product with a factor, in place. sums holds
 * a double for each of fl_blocks(spans, count) blocks. */
ptrdiff_t fl_blocks(const fl_span *spans, int count);
double fl_square_sum(const fl_span *spans, int count, double *sums, int threads);
void fl_scale(const fl_span *spans, int count, float factor, int threads);

/* limits.c, for the reports: floating-point operations, and bytes read from memory of so many bytes in turn, that the
 * calling thread does at most in a second, measured for about so many seconds; 0 where there is not so much memory. */
double fl_measure_fma(int isa, double seconds);
double fl_measure_read(int isa, ptrdiff_t bytes, double seconds);
const char *fl_compiler(void); /* that built this */
