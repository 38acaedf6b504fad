// Sweeps where each channel has positions side by side: (N, C, H, W), (N, C, L).
#pragma once

#include "bodies.h"

namespace batchnorm::BN_ISA {

// Where the positions of a channel in a row lie, in elements, weights and masks. Vectors begin where a vector of the
// whole array does, so that none lies across two cache lines: the first and the last may have few lanes.
struct Segment {
    int64_t first, last;     // elements of the tile
    int64_t weights, masks;  // what to add to an element, or to the number of its vector
    int64_t distance = 0;    // how far ahead to fetch, 0: not
    int64_t wrap = 0;        // from the end of this row's to the beginning of the next row's
};

inline constexpr int64_t SHORT = 512, NEAR = 256;  // elements: a short segment; how far ahead to fetch among such
inline constexpr int64_t AHEAD = 4096;             // bytes: how far ahead to fetch in others

template <int lanes> struct Planar {
    const int64_t groups, rows, channels, inner, group, first_inner, last_inner, masks;
    const bool whole, together;  // a channel's positions in a row; short ones, some rows of a channel at a time

    BN_INLINE Planar(const bn_call &c, const Tile &t)
        : groups(c.groups), rows(c.rows), channels(c.channels), inner(c.inner), group(t.group), first_inner(t.first_inner),
          last_inner(t.last_inner), masks(masks_of(c.inner, lanes)), whole(t.first_inner == 0 && t.last_inner == c.inner),
          together(c.inner < SHORT) {}

    BN_INLINE int64_t line(int64_t row) const {
        return groups == 1 ? row : ((row / rows) * groups + group) * rows + row % rows;
    }

    BN_INLINE Segment segment(int64_t line, int64_t channel) const {
        const int64_t number = line * channels + channel, begin = number * inner;
        Segment s{begin, begin + inner, line * inner - begin, number * masks - begin / lanes};
        if (!whole) s.first = edge(begin, first_inner), s.last = edge(begin, last_inner);
        return s;
    }

    // Call `each(first row, last row, channel)` for all of a tile.
    template <class Each> BN_INLINE void strips(const Tile &t, const Each &each) const {
        const int64_t some = together ? 8 : 1;
        for (int64_t row = t.first_row; row < t.last_row; row += some) {
            const int64_t end = t.last_row - row < some ? t.last_row : row + some;
            for (int64_t channel = t.first_channel; channel < t.last_channel; ++channel) each(row, end, channel);
        }
    }

    // Where a part of the inner positions ends and the next begins: no vector belongs to both.
    BN_INLINE int64_t edge(int64_t begin, int64_t position) const {
        const int64_t element = begin + position;
        return position == 0 || position == inner ? element : element - element % lanes;
    }
};

// Where a channel ends amid a vector, the next one's begin in it, unless weights or bits go by the channel.
template <class Body> void map_planar(const bn_call &c, const Tile &t, Body body) {
    constexpr int L = Lanes<typename Body::A>::count;
    const Planar<L> place(c, t);
    const bool joined = place.whole && c.inner >= L && !c.weights && !c.bits;
    Added<typename Body::V> none;
    int64_t i = 0;
    for (int64_t row = t.first_row; row < t.last_row; ++row) {
        const int64_t line = place.line(row);
        for (int64_t channel = t.first_channel; channel < t.last_channel; ++channel) {
            const auto [first, last, weights, masks, distance, wrap] = place.segment(line, channel);
            const int64_t feature = t.group * c.channels + channel;
            body.aim(feature, L);
            if (i < first) i = first;
            if (i % L) {
                const int64_t lanes = L - i % L < last - i ? L - i % L : last - i;
                body.template at<false>(i, i + weights, i / L + masks, int(lanes), none);
                i += lanes;
            }
            for (; i + L <= last; i += L) body.template at<true>(i, i + weights, i / L + masks, L, none);
            if (i >= last) continue;
            if (joined && channel + 1 < t.last_channel) {
                body.aim(feature, int(last - i));
                body.template at<true>(i, 0, 0, L, none);
                i += L;
            } else {
                body.template at<false>(i, i + weights, i / L + masks, int(last - i), none);
                i = last;
            }
        }
    }
}

// The end of what is added in one go.
BN_INLINE int64_t piece(int64_t i, int64_t last, int64_t lanes) {
    const int64_t end = i - i % lanes + PIECE;
    return end < last ? end : last;
}

template <class Body, class V> BN_INLINE void sum(const Body &body, const Segment &s, Added<V> &to) {
    constexpr int L = Lanes<typename Body::A>::count;
    const auto [i0, last, weights, masks, distance, wrap] = s;
    int64_t i = i0;
    Added<V> a{V{}, V{}, V{}};
    if (Body::aligned && i % L) {
        const int64_t lanes = L - i % L < last - i ? L - i % L : last - i;
        body.template at<false>(i, i + weights, i / L + masks, int(lanes), a);
        i += lanes;
    }
    if (i + 4 * L <= last) {  // four sums at a time: an addition takes longer than a load
        Added<V> b{V{}, V{}, V{}}, d{V{}, V{}, V{}}, e{V{}, V{}, V{}};
        for (; i + 4 * L <= last; i += 4 * L) {
            if (distance) body.fetch_ahead(i + distance + (i + distance < last ? 0 : wrap), 4 * L);
            body.template at<true>(i, i + weights, i / L + masks, L, a);
            body.template at<true>(i + L, i + L + weights, i / L + 1 + masks, L, b);
            body.template at<true>(i + 2 * L, i + 2 * L + weights, i / L + 2 + masks, L, d);
            body.template at<true>(i + 3 * L, i + 3 * L + weights, i / L + 3 + masks, L, e);
        }
        a.first += b.first + (d.first + e.first);
        a.second += b.second + (d.second + e.second);
        a.weight += b.weight + (d.weight + e.weight);
    }
    for (; i + L <= last; i += L) body.template at<true>(i, i + weights, i / L + masks, L, a);
    if (i < last) body.template at<false>(i, i + weights, i / L + masks, int(last - i), a);
    to.first += a.first, to.second += a.second, to.weight += a.weight;
}

// One channel of a tile: what is added up in the working type, and before that in double.
template <class A> struct Channel {
    using V = typename Lanes<A>::Vector;
    Added<V> added;
    int64_t pending;
    bool shifted;
    A shift;
    double mean, m2, count;

    void merge(bool weighted) {  // Chan, Golub and LeVeque 1979
        const double n = weighted ? total(added.weight) : double(pending);
        if (n > 0) {
            const double sum = total(added.first), rest = total(added.second) - sum * (sum / n), all = count + n;
            const double delta = (double(shift) - mean) + sum / n;
            mean += delta * (n / all);
            m2 += (rest < 0 ? 0 : rest) + delta * delta * (count * (n / all));
            count = all;
            shift = A(mean);
        }
        added = {V{}, V{}, V{}};
        pending = 0;
    }

    void add_up() {
        mean += total(added.first);
        m2 += total(added.second);
        added = {V{}, V{}, V{}};
        pending = 0;
    }
};

// The mean of the first values of a channel: subtracted from all, it keeps their squares small. Return whether there
// are any: where all have weight 0, later ones decide.
template <class T, class A> BN_INLINE bool first_shift(const T *x, const A *w, int64_t n, A &shift) {
    double sum = 0, count = 0;
    if (w) {
        for (int64_t i = 0; i < n; ++i) {
            if (w[i] > 0) sum += double(w[i]) * double(load(x + i, 1)[0]), count += double(w[i]);
        }
    } else {
        constexpr int L = Lanes<A>::count;
        typename Lanes<A>::Vector v{};
        const int64_t some = n < 8 * L ? n : 8 * L;
        for (int64_t i = 0; i < some; i += L) v += i + L <= some ? load(x + i) : load(x + i, int(some - i));
        sum = total(v), count = double(some);
    }
    if (count > 0) shift = A(sum / count);
    return count > 0;
}

// Sum a tile: `aim(body, state, channel, segment)` before each piece, `flush(state)` every few thousand values.
template <class T, class Body, class Aim, class Flush>
BN_INLINE void sum_planar(const bn_call &c, const Tile &t, Sums &sums, Body body, const Aim &aim, const Flush &flush) {
    using A = typename Body::A;
    constexpr int L = Lanes<A>::count;
    Channel<A> states[WIDEST];
    const int64_t channels = t.last_channel - t.first_channel;
    for (int64_t k = 0; k < channels; ++k) states[k] = Channel<A>{};
    const Planar<L> place(c, t);
    const int64_t run = t.last_inner - t.first_inner, ahead = AHEAD / int64_t(sizeof(T));
    const bool far = c.outer * c.groups * c.rows * c.channels * c.inner * int64_t(sizeof(T)) >= FAR_BYTES;
    place.strips(t, [&](int64_t row, int64_t end, int64_t channel) {
        Channel<A> &state = states[channel - t.first_channel];
        for (; row < end; ++row) {
            Segment s = place.segment(place.line(row), channel);
            const int64_t last = s.last;
            if (far && place.together) body.fetch_ahead(s.first + NEAR, last - s.first);
            else if (far) s.distance = run < ahead ? run : ahead;
            while (s.first < last) {
                s.last = piece(s.first, last, L);
                if (s.distance && s.last == last) s.wrap = place.segment(place.line(row + 1), channel).first - last;
                aim(body, state, channel, s);
                sum(body, s, state.added);
                state.pending += s.last - s.first;
                if (state.pending >= FLUSH) flush(state);
                s.first = s.last;
            }
        }
    });
    for (int64_t k = 0; k < channels; ++k) {
        flush(states[k]);
        sums.first[k] = states[k].mean;
        sums.second[k] = states[k].m2;
    }
    sums.count = states[0].count;
}

template <class T, bool weighted> void moments_planar(const bn_call &c, const Tile &t, Sums &sums) {
    using Body = Moments<T, weighted, true>;
    using A = typename Body::A;
    const auto aim = [](Body &body, Channel<A> &state, int64_t, const Segment &s) {
        const A *weights = weighted ? body.weights + s.first + s.weights : nullptr;
        if (!state.shifted) state.shifted = first_shift(body.x + s.first, weights, s.last - s.first, state.shift);
        body.shift = broadcast<A>(state.shift);
    };
    sum_planar<T>(c, t, sums, Body(c), aim, [](Channel<A> &state) { state.merge(weighted); });
}

template <class T, Kind kind, bool writes> void reduce_planar(const bn_call &c, const Tile &t, Sums &sums) {
    using Body = Reduce<T, kind, true, writes>;
    using A = typename Body::A;
    int64_t aimed = -1;
    const auto aim = [&](Body &body, const auto &, int64_t channel, const Segment &) {
        if (channel == aimed) return;
        body.aim(t.group * c.channels + channel, Lanes<A>::count);
        aimed = channel;
    };
    sum_planar<T>(c, t, sums, Body(c), aim, [](Channel<A> &state) { state.add_up(); });
}

}  // namespace batchnorm::BN_ISA
