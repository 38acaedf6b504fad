#include "problem.h"

#include "check.h"
#include "oracle.h"

#include <algorithm>
#include <cmath>

namespace bn_tests {
namespace {

struct Level {
    double mean, deviation;
};

// Different for each feature, so that a mixed-up feature shows.
Level level_of(Regime regime, int64_t feature, bn_dtype dtype) {
    const double which = static_cast<double>(feature % 5);
    const double largest = dtype == BN_FLOAT16 ? 2e3 : 1e6; // float16 ends at 65504
    switch (regime) {
    case Regime::mean_1e2: return {100 * (which - 1.5), 1};
    case Regime::mean_1e6: return {largest * (which - 2.5), 1};
    case Regime::constant: return {0.1 + which, 0};
    case Regime::tiny: return {which / 2, dtype == BN_FLOAT64 || which == 0 ? 1e-9 : 1e-4};
    default: return {which - 2, 0.5 + which / 2};
    }
}

const char *name_of(Regime regime) {
    static const char *const names[] = {"standard", "mean 1e2", "mean 1e6", "constant",
                                        "outlier first", "outlier inside", "tiny variance"};
    return names[static_cast<int>(regime)];
}

const char *name_of(Weights weights) {
    static const char *const names[] = {"no weights", "mask", "fractional weights", "weights 0"};
    return names[static_cast<int>(weights)];
}

const char *name_of(bn_activation activation) {
    static const char *const names[] = {"identity", "relu", "leaky_relu", "silu", "gelu", "tanh", "sigmoid"};
    return names[activation];
}

} // namespace

std::string Setting::text() const {
    const auto number = [](int64_t value) { return std::to_string(value); };
    std::string text = "(" + number(shape.outer) + ", " + number(shape.groups) + ", " + number(shape.rows) + ", " +
                       number(shape.channels) + ", " + number(shape.inner) + ") " + bn_tests::name_of(dtype) + " " +
                       name_of(activation) + ", " + name_of(regime) + ", " + name_of(weights);
    if (residual) text += ", residual";
    if (plain) text += ", no scale";
    if (offsets) text += ", offsets " + number(offsets);
    return text;
}

Problem::Problem(const Setting &given) : setting(given), working(working_type(given.dtype)) {
    Random random(setting.seed);
    const int64_t elements = setting.shape.elements(), features = setting.shape.features();
    const auto array = [&](int bit) { return Buffer(setting.dtype, elements, setting.offsets >> bit & 1); };
    x = array(0), y = array(1), dy = array(2), dx = array(3), dz = array(5);
    if (setting.residual) residual = array(4);
    for (Buffer *feature : {&gamma, &beta, &per_count, &mean, &mean_low, &m2, &inv_std, &sum_dz, &sum_dz_centred,
                            &scale, &of_centred, &constant})
        *feature = Buffer(working, features);
    const bn_call sized = call();
    bits = Buffer(BN_FLOAT16, bn_bits_size(&sized)); // two bytes each, as uint16_t
    make_x(random);
    for (int64_t i = 0; i < elements; ++i) {
        dy.set(i, random.normal() + 0.1);
        if (setting.residual) residual.set(i, random.normal());
    }
    make_weights(random);
    make_features(random);
}

void Problem::make_x(Random &random) {
    for (int64_t feature = 0; feature < setting.shape.features(); ++feature) {
        const Level level = level_of(setting.regime, feature, setting.dtype);
        int64_t last = 0, count = 0, first = -1, middle = -1;
        for_each_element(setting.shape, feature, [&](int64_t element, int64_t) {
            x.set(element, level.mean + level.deviation * random.normal());
            if (first < 0) first = element;
            if (count++ == setting.shape.reduced() / 2) middle = element;
            last = element;
        });
        if (count == 0) continue;
        if (setting.regime == Regime::outlier_first) x.set(first, 1e4);
        if (setting.regime == Regime::outlier_inside) x.set(feature % 2 ? middle : last, -1e4);
    }
}

void Problem::make_weights(Random &random) {
    if (setting.weights == Weights::none) return;
    weights = Buffer(working, setting.shape.samples());
    for (int64_t i = 0; i < weights.count(); ++i) {
        const double drawn = random.uniform();
        const bool padding = drawn < 0.3 || i == 0; // the first sample of all is the likeliest to serve as a shift
        if (setting.weights == Weights::mask) weights.set(i, !padding);
        if (setting.weights == Weights::fractional) weights.set(i, padding ? 0 : 2 * random.uniform());
        if (setting.weights == Weights::zero) weights.set(i, 0);
    }
    // Padding holds anything finite, and no loss looks at it.
    const double huge = setting.dtype == BN_FLOAT16 ? 6e4 : 1e30;
    for (int64_t feature = 0; feature < setting.shape.features(); ++feature)
        for_each_element(setting.shape, feature, [&](int64_t element, int64_t sample) {
            if (weights.get(sample) != 0) return;
            x.set(element, setting.weights == Weights::zero ? x.get(element) : huge);
            dy.set(element, 0);
        });
}

void Problem::make_features(Random &random) {
    for (int64_t feature = 0; feature < setting.shape.features(); ++feature) {
        gamma.set(feature, setting.plain ? 1 : (feature % 3 == 1 ? -1 : 1) * (0.5 + random.uniform()));
        beta.set(feature, setting.plain ? 0 : random.normal());
        of_centred.set(feature, random.normal());
        constant.set(feature, random.normal());
    }
    use_exact_statistics();
}

void Problem::use_exact_statistics() {
    for (int64_t feature = 0; feature < setting.shape.features(); ++feature) {
        const Moments moments = exact_moments(*this, feature);
        const double high = rounded(working, static_cast<double>(moments.mean));
        mean.set(feature, high);
        mean_low.set(feature, static_cast<double>(moments.mean - high));
        inv_std.set(feature, static_cast<double>(exact_inv_std(moments)));
        scale.set(feature, setting.plain ? 1 : gamma.get(feature) * inv_std.get(feature));
        per_count.set(feature, moments.total > 0 ? static_cast<double>(1 / moments.total) : 0);
    }
}

bn_call Problem::call() const {
    bn_call call{};
    const Shape &shape = setting.shape;
    call.outer = shape.outer, call.groups = shape.groups, call.rows = shape.rows;
    call.channels = shape.channels, call.inner = shape.inner;
    call.dtype = setting.dtype, call.activation = setting.activation;
    call.x = x.data(), call.residual = residual.data(), call.weights = weights.data();
    call.y = y.data(), call.dy = dy.data(), call.dx = dx.data(), call.dz = dz.data();
    call.bits = static_cast<uint16_t *>(bits.data());
    call.mean = mean.data(), call.mean_low = mean_low.data(), call.m2 = m2.data(), call.inv_std = inv_std.data();
    call.scale = setting.plain ? nullptr : gamma.data();
    call.shift = setting.plain ? nullptr : beta.data();
    call.sum_dz = sum_dz.data(), call.sum_dz_centred = sum_dz_centred.data();
    call.of_centred = of_centred.data(), call.constant = constant.data();
    call.per_count = setting.weights == Weights::none ? nullptr : per_count.data();
    call.eps = epsilon;
    return call;
}

bn_call Problem::affine_call() const {
    bn_call call = this->call();
    if (!setting.plain) call.scale = scale.data();
    return call;
}

bn_call Problem::backward_call(bool with_bits) const {
    bn_call call = affine_call();
    if (with_bits && by_sign(setting.activation)) call.residual = nullptr;
    else call.bits = nullptr;
    return call;
}

std::vector<std::pair<const char *, const Buffer *>> Problem::inputs() const {
    return {{"x", &x}, {"residual", &residual}, {"weights", &weights}, {"dy", &dy}, {"gamma", &gamma},
            {"beta", &beta}, {"per_count", &per_count}, {"scale", &scale}, {"of_centred", &of_centred},
            {"constant", &constant}};
}

std::vector<std::pair<const char *, const Buffer *>> Problem::outputs() const {
    return {{"y", &y}, {"dx", &dx}, {"dz", &dz}, {"bits", &bits}, {"mean", &mean}, {"mean_low", &mean_low},
            {"m2", &m2}, {"inv_std", &inv_std}, {"sum_dz", &sum_dz}, {"sum_dz_centred", &sum_dz_centred}};
}

uint64_t Problem::digest_of_inputs() const {
    uint64_t digest = 0;
    for (const auto &[name, buffer] : inputs()) digest = digest * 31 + buffer->digest();
    return digest;
}

void Problem::clear_outputs() {
    for (Buffer *output : {&y, &dx, &dz, &bits, &m2, &sum_dz, &sum_dz_centred}) output->fill(0xFF);
}

void check_guards(const Problem &problem, const std::string &operation) {
    for (const auto &list : {problem.inputs(), problem.outputs()})
        for (const auto &[name, buffer] : list)
            check(buffer->guards_intact(), operation + " wrote outside of " + name + ": " + problem.setting.text());
}

Digests run_everything(Problem &problem, bn_parallel_for parallel_for) {
    Digests digests;
    problem.clear_outputs();
    for (Buffer *output : {&problem.mean, &problem.mean_low, &problem.inv_std}) output->fill(0xFF);
    const auto run = [&](const char *name, int (*function)(const bn_call *), bn_call call) {
        call.parallel_for = parallel_for;
        check(function(&call) == BN_OK, std::string(name) + " refuses " + problem.setting.text());
        for (const auto &[output, buffer] : problem.outputs())
            digests.emplace_back(std::string(output) + " after " + name, buffer->digest());
    };
    run("moments", bn_moments, problem.call());
    run("affine", bn_affine, problem.affine_call());
    run("forward", bn_forward, problem.call());
    run("affine after forward", bn_affine, problem.affine_call()); // bits, under the scale of the backward
    run("backward_reduce", bn_backward_reduce, problem.backward_call(true));
    run("backward_elementwise", bn_backward_elementwise, problem.backward_call(true));
    run("backward", bn_backward, problem.backward_call(false));
    bn_call fixed = problem.backward_call(true);
    fixed.fixed = 1;
    problem.dx.fill(0xFF), problem.dz.fill(0xFF);
    run("backward, fixed", bn_backward, fixed);
    return digests;
}

void check_same(const Digests &actual, const Digests &expected, const std::string &what) {
    check(actual.size() == expected.size(), "another number of outputs: " + what);
    for (size_t i = 0; i < std::min(actual.size(), expected.size()); ++i)
        check(actual[i] == expected[i], actual[i].first + " differs: " + what);
}

} // namespace bn_tests
