// Sums over all of the data, and maps of it: by tiles, shared among threads.
//
// Tiles depend on the shape alone, each is swept by one thread, and their sums are merged in a fixed order: that is
// why the number of threads cannot change a bit.
#pragma once

#include <cstdlib>
#include <cstring>
#include <utility>

#include "cache.h"
#include "folded.h"
#include "instruction_set.h"

namespace batchnorm {

// Whether outputs go past the cache. A map alone, as in inference: where they and what is read beside them would fill it, so
// that who reads them next would not find them there. After a sum, as in training: where they take more than a quarter, and
// would push out what its backward reads again. Not where they take the place of what has just been read, nor where a
// channel ends amid a cache line, which is then written twice, unless that is seldom. `bytes` are those of one array.
inline bool streams(const bn_call &c, int64_t bytes, bool alone) {
    const int64_t size = SIZES[c.dtype], run = (c.inner > 1 ? c.inner : c.channels) * size;
    const int64_t arrays = alone ? 1 + !!c.residual + !!c.y + !!c.dy + !!c.dx + !!c.dz : 4;
    const bool anew = (!c.y || c.y != c.x) && (!c.dx || c.dx != c.dy);
    return anew && bytes * arrays >= cache_bytes() && (run % 64 == 0 || (size >= 4 && run >= 512));
}

inline const Sweeps &sweeps(const bn_call &c) { return (*instruction_set()->table)[c.dtype]; }

using SumSweep = void (*)(const bn_call &, const Tile &, Sums &);
using MapSweep = void (*)(const bn_call &, const Tile &, bool);

// Memory that goes with the block.
struct Workspace {
    double some[768];
    double *more = nullptr;

