// The backward's mask is the sign of the forward's z, to the bit, where z is 0 or next to it.
#include "check.h"
#include "oracle.h"
#include "problem.h"

#include <cmath>

namespace bn_tests {
namespace {

double next_to(bn_dtype dtype, double value, int64_t direction) {
    if (dtype == BN_FLOAT64) return direction == 0 ? value : std::nextafter(value, direction * HUGE_VAL);
    const float start = static_cast<float>(value);
    return direction == 0 ? start : std::nextafter(start, static_cast<float>(direction * HUGE_VAL));
}

// Makes z exactly 0 at every third element, and as near as can be beside it: by the residual, or without one by the
// shift that is 0 for some x of the feature, to which the others are brought close.
void bring_to_zero(Problem &problem) {
    const Shape &shape = problem.setting.shape;
    for (int64_t feature = 0; feature < shape.features(); ++feature) {
        if (!problem.residual.data()) {
            int64_t chosen = -1;
            double near = 0;
            for_each_element(shape, feature, [&](int64_t element, int64_t) {
                if (chosen < 0) chosen = element, near = problem.x.get(element);
                else if (problem.setting.dtype == working_type(problem.setting.dtype))
                    problem.x.set(element, next_to(problem.working, near, element % 3 - 1));
            });
            problem.beta.set(feature, -Affine{problem, &problem.scale, nullptr}.z(chosen, feature));
            continue;
        }
        for_each_element(shape, feature, [&](int64_t element, int64_t) {
            problem.residual.set(element, 0);
            const double z = Affine{problem, &problem.scale, &problem.beta}.z(element, feature);
            problem.residual.set(element, -next_to(problem.setting.dtype, z, element % 3 - 1));
        });
    }
}

// dz is dy where z > 0, and act'(-1) * dy elsewhere.
int64_t wrong_masks(const Problem &problem) {
    int64_t wrong = 0;
    for (int64_t feature = 0; feature < problem.setting.shape.features(); ++feature)
        for_each_element(problem.setting.shape, feature, [&](int64_t element, int64_t) {
            const bool positive = Affine{problem, &problem.scale, &problem.beta}.z(element, feature) > 0;
            const double dy = problem.dy.get(element), dz = problem.dz.get(element);
            wrong += (dz == dy) != positive; // no dy is 0
        });
    return wrong;
}

void check_masks(const Setting &setting) {
    Problem problem(setting);
    for (int64_t i = 0; i < problem.dy.count(); ++i) problem.dy.set(i, i % 2 ? 1 : -1);
    bring_to_zero(problem);
    const bn_call forward = problem.affine_call();
    check(bn_affine(&forward) == BN_OK, "affine refuses " + setting.text());
    for (const bool with_bits : {false, true}) {
        const bn_call call = problem.backward_call(with_bits);
        for (int (*function)(const bn_call *) : {bn_backward, bn_backward_elementwise}) {
            problem.dz.fill(0xFF);
            check(function(&call) == BN_OK, "backward refuses " + setting.text());
            const int64_t wrong = wrong_masks(problem);
            const std::string how = with_bits ? "by bits: " : "recomputed: ";
            check(wrong == 0, std::to_string(wrong) + " masks are wrong, " + how + setting.text());
        }
    }
    check_guards(problem, "masks");
}

const Shape shapes[] = {{3, 1, 1, 5, 49}, {2, 3, 1, 4, 196}, {2, 1, 3, 5, 17}, {1, 1, 200, 64, 1},
                        {1, 3, 33, 65, 1}, {1, 1, 5000, 3, 1}, {2, 2, 31, 7, 1}, {1, 1, 1, 1, 1}};

} // namespace

BN_TEST(masks_next_to_zero) {
    uint64_t seed = 1;
    for (const Shape &shape : shapes)
        for (int dtype = 0; dtype < 4; ++dtype)
            for (const bn_activation activation : {BN_RELU, BN_LEAKY_RELU})
                for (const bool residual : {false, true}) {
                    Setting setting;
                    setting.shape = shape, setting.dtype = static_cast<bn_dtype>(dtype);
                    setting.activation = activation, setting.residual = residual;
                    setting.seed = ++seed;
                    check_masks(setting);
                }
}

// The test above is worth something only if fused arithmetic would fail it.
BN_TEST(masks_meet_exact_zeros) {
    Setting setting;
    setting.shape = shapes[0];
    setting.residual = true;
    Problem problem(setting);
    bring_to_zero(problem);
    int64_t zeros = 0, fused_differs = 0;
    for (int64_t feature = 0; feature < setting.shape.features(); ++feature)
        for_each_element(setting.shape, feature, [&](int64_t element, int64_t) {
            const float from_mean = static_cast<float>(problem.x.get(element) - problem.mean.get(feature));
            const float centred = from_mean - static_cast<float>(problem.mean_low.get(feature));
            const float fused = std::fma(centred, static_cast<float>(problem.scale.get(feature)),
                                         static_cast<float>(problem.beta.get(feature)));
            const double z = Affine{problem, &problem.scale, &problem.beta}.z(element, feature);
            zeros += z == 0;
            fused_differs += (z > 0) != (fused + static_cast<float>(problem.residual.get(element)) > 0);
        });
    check(zeros * 4 > setting.shape.elements(), "only " + std::to_string(zeros) + " elements have z = 0");
    check(fused_differs > 0, "fused arithmetic gives the same masks");
}

} // namespace bn_tests
