// One call's worth of data: a setting, and the arrays made after it.
#ifndef BN_TESTS_PROBLEM_H
#define BN_TESTS_PROBLEM_H

#include "../batchnorm.h"
#include "buffer.h"

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace bn_tests {

struct Shape {
    int64_t outer = 1, groups = 1, rows = 1, channels = 1, inner = 1;

    int64_t elements() const { return outer * groups * rows * channels * inner; }
    int64_t features() const { return groups * channels; }
    int64_t samples() const { return outer * groups * rows * inner; }
    int64_t reduced() const { return outer * rows * inner; } // elements of one feature
};

enum class Regime { standard, mean_1e2, mean_1e6, constant, outlier_first, outlier_inside, tiny };
enum class Weights { none, mask, fractional, zero };

struct Setting {
    Shape shape;
    bn_dtype dtype = BN_FLOAT32;
    bn_activation activation = BN_IDENTITY;
    bool residual = false;
    Weights weights = Weights::none;
    Regime regime = Regime::standard;
    bool plain = false;    // without scale and shift
    int offsets = 0;       // bit i: the i-th of x, y, dy, dx, residual, dz starts one element off its alignment
    uint64_t seed = 1;

    std::string text() const;
};

// Calls task(element, sample) over the elements of one feature, in memory order.
template <typename Task> void for_each_element(const Shape &shape, int64_t feature, Task task) {
    const int64_t group = feature / shape.channels, channel = feature % shape.channels;
    for (int64_t o = 0; o < shape.outer; ++o)
        for (int64_t r = 0; r < shape.rows; ++r) {
            const int64_t row = (o * shape.groups + group) * shape.rows + r;
            for (int64_t i = 0; i < shape.inner; ++i)
                task((row * shape.channels + channel) * shape.inner + i, row * shape.inner + i);
        }
}

// By the sign alone: the backward needs no more than `bits` of the forward.
inline bool by_sign(bn_activation activation) { return activation == BN_RELU || activation == BN_LEAKY_RELU; }

// Arrays that a setting has not are empty buffers, whose data() is NULL.
struct Problem {
    explicit Problem(const Setting &setting);

    Setting setting;
    bn_dtype working;
    Buffer x, residual, weights, dy;                              // inputs of the elements' type
    Buffer gamma, beta, per_count;                                // inputs of the working type
    Buffer y, dx, dz, bits;                                       // outputs
    Buffer mean, mean_low, m2, inv_std, sum_dz, sum_dz_centred;   // outputs, or inputs of the backward
    Buffer scale, of_centred, constant;                           // gamma * inv_std; what a backward_elementwise takes

    bn_call call() const; // every pointer that the setting has, with gamma as the scale: of bn_forward
    bn_call affine_call() const; // the same with `scale`, the factor of (x - mu): of the others
    bn_call backward_call(bool with_bits) const; // with bits or the residual, whichever

    // Fills mean, mean_low, inv_std and scale with the exact ones, rounded: the backward is tested apart.
    void use_exact_statistics();

    double weight(int64_t sample) const { return weights.data() ? weights.get(sample) : 1; }
    std::vector<std::pair<const char *, const Buffer *>> inputs() const;
    std::vector<std::pair<const char *, const Buffer *>> outputs() const;
    uint64_t digest_of_inputs() const;
    void clear_outputs(); // NaN again, but for what a backward reads: mean, mean_low, inv_std

private:
    void make_x(Random &random);
    void make_weights(Random &random);
    void make_features(Random &random);
};

// Fails with the name of the buffer where something lies outside of it.
void check_guards(const Problem &problem, const std::string &operation);

// Outputs of every function on this problem, each as (name, digest).
using Digests = std::vector<std::pair<std::string, uint64_t>>;
Digests run_everything(Problem &problem, bn_parallel_for parallel_for = nullptr);
void check_same(const Digests &actual, const Digests &expected, const std::string &what);

} // namespace bn_tests
#endif
