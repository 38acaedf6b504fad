// The activations of a vector, and their gradients; the formulas of src/batchnorm/activations.py.
//
// By e^(−z), which keeps its digits for z ≪ 0, or e^(−z²/2). What would be smaller than the smallest normal number, times
// a z of that size, may be anything below. Errors are within 6 units in the last place (ulp) of the result, for a
// derivative that is a sum of two terms of the larger: tests/test_activations.cpp holds them to it.
#pragma once

#include "batchnorm.h"
#include "vectors.h"

namespace batchnorm::BN_ISA {

enum class Kind { identity, relu, leaky_relu, smooth };

inline constexpr double LEAKY_SLOPE = 0.01;

// What differs between float and double. z is taken between ±limit, and between ±normal_limit for gelu, whose
// e^(−z²/2) is 0 there. `head` cuts a number to so many bits that its square is exact.
template <class A> struct Constants;

template <> struct Constants<float> {
    static constexpr float magic = 0x1.8p23f + 127, log2_e = 0x1.715476p0f;
    static constexpr float ln2_high = 0x1.62e4p-1f, ln2_low = 0x1.7f7d1cp-20f, limit = 87, normal_limit = 13.25f;
    static constexpr int32_t sign = INT32_MIN, head = ~0xfff, fraction = 23;
    // (e^r − 1 − r)/r² at Chebyshev nodes of |r| ≤ ln 2 / 2: e^r is off by 1.1e-8.
    static constexpr float exponential[] = {0.5f, 0.16666576f, 0.041666552f, 0.008363293f, 0.0013926326f};
    // Φ(−a)·e^(a²/2) = P/Q, minimax of 0 ≤ a ≤ 13.5: off by 5.4e-9. All are positive: no digits are lost.
    static constexpr float tail_p[] = {0.5f, 0.43626088837757915f, 0.18173094884794508f, 0.04012675788815604f,
                                       0.0040412296478496736f};
    static constexpr float tail_q[] = {1, 1.6704067036222638f, 1.1962493764515985f, 0.46549981231918613f,
                                       0.1005900407650181f, 0.010129722471515668f};
};

template <> struct Constants<double> {
    static constexpr double magic = 0x1.8p52 + 1023, log2_e = 0x1.71547652b82fep0, ln2_high = 0x1.62e42fee00000p-1;
    static constexpr double ln2_low = 0x1.a39ef35793c76p-33, limit = 708, normal_limit = 37.655;
    static constexpr int64_t sign = INT64_MIN, head = ~0x7ffffffLL, fraction = 52;
    // Off by 1.8e-17.
    static constexpr double exponential[] = {0.5, 0.16666666666666669, 0.04166666666662348, 0.008333333333330011,
                                             0.0013888888917538296, 0.00019841269863303223, 2.4801520792572694e-05, 2.75572680728901e-06,
                                             2.762032742826824e-07, 2.5100569275813683e-08};
    // 0 ≤ a ≤ 38.6: off by 9.2e-19.
    static constexpr double tail_p[] = {0.5, 0.8277399630953076, 0.6793216904544054, 0.3571239090017943, 0.1319381725741232,
                                        0.035631168823830266, 0.007113964253391095, 0.0010381599021628168,
                                        0.00010638410417837407, 6.961439397828088e-06, 2.2363256483919067e-07};
    static constexpr double tail_q[] = {1, 2.4533644869934808, 2.8161450271029436, 2.0004857328817875, 0.979461060700078,
                                        0.3480242853327495, 0.09188147701128943, 0.018097608209158466, 0.002619730705384714,
                                        0.00026722596721171356, 1.7449740826756794e-05, 5.605637101540332e-07};
};

template <class V> using Of = Constants<Lane<V>>;

template <class V> BN_INLINE auto bits(V v) { return bit_cast<decltype(v < v)>(v); }
template <class V> BN_INLINE V absolute(V z) { return bit_cast<V>(bits(z) & ~Of<V>::sign); }
template <class V> BN_INLINE V signed_as(V size, V z) { return bit_cast<V>(bits(size) | (bits(z) & Of<V>::sign)); }

// Σ c_k·x^k from c_`first` on by Estrin's scheme, whose products do not wait for one another; `powers` are x, x², x⁴, ….
template <int first, int count, class V, class A> BN_INLINE V estrin(const V *powers, const A *c) {
    if constexpr (count == 1) return all<V>(c[first]);
    else if constexpr (count == 2) return fused(powers[0], c[first + 1], c[first]);
    else {
        constexpr int level = count > 8 ? 3 : count > 4 ? 2 : 1, half = 1 << level;
        return fused(powers[level], estrin<first + half, count - half>(powers, c), estrin<first, half>(powers, c));
    }
}

template <class V, class A, int count> BN_INLINE V polynomial(V x, const A (&c)[count]) {
    const V squared = x * x, fourth = squared * squared;
    const V powers[] = {x, squared, fourth, fourth * fourth};
    return estrin<0, count>(powers, c);
}

// e^(x + more) = 2^n · (1 + rest) for |x| ≤ limit and |more| ≪ 1.
template <class V> struct Exponential {
    V power, rest;

    template <class... More> BN_INLINE explicit Exponential(V x, More... more) {
        const V shifted = fused(x, Of<V>::log2_e, Of<V>::magic);  // whose last bits are n + bias
        const V n = shifted - Of<V>::magic;
        const V r = (fused(n, -Of<V>::ln2_low, fused(n, -Of<V>::ln2_high, x)) + ... + more);
        rest = fused(r * r, polynomial(r, Of<V>::exponential), r);
        power = bit_cast<V>(bits(shifted) << Of<V>::fraction);
    }

    BN_INLINE V value() const { return fused(power, rest, power); }
    BN_INLINE V minus_one() const { return fused(power, rest, power - 1); }
};

// Φ(−a), the tail of the normal distribution, and e^(−a²/2). a² in two parts: its rounding, by a²/2 = 88, were 88 ulp.
template <class V> struct Tail {
    V a, density, value;

    BN_INLINE explicit Tail(V z) : a(absolute(clamped(z, Of<V>::normal_limit))) {
        const V head = bit_cast<V>(bits(a) & Of<V>::head);
        density = Exponential<V>(head * head * Lane<V>(-0.5), (head - a) * (head + a) * Lane<V>(0.5)).value();
        value = density * polynomial(a, Of<V>::tail_p) / polynomial(a, Of<V>::tail_q);
    }
};

// z between the limits, σ(z) and σ(−z).
template <class V> struct Logistic {
    V z, sigma, other;

    BN_INLINE explicit Logistic(V any) : z(clamped(any, Of<V>::limit)) {
        const V e = Exponential<V>(-z).value();
        sigma = 1 / (e + 1);
        other = e * sigma;
    }
};

// act(z); a NaN stays one.
template <int activation, class V> BN_INLINE V act(V z) {
    if constexpr (activation == BN_GELU) {
        const Tail<V> tail(z);
        return fused(-tail.a, tail.value, z < 0 ? V{} : z);
    } else if constexpr (activation == BN_TANH) {
        const V e = Exponential<V>(absolute(clamped(z, Of<V>::limit / 2)) * -2).minus_one();
        return signed_as(absolute(e / (e + 2)), z);
    } else {
        const V inside = clamped(z, Of<V>::limit), e = Exponential<V>(-inside).value();
        if constexpr (activation == BN_SIGMOID) return 1 / (e + 1);
        else return (z > inside ? z : inside) / (e + 1);
    }
}

template <int activation, class V> BN_INLINE V act_derivative(V z) {
    if constexpr (activation == BN_GELU) {
        const Tail<V> tail(z);
        const V slope = signed_as(tail.a * tail.density * Lane<V>(0.3989422804014327), z);
        return (z < 0 ? tail.value : 1 - tail.value) + slope;
    } else {
        const Logistic<V> at(activation == BN_TANH ? z * 2 : z);
        const V product = at.sigma * at.other;
        if constexpr (activation == BN_SILU) return fused(at.z, product, at.sigma);
        else return activation == BN_TANH ? product * 4 : product;
    }
}

// A smooth activation of a vector in its place, or its derivative: called, too long for a copy wherever it is used.
template <class V> using Smooth = void (*)(V &);

template <int activation, class V> void by_activation(V &z) {
    z = by_parts([](auto part) { return act<activation>(part); }, z);
}
template <int activation, class V> void by_derivative(V &z) {
    z = by_parts([](auto part) { return act_derivative<activation>(part); }, z);
}

template <class V> Smooth<V> smooth_activation(int64_t activation) {
    switch (activation) {
        case BN_SILU: return by_activation<BN_SILU, V>;
        case BN_GELU: return by_activation<BN_GELU, V>;
        case BN_TANH: return by_activation<BN_TANH, V>;
        default: return by_activation<BN_SIGMOID, V>;
    }
}
template <class V> Smooth<V> smooth_derivative(int64_t activation) {
    switch (activation) {
        case BN_SILU: return by_derivative<BN_SILU, V>;
        case BN_GELU: return by_derivative<BN_GELU, V>;
        case BN_TANH: return by_derivative<BN_TANH, V>;
        default: return by_derivative<BN_SIGMOID, V>;
    }
}

template <Kind kind, class V> BN_INLINE V activated(V z, Smooth<V> smooth) {
    if constexpr (kind == Kind::relu) return select(below(z, V{}), V{}, z);
    else if constexpr (kind == Kind::leaky_relu) return select(below(z, V{}), z * Lane<V>(LEAKY_SLOPE), z);
    if constexpr (kind == Kind::smooth) smooth(z);
    return z;
}

// dz = dy·act'(z) where act goes by the sign; `positive` are the lanes with z > 0.
template <Kind kind, class V, class Mask> BN_INLINE V where_positive(V dy, Mask positive) {
    if constexpr (kind == Kind::relu) return select(positive, dy, V{});
    else return select(positive, dy, dy * Lane<V>(LEAKY_SLOPE));
}

}  // namespace batchnorm::BN_ISA
