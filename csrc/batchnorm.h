/* Batch normalization on a CPU: the two passes over the data, forward and backward, behind one plain C interface.
 *
 * An array is dense, of shape (outer, groups, rows, channels, inner), the last axis contiguous. Features are
 * (groups, channels): what is reduced are outer, rows and inner. Every layout is one of these:
 *
 *     (N, C, H, W) contiguous            1 group,  outer = 1, rows = N,   channels = C, inner = H·W
 *     (N, C, H, W) channels_last         1 group,  outer = 1, rows = NHW, channels = C, inner = 1
 *     (N, C), (N, L, C)                  1 group,  outer = 1, rows = N or N·L, channels = C, inner = 1
 *     virtual batches                    as many groups; sample i belongs to group i mod groups
 *
 * The working type is double where the arrays are double, else float. Arrays of features and weights have it.
 * Results are the same bits for every number of threads, every instruction set and every call; only smooth activations
 * differ, by units in the last place, on machines that cannot multiply and add with one rounding.
 */
#ifndef BATCHNORM_H
#define BATCHNORM_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define BN_INTERFACE 2 /* grows whenever a field or a function changes */

typedef enum { BN_FLOAT32, BN_FLOAT64, BN_BFLOAT16, BN_FLOAT16 } bn_dtype;
typedef enum { BN_IDENTITY, BN_RELU, BN_LEAKY_RELU, BN_SILU, BN_GELU, BN_TANH, BN_SIGMOID } bn_activation;

/* Run `task(first, last, context)` over pieces of [begin, end) of at least `grain`, on as many threads as there are;
 * return 0 once all are done. torch_parallel_for of libtorch_cpu is one. */
typedef int (*bn_parallel_for)(int64_t begin, int64_t end, int64_t grain,
                               void (*task)(int64_t first, int64_t last, void *context), void *context);

typedef struct {
    bn_parallel_for parallel_for; /* NULL: the library's own threads */

    int64_t outer, groups, rows, channels, inner;
    int64_t dtype;      /* bn_dtype: of x, residual, y, dy, dx and dz */
    int64_t activation; /* bn_activation */

    const void *x;
    const void *residual; /* added before the activation; NULL: none */
    const void *weights;  /* of samples, (outer, groups, rows, inner); finite, >= 0; NULL: all 1 */
    void *y;
    const void *dy;
    void *dx;       /* NULL: not wanted */
    void *dz;       /* the gradient of the residual, dy * act'(z); NULL: not wanted */
    uint16_t *bits; /* whether z > 0, bn_bits_size(call) of them: written by the forward, read by the backward where an
                       activation that goes by the sign alone follows a residual; NULL elsewhere. Both calls
                       must have weights, or neither. */

    /* Features: (groups, channels) of the working type. */
    void *mean, *mean_low; /* mu is their sum; mean_low may be NULL where it is read */
    void *m2;              /* sum of w * (x - mu)^2 */
    void *inv_std;         /* 1 / sqrt(m2 / N + eps) */
    void *factor;          /* gamma * inv_std: written by bn_forward and bn_infer unless NULL */
    const void *scale;     /* gamma in bn_forward, else the factor of (x - mu); NULL: 1 */
    const void *shift;     /* beta in bn_forward, else what is added; NULL: 0 */
    void *sum_dz, *sum_dz_centred;
    void *gamma_gradient;        /* inv_std * sum_dz_centred: written by bn_backward unless NULL */
    void *of_centred, *constant; /* NULL in bn_backward_elementwise: the statistics are constants */
    const void *per_count;       /* 1/N of each feature in bn_backward; NULL: 1 / (outer * rows * inner) */

    double eps;
    int64_t fixed; /* in bn_backward: whether the statistics are constants, dx = scale * dz */
} bn_call;

/* Each returns 0, or a bn_error: then it has done nothing, but for the last two, where outputs are undefined.
 * z = ((x - mean) - mean_low) * scale + shift + residual throughout, in this order and without fused operations: the
 * backward finds the same bits as the forward. y may be x, and dx or dz may be dy; no other arrays may overlap. */
typedef enum {
    BN_OK, BN_BAD_SHAPE, BN_BAD_DTYPE, BN_BAD_ACTIVATION, BN_NULL_POINTER, BN_NO_MEMORY, BN_BAD_PARALLEL_FOR
} bn_error;

/* x, weights -> mean, mean_low, m2. */
int bn_moments(const bn_call *call);

/* x, mean, mean_low, scale, shift, residual, activation -> y = act(z), and bits unless NULL. */
int bn_affine(const bn_call *call);

/* The affine map of inference: mean and m2 are the running mean and variance, which are read, and scale is gamma.
 * x, mean, mean_low, m2 (the variance), scale (gamma), shift (beta), eps, residual, activation -> y, and inv_std, factor
 * and bits, each unless NULL. */
int bn_infer(const bn_call *call);

/* Both in one, each block of channels while it is in the cache; scale is gamma * inv_std here.
 * x, weights, scale (gamma), shift (beta), eps, residual, activation -> mean, mean_low, m2, inv_std, y, bits. */
int bn_forward(const bn_call *call);

/* x, dy, mean, mean_low; with an activation also scale, shift, and bits or residual -> sum_dz, sum_dz_centred, which
 * are the sums of dz and of dz * (x - mu). */
int bn_backward_reduce(const bn_call *call);

/* The same, weights, of_centred, constant -> dx = dz * scale + w * ((x - mu) * of_centred + constant), and dz; each
 * unless NULL. */
int bn_backward_elementwise(const bn_call *call);

/* Both in one, each block of channels while it is in the cache, with s = scale * per_count:
 *     of_centred = -s * inv_std^2 * sum_dz_centred,   constant = -s * sum_dz
 * x, dy, mean, mean_low, inv_std, scale, per_count, weights, fixed ... -> sum_dz, sum_dz_centred, gamma_gradient, dx,
 * dz; each unless NULL. */
int bn_backward(const bn_call *call);

/* How the running statistics move: s += momentum * (observed - s), by mean and m2 / N, or m2 / (N - 1); exact where
 * momentum is 0 or 1, and rounded once elsewhere. */
typedef struct {
    int64_t features;
    int64_t dtype;                     /* BN_FLOAT32 or BN_FLOAT64: of all arrays */
    const void *mean, *mean_low, *m2;  /* of a batch */
    void *running_mean, *running_var;
    int64_t *batches;                  /* counts one more where they move; NULL: none */
    double count, momentum;
    int64_t unbiased, skip;            /* skip: a batch whose m2 is not finite somewhere moves nothing */
} bn_memory;

/* Return 1 where they have moved, 0 where the batch was skipped, and minus a bn_error. */
int bn_remember(const bn_memory *memory);

/* How many uint16_t `bits` must hold. */
int64_t bn_bits_size(const bn_call *call);

int64_t bn_interface(void);            /* BN_INTERFACE of the library */
const char *bn_instruction_set(void);  /* "avx512", "avx2" or "portable" */
int bn_use_instruction_set(const char *name); /* 0, or 1 where this machine or build has it not: nothing changes */
int64_t bn_threads(void);              /* of the library's own pool */
void bn_use_threads(int64_t threads);  /* at least 1; not while a call runs */

#ifdef __cplusplus
}
#endif
#endif
