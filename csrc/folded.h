// Channels side by side that do not fill whole vectors, or not the four that are swept together, as in (N, H, W, 3):
// several rows are taken as one that does.
#pragma once

#include "cut.h"

namespace batchnorm {

// The call on rows of `times` channels as long, and on the rows that are left over; features are repeated.
template <class A> struct Folded {
    static constexpr int64_t LANES = 64 / sizeof(A), LONGEST = (LANES - 1) * LANES;
    bn_call main, rest;
    int64_t times, left = 0;

    // How many rows are taken as one; 1: none is.
    static int64_t times_of(const bn_call &c) {
        const int64_t rows = c.outer * c.rows, channels = c.channels;
        if (c.inner != 1 || c.groups != 1 || c.weights || channels < 2 || channels >= LONGEST) return 1;
        int64_t period = channels;
        while (period % LANES) period += channels;
        while (period < 4 * LANES) period *= 2;
        const bool worthwhile = rows >= 2 * (period / channels) && rows * channels >= 2 * PIECE;
        return period <= LONGEST && worthwhile ? period / channels : 1;
    }

    explicit Folded(const bn_call &c) : main(c), rest(c), times(times_of(c)) {
        if (times == 1) return;
        const int64_t rows = c.outer * c.rows, channels = c.channels, period = times * channels;
        left = rows % times;
        main.outer = rest.outer = rest.rows = 1;
        main.rows = rows / times;
        main.channels = period;
        rest.channels = left * channels;
        const int64_t done = main.rows * period;
        rest.x = past(c.x, c, done), rest.residual = past(c.residual, c, done), rest.dy = past(c.dy, c, done);
        rest.y = past(c.y, c, done), rest.dx = past(c.dx, c, done), rest.dz = past(c.dz, c, done);
        rest.bits = c.bits ? c.bits + done / LANES : nullptr;
        const void *bn_call::*constants[] = {&bn_call::scale, &bn_call::shift};
        void *bn_call::*others[] = {&bn_call::mean, &bn_call::mean_low, &bn_call::of_centred, &bn_call::constant};
        int which = 0;
        for (auto field : constants) main.*field = rest.*field = repeated(which++, c.*field, period, channels);
        for (auto field : others) main.*field = rest.*field = repeated(which++, c.*field, period, channels);
    }
    Folded(const Folded &) = delete;

private:
    A copies_[6][LONGEST];

    template <class P> static P *past(P *p, const bn_call &c, int64_t elements) {
        if (!p) return nullptr;
        using Byte = std::conditional_t<std::is_const_v<P>, const char, char>;
        return static_cast<Byte *>(p) + elements * SIZES[c.dtype];
    }

    A *repeated(int which, const void *features, int64_t period, int64_t channels) {
        if (!features) return nullptr;
        A *copy = copies_[which];
        for (int64_t i = 0; i < period; ++i) copy[i] = i < channels ? static_cast<const A *>(features)[i] : copy[i - channels];
        return copy;
    }
};

}  // namespace batchnorm
