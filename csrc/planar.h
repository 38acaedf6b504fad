// Sweeps where each channel has positions side by side: (N, C, H, W), (N, C, L).
#pragma once

#include "bodies.h"

namespace batchnorm::BN_ISA {

// Where row and channel of a tile begin, in elements, weights and masks.
template <int lanes> struct Planar {
    int64_t groups, rows, channels, inner, vectors, group, from;

    Planar(const bn_call &c, const Tile &t)
        : groups(c.groups), rows(c.rows), channels(c.channels), inner(c.inner), vectors((c.inner + lanes - 1) / lanes),
          group(t.group), from(t.first_inner) {}

    BN_INLINE int64_t line(int64_t row) const { return ((row / rows) * groups + group) * rows + row % rows; }
    BN_INLINE int64_t segment(int64_t row, int64_t channel) const { return line(row) * channels + channel; }
    BN_INLINE int64_t element(int64_t segment) const { return segment * inner + from; }
    BN_INLINE int64_t mask(int64_t segment) const { return segment * vectors + from / lanes; }
    BN_INLINE int64_t weight(int64_t row) const { return line(row) * inner + from; }
};

template <class Body> void map_planar(const bn_call &c, const Tile &t, Body body) {
    constexpr int L = Lanes<typename Body::A>::count;
    const Planar<L> place(c, t);
    const int64_t n = t.last_inner - t.first_inner;
    for (int64_t row = t.first_row; row < t.last_row; ++row) {
        for (int64_t channel = t.first_channel; channel < t.last_channel; ++channel) {
            const int64_t segment = place.segment(row, channel);
            const int64_t element = place.element(segment), mask = place.mask(segment), weight = place.weight(row);
            body.aim(c, t.group * c.channels + channel, L);
            int64_t i = 0, v = 0;
            for (; i + L <= n; i += L, ++v) body.template at<true>(element + i, weight + i, mask + v, L);
            if (i < n) body.template at<false>(element + i, weight + i, mask + v, int(n - i));
        }
    }
}

template <class Body> BN_INLINE void add(Body &body, int64_t element, int64_t weight, int64_t mask, int64_t n) {
    constexpr int L = Lanes<typename Body::A>::count;
    int64_t i = 0, v = 0;
    if (n >= 4 * L) {  // four sums at a time: an addition takes longer than a load
        Body b(body), d(body), e(body);
        b.first = d.first = e.first = b.second = d.second = e.second = b.count = d.count = e.count = typename Body::V{};
        for (; i + 4 * L <= n; i += 4 * L, v += 4) {
            body.template at<true>(element + i, weight + i, mask + v, L);
            b.template at<true>(element + i + L, weight + i + L, mask + v + 1, L);
            d.template at<true>(element + i + 2 * L, weight + i + 2 * L, mask + v + 2, L);
            e.template at<true>(element + i + 3 * L, weight + i + 3 * L, mask + v + 3, L);
        }
        body.first += b.first + (d.first + e.first);
        body.second += b.second + (d.second + e.second);
        body.count += b.count + (d.count + e.count);
    }
    for (; i + L <= n; i += L, ++v) body.template at<true>(element + i, weight + i, mask + v, L);
    if (i < n) body.template at<false>(element + i, weight + i, mask + v, int(n - i));
}

// One channel of a tile: what is added up in the working type, and before that in double.
template <class A> struct Channel {
    using V = typename Lanes<A>::Vector;
    V first{}, second{}, weight{};
    int64_t pending = 0;
    A shift = 0;
    double mean = 0, m2 = 0, count = 0;

    void merge(bool weighted) {  // Chan, Golub and LeVeque 1979
        const double n = weighted ? total(weight) : double(pending);
        if (n > 0) {
            const double sum = total(first), rest = total(second) - sum * (sum / n), all = count + n;
            const double delta = (double(shift) - mean) + sum / n;
            mean += delta * (n / all);
            m2 += (rest < 0 ? 0 : rest) + delta * delta * (count * (n / all));
            count = all;
            shift = A(mean);
        }
        first = second = weight = V{};
        pending = 0;
    }

    void add_up() {
        mean += total(first);
        m2 += total(second);
        first = second = V{};
        pending = 0;
    }
};

// The mean of the first values of a channel: subtracted from all, it keeps their squares small.
template <class T> BN_INLINE typename Working<T>::type first_shift(const T *x, const typename Working<T>::type *w, int64_t n) {
    using A = typename Working<T>::type;
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
    return count > 0 ? A(sum / count) : A(0);
}

template <class T, bool weighted> void moments_planar(const bn_call &c, const Tile &t, Sums &sums) {
    using A = typename Working<T>::type;
    Channel<A> states[WIDEST];
    Moments<T, weighted, true> body(c);
    const Planar<Lanes<A>::count> place(c, t);
    const int64_t n = t.last_inner - t.first_inner;
    for (int64_t row = t.first_row; row < t.last_row; ++row) {
        for (int64_t channel = t.first_channel; channel < t.last_channel; ++channel) {
            Channel<A> &state = states[channel - t.first_channel];
            const int64_t element = place.element(place.segment(row, channel)), weight = place.weight(row);
            for (int64_t i = 0; i < n; i += PIECE) {
                const int64_t length = n - i < PIECE ? n - i : PIECE;
                if (!(state.count > 0) && (weighted ? true : state.pending == 0)) {
                    if (weighted) state.merge(true);
                    state.shift = state.count > 0 ? state.shift
                                                  : first_shift(body.x + element + i, weighted ? body.weights + weight + i : nullptr, length);
                }
                body.shift = broadcast<A>(state.shift);
                body.first = state.first, body.second = state.second, body.count = state.weight;
                add(body, element + i, weight + i, 0, length);
                state.first = body.first, state.second = body.second, state.weight = body.count;
                state.pending += length;
                if (state.pending >= PIECE) state.merge(weighted);
            }
        }
    }
    for (int64_t channel = 0; channel < t.last_channel - t.first_channel; ++channel) {
        states[channel].merge(weighted);
        sums.first[channel] = states[channel].mean;
        sums.second[channel] = states[channel].m2;
    }
    sums.count = states[0].count;
}

template <class T, Kind kind> void reduce_planar(const bn_call &c, const Tile &t, Sums &sums) {
    using A = typename Working<T>::type;
    Channel<A> states[WIDEST];
    Reduce<T, kind, true> body(c);
    const Planar<Lanes<A>::count> place(c, t);
    const int64_t n = t.last_inner - t.first_inner;
    for (int64_t row = t.first_row; row < t.last_row; ++row) {
        for (int64_t channel = t.first_channel; channel < t.last_channel; ++channel) {
            Channel<A> &state = states[channel - t.first_channel];
            const int64_t segment = place.segment(row, channel);
            body.aim(c, t.group * c.channels + channel, 0);
            for (int64_t i = 0; i < n; i += PIECE) {
                const int64_t length = n - i < PIECE ? n - i : PIECE;
                body.first = state.first, body.second = state.second;
                add(body, place.element(segment) + i, 0, place.mask(segment) + i / Lanes<A>::count, length);
                state.first = body.first, state.second = body.second;
                state.pending += length;
                if (state.pending >= PIECE) state.add_up();
            }
        }
    }
    for (int64_t channel = 0; channel < t.last_channel - t.first_channel; ++channel) {
        states[channel].add_up();
        sums.first[channel] = states[channel].mean;
        sums.second[channel] = states[channel].m2;
    }
}

}  // namespace batchnorm::BN_ISA
