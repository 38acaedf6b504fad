// What the functions ought to give, straight from the formulas, in long double and element by element.
#ifndef BN_TESTS_ORACLE_H
#define BN_TESTS_ORACLE_H

#include "problem.h"

namespace bn_tests {

constexpr double epsilon = 1e-5;

struct Moments {
    long double total = 0, mean = 0, m2 = 0; // all 0 where the weights are
    long double deviation() const;           // the square root of m2 / total
};

Moments exact_moments(const Problem &problem, int64_t feature);
long double exact_inv_std(const Moments &moments);

// act and act' of any z; NaN for NaN.
long double exact_activation(bn_activation activation, long double z);
long double exact_derivative(bn_activation activation, long double z);

// act of any z, exact enough for the working type.
long double activate(const Problem &problem, long double z);

// z in the working type's own arithmetic, which the interface promises to the bit, with these factors and shifts (NULL:
// none).
struct Affine {
    const Problem &problem;
    const Buffer *scale, *shift;
    double z(int64_t element, int64_t feature) const;
};

// act(z) in the working type, for the activations of which every operation is exactly defined: identity and by sign.
double activated_in_working_type(const Problem &problem, double z);

// (x - mu) with the mean that the problem holds.
long double centred(const Problem &problem, int64_t element, int64_t feature);

struct Gradient {
    long double sum_dz = 0, sum_dz_centred = 0;
    // The same sums over absolute values, of dz and of dy: what their rounding, and that of act', goes by.
    long double size_dz = 0, size_dz_centred = 0, size_dy = 0, size_dy_centred = 0;
};

// dz = dy * act'(z), z in the working type, of every element, and the sums of every feature.
struct ExactGradients {
    explicit ExactGradients(const Problem &problem);

    std::vector<long double> dz;
    std::vector<Gradient> features;
};

} // namespace bn_tests
#endif
