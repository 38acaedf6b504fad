#include "oracle.h"

#include <cmath>

namespace bn_tests {
namespace {

// volatile: no compiler may fuse the product and the sums into one rounding.
template <typename T> T affine(T x, T mean, T mean_low, const T *scale, const T *shift, const T *residual) {
    volatile T z = x - mean;
    z = z - mean_low;
    if (scale) z = z * *scale;
    if (shift) z = z + *shift;
    if (residual) z = z + *residual;
    return z;
}

template <typename T> double affine_of(const Affine &affine_map, int64_t element, int64_t feature) {
    const Problem &problem = affine_map.problem;
    const auto in_working_type = [](const Buffer &buffer, int64_t i) { return static_cast<T>(buffer.get(i)); };
    T scale{}, shift{}, residual{};
    if (affine_map.scale) scale = in_working_type(*affine_map.scale, feature);
    if (affine_map.shift) shift = in_working_type(*affine_map.shift, feature);
    if (problem.residual.data()) residual = in_working_type(problem.residual, element);
    return affine<T>(in_working_type(problem.x, element), in_working_type(problem.mean, feature),
                     in_working_type(problem.mean_low, feature), affine_map.scale ? &scale : nullptr,
                     affine_map.shift ? &shift : nullptr, problem.residual.data() ? &residual : nullptr);
}

template <typename R> R logistic(R z) { return 1 / (1 + std::exp(-z)); }
template <typename R> R normal_density(R z) { return R(0.398942280401432677939946059934L) * std::exp(-z * z / 2); }
template <typename R> R normal_distribution(R z) { return std::erfc(-z * R(0.707106781186547524400844362105L)) / 2; }

// 0 where the second factor is, however large the first: what the limit of each activation is.
template <typename R> R times(R large, R vanishing) { return vanishing == 0 ? 0 : large * vanishing; }

template <typename R> R activate_as(bn_activation activation, R z) {
    if (std::isnan(z)) return z;
    switch (activation) {
    case BN_RELU: return z > 0 ? z : 0;
    case BN_LEAKY_RELU: return z > 0 ? z : R(0.01) * z;
    case BN_SILU: return times(z, logistic(z));
    case BN_GELU: return times(z, normal_distribution(z));
    case BN_TANH: return std::tanh(z);
    case BN_SIGMOID: return logistic(z);
    default: return z;
    }
}

template <typename R> R derivative_as(bn_activation activation, R z) {
    if (std::isnan(z)) return z;
    switch (activation) {
    case BN_RELU: return z > 0;
    case BN_LEAKY_RELU: return z > 0 ? 1 : R(0.01);
    case BN_SILU: return logistic(z) + times(z, logistic(z) * logistic(-z));
    case BN_GELU: return normal_distribution(z) + times(z, normal_density(z));
    case BN_TANH: return 1 / (std::cosh(z) * std::cosh(z));
    case BN_SIGMOID: return logistic(z) * logistic(-z);
    default: return 1;
    }
}

} // namespace

long double Moments::deviation() const { return total > 0 ? std::sqrt(m2 / total) : 0; }

Moments exact_moments(const Problem &problem, int64_t feature) {
    Moments moments;
    long double first = NAN, sum = 0; // of distances from the first: a constant's mean is exact
    const Shape &shape = problem.setting.shape;
    for_each_element(shape, feature, [&](int64_t element, int64_t sample) {
        const long double weight = problem.weight(sample);
        if (weight == 0) return;
        if (std::isnan(first)) first = problem.x.get(element);
        moments.total += weight;
        sum += weight * (problem.x.get(element) - first);
    });
    if (moments.total == 0) return moments;
    moments.mean = first + sum / moments.total;
    for_each_element(shape, feature, [&](int64_t element, int64_t sample) {
        const long double weight = problem.weight(sample);
        if (weight == 0) return;
        const long double distance = problem.x.get(element) - moments.mean;
        moments.m2 += weight * distance * distance;
    });
    return moments;
}

long double exact_inv_std(const Moments &moments) {
    const long double variance = moments.total > 0 ? moments.m2 / moments.total : 0;
    return 1 / std::sqrt(variance + epsilon);
}

long double exact_activation(bn_activation activation, long double z) { return activate_as(activation, z); }
long double exact_derivative(bn_activation activation, long double z) { return derivative_as(activation, z); }

// Double is exact enough for float, and three times as fast.
long double activate(const Problem &problem, long double z) {
    const bn_activation activation = problem.setting.activation;
    if (problem.working == BN_FLOAT64) return activate_as<long double>(activation, z);
    return activate_as<double>(activation, static_cast<double>(z));
}

double Affine::z(int64_t element, int64_t feature) const {
    return problem.working == BN_FLOAT64 ? affine_of<double>(*this, element, feature)
                                         : affine_of<float>(*this, element, feature);
}

double activated_in_working_type(const Problem &problem, double z) {
    if (problem.setting.activation == BN_IDENTITY || z > 0 || std::isnan(z)) return z;
    if (problem.setting.activation == BN_RELU) return 0;
    if (problem.working == BN_FLOAT64) return z * 0.01;
    return static_cast<float>(static_cast<float>(z) * 0.01F);
}

long double centred(const Problem &problem, int64_t element, int64_t feature) {
    return static_cast<long double>(problem.x.get(element)) - problem.mean.get(feature) -
           problem.mean_low.get(feature);
}

namespace {

long double exact_dz(const Problem &problem, int64_t element, int64_t feature) {
    const bool plain = problem.setting.plain;
    const Affine affine_map{problem, plain ? nullptr : &problem.scale, plain ? nullptr : &problem.beta};
    const bn_activation activation = problem.setting.activation;
    const double dy = problem.dy.get(element);
    if (activation == BN_IDENTITY) return dy;
    const double z = affine_map.z(element, feature);
    if (problem.working == BN_FLOAT64) return dy * derivative_as<long double>(activation, z);
    return dy * derivative_as<double>(activation, z);
}

} // namespace

ExactGradients::ExactGradients(const Problem &problem)
    : dz(static_cast<size_t>(problem.setting.shape.elements())),
      features(static_cast<size_t>(problem.setting.shape.features())) {
    for (int64_t feature = 0; feature < problem.setting.shape.features(); ++feature) {
        Gradient &gradient = features[static_cast<size_t>(feature)];
        for_each_element(problem.setting.shape, feature, [&](int64_t element, int64_t) {
            const long double from_mean = centred(problem, element, feature);
            const long double exact = dz[static_cast<size_t>(element)] = exact_dz(problem, element, feature);
            const long double dy = std::fabs(static_cast<long double>(problem.dy.get(element)));
            gradient.sum_dz += exact;
            gradient.sum_dz_centred += exact * from_mean;
            gradient.size_dz += std::fabs(exact);
            gradient.size_dz_centred += std::fabs(exact * from_mean);
            gradient.size_dy += dy;
            gradient.size_dy_centred += dy * std::fabs(from_mean);
        });
    }
}

} // namespace bn_tests
