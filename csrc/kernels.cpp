// The interface: what happens between two sweeps, and which instruction set serves.
//
// Tiles depend on the shape alone, each is swept by one thread, and their sums are merged in a fixed order: that is
// why the number of threads cannot change a bit.
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <type_traits>
#include <utility>

#include "folded.h"
#include "instruction_set.h"

#define BN_EXPORT extern "C" __attribute__((visibility("default")))

namespace batchnorm {
namespace {

constexpr int64_t STREAM_BYTES = 8 << 20;  // larger outputs go past the cache, which would not hold them

const Sweeps &sweeps(const bn_call &c) { return (*instruction_set()->table)[c.dtype]; }

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
void merge(Sums &a, const Sums &b, int64_t n, bool moments) {
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

void clear(Sums &sums, int64_t n) {
    std::memset(sums.first, 0, size_t(n) * sizeof(double));
    std::memset(sums.second, 0, size_t(n) * sizeof(double));
    sums.count = 0;
}

// Sums over all of the data, `into` one of each a group.
int gather_tiles(const bn_call &c, SumSweep sweep, bool moments, Sums *into) {
    const Cut cut(c);
    Workspace memory;
    const int64_t room = cut.room(), each = 2 * room + 1;
    double *all = memory.reserve(cut.tiles() * cut.parts * each);
    if (!all) return BN_NO_MEMORY;
    const auto sums_of = [=](int64_t i) { return Sums{all + i * each, all + i * each + room, 0}; };
    everywhere(c, cut.bytes, cut.tiles() * cut.parts, [&](int64_t i) {
        Sums sums = sums_of(i);
        clear(sums, room);
        sweep(c, cut.tile(c, i / cut.parts, i % cut.parts), sums);
        all[i * each + 2 * room] = sums.count;
    });
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

void map_tiles(const bn_call &c, MapSweep sweep) {
    const Cut cut(c);
    const int64_t n = cut.tiles() * cut.parts;
    everywhere(c, cut.bytes, n, [&](int64_t i) {  // backwards: the end of the data is what a sweep before has left in the cache
        const int64_t back = n - 1 - i;
        sweep(c, cut.tile(c, back / cut.parts, back % cut.parts), cut.bytes >= STREAM_BYTES);
    });
}

template <class A> A *numbers(const void *p) { return static_cast<A *>(const_cast<void *>(p)); }

// What stands between the sweeps, for one feature.
template <class A> void remember_moments(const bn_call &c, int64_t f, double mean, double m2, double count, const A *gamma, A *scale) {
    const A high = A(mean), low = A(mean - double(high));
    numbers<A>(c.mean)[f] = high;
    numbers<A>(c.mean_low)[f] = std::isfinite(low) ? low : A(0);
    numbers<A>(c.m2)[f] = A(m2);
    if (!scale) return;
    const A inv_std = A(1 / std::sqrt(m2 / (count > 0 ? count : 1) + c.eps));
    numbers<A>(c.inv_std)[f] = inv_std;
    scale[f] = gamma ? inv_std * gamma[f] : inv_std;
    if (c.factor) numbers<A>(c.factor)[f] = scale[f];
}

template <class A> void remember_sums(const bn_call &c, int64_t f, double sum, double centred, double count, A *of_centred, A *constant) {
    const A first = A(sum), second = A(centred);
    if (c.sum_dz) numbers<A>(c.sum_dz)[f] = first;
    if (c.sum_dz_centred) numbers<A>(c.sum_dz_centred)[f] = second;
    if (c.gamma_gradient) numbers<A>(c.gamma_gradient)[f] = numbers<A>(c.inv_std)[f] * second;
    if (!of_centred) return;
    const double scale = c.scale ? numbers<A>(c.scale)[f] : 1, inv_std = numbers<A>(c.inv_std)[f];
    const double per_value = scale * (c.per_count ? numbers<A>(c.per_count)[f] : 1 / count);
    of_centred[f] = A(-per_value * inv_std * inv_std * centred);
    constant[f] = A(-per_value * sum);
}

template <class A> int gather(const bn_call &c, SumSweep sweep, bool moments, Sums *into) {
    const Folded<A> folded(c);
    if (folded.times == 1) return gather_tiles(c, sweep, moments, into);
    double first[2][Folded<A>::LANES * Folded<A>::LANES + VECTOR], second[2][Folded<A>::LANES * Folded<A>::LANES + VECTOR];
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

template <class A> void map(const bn_call &c, MapSweep sweep) {
    const Folded<A> folded(c);
    if (folded.times == 1) return map_tiles(c, sweep);
    map_tiles(folded.main, sweep);
    map_tiles(folded.rest, sweep);
}

// Sum, finish each feature by `finish(f, first, second, count)`, and map `then`, unless it has nothing to write: tile by
// tile where one holds all of its channels' data.
template <class A, class Finish>
int sum_then_map(const bn_call &c, SumSweep sweep, bool moments, const Finish &finish, const bn_call &then, MapSweep last, bool writes) {
    const Cut cut(c);
    if (cut.parts == 1 && Folded<A>(c).times == 1) {
        return everywhere(c, cut.bytes, cut.tiles(), [&](int64_t i) {
            const Tile t = cut.tile(c, i, 0);
            double first[WIDEST + VECTOR], second[WIDEST + VECTOR];
            Sums sums{first, second, 0};
            clear(sums, cut.room());
            sweep(c, t, sums);
            for (int64_t k = t.first_channel; k < t.last_channel; ++k) {
                finish(t.group * c.channels + k, first[k - t.first_channel], second[k - t.first_channel], sums.count);
            }
            if (writes) last(then, t, cut.bytes >= STREAM_BYTES);
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
    if (writes) map<A>(then, last);
    return BN_OK;
}

template <class A> int forward(const bn_call &c, bool writes) {
    Workspace memory;
    A *scale = writes ? reinterpret_cast<A *>(memory.reserve(c.groups * c.channels)) : nullptr;
    if (writes && !scale) return BN_NO_MEMORY;
    bn_call then = c;
    then.scale = scale;
    const A *gamma = numbers<A>(c.scale);
    const auto finish = [&](int64_t f, double mean, double m2, double n) { remember_moments<A>(c, f, mean, m2, n, gamma, scale); };
    return sum_then_map<A>(c, sweeps(c).moments, true, finish, then, sweeps(c).affine, writes);
}

template <class A> int backward(const bn_call &c, bool writes) {
    Workspace memory;
    const int64_t features = c.groups * c.channels;
    const bool through = writes && !c.fixed;
    A *coefficients = through ? reinterpret_cast<A *>(memory.reserve(2 * features)) : nullptr;
    if (through && !coefficients) return BN_NO_MEMORY;
    bn_call then = c;
    then.of_centred = coefficients;
    then.constant = coefficients + (through ? features : 0);
    const double count = double(c.outer * c.rows * c.inner);
    const auto finish = [&](int64_t f, double sum, double centred, double) {
        remember_sums<A>(c, f, sum, centred, count, coefficients, numbers<A>(then.constant));
    };
    if (c.fixed && !c.sum_dz && !c.sum_dz_centred && !c.gamma_gradient) {
        map<A>(then, sweeps(c).elementwise);
        return BN_OK;
    }
    return sum_then_map<A>(c, sweeps(c).reduce, false, finish, then, sweeps(c).elementwise, writes && (c.dx || c.dz));
}

template <class A> int remember(const bn_memory &m) {
    const A *mean = numbers<A>(m.mean), *low = numbers<A>(m.mean_low), *m2 = numbers<A>(m.m2);
    A *running_mean = numbers<A>(m.running_mean), *running_var = numbers<A>(m.running_var);
    if (m.skip) {
        for (int64_t f = 0; f < m.features; ++f) {
            if (!std::isfinite(m2[f])) return 0;
        }
    }
    const A alpha = A(m.momentum), n = A(m.count > 0 ? m.count : 1), divisor = m.unbiased && m.count > 1 ? A(m.count - 1) : n;
    for (int64_t f = 0; f < m.features; ++f) {
        running_mean[f] += alpha * (mean[f] + (low ? low[f] : A(0)) - running_mean[f]);
        running_var[f] += alpha * (m2[f] / divisor - running_var[f]);
    }
    if (m.batches) ++*m.batches;
    return 1;
}

// The same call with axes merged where they lie side by side.
bn_call merged(bn_call c) {
    if (c.outer == 0 || c.rows == 0 || c.inner == 0) {  // features of nothing
        c.outer = 0;
        c.rows = c.inner = 1;
    }
    if (c.rows == 1 && !c.weights) {
        c.channels *= c.groups;
        c.groups = 1;
    }
    if (c.groups * c.channels == 1) {
        c.inner *= c.outer * c.rows;
        c.outer = c.rows = 1;
    }
    return c;
}

int64_t elements(const bn_call &c) { return c.outer * c.groups * c.rows * c.channels * c.inner; }

int checked(const bn_call *c) {
    if (!c) return BN_NULL_POINTER;
    if (c->outer < 0 || c->groups < 0 || c->rows < 0 || c->channels < 0 || c->inner < 0) return BN_BAD_SHAPE;
    if (c->dtype < BN_FLOAT32 || c->dtype > BN_FLOAT16) return BN_BAD_DTYPE;
    if (c->activation < BN_IDENTITY || c->activation > BN_SIGMOID) return BN_BAD_ACTIVATION;
    return BN_OK;
}

// Check, and run in the working type; `data` and `features` must be there unless there is nothing of them.
template <class Single, class Double>
int run(const bn_call *call, std::initializer_list<const void *> data, std::initializer_list<const void *> features, Single single, Double twice) {
    for (const void *p : data) {
        if (!p && elements(*call) > 0) return BN_NULL_POINTER;
    }
    for (const void *p : features) {
        if (!p && call->groups * call->channels > 0) return BN_NULL_POINTER;
    }
    const bn_call c = merged(*call);
    return c.dtype == BN_FLOAT64 ? twice(c) : single(c);
}

}  // namespace
}  // namespace batchnorm

using namespace batchnorm;

BN_EXPORT int bn_moments(const bn_call *c) {
    if (const int error = checked(c)) return error;
    return run(c, {c->x}, {c->mean, c->mean_low, c->m2}, [](const bn_call &d) { return forward<float>(d, false); },
               [](const bn_call &d) { return forward<double>(d, false); });
}

BN_EXPORT int bn_affine(const bn_call *c) {
    if (const int error = checked(c)) return error;
    const auto single = [](const bn_call &d) { return map<float>(d, sweeps(d).affine), int(BN_OK); };
    const auto twice = [](const bn_call &d) { return map<double>(d, sweeps(d).affine), int(BN_OK); };
    return run(c, {c->x, c->y}, {c->mean}, single, twice);
}

BN_EXPORT int bn_forward(const bn_call *c) {
    if (const int error = checked(c)) return error;
    return run(c, {c->x, c->y}, {c->mean, c->mean_low, c->m2, c->inv_std}, [](const bn_call &d) { return forward<float>(d, true); },
               [](const bn_call &d) { return forward<double>(d, true); });
}

BN_EXPORT int bn_backward_reduce(const bn_call *c) {
    if (const int error = checked(c)) return error;
    return run(c, {c->x, c->dy}, {c->mean, c->sum_dz, c->sum_dz_centred}, [](const bn_call &d) { return backward<float>(d, false); },
               [](const bn_call &d) { return backward<double>(d, false); });
}

BN_EXPORT int bn_backward_elementwise(const bn_call *c) {
    if (const int error = checked(c)) return error;
    const auto single = [](const bn_call &d) { return map<float>(d, sweeps(d).elementwise), int(BN_OK); };
    const auto twice = [](const bn_call &d) { return map<double>(d, sweeps(d).elementwise), int(BN_OK); };
    return run(c, {c->x, c->dy}, {c->mean}, single, twice);
}

BN_EXPORT int bn_backward(const bn_call *c) {
    if (const int error = checked(c)) return error;
    const bool reads_inv_std = !c->fixed || c->gamma_gradient;
    return run(c, {c->x, c->dy}, {c->mean, reads_inv_std ? c->inv_std : c->mean}, [](const bn_call &d) { return backward<float>(d, true); },
               [](const bn_call &d) { return backward<double>(d, true); });
}

BN_EXPORT int bn_remember(const bn_memory *m) {
    if (!m) return -BN_NULL_POINTER;
    if (m->features < 0) return -BN_BAD_SHAPE;
    if (m->dtype != BN_FLOAT32 && m->dtype != BN_FLOAT64) return -BN_BAD_DTYPE;
    if (m->features > 0 && (!m->mean || !m->m2 || !m->running_mean || !m->running_var)) return -BN_NULL_POINTER;
    return m->dtype == BN_FLOAT64 ? remember<double>(*m) : remember<float>(*m);
}

BN_EXPORT int64_t bn_bits_size(const bn_call *c) {
    if (checked(c)) return 0;
    const int64_t lanes = c->dtype == BN_FLOAT64 ? 8 : 16, lines = c->outer * c->groups * c->rows;
    return c->inner > 1 ? lines * c->channels * masks_of(c->inner, lanes) : lines * over(c->channels, lanes);
}

BN_EXPORT int64_t bn_interface(void) { return BN_INTERFACE; }
BN_EXPORT const char *bn_instruction_set(void) { return instruction_set()->name; }
BN_EXPORT int bn_use_instruction_set(const char *name) {
    for (const InstructionSet &set : SETS) {
        if (std::strcmp(set.name, name) == 0 && set.here()) {
            chosen_set.store(&set);
            return 0;
        }
    }
    return 1;
}
BN_EXPORT int64_t bn_threads(void) { return pool_threads(); }
BN_EXPORT void bn_use_threads(int64_t threads) { pool_use_threads(threads); }
