// Sweeps where each channel has positions side by side: (N, C, H, W), (N, C, L).
#pragma once

#include "bodies.h"

namespace batchnorm::BN_ISA {

// Where the positions of a channel in a row lie, in elements, weights and masks. Vectors begin where a vector of the
// whole array does, so that none lies across two cache lines: the first and the last may have few lanes.
struct Segment {
    int64_t first, last;     // elements of the tile
    int64_t weights, masks;  // what to add to an element, or to the number of its vector
};

template <int lanes> struct Planar {
    const int64_t groups, rows, channels, inner, group, first_inner, last_inner, masks;
    const bool whole;

    BN_INLINE Planar(const bn_call &c, const Tile &t)
        : groups(c.groups), rows(c.rows), channels(c.channels), inner(c.inner), group(t.group), first_inner(t.first_inner),
          last_inner(t.last_inner), masks(masks_of(c.inner, lanes)), whole(t.first_inner == 0 && t.last_inner == c.inner) {}

    BN_INLINE int64_t line(int64_t row) const {
        return groups == 1 ? row : ((row / rows) * groups + group) * rows + row % rows;
    }

    BN_INLINE Segment segment(int64_t line, int64_t channel) const {
        const int64_t number = line * channels + channel, begin = number * inner;
        Segment s{begin, begin + inner, line * inner - begin, number * masks - begin / lanes};
        if (!whole) s.first = edge(begin, first_inner), s.last = edge(begin, last_inner);
        return s;
    }

    // Call `each(first row, last row, channel)` for all of a tile: of short segments, some rows of a channel at a time.
    template <class Each> BN_INLINE void strips(const Tile &t, const Each &each) const {
        const int64_t some = inner < 512 ? 8 : 1;
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

template <class Body> void map_planar(const bn_call &c, const Tile &t, Body body) {
    constexpr int L = Lanes<typename Body::A>::count;
    const Planar<L> place(c, t);
    Added<typename Body::V> none;
    for (int64_t row = t.first_row; row < t.last_row; ++row) {
        const int64_t line = place.line(row);
        for (int64_t channel = t.first_channel; channel < t.last_channel; ++channel) {
            const auto [first, last, weights, masks] = place.segment(line, channel);
            body.aim(c, t.group * c.channels + channel, L);
            int64_t i = first;
            if (i % L) {
                const int64_t lanes = L - i % L < last - i ? L - i % L : last - i;
                body.template at<false>(i, i + weights, i / L + masks, int(lanes), none);
                i += lanes;
            }
            for (; i + L <= last; i += L) body.template at<true>(i, i + weights, i / L + masks, L, none);
            if (i < last) body.template at<false>(i, i + weights, i / L + masks, int(last - i), none);
        }
    }
}

// The end of what is added in one go.
BN_INLINE int64_t piece(int64_t i, int64_t last, int64_t lanes) {
    const int64_t end = i - i % lanes + PIECE;
    return end < last ? end : last;
}

template <class Body, class V>
BN_INLINE void sum(const Body &body, int64_t i, int64_t last, int64_t weights, int64_t masks, Added<V> &to) {
    constexpr int L = Lanes<typename Body::A>::count;
    Added<V> a{V{}, V{}, V{}};
    if (i % L) {
        const int64_t lanes = L - i % L < last - i ? L - i % L : last - i;
        body.template at<false>(i, i + weights, i / L + masks, int(lanes), a);
        i += lanes;
    }
    if (i + 4 * L <= last) {  // four sums at a time: an addition takes longer than a load
        Added<V> b{V{}, V{}, V{}}, d{V{}, V{}, V{}}, e{V{}, V{}, V{}};
        for (; i + 4 * L <= last; i += 4 * L) {
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

template <class T, bool weighted> void moments_planar(const bn_call &c, const Tile &t, Sums &sums) {
    using A = typename Working<T>::type;
    Channel<A> states[WIDEST];
    for (int64_t k = 0; k < t.last_channel - t.first_channel; ++k) states[k] = Channel<A>{};
    Moments<T, weighted, true> body(c);
    const Planar<Lanes<A>::count> place(c, t);
    place.strips(t, [&](int64_t row, int64_t end, int64_t channel) {
        Channel<A> &state = states[channel - t.first_channel];
        for (; row < end; ++row) {
            const Segment s = place.segment(place.line(row), channel);
            for (int64_t i = s.first, stop; i < s.last; i = stop) {
                stop = piece(i, s.last, Lanes<A>::count);
                const A *weights = weighted ? body.weights + i + s.weights : nullptr;
                if (!state.shifted) state.shifted = first_shift(body.x + i, weights, stop - i, state.shift);
                body.shift = broadcast<A>(state.shift);
                sum(body, i, stop, s.weights, s.masks, state.added);
                state.pending += stop - i;
                if (state.pending >= FLUSH) state.merge(weighted);
            }
        }
    });
    for (int64_t k = 0; k < t.last_channel - t.first_channel; ++k) {
        states[k].merge(weighted);
        sums.first[k] = states[k].mean;
        sums.second[k] = states[k].m2;
    }
    sums.count = states[0].count;
}

template <class T, Kind kind> void reduce_planar(const bn_call &c, const Tile &t, Sums &sums) {
    using A = typename Working<T>::type;
    Channel<A> states[WIDEST];
    for (int64_t k = 0; k < t.last_channel - t.first_channel; ++k) states[k] = Channel<A>{};
    Reduce<T, kind, true> body(c);
    const Planar<Lanes<A>::count> place(c, t);
    place.strips(t, [&](int64_t row, int64_t end, int64_t channel) {
        Channel<A> &state = states[channel - t.first_channel];
        body.aim(c, t.group * c.channels + channel, 0);
        for (; row < end; ++row) {
            const Segment s = place.segment(place.line(row), channel);
            for (int64_t i = s.first, stop; i < s.last; i = stop) {
                stop = piece(i, s.last, Lanes<A>::count);
                sum(body, i, stop, 0, s.masks, state.added);
                state.pending += stop - i;
                if (state.pending >= FLUSH) state.add_up();
            }
        }
    });
    for (int64_t k = 0; k < t.last_channel - t.first_channel; ++k) {
        states[k].add_up();
        sums.first[k] = states[k].mean;
        sums.second[k] = states[k].m2;
    }
}

}  // namespace batchnorm::BN_ISA