    double *reserve(int64_t n) {
        if (n <= int64_t(sizeof some / sizeof *some)) return some;
        return more = static_cast<double *>(std::malloc(size_t(n) * sizeof(double)));
    }
    ~Workspace() { std::free(more); }
};

// Merge b into a: moments by Chan, Golub and LeVeque 1979; other sums by adding.
inline void merge(Sums &a, const Sums &b, int64_t n, bool moments) {
    if (!moments) {
        for (int64_t i = 0; i < n; ++i) a.first[i] += b.first[i], a.second[i] += b.second[i];
        return;
    }
    if (!(b.count > 0)) return;
    const double count = a.count + b.count, share = b.count / count;
    for (int64_t i = 0; i < n; ++i) {
        const double delta = b.first[i] - a.first[i];
        a.first[i] += delta * share;
        a.second[i] += b.second[i] + delta * delta * (a.count * share);
    }
    a.count = count;
}

inline void clear(Sums &sums, int64_t n) {
    std::memset(sums.first, 0, size_t(n) * sizeof(double));
    std::memset(sums.second, 0, size_t(n) * sizeof(double));
    sums.count = 0;
}

// Sums over all of the data, `into` one of each a group.
inline int gather_tiles(const bn_call &c, SumSweep sweep, bool moments, Sums *into) {
    const Cut cut(c);
    Workspace memory;
    const int64_t room = cut.room(), each = 2 * room + 1;
    double *all = memory.reserve(cut.tiles() * cut.parts * each);
    if (!all) return BN_NO_MEMORY;
    const auto sums_of = [=](int64_t i) { return Sums{all + i * each, all + i * each + room, 0}; };
    const int error = everywhere(c, cut.bytes, cut.tiles() * cut.parts, [&](int64_t i) {
        Sums sums = sums_of(i);
        clear(sums, room);
        sweep(c, cut.tile(c, i / cut.parts, i % cut.parts), sums);
        all[i * each + 2 * room] = sums.count;
    });
    if (error) return error;
    for (int64_t i = 0; i < cut.tiles(); ++i) {
        const Tile t = cut.tile(c, i, 0);
        Sums &group = into[t.group];
        Sums own{group.first + t.first_channel, group.second + t.first_channel, 0};
        const int64_t n = t.last_channel - t.first_channel;
        clear(own, n);
        for (int64_t p = 0; p < cut.parts; ++p) {
            Sums part = sums_of(i * cut.parts + p);
            part.count = all[(i * cut.parts + p) * each + 2 * room];
            merge(own, part, n, moments);
        }
        group.count = own.count;
    }
    return BN_OK;
}

inline int map_tiles(const bn_call &c, MapSweep sweep, bool alone) {
    const Pieces pieces(c);
    const int64_t n = pieces.count(c), bytes = pieces.rows * c.groups * c.channels * c.inner * SIZES[c.dtype];
    const auto each = [&](int64_t i) { sweep(c, pieces.tile(i), streams(c, bytes, alone)); };
    return everywhere(c, bytes, n, each, !alone);  // after a sweep backwards: what that has left in the cache is the end
}

template <class A> int gather(const bn_call &c, SumSweep sweep, bool moments, Sums *into) {
    const Folded<A> folded(c);
    if (folded.times == 1) return gather_tiles(c, sweep, moments, into);
    double first[2][Folded<A>::LONGEST + VECTOR], second[2][Folded<A>::LONGEST + VECTOR];
    Sums main{first[0], second[0], 0}, rest{first[1], second[1], 0};
    if (const int error = gather_tiles(folded.main, sweep, moments, &main)) return error;
    if (const int error = gather_tiles(folded.rest, sweep, moments, &rest)) return error;
    clear(*into, c.channels);
    for (const auto &[sums, times] : {std::pair{main, folded.times}, std::pair{rest, folded.left}}) {
        for (int64_t i = 0; i < times; ++i) {
            merge(*into, Sums{sums.first + i * c.channels, sums.second + i * c.channels, sums.count}, c.channels, moments);
        }
    }
    return BN_OK;
}

template <class A> int map(const bn_call &c, MapSweep sweep, bool alone = true) {
    const Folded<A> folded(c);
    if (folded.times == 1) return map_tiles(c, sweep, alone);
    if (const int error = map_tiles(folded.main, sweep, alone)) return error;
    return map_tiles(folded.rest, sweep, alone);
}

// Whether the sums of a channel are finished while its data are in the cache.
template <class A> bool by_tiles(const bn_call &c) { return Cut(c).parts == 1 && Folded<A>::times_of(c) == 1; }

// Sum, finish each feature by `finish(f, first, second, count)`, and map `then`, unless it has nothing to write: tile by
// tile where one holds all of its channels' data.
template <class A, class Finish>
int sum_then_map(const bn_call &c, SumSweep sweep, bool moments, const Finish &finish, const bn_call &then, MapSweep last, bool writes) {
    const Cut cut(c);
    if (by_tiles<A>(c)) {
        return everywhere(c, cut.bytes, cut.tiles(), [&](int64_t i) {
            const Tile t = cut.tile(c, i, 0);
            double first[WIDEST + VECTOR], second[WIDEST + VECTOR];
            Sums sums{first, second, 0};
            clear(sums, cut.room());
            sweep(c, t, sums);
            for (int64_t k = t.first_channel; k < t.last_channel; ++k) {
                finish(t.group * c.channels + k, first[k - t.first_channel], second[k - t.first_channel], sums.count);
            }
            if (writes) last(then, t, streams(then, cut.bytes, false));
        });
    }
    Workspace memory;
    double *all = memory.reserve(2 * cut.features + 3 * c.groups);
    if (!all) return BN_NO_MEMORY;
    Sums *sums = reinterpret_cast<Sums *>(all + 2 * cut.features);
    for (int64_t g = 0; g < c.groups; ++g) {
        sums[g] = {all + g * c.channels, all + cut.features + g * c.channels, 0};
    }
    if (const int error = gather<A>(c, sweep, moments, sums)) return error;
    for (int64_t f = 0; f < cut.features; ++f) finish(f, all[f], all[cut.features + f], sums[f / c.channels].count);
    return writes ? map<A>(then, last, false) : int(BN_OK);
}

}  // namespace batchnorm
