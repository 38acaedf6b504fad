// What happens to one vector of x: the five sums and maps, without knowing where the features lie.
//
// `planar` bodies serve one channel at a time, whose numbers fill a vector; the others serve as many channels as a
// vector has lanes. `at(i, w, v, lanes, to)` takes the vector at element i, weight w and mask v of its arrays; `lanes`
// counts where it is not `whole`. A sum adds it to `to`, which is apart so that compilers keep it in registers.
#pragma once

#include "activations.h"
#include "sweeps.h"

namespace batchnorm::BN_ISA {

template <bool whole, class T> BN_INLINE auto get(const T *p, int lanes) {
    if constexpr (whole) return load(p);
    else return load(p, lanes);
}

template <bool whole, class T, class V> BN_INLINE void put(T *p, V v, int lanes, bool streaming) {
    if constexpr (whole) {
        if (streaming && streamable(p)) stream(p, v);
        else store(p, v);
    } else {
        store(p, v, lanes);
    }
}

// The numbers of the features from `f` on; `missing` where there are none. Planar: of f, and of f + 1 behind `lanes`.
template <bool planar, class A> BN_INLINE auto feature(const A *p, int64_t f, int lanes, A missing) {
    if (!p) return broadcast<A>(missing);
    if constexpr (planar) {
        if (lanes == Lanes<A>::count) return broadcast<A>(p[f]);
        return select(first<A>(lanes), broadcast<A>(p[f]), broadcast<A>(p[f + 1]));
    }
    else return lanes == Lanes<A>::count ? load(p + f) : load(p + f, lanes);
}

template <class A, bool planar, bool whole> BN_INLINE auto weight(const A *weights, int64_t w, int lanes) {
    if constexpr (planar) return get<whole>(weights + w, lanes);
    else return broadcast<A>(weights[w]);
}

// Ask for n elements that are soon to be read. Out of the cache, machines fetch ahead in long runs alone.
template <class T> BN_INLINE void fetch(const T *p, int64_t n) {
    const char *at = reinterpret_cast<const char *>(p), *end = at + n * int64_t(sizeof(T));
    for (; at < end; at += 64) __builtin_prefetch(at, 0, 2);
}

template <class V> struct Added {
    V first, second, weight;
};

// Σw(x−k) and Σw(x−k)², k the shift.
template <class T, bool weighted, bool planar_> struct Moments {
    using A = typename Working<T>::type;
    using V = typename Lanes<A>::Vector;
    using Storage = T;
    static constexpr bool planar = planar_, aligned = true;
    static constexpr int arrays = 1;  // of the size of x
    const T *x;
    const A *weights;
    V shift{};

    BN_INLINE explicit Moments(const bn_call &c)
        : x(static_cast<const T *>(c.x)), weights(static_cast<const A *>(c.weights)) {}

    BN_INLINE void fetch_ahead(int64_t i, int64_t n) const { fetch(x + i, n); }

    template <bool whole> BN_INLINE void at(int64_t i, int64_t w, int64_t, int lanes, Added<V> &to) const {
        V d = get<whole>(x + i, lanes) - shift;
        if constexpr (weighted) {
            const V share = weight<A, planar, whole>(weights, w, lanes);
            d = select(below(V{}, share), d, V{});  // 0 · inf is no 0
            const V part = share * d;
            to.first += part;
            to.second += part * d;
            if constexpr (planar) to.weight += share;
        } else {
            if constexpr (planar && !whole) d = select(first<A>(lanes), d, V{});
            to.first += d;
            to.second += d * d;
        }
    }
};

// (x − mean) − mean_low, and that times scale plus shift; the pointers are kept, since what is written to memory might
// be the call for all that a compiler knows.
template <class A, bool planar> struct Normalized {
    using V = typename Lanes<A>::Vector;
    const A *means, *lows, *scales, *shifts;
    V mean, low, scale, shift;

    BN_INLINE explicit Normalized(const bn_call &c)
        : means(static_cast<const A *>(c.mean)), lows(static_cast<const A *>(c.mean_low)),
          scales(static_cast<const A *>(c.scale)), shifts(static_cast<const A *>(c.shift)) {}

    BN_INLINE void aim(int64_t f, int lanes) {
        mean = feature<planar>(means, f, lanes, A(0));
        low = feature<planar>(lows, f, lanes, A(0));
        scale = feature<planar>(scales, f, lanes, A(1));
        shift = feature<planar>(shifts, f, lanes, A(0));
    }
    BN_INLINE V centred(V x) const { return (x - mean) - low; }
    BN_INLINE V scaled(V centred) const { return centred * scale + shift; }
};

// Which optional arguments a map is compiled for. To test for each vector whether there is a residual, bits and so on took
// up to half of the time of a sweep; the calls of most layers have none, and maps of their own.
enum class Serves {
    everything,
    training,   // no residual, bits, weights or dz; nothing is written past the cache; a backward is asked for dx by moments
    inference,  // of a forward: as in training, and the mean has no low part
};

// y = act(((x − mean) − mean_low)·scale + shift + residual), and whether it is before the activation > 0.
template <class T, Kind kind, bool planar_, Serves serves> struct Affine {
    using Storage = T;
    using A = typename Working<T>::type;
    using V = typename Lanes<A>::Vector;
    static constexpr bool planar = planar_;
    static constexpr int arrays = 2;
    const T *x, *residual;
    T *y;
    uint16_t *bits;
    Smooth<V> smooth;
    bool streaming;
    Normalized<A, planar> normalized;

    BN_INLINE Affine(const bn_call &c, bool streaming_)
        : x(static_cast<const T *>(c.x)), residual(static_cast<const T *>(c.residual)), y(static_cast<T *>(c.y)),
          bits(c.bits), smooth(kind == Kind::smooth ? smooth_activation<V>(c.activation) : nullptr), streaming(streaming_),
          normalized(c) {}

    BN_INLINE void aim(int64_t f, int lanes) { normalized.aim(f, lanes); }
    BN_INLINE void fetch_ahead(int64_t i, int64_t n) const { fetch(x + i, n); }

    static constexpr bool infers = true;
    static Serves serving(const bn_call &c, bool streaming) {
        if (c.residual || c.bits || streaming) return Serves::everything;
        return c.mean_low ? Serves::training : Serves::inference;
    }

    template <bool whole> BN_INLINE void at(int64_t i, int64_t, int64_t v, int lanes, Added<V> &) const {
        constexpr bool all = serves == Serves::everything;
        const V value = get<whole>(x + i, lanes);
        V z = normalized.scaled(serves == Serves::inference ? value - normalized.mean : normalized.centred(value));
        if (all && residual) z += get<whole>(residual + i, lanes);
        if (all && bits) bits[v] = positive_bits(z);
        put<whole>(y + i, activated<kind>(z, smooth), lanes, all && streaming);
    }
};

// dz = dy·act'(z), with z found as the forward has found it, or its sign in the bits.
template <class T, Kind kind, bool planar, Serves serves = Serves::everything> struct Gradient {
    using A = typename Working<T>::type;
    using V = typename Lanes<A>::Vector;
    const T *x, *dy, *residual;
    const uint16_t *bits;
    Smooth<V> derivative;
    Normalized<A, planar> normalized;

    BN_INLINE explicit Gradient(const bn_call &c)
        : x(static_cast<const T *>(c.x)), dy(static_cast<const T *>(c.dy)), residual(static_cast<const T *>(c.residual)),
          bits(c.bits), derivative(kind == Kind::smooth ? smooth_derivative<V>(c.activation) : nullptr),
          normalized(c) {}

    BN_INLINE void aim(int64_t f, int lanes) { normalized.aim(f, lanes); }
    BN_INLINE void fetch_ahead(int64_t i, int64_t n) const { fetch(x + i, n), fetch(dy + i, n); }

    template <bool whole> BN_INLINE V centred(int64_t i, int lanes) const {
        return normalized.centred(get<whole>(x + i, lanes));
    }

    template <bool whole> BN_INLINE V at(V centred, int64_t i, int64_t v, int lanes) const {
        constexpr bool all = serves == Serves::everything;
        const V grad = get<whole>(dy + i, lanes);
        if constexpr (kind == Kind::identity) return grad;
        if constexpr (kind != Kind::smooth) {
            if (all && bits) return where_positive<kind>(grad, lanes_of<A>(bits[v]));
        }
        V z = normalized.scaled(centred);
        if (all && residual) z += get<whole>(residual + i, lanes);
        if constexpr (kind != Kind::smooth) return where_positive<kind>(grad, below(V{}, z));
        derivative(z);
        return grad * z;
    }
};

// Σdz and Σdz·(x−μ). One that `writes` does so on the way with dz, and with dx = dz·scale, as it is where the statistics
// are constants; each where it is wanted.
template <class T, Kind kind, bool planar_, bool writes> struct Reduce {
    using A = typename Working<T>::type;
    using V = typename Lanes<A>::Vector;
    using Storage = T;
    static constexpr bool planar = planar_, aligned = kind != Kind::smooth;  // else an activation more for each channel
    static constexpr int arrays = 2;
    Gradient<T, kind, planar> gradient;
    T *dx, *dz;

    BN_INLINE explicit Reduce(const bn_call &c) : gradient(c), dx(static_cast<T *>(c.dx)), dz(static_cast<T *>(c.dz)) {}
    BN_INLINE void aim(int64_t f, int lanes) { gradient.aim(f, lanes); }
    BN_INLINE void fetch_ahead(int64_t i, int64_t n) const { gradient.fetch_ahead(i, n); }

    template <bool whole> BN_INLINE void at(int64_t i, int64_t, int64_t v, int lanes, Added<V> &to) const {
        const V centred = gradient.template centred<whole>(i, lanes);
        const V grad = gradient.template at<whole>(centred, i, v, lanes);
        to.first += grad;
        to.second += grad * centred;
        if (writes && dz) put<whole>(dz + i, grad, lanes, false);
        if (writes && dx) put<whole>(dx + i, grad * gradient.normalized.scale, lanes, false);
    }
};

// dx = dz·scale + w·((x−μ)·of_centred + constant), and dz; each where it is wanted.
template <class T, Kind kind, bool planar_, Serves serves> struct Elementwise {
    using Storage = T;
    using A = typename Working<T>::type;
    using V = typename Lanes<A>::Vector;
    static constexpr bool planar = planar_;
    static constexpr int arrays = 3;
    Gradient<T, kind, planar, serves> gradient;
    T *dx, *dz;
    const A *weights, *factors, *constants;
    bool streaming;
    V of_centred, constant;

    BN_INLINE Elementwise(const bn_call &c, bool streaming_)
        : gradient(c), dx(static_cast<T *>(c.dx)), dz(static_cast<T *>(c.dz)), weights(static_cast<const A *>(c.weights)),
          factors(static_cast<const A *>(c.of_centred)), constants(static_cast<const A *>(c.constant)), streaming(streaming_) {}

    BN_INLINE void aim(int64_t f, int lanes) {
        gradient.aim(f, lanes);
        of_centred = feature<planar>(factors, f, lanes, A(0));
        constant = feature<planar>(constants, f, lanes, A(0));
    }

    BN_INLINE void fetch_ahead(int64_t i, int64_t n) const { gradient.fetch_ahead(i, n); }

    static constexpr bool infers = false;
    static Serves serving(const bn_call &c, bool streaming) {
        const bool more = c.residual || c.bits || c.weights || c.dz || !c.dx || !c.of_centred || streaming;
        return more ? Serves::everything : Serves::training;
    }

    template <bool whole> BN_INLINE void at(int64_t i, int64_t w, int64_t v, int lanes, Added<V> &) const {
        const V centred = gradient.template centred<whole>(i, lanes);
        const V grad = gradient.template at<whole>(centred, i, v, lanes);
        constexpr bool all = serves == Serves::everything;
        if (all && dz) put<whole>(dz + i, grad, lanes, streaming);
        if (all && !dx) return;
        V result = grad * gradient.normalized.scale;
        if (!all || factors) {
            V moments = centred * of_centred + constant;
            if (all && weights) moments *= weight<A, planar, whole>(weights, w, lanes);
            result += moments;
        }
        put<whole>(dx + i, result, lanes, all && streaming);
    }
};

}  // namespace batchnorm::BN_ISA
