#include "values.h"

#include "check.h"
#include "oracle.h"
#include "tolerances.h"

#include <cstdio>
#include <cstring>

namespace bn_tests {
namespace {

// Runs `function`, and checks what holds of all of them.
void run(Problem &problem, const char *name, int (*function)(const bn_call *), const bn_call &call) {
    const uint64_t inputs = problem.digest_of_inputs();
    check(function(&call) == BN_OK, std::string(name) + " refuses " + problem.setting.text());
    check(problem.digest_of_inputs() == inputs, std::string(name) + " changed an input: " + problem.setting.text());
    check_guards(problem, name);
}

// Counts the wrong ones of an output, and tells of the first.
class Comparison {
public:
    Comparison(const Problem &problem, const char *output) : problem_(problem), output_(output) {}
    ~Comparison() {
        char text[160] = "";
        const int digits = problem_.working == BN_FLOAT64 ? 17 : 9;
        if (wrong_)
            std::snprintf(text, sizeof text, "%s[%lld] = %.*g, not %.*g +- %.2g (%lld of %lld wrong): ", output_,
                          static_cast<long long>(where_), digits, actual_, digits, expected_, allowed_,
                          static_cast<long long>(wrong_), static_cast<long long>(compared_));
        check(wrong_ == 0, text + problem_.setting.text());
    }
    void operator()(bool right, int64_t index, double actual, long double expected, long double allowed) {
        ++compared_;
        if (right) return;
        if (wrong_++) return;
        where_ = index, actual_ = actual;
        expected_ = static_cast<double>(expected), allowed_ = static_cast<double>(allowed);
    }

private:
    const Problem &problem_;
    const char *output_;
    int64_t compared_ = 0, wrong_ = 0, where_ = 0;
    double actual_ = 0, expected_ = 0, allowed_ = 0;
};

void compare_moments(const Problem &problem) {
    Comparison means(problem, "mean + mean_low"), highs(problem, "mean"), m2s(problem, "m2");
    for (int64_t feature = 0; feature < problem.setting.shape.features(); ++feature) {
        const Moments exact = exact_moments(problem, feature);
        const double high = problem.mean.get(feature), m2 = problem.m2.get(feature);
        const long double mean = static_cast<long double>(high) + problem.mean_low.get(feature);
        const long double allowed = of_mean(problem.working, exact), allowed_m2 = of_m2(problem.working, exact);
        means(std::fabs(mean - exact.mean) <= allowed, feature, static_cast<double>(mean), exact.mean, allowed);
        // The low part is no more than the rounding of the high one.
        const long double rounding = 2 * unit_of(problem.working) * std::fabs(exact.mean) + allowed;
        highs(std::fabs(high - exact.mean) <= rounding, feature, high, exact.mean, rounding);
        m2s(m2 >= 0 && std::fabs(m2 - exact.m2) <= allowed_m2, feature, m2, exact.m2, allowed_m2);
    }
}

void compare_inv_std(const Problem &problem) {
    Comparison inv_stds(problem, "inv_std");
    for (int64_t feature = 0; feature < problem.setting.shape.features(); ++feature) {
        const Moments exact = exact_moments(problem, feature);
        const long double expected = exact_inv_std(exact), allowed = of_inv_std(problem.working, exact) * expected;
        const double actual = problem.inv_std.get(feature);
        inv_stds(std::fabs(actual - expected) <= allowed, feature, actual, expected, allowed);
    }
}

// y of the formula alone, from the exact moments of x.
void compare_forward(const Problem &problem) {
    Comparison ys(problem, "y");
    const Setting &setting = problem.setting;
    for (int64_t feature = 0; feature < setting.shape.features(); ++feature) {
        const Moments exact = exact_moments(problem, feature);
        const long double scale = problem.gamma.get(feature) * exact_inv_std(exact);
        for_each_element(setting.shape, feature, [&](int64_t element, int64_t) {
            const long double normalised = (problem.x.get(element) - exact.mean) * scale;
            const long double added = problem.residual.data() ? problem.residual.get(element) : 0;
            const long double z = normalised + problem.beta.get(feature) + added;
            const long double expected = activate(problem, z);
            const long double size = std::fabs(normalised) + std::fabs(problem.beta.get(feature)) + std::fabs(added);
            const long double allowed = of_forward(problem.working, exact, scale, size);
            const double y = problem.y.get(element);
            ys(close(setting.dtype, y, expected, allowed), element, y, expected, allowed);
        });
    }
}

// y from the mean the problem holds, to the bit where every operation is defined.
void compare_affine(const Problem &problem, const Buffer *scale, const Buffer *shift) {
    Comparison ys(problem, "y");
    const Setting &setting = problem.setting;
    const bool exactly = setting.activation == BN_IDENTITY || by_sign(setting.activation);
    const Affine affine_map{problem, scale, shift};
    for (int64_t feature = 0; feature < setting.shape.features(); ++feature)
        for_each_element(setting.shape, feature, [&](int64_t element, int64_t) {
            const double z = affine_map.z(element, feature), y = problem.y.get(element);
            if (exactly) {
                const double expected = rounded(setting.dtype, activated_in_working_type(problem, z));
                ys(y == expected, element, y, expected, 0);
            } else {
                const long double expected = activate(problem, z), allowed = of_activation(problem.working, z);
                ys(close(setting.dtype, y, expected, allowed), element, y, expected, allowed);
            }
        });
}

long double inexact_of(const Problem &problem, long double size) {
    return problem.setting.activation == BN_IDENTITY || problem.setting.activation == BN_RELU ? 0 : size;
}

void compare_sums(const Problem &problem, const ExactGradients &exact) {
    Comparison sums(problem, "sum_dz"), centred_sums(problem, "sum_dz_centred");
    for (int64_t feature = 0; feature < problem.setting.shape.features(); ++feature) {
        const Gradient &one = exact.features[static_cast<size_t>(feature)];
        const auto compare = [&](Comparison &comparison, const Buffer &buffer, long double expected, long double size,
                                 long double size_over_dy) {
            const long double allowed = of_sum(problem.working, size, inexact_of(problem, size_over_dy));
            const double actual = buffer.get(feature);
            comparison(std::fabs(actual - expected) <= allowed, feature, actual, expected, allowed);
        };
        compare(sums, problem.sum_dz, one.sum_dz, one.size_dz, one.size_dy);
        compare(centred_sums, problem.sum_dz_centred, one.sum_dz_centred, one.size_dz_centred, one.size_dy_centred);
    }
}

// What a feature's dx is made of: dz * scale + w * ((x - mu) * of_centred + constant).
struct Coefficients {
    long double of_centred = 0, constant = 0;
    long double size_of_centred = 0, size_constant = 0; // what their errors go by
};

void compare_gradients(const Problem &problem, const ExactGradients &exact, int64_t feature, const Coefficients &by,
                       Comparison &dxs, Comparison &dzs) {
    const Setting &setting = problem.setting;
    const long double scale = setting.plain ? 1 : problem.scale.get(feature);
    for_each_element(setting.shape, feature, [&](int64_t element, int64_t sample) {
        const long double dz = exact.dz[static_cast<size_t>(element)], from_mean = centred(problem, element, feature);
        const long double weight = problem.weight(sample);
        const long double dy = std::fabs(static_cast<long double>(problem.dy.get(element)));
        const long double expected = dz * scale + weight * (from_mean * by.of_centred + by.constant);
        const long double of_dz = inexact_of(problem, of_derivative(problem.working) * dy);
        const long double size =
            std::fabs(dz * scale) + weight * (std::fabs(from_mean) * by.size_of_centred + by.size_constant);
        const long double allowed = of_dx(problem.working, size) + of_dz * std::fabs(scale);
        const double dx = problem.dx.get(element), actual = problem.dz.get(element);
        dxs(close(setting.dtype, dx, expected, allowed), element, dx, expected, allowed);
        const long double allowed_dz = of_dz + unit_of(problem.working) * std::fabs(dz);
        dzs(close(setting.dtype, actual, dz, allowed_dz), element, actual, dz, allowed_dz);
    });
}

template <typename Make>
void compare_all_gradients(const Problem &problem, const ExactGradients &exact, Make coefficients) {
    Comparison dxs(problem, "dx"), dzs(problem, "dz");
    for (int64_t feature = 0; feature < problem.setting.shape.features(); ++feature)
        compare_gradients(problem, exact, feature, coefficients(feature), dxs, dzs);
}

Coefficients of_formula(const Problem &problem, const ExactGradients &exact, int64_t feature) {
    const Gradient &gradient = exact.features[static_cast<size_t>(feature)];
    const Setting &setting = problem.setting;
    const long double reduced = setting.shape.reduced();
    const long double per_count = setting.weights == Weights::none ? 1 / reduced : problem.per_count.get(feature);
    const long double scale = (setting.plain ? 1 : problem.scale.get(feature)) * per_count;
    const long double inv_std = problem.inv_std.get(feature), of_centred = -scale * inv_std * inv_std;
    return {of_centred * gradient.sum_dz_centred, -scale * gradient.sum_dz,
            std::fabs(of_centred) * (gradient.size_dz_centred + inexact_of(problem, gradient.size_dy_centred)),
            std::fabs(scale) * (gradient.size_dz + inexact_of(problem, gradient.size_dy))};
}

// The forward of these very numbers, for its bits.
void make_bits(Problem &problem) {
    const bn_call call = problem.affine_call();
    check(bn_affine(&call) == BN_OK, "affine refuses " + problem.setting.text());
}

} // namespace

void check_moments(Problem &problem) {
    for (Buffer *output : {&problem.mean, &problem.mean_low, &problem.m2}) output->fill(0xFF);
    run(problem, "moments", bn_moments, problem.call());
    compare_moments(problem);
    problem.use_exact_statistics();
}

void check_affine(Problem &problem) {
    problem.clear_outputs();
    const bool plain = problem.setting.plain;
    bn_call call = problem.affine_call();
    const auto run_and_compare = [&](const char *operation) {
        problem.y.fill(0xFF);
        run(problem, operation, bn_affine, call);
        compare_affine(problem, plain ? nullptr : &problem.scale, plain ? nullptr : &problem.beta);
    };
    run_and_compare("affine");
    call.bits = nullptr;
    run_and_compare("affine without bits");
    call.mean_low = nullptr;
    for (int64_t i = 0; i < problem.mean_low.count(); ++i) problem.mean_low.set(i, 0);
    run_and_compare("affine of a mean in one part");
    problem.use_exact_statistics();
}

void check_forward(Problem &problem) {
    problem.clear_outputs();
    for (Buffer *output : {&problem.mean, &problem.mean_low, &problem.inv_std}) output->fill(0xFF);
    bn_call call = problem.call();
    run(problem, "forward", bn_forward, call);
    const uint64_t y = problem.y.digest();
    call.bits = nullptr;
    problem.y.fill(0xFF);
    run(problem, "forward without bits", bn_forward, call);
    check(problem.y.digest() == y, "y differs without bits: " + problem.setting.text());
    compare_moments(problem);
    compare_inv_std(problem);
    compare_forward(problem);
    // And to the bit, from its own moments.
    Buffer scale(problem.working, problem.setting.shape.features());
    for (int64_t i = 0; i < scale.count(); ++i) scale.set(i, problem.gamma.get(i) * problem.inv_std.get(i));
    compare_affine(problem, &scale, problem.setting.plain ? nullptr : &problem.beta);
    problem.use_exact_statistics();
}

void check_backward_reduce(Problem &problem, bool with_bits) {
    problem.clear_outputs();
    make_bits(problem);
    const ExactGradients exact(problem);
    const uint64_t dx = problem.dx.digest(), dz = problem.dz.digest();
    run(problem, "backward_reduce", bn_backward_reduce, problem.backward_call(with_bits));
    compare_sums(problem, exact);
    check(problem.dx.digest() == dx && problem.dz.digest() == dz, "sums alone write gradients: " + problem.setting.text());
}

void check_backward_elementwise(Problem &problem, bool with_bits) {
    problem.clear_outputs();
    make_bits(problem);
    const ExactGradients exact(problem);
    bn_call call = problem.backward_call(with_bits);
    run(problem, "backward_elementwise", bn_backward_elementwise, call);
    compare_all_gradients(problem, exact, [&](int64_t feature) {
        const long double of_centred = problem.of_centred.get(feature), constant = problem.constant.get(feature);
        return Coefficients{of_centred, constant, std::fabs(of_centred), std::fabs(constant)};
    });
    call.of_centred = call.constant = nullptr;
    run(problem, "backward_elementwise of constants", bn_backward_elementwise, call);
    compare_all_gradients(problem, exact, [](int64_t) { return Coefficients{}; });
}

void check_backward(Problem &problem, bool with_bits) {
    problem.clear_outputs();
    make_bits(problem);
    const ExactGradients exact(problem);
    bn_call call = problem.backward_call(with_bits);
    run(problem, "backward", bn_backward, call);
    compare_sums(problem, exact);
    compare_all_gradients(problem, exact, [&](int64_t feature) { return of_formula(problem, exact, feature); });
    call.fixed = 1;
    problem.dx.fill(0xFF), problem.dz.fill(0xFF);
    run(problem, "backward, fixed", bn_backward, call);
    compare_sums(problem, exact);
    compare_all_gradients(problem, exact, [](int64_t) { return Coefficients{}; });
    call.sum_dz = call.sum_dz_centred = nullptr;
    problem.dx.fill(0xFF), problem.dz.fill(0xFF);
    run(problem, "backward, fixed without sums", bn_backward, call);
    compare_all_gradients(problem, exact, [](int64_t) { return Coefficients{}; });
}

} // namespace bn_tests
