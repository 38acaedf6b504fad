// Every tolerance of the tests, and why it is what it is.
#ifndef BN_TESTS_TOLERANCES_H
#define BN_TESTS_TOLERANCES_H

#include "oracle.h"

#include <cmath>

namespace bn_tests {

// u: half a unit in the last place of 1.
inline long double unit_of(bn_dtype dtype) {
    switch (dtype) {
    case BN_FLOAT64: return 0x1p-53L;
    case BN_BFLOAT16: return 0x1p-8L;
    case BN_FLOAT16: return 0x1p-11L;
    default: return 0x1p-24L;
    }
}

// What storing a value in the elements' type may add: half a unit in the last place, of the smallest normal number at
// least. Nothing where it is the working type, whose rounding the others hold already.
inline long double storing(bn_dtype dtype, long double value) {
    if (dtype == BN_FLOAT32 || dtype == BN_FLOAT64) return 0;
    const long double smallest = dtype == BN_FLOAT16 ? 0x1p-14L : 0x1p-126L;
    return 1.001L * unit_of(dtype) * std::fmax(std::fabs(value), smallest);
}

// mean + mean_low: what y's 1e-5 leaves to it, some roundings of a deviation from the mean. In float the low part holds
// the rest of the mean; in double, in which all sums are, there is no better number to take it from.
inline long double of_mean(bn_dtype working, const Moments &exact) {
    const long double u = unit_of(working), size = std::fabs(exact.mean);
    return 64 * u * exact.deviation() + 8 * (working == BN_FLOAT64 ? u : u * u) * size;
}

// m2: what y's 1e-5 leaves to it in float, in as many units for double; what an error of the mean gives; and the
// cancellation among squares of the shift's own rounding, which is all that a constant has.
inline long double of_m2(bn_dtype working, const Moments &exact) {
    const long double u = unit_of(working), shifted = of_mean(working, exact), rounding = 4 * u * exact.mean;
    return 160 * u * exact.m2 + exact.total * (shifted * (exact.deviation() + shifted) + 8 * u * rounding * rounding);
}

// Relative, of inv_std: half of that of m2, and the roundings of the root and the quotient.
inline long double of_inv_std(bn_dtype working, const Moments &exact) {
    const long double variance = exact.total > 0 ? exact.m2 / exact.total : 0;
    const long double error = exact.total > 0 ? of_m2(working, exact) / exact.total : 0;
    return 4 * unit_of(working) + error / (variance + static_cast<long double>(epsilon));
}

// The training output: 1e-5 at unit variance in float32 whatever the mean, in proportion where |z|'s terms are greater;
// as many units in double, and there the error of the mean, in deviations, as well.
inline long double of_forward(bn_dtype working, const Moments &exact, long double scale, long double size) {
    const long double from_mean = working == BN_FLOAT64 ? of_mean(working, exact) * std::fabs(scale) : 0;
    const long double of_scale = working == BN_FLOAT64 ? of_inv_std(working, exact) : 0;
    return (working == BN_FLOAT64 ? 2e-14L : 1e-5L) * (1 + size) + 2 * from_mean + of_scale * size;
}

// act(z) and act'(z) of the very z: a few roundings of exp, erf and what is around them.
inline long double of_activation(bn_dtype working, long double z) {
    return 16 * unit_of(working) * (1 + std::fabs(z));
}

inline long double of_derivative(bn_dtype working) { return 32 * unit_of(working); }

// Sums over `size`, the sum of the absolute values, and what the derivative's error adds for `inexact` of it.
inline long double of_sum(bn_dtype working, long double size, long double inexact) {
    return 64 * unit_of(working) * size + of_derivative(working) * inexact;
}

// dx: a few roundings of each of its terms, `size` being the sum of their absolute values.
inline long double of_dx(bn_dtype working, long double size) { return 64 * unit_of(working) * size; }

// Whether `actual` is `expected`, rounded to the type of the elements; beyond its range infinity is right.
inline bool close(bn_dtype dtype, double actual, long double expected, long double tolerance) {
    const long double allowed = tolerance + storing(dtype, expected);
    if (dtype == BN_FLOAT16 && std::fabs(expected) + allowed > 65504 && std::isinf(actual))
        return std::signbit(actual) == std::signbit(expected);
    return std::fabs(actual - expected) <= allowed;
}

} // namespace bn_tests
#endif
