// The smooth activations and their derivatives in units in the last place, over the whole range of z.
#include "check.h"
#include "oracle.h"

#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace bn_tests {
namespace {

const bn_activation SMOOTH[] = {BN_SILU, BN_GELU, BN_TANH, BN_SIGMOID};
const char *const NAMES[] = {"identity", "relu", "leaky relu", "silu", "gelu", "tanh", "sigmoid"};

// Every sign, exponent and special number, and the middle of the range densely.
template <class T, class Bits> std::vector<T> grid() {
    std::vector<T> z;
    const auto add = [&](Bits bits) { T value; std::memcpy(&value, &bits, sizeof value); z.push_back(value); };
    for (uint64_t i = 0; i < 60000; ++i) add(static_cast<Bits>(static_cast<Bits>(-1) / 60000 * i));
    const T limit = sizeof(T) == 4 ? T(110) : T(780);
    for (int i = -60000; i <= 60000; ++i) z.push_back(T(i) * (T(1) / T(60000)) * (i % 3 ? T(12) : limit));
    const T infinity = std::numeric_limits<T>::infinity(), least = std::numeric_limits<T>::min();
    for (const T value : {T(0), least, least / 4, std::numeric_limits<T>::denorm_min(), T(1), T(88), T(709), infinity,
                          std::numeric_limits<T>::max(), std::numeric_limits<T>::quiet_NaN()}) {
        z.push_back(value), z.push_back(-value);
    }
    return z;
}

// act(z) and act'(z) as the library finds them: z = (z − 0)·1 − 0, which keeps the sign of 0.
template <class T> struct Found {
    std::vector<T> y, slope;

    Found(bn_activation activation, const std::vector<T> &z) : y(z.size()), slope(z.size()) {
        const std::vector<T> ones(z.size(), T(1));
        const T mean = 0, shift = T(-0.0);
        bn_call call{};
        call.outer = call.groups = call.rows = call.channels = 1;
        call.inner = static_cast<int64_t>(z.size());
        call.dtype = sizeof(T) == 4 ? BN_FLOAT32 : BN_FLOAT64;
        call.activation = activation;
        call.x = z.data(), call.y = y.data(), call.dy = ones.data(), call.dz = slope.data();
        call.mean = const_cast<T *>(&mean), call.shift = &shift;
        check(bn_affine(&call) == BN_OK && bn_backward_elementwise(&call) == BN_OK, "refused");
    }
};

// What the library may take for 0: the smallest normal number times the largest z that its exponential takes.
template <class T> constexpr long double vanishing = std::numeric_limits<T>::min() * (sizeof(T) == 4 ? 256.0L : 2048.0L);

// |actual − expected| in units in the last place of `size`.
template <class T> double error(T actual, long double expected, long double size) {
    if (std::isnan(expected)) return std::isnan(actual) ? 0 : HUGE_VAL;
    if (std::isinf(expected)) return actual == static_cast<T>(expected) ? 0 : HUGE_VAL;
    if (std::fabs(expected) < vanishing<T>) return std::fabs(actual - expected) < vanishing<T> ? 0 : HUGE_VAL;
    const int place = std::ilogb(std::fmax(std::fabs(size), std::fabs(expected))) - std::numeric_limits<T>::digits + 1;
    return static_cast<double>(std::fabs(actual - expected) / std::ldexp(1.0L, place));
}

template <class T, class Bits> void check_errors(double most_of_value, double most_of_slope) {
    const std::vector<T> z = grid<T, Bits>();
    for (const bn_activation activation : SMOOTH) {
        const Found<T> actual(activation, z);
        double of_value = 0, of_slope = 0;
        T worst_value = 0, worst_slope = 0;
        for (size_t i = 0; i < z.size(); ++i) {
            const long double y = exact_activation(activation, z[i]), slope = exact_derivative(activation, z[i]);
            const bool sum = activation == BN_SILU || activation == BN_GELU;  // whose terms may cancel
            const long double first = !sum || z[i] == 0 || std::isinf(z[i]) ? slope : y / z[i];
            const long double larger = std::fmax(std::fabs(first), std::fabs(slope - first));
            const double value = error(actual.y[i], y, y), derivative = error(actual.slope[i], slope, larger);
            if (value > of_value) of_value = value, worst_value = z[i];
            if (derivative > of_slope) of_slope = derivative, worst_slope = z[i];
        }
        const std::string what = std::string(NAMES[activation]) + (sizeof(T) == 4 ? " of float" : " of double") + " on " +
                                 bn_instruction_set();
        check(of_value <= most_of_value, what + ": " + std::to_string(of_value) + " ulp at " + std::to_string(worst_value));
        check(of_slope <= most_of_slope, what + "': " + std::to_string(of_slope) + " ulp at " + std::to_string(worst_slope));
        if (std::getenv("BN_ULP")) std::printf("%s: %.2f ulp, derivative %.2f ulp\n", what.c_str(), of_value, of_slope);
    }
}

template <class T> bool alike(const std::vector<T> &a, const std::vector<T> &b) {
    for (size_t i = 0; i < a.size(); ++i) {
        if (std::memcmp(&a[i], &b[i], sizeof(T)) != 0 && !(std::isnan(a[i]) && std::isnan(b[i]))) return false;
    }
    return true;
}

template <class T, class Bits> void check_same_bits() {
    const std::vector<T> z = grid<T, Bits>();
    for (const bn_activation activation : SMOOTH) {
        const Found<T> expected(activation, z);
        for (const char *name : instruction_sets(true)) {
            bn_use_instruction_set(name);
            const Found<T> actual(activation, z);
            const std::string what = std::string(NAMES[activation]) + " on " + name;
            check(alike(actual.y, expected.y), what + " differs");
            check(alike(actual.slope, expected.slope), what + ": the derivative differs");
        }
    }
}

} // namespace

