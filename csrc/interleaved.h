// Sweeps where the channels lie side by side: channels_last, (N, C), (N, L, C).
#pragma once

#include "bodies.h"

namespace batchnorm::BN_ISA {

inline constexpr int64_t STRIP = 64;  // rows of four vectors that are worked on at a time
inline constexpr int64_t LEAST_STRIP = 8, STRIP_BYTES = 256 << 10;  // fewer, where they would not stay in a core's cache
inline constexpr int64_t WIDE = 512;  // bytes of a row that a map takes alone, where it comes from memory

struct Interleaved {
    int64_t groups, rows, channels, group;

    Interleaved(const bn_call &c, const Tile &t) : groups(c.groups), rows(c.rows), channels(c.channels), group(t.group) {}

    BN_INLINE int64_t line(int64_t row) const {
        return groups == 1 ? row : ((row / rows) * groups + group) * rows + row % rows;
    }
};

// The places of a strip in the order of memory, while another strip is worked on: machines fetch ahead by themselves in
// long runs alone, and four vectors of a row are none.
struct Ahead {
    const Interleaved &place;
    const Tile &tile;
    int64_t row, channel;

    template <int64_t some, class Body> BN_INLINE void fetch(const Body &body) {
        if (row >= tile.last_row) return;
        body.fetch_ahead(place.line(row) * place.channels + channel, some);
        channel += some;
        if (channel < tile.last_channel) return;
        channel = tile.first_channel;
        ++row;
    }
};

// Sweep a strip of rows, four vectors side by side at a time: `aim(body, channel, lanes)` before, `done(body, added,
// channel)` after the rows. `far`: fetch from the next strip meanwhile, as much as is worked on by four.
template <class Body, class Aim, class Done>
BN_INLINE void sweep(const bn_call &c, const Tile &t, const Body &model, int64_t first, int64_t end, bool far, Aim aim, Done done) {
    constexpr int L = Lanes<typename Body::A>::count;
    using Sum = Added<typename Body::V>;
    const Interleaved place(c, t);
    const int64_t vectors = (c.channels + L - 1) / L;
    Ahead ahead{place, t, end, t.first_channel};
    int64_t channel = t.first_channel;
    for (; channel + 4 * L <= t.last_channel; channel += 4 * L) {
        Body a(model), b(model), d(model), e(model);
        aim(a, channel, L), aim(b, channel + L, L), aim(d, channel + 2 * L, L), aim(e, channel + 3 * L, L);
        Sum to_a{}, to_b{}, to_d{}, to_e{};
        for (int64_t row = first; row < end; ++row) {
            const int64_t line = place.line(row), i = line * place.channels + channel, v = line * vectors + channel / L;
            if (far) ahead.fetch<4 * L>(a);
            a.template at<true>(i, line, v, L, to_a);
            b.template at<true>(i + L, line, v + 1, L, to_b);
            d.template at<true>(i + 2 * L, line, v + 2, L, to_d);
            e.template at<true>(i + 3 * L, line, v + 3, L, to_e);
        }
        done(a, to_a, channel), done(b, to_b, channel + L), done(d, to_d, channel + 2 * L), done(e, to_e, channel + 3 * L);
    }
    for (; channel < t.last_channel; channel += L) {
        const int lanes = t.last_channel - channel < L ? int(t.last_channel - channel) : L;
        Body a(model);
        aim(a, channel, lanes);
        Sum to{};
        for (int64_t row = first; row < end; ++row) {
            const int64_t line = place.line(row), i = line * place.channels + channel, v = line * vectors + channel / L;
            if (lanes == L) a.template at<true>(i, line, v, L, to);
            else a.template at<false>(i, line, v, lanes, to);
        }
        done(a, to, channel);
    }
}

// Call `each(first row, last row, far)` for the strips of a tile.
template <class Body, class Each> BN_INLINE void strips(const bn_call &c, const Tile &t, const Each &each) {
    constexpr int64_t size = sizeof(typename Body::Storage);
    const bool far = c.outer * c.groups * c.rows * c.channels * size >= FAR_BYTES;
    const int64_t fitting = STRIP_BYTES / (Body::arrays * size * (t.last_channel - t.first_channel));
    const int64_t rows = fitting > STRIP ? STRIP : fitting < LEAST_STRIP ? LEAST_STRIP : fitting;
    for (int64_t row = t.first_row; row < t.last_row; row += rows) {
        each(row, t.last_row - row < rows ? t.last_row : row + rows, far);
    }
}

// Map the rows of a tile one after another, in the order of memory.
template <class Body> void map_rows(const bn_call &c, const Tile &t, Body body, int64_t first, int64_t end) {
    constexpr int L = Lanes<typename Body::A>::count;
    const Interleaved place(c, t);
    const int64_t vectors = (c.channels + L - 1) / L, feature = t.group * c.channels;
    const int64_t lanes = (t.last_channel - t.first_channel) % L, whole = t.last_channel - lanes;
    Added<typename Body::V> none;
    for (int64_t row = first; row < end; ++row) {
        const int64_t line = place.line(row), i = line * c.channels, v = line * vectors;
        for (int64_t channel = t.first_channel; channel < whole; channel += L) {
            body.aim(feature + channel, L);
            body.template at<true>(i + channel, line, v + channel / L, L, none);
        }
        if (!lanes) continue;
        body.aim(feature + whole, int(lanes));
        body.template at<false>(i + whole, line, v + whole / L, int(lanes), none);
    }
}

template <class Body> void map_interleaved(const bn_call &c, const Tile &t, const Body &body) {
    const bool wide = (t.last_channel - t.first_channel) * int64_t(sizeof(typename Body::Storage)) >= WIDE;
    const auto aim = [&](Body &one, int64_t channel, int lanes) { one.aim(t.group * c.channels + channel, lanes); };
    strips<Body>(c, t, [&](int64_t row, int64_t end, bool far) {
        if (far && wide) map_rows(c, t, body, row, end);
        else sweep(c, t, body, row, end, far, aim, [](const auto &...) {});
    });
}

BN_INLINE Doubles8 part(Doubles8 v, int) { return v; }
BN_INLINE Doubles8 part(Floats16 v, int which) {
    const auto parts = halves(v);
    return longer(which ? parts.high : parts.low);
}

BN_INLINE Floats16 rounded(const double *p, Floats16) {
    return joined<Floats16>(shorter(load(p)), shorter(load(p + 8)));
}
BN_INLINE Doubles8 rounded(const double *p, Doubles8) { return load(p); }

// Merge the sums of n values into mean and m2 of `count` values: Chan, Golub and LeVeque 1979.
template <class V> BN_INLINE void merge(const Added<V> &added, V shift, double n, double count, double *mean, double *m2) {
    const double share = n / (count + n), inverse = 1 / n;
    for (int h = 0; h < int(sizeof(V) / sizeof(shift[0]) / 8); ++h, mean += 8, m2 += 8) {
        const Doubles8 sum = part(added.first, h), own = load(mean);
        const Doubles8 rest = part(added.second, h) - sum * (sum * inverse);
        const Doubles8 delta = (part(shift, h) - own) + sum * inverse;
        store(mean, own + delta * share);
        store(m2, load(m2) + select(below(rest, Doubles8{}), Doubles8{}, rest) + delta * delta * (count * share));
    }
}

template <class T, bool weighted> void moments_interleaved(const bn_call &c, const Tile &t, Sums &sums) {
    using Body = Moments<T, weighted, false>;
    using A = typename Body::A;
    using V = typename Body::V;
    const Body model(c);
    const Interleaved place(c, t);
    strips<Body>(c, t, [&](int64_t row, int64_t end, bool far) {
        double n = double(end - row);
        if (weighted) {
            n = 0;
            for (int64_t r = row; r < end; ++r) n += double(model.weights[place.line(r)]);
            if (!(n > 0)) return;
        }
        const int64_t some = weighted || end - row < 8 ? end : row + 8;
        const auto aim = [&](Body &body, int64_t channel, int lanes) {
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
        const auto done = [&](const Body &body, const Added<V> &added, int64_t channel) {
            const int64_t k = channel - t.first_channel;
            merge(added, body.shift, n, sums.count, sums.first + k, sums.second + k);
        };
        sweep(c, t, model, row, end, far, aim, done);
        sums.count += n;
    });
}

template <class T, Kind kind, bool writes> void reduce_interleaved(const bn_call &c, const Tile &t, Sums &sums) {
    using Body = Reduce<T, kind, false, writes>;
    const Body model(c);
    const auto aim = [&](Body &body, int64_t channel, int lanes) {
        body.aim(t.group * c.channels + channel, lanes);
    };
    const auto done = [&](const Body &, const auto &added, int64_t channel) {
        double *first = sums.first + (channel - t.first_channel), *second = sums.second + (channel - t.first_channel);
        for (int h = 0; h < Lanes<typename Body::A>::count / 8; ++h, first += 8, second += 8) {
            store(first, load(first) + part(added.first, h));
            store(second, load(second) + part(added.second, h));
        }
    };
    strips<Body>(c, t, [&](int64_t row, int64_t end, bool far) { sweep(c, t, model, row, end, far, aim, done); });
}

}  // namespace batchnorm::BN_ISA
