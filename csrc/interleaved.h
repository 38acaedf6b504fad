// Sweeps where the channels lie side by side: channels_last, (N, C), (N, L, C).
#pragma once

#include "bodies.h"

namespace batchnorm::BN_ISA {

inline constexpr int64_t STRIP = 64;  // rows of four vectors that are worked on at a time

struct Interleaved {
    int64_t groups, rows, channels, group;

    Interleaved(const bn_call &c, const Tile &t) : groups(c.groups), rows(c.rows), channels(c.channels), group(t.group) {}

    BN_INLINE int64_t line(int64_t row) const {
        return groups == 1 ? row : ((row / rows) * groups + group) * rows + row % rows;
    }
};

template <class Body> BN_INLINE Body aimed(const bn_call &c, Body body, int64_t f, int lanes) {
    body.aim(c, f, lanes);
    return body;
}

// Run four bodies over a strip of rows, on vectors side by side.
template <class Body>
BN_INLINE void four(const Interleaved &place, int64_t row, int64_t end, int64_t channel, int64_t vectors, Body *bodies) {
    constexpr int L = Lanes<typename Body::A>::count;
    Body a(bodies[0]), b(bodies[1]), d(bodies[2]), e(bodies[3]);
    for (; row < end; ++row) {
        const int64_t line = place.line(row), i = line * place.channels + channel, v = line * vectors + channel / L;
        a.template at<true>(i, line, v, L);
        b.template at<true>(i + L, line, v + 1, L);
        d.template at<true>(i + 2 * L, line, v + 2, L);
        e.template at<true>(i + 3 * L, line, v + 3, L);
    }
    bodies[0] = a, bodies[1] = b, bodies[2] = d, bodies[3] = e;
}

template <class Body>
BN_INLINE void one(const Interleaved &place, int64_t row, int64_t end, int64_t channel, int64_t vectors, Body &body, int lanes) {
    constexpr int L = Lanes<typename Body::A>::count;
    Body a(body);
    for (; row < end; ++row) {
        const int64_t line = place.line(row), i = line * place.channels + channel, v = line * vectors + channel / L;
        if (lanes == L) a.template at<true>(i, line, v, L);
        else a.template at<false>(i, line, v, lanes);
    }
    body = a;
}

// Call `before(body, channel, lanes)`, run, and call `after` likewise, for every strip of rows and vector of channels.
template <class Body, class Before, class After>
BN_INLINE void sweep(const bn_call &c, const Tile &t, const Body &model, int64_t row, int64_t end, Before before, After after) {
    constexpr int L = Lanes<typename Body::A>::count;
    const Interleaved place(c, t);
    const int64_t vectors = (c.channels + L - 1) / L;
    int64_t channel = t.first_channel;
    for (; channel + 4 * L <= t.last_channel; channel += 4 * L) {
        Body bodies[4] = {model, model, model, model};
        for (int u = 0; u < 4; ++u) before(bodies[u], channel + u * L, L);
        four(place, row, end, channel, vectors, bodies);
        for (int u = 0; u < 4; ++u) after(bodies[u], channel + u * L, L);
    }
    for (; channel < t.last_channel; channel += L) {
        const int lanes = t.last_channel - channel < L ? int(t.last_channel - channel) : L;
        Body body(model);
        before(body, channel, lanes);
        one(place, row, end, channel, vectors, body, lanes);
        after(body, channel, lanes);
    }
}

template <class Body> void map_interleaved(const bn_call &c, const Tile &t, Body model) {
    const auto before = [&](Body &body, int64_t channel, int lanes) {
        body.aim(c, t.group * c.channels + channel, lanes);
    };
    for (int64_t row = t.first_row; row < t.last_row; row += STRIP) {
        const int64_t end = t.last_row - row < STRIP ? t.last_row : row + STRIP;
        sweep(c, t, model, row, end, before, [](Body &, int64_t, int) {});
    }
}

BN_INLINE Double8 part(Double8 v, int) { return v; }
BN_INLINE Double8 part(Float16 v, int which) {
    typedef float Float8 __attribute__((vector_size(32)));
    struct Two { Float8 half[2]; };
    return __builtin_convertvector(bit_cast<Two>(v).half[which], Double8);
}

BN_INLINE Float16 rounded(const double *p, Float16) {
    typedef float Float8 __attribute__((vector_size(32)));
    struct Two { Float8 half[2]; };
    return bit_cast<Float16>(Two{{__builtin_convertvector(load(p), Float8), __builtin_convertvector(load(p + 8), Float8)}});
}
BN_INLINE Double8 rounded(const double *p, Double8) { return load(p); }

// Merge the sums of n values into mean and m2 of `count` values: Chan, Golub and LeVeque 1979.
template <class Body> BN_INLINE void merge(const Body &body, double n, double count, double *mean, double *m2) {
    const double share = n / (count + n), inverse = 1 / n;
    for (int h = 0; h < Lanes<typename Body::A>::count / 8; ++h, mean += 8, m2 += 8) {
        const Double8 sum = part(body.first, h), own = load(mean);
        const Double8 rest = part(body.second, h) - sum * (sum * inverse);
        const Double8 delta = (part(body.shift, h) - own) + sum * inverse;
        store(mean, own + delta * share);
        store(m2, load(m2) + (rest < 0.0 ? Double8{} : rest) + delta * delta * (count * share));
    }
}

template <class T, bool weighted> void moments_interleaved(const bn_call &c, const Tile &t, Sums &sums) {
    using Body = Moments<T, weighted, false>;
    using A = typename Body::A;
    using V = typename Body::V;
    const Body model(c);
    const Interleaved place(c, t);
    for (int64_t row = t.first_row; row < t.last_row; row += STRIP) {
        const int64_t end = t.last_row - row < STRIP ? t.last_row : row + STRIP;
        double n = double(end - row);
        if (weighted) {
            n = 0;
            for (int64_t r = row; r < end; ++r) n += double(model.weights[place.line(r)]);
            if (!(n > 0)) continue;
        }
        const int64_t some = weighted || end - row < 8 ? end : row + 8;
        const auto before = [&](Body &body, int64_t channel, int lanes) {
            const int64_t k = channel - t.first_channel;
            if (sums.count > 0) {
                body.shift = rounded(sums.first + k, V{});
                return;
            }
            V sum{};  // the mean of the first rows; of values with a weight
            for (int64_t r = row; r < some; ++r) {
                const T *x = body.x + place.line(r) * c.channels + channel;
                const V value = lanes == Lanes<A>::count ? load(x) : load(x, lanes);
                if (!weighted) sum += value;
                else if (model.weights[place.line(r)] > 0) sum += value * A(double(model.weights[place.line(r)]) / n);
            }
            body.shift = weighted ? sum : sum / A(some - row);
        };
        const auto after = [&](Body &body, int64_t channel, int) {
            const int64_t k = channel - t.first_channel;
            merge(body, n, sums.count, sums.first + k, sums.second + k);
        };
        sweep(c, t, model, row, end, before, after);
        sums.count += n;
    }
}

template <class T, Kind kind> void reduce_interleaved(const bn_call &c, const Tile &t, Sums &sums) {
    using Body = Reduce<T, kind, false>;
    const Body model(c);
    const auto before = [&](Body &body, int64_t channel, int lanes) {
        body.aim(c, t.group * c.channels + channel, lanes);
    };
    const auto after = [&](Body &body, int64_t channel, int) {
        double *first = sums.first + (channel - t.first_channel), *second = sums.second + (channel - t.first_channel);
        for (int h = 0; h < Lanes<typename Body::A>::count / 8; ++h, first += 8, second += 8) {
            store(first, load(first) + part(body.first, h));
            store(second, load(second) + part(body.second, h));
        }
    };
    for (int64_t row = t.first_row; row < t.last_row; row += STRIP) {
        const int64_t end = t.last_row - row < STRIP ? t.last_row : row + STRIP;
        sweep(c, t, model, row, end, before, after);
    }
}

}  // namespace batchnorm::BN_ISA