BN_TEST(activations_in_units_in_the_last_place) {
    for (const char *name : instruction_sets(false)) {
        bn_use_instruction_set(name);
        check_errors<float, uint32_t>(6, 6);
        check_errors<double, uint64_t>(6, 6);
    }
}

BN_TEST(activations_same_bits_for_every_instruction_set) {
    check_same_bits<float, uint32_t>();
    check_same_bits<double, uint64_t>();
}

// Zero keeps its sign where the activation is odd, and ends are the limits.
BN_TEST(activations_at_the_ends) {
    const double infinity = HUGE_VAL;
    const struct { bn_activation activation; double z, y, slope; } cases[] = {
        {BN_SILU, -infinity, 0, 0}, {BN_SILU, infinity, infinity, 1}, {BN_SILU, -0.0, -0.0, 0.5}, {BN_SILU, 0.0, 0.0, 0.5},
        {BN_GELU, -infinity, 0, 0}, {BN_GELU, infinity, infinity, 1}, {BN_GELU, -0.0, -0.0, 0.5}, {BN_GELU, 0.0, 0.0, 0.5},
        {BN_TANH, -infinity, -1, 0}, {BN_TANH, infinity, 1, 0}, {BN_TANH, -0.0, -0.0, 1}, {BN_TANH, 0.0, 0.0, 1},
        {BN_SIGMOID, -infinity, 0, 0}, {BN_SIGMOID, infinity, 1, 0}, {BN_SIGMOID, 0.0, 0.5, 0.25},
    };
    for (const auto &[activation, z, y, slope] : cases) {
        const Found<float> single(activation, {static_cast<float>(z)});
        const Found<double> twice(activation, {z});
        const std::string what = std::string(NAMES[activation]) + " of " + std::to_string(z);
        const bool zero = y == 0 && z == 0;
        check(error(single.y[0], y, y) == 0 && error(twice.y[0], y, y) == 0, what);
        check(!zero || (std::signbit(single.y[0]) == std::signbit(y) && std::signbit(twice.y[0]) == std::signbit(y)), what + ": the sign");
        check(error(single.slope[0], slope, slope) == 0 && error(twice.slope[0], slope, slope) == 0, what + ": the slope");
    }
}

} // namespace bn_tests
