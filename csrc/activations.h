// The activations of a vector, and their gradients; the formulas of src/batchnorm/activations.py.
#pragma once

#include <cmath>

#include "batchnorm.h"
#include "vectors.h"

namespace batchnorm::BN_ISA {

enum class Kind { identity, relu, leaky_relu, smooth };

inline constexpr double LEAKY_SLOPE = 0.01;

// e^x = 2^n · (1 + rest(r)) with x = n·ln 2 + r, |r| ≤ ln 2 / 2: the series of e^r − 1 up to r^8 in float, r^14 in double.
template <class A> struct Exponential {
    using V = typename Lanes<A>::Vector;
    V power, rest;

    BN_INLINE explicit Exponential(V x) {
        constexpr bool single = sizeof(A) == 4;
        constexpr A most = single ? 126 : 1022, round = single ? 0x1.8p23 : 0x1.8p52;
        constexpr A high = single ? 0x1.62e4p-1 : 0x1.62e42fee00000p-1, low = single ? 0x1.7f7d1cp-20 : 0x1.a39ef35793c76p-33;
        const A limit = most * A(0.6931471805599453);
        x = select<V>(x > limit, broadcast<A>(limit), select<V>(x < -limit, broadcast<A>(-limit), x));
        const V n = (x * A(1.4426950408889634) + round) - round;
        const V r = (x - n * high) - n * low;
        constexpr int terms = single ? 8 : 14;
        V series = broadcast<A>(A(1) / terms);
        for (int k = terms - 1; k >= 1; --k) series = (series * r + A(1)) * (A(1) / k);
        rest = series * r;
        using Integer = typename Lanes<A>::Integer;
        constexpr int shift = single ? 23 : 52, bias = single ? 127 : 1023;
        power = bit_cast<V>((__builtin_convertvector(n, Integer) + bias) << shift);
        power = select<V>(x != x, x, power);
    }

    BN_INLINE V value() const { return power + power * rest; }
    BN_INLINE V minus_one() const { return power * rest + (power - A(1)); }
};

template <class A, class V> BN_INLINE V absolute(V z) { return select<V>(z < A(0), -z, z); }

template <class A, class V> BN_INLINE V sigmoid(V z) {
    const V small = Exponential<A>(-absolute<A>(z)).value();  // never overflows, and keeps its digits for z ≪ 0
    return select<V>(z < A(0), small, broadcast<A>(A(1))) / (small + A(1));
}

template <class A, class V> BN_INLINE V hyperbolic_tangent(V z) {
    const V e = Exponential<A>(absolute<A>(z) * A(-2)).minus_one();
    const V size = -e / (e + A(2));
    return select<V>(z < A(0), -size, size);
}

// Φ(z) = erfc(−z/√2)/2. In float erfc(x) = t·e^(−x²)·p(t), t = 1/(1 + x/2): p fitted at 400 Chebyshev nodes of
// 0 ≤ x ≤ 9.5, off by 5e-9 at most.
BN_CALLED Float16 normal_cdf(Float16 z) {
    constexpr float p[] = {0.282083671f, 0.282367708f, 0.243998587f, 0.192455299f, 0.0297808706f, 0.0959243531f,
                           -0.119606282f, -0.185239138f, 0.310553167f, -0.163351502f, 0.0310332676f};
    Float16 x = absolute<float>(z) * 0.70710678f;
    x = select<Float16>(x > 9.5f, broadcast<float>(9.5f), x);
    const Float16 t = 1.0f / (x * 0.5f + 1.0f);
    Float16 series = broadcast<float>(p[10]);
    for (int k = 9; k >= 0; --k) series = series * t + p[k];
    const Float16 tail = t * Exponential<float>(-x * x).value() * series * 0.5f;
    return select<Float16>(z > 0.0f, 1.0f - tail, tail);
}

BN_CALLED Double8 normal_cdf(Double8 z) {
    Double8 value{};
    for (int i = 0; i < 8; ++i) value[i] = 0.5 * std::erfc(-z[i] * 0.7071067811865476);
    return value;
}

template <class A, class V> BN_CALLED V smooth(V z, int64_t which) {
    switch (which) {
        case BN_SILU: return z * sigmoid<A>(z);
        case BN_GELU: return z * normal_cdf(z);
        case BN_TANH: return hyperbolic_tangent<A>(z);
        default: return sigmoid<A>(z);
    }
}

template <class A, class V> BN_CALLED V smooth_derivative(V z, int64_t which) {
    if (which == BN_TANH) {
        const V y = hyperbolic_tangent<A>(z);
        return A(1) - y * y;
    }
    if (which == BN_GELU) return normal_cdf(z) + z * Exponential<A>(z * z * A(-0.5)).value() * A(0.3989422804014327);
    const V s = sigmoid<A>(z);
    return which == BN_SILU ? s * (A(1) + z * (A(1) - s)) : s * (A(1) - s);
}

// y = act(z); a NaN stays one.
template <class A, Kind kind, class V> BN_INLINE V activated(V z, int64_t which) {
    if constexpr (kind == Kind::relu) return select<V>(z < A(0), V{}, z);
    if constexpr (kind == Kind::leaky_relu) return select<V>(z < A(0), z * A(LEAKY_SLOPE), z);
    if constexpr (kind == Kind::smooth) return smooth<A>(z, which);
    return z;
}

// dz = dy·act'(z) where act goes by the sign; `positive` are the lanes with z > 0.
template <class A, Kind kind, class V, class Mask> BN_INLINE V by_sign(V dy, Mask positive) {
    if constexpr (kind == Kind::relu) return select<V>(positive, dy, V{});
    return select<V>(positive, dy, dy * A(LEAKY_SLOPE));
}

}  // namespace batchnorm::BN_ISA
