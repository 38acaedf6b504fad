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

// act and its derivative of any z; NaN for NaN.
long double activate(bn_activation activation, long double z);
long double derivative(bn_activation activation, long double z);

// z in the working type's own arithmetic, which the interface promises to the bit, with these factors and shifts (NULL:
// none).
struct Affine {
    const Problem &problem;
    const Buffer *scale, *shift;
    double z(int64_t element, int64_t feature) const;
};

// act(z) in the working type, for the activations of which every operation is exactly defined: identity and by sign.
double activated_in_working_type(const Problem &problem, double z);

struct Gradient {
    long double sum_dz = 0, sum_dz_centred = 0;
    long double size_dz = 0, size_dz_centred = 0; // of the same sums over absolute values: what their rounding goes by
};

// (x - mu) with the mean that the problem holds; dz = dy * act'(z), z in the working type.
long double centred(const Problem &problem, int64_t element, int64_t feature);
long double exact_dz(const Problem &problem, int64_t element, int64_t feature);
Gradient exact_gradient(const Problem &problem, int64_t feature);

} // namespace bn_tests
#endif
