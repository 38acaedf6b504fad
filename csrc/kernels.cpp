// The interface: what happens between the sweeps, and what a call must hold.
#include <cmath>
#include <initializer_list>

#include "passes.h"

#define BN_EXPORT extern "C" __attribute__((visibility("default")))

namespace batchnorm {
namespace {

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

template <class A> int infer(const bn_call &c) {
    Workspace memory;
    const int64_t features = c.groups * c.channels;
    A *scale = reinterpret_cast<A *>(memory.reserve(features));
    if (!scale) return BN_NO_MEMORY;
    const A *variance = numbers<A>(c.m2), *gamma = numbers<A>(c.scale);
    for (int64_t f = 0; f < features; ++f) {
        const A inv_std = A(1) / std::sqrt(variance[f] + A(c.eps));
        scale[f] = gamma ? inv_std * gamma[f] : inv_std;
        if (c.inv_std) numbers<A>(c.inv_std)[f] = inv_std;
        if (c.factor) numbers<A>(c.factor)[f] = scale[f];
    }
    bn_call then = c;
    then.scale = scale;
    return map<A>(then, sweeps(c).affine);
}

template <class A> int backward(const bn_call &c, bool writes) {
    Workspace memory;
    const int64_t features = c.groups * c.channels;
    const bool through = writes && !c.fixed;
    A *coefficients = through ? reinterpret_cast<A *>(memory.reserve(2 * features)) : nullptr;
    if (through && !coefficients) return BN_NO_MEMORY;
    const double count = double(c.outer * c.rows * c.inner);
    bn_call sums = c, then = c;
    then.of_centred = coefficients;
    then.constant = coefficients + (through ? features : 0);
    const auto finish = [&](int64_t f, double sum, double centred, double) {
        remember_sums<A>(c, f, sum, centred, count, coefficients, numbers<A>(then.constant));
    };
    if (c.fixed && !c.sum_dz && !c.sum_dz_centred && !c.gamma_gradient) return map<A>(then, sweeps(c).elementwise);
    const bool maps = through && c.dx, smooth = c.activation > BN_LEAKY_RELU;  // dz alone is written by the sums
    if (!writes || maps) sums.dx = sums.dz = nullptr;
    if (maps && smooth && SIZES[c.dtype] == sizeof(A) && by_tiles<A>(c)) {
        // dz takes longer to find than to keep in the cache: where it is wanted, or else where dx will be.
        then.dy = sums.dz = c.dz ? c.dz : c.dx;
        then.dz = nullptr;
        then.activation = BN_IDENTITY;
    }
    return sum_then_map<A>(sums, sweeps(c).reduce, false, finish, then, sweeps(c).elementwise, maps);
}

template <class A> int remember(const bn_memory &m) {
    const A *mean = numbers<A>(m.mean), *low = numbers<A>(m.mean_low), *m2 = numbers<A>(m.m2);
    A *running_mean = numbers<A>(m.running_mean), *running_var = numbers<A>(m.running_var);
    if (m.skip) {
        for (int64_t f = 0; f < m.features; ++f) {
            if (!std::isfinite(m2[f])) return 0;
        }
    }
    // Exact at both ends: momentum 0 leaves s, 1 gives o, however far apart these are. In double also where A is float.
    const auto moved = [alpha = m.momentum](double s, double o) {
        return A(alpha < 0.5 ? s + alpha * (o - s) : o - (1 - alpha) * (o - s));
    };
    const double n = m.count > 0 ? m.count : 1, divisor = m.unbiased && m.count > 1 ? m.count - 1 : n;
    for (int64_t f = 0; f < m.features; ++f) {
        running_mean[f] = moved(running_mean[f], double(mean[f]) + (low ? double(low[f]) : 0));
        running_var[f] = moved(running_var[f], double(m2[f]) / divisor);
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
    const auto single = [](const bn_call &d) { return map<float>(d, sweeps(d).affine); };
    const auto twice = [](const bn_call &d) { return map<double>(d, sweeps(d).affine); };
    return run(c, {c->x, c->y}, {c->mean}, single, twice);
}

BN_EXPORT int bn_infer(const bn_call *c) {
    if (const int error = checked(c)) return error;
    return run(c, {c->x, c->y}, {c->mean, c->m2}, infer<float>, infer<double>);
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
    const auto single = [](const bn_call &d) { return map<float>(d, sweeps(d).elementwise); };
    const auto twice = [](const bn_call &d) { return map<double>(d, sweeps(d).elementwise); };
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
