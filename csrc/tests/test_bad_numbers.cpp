// Infinity and NaN in one feature stay there.
#include "check.h"
#include "settings.h"

#include <cmath>
#include <cstring>

namespace bn_tests {
namespace {

// A copy of every feature's own numbers and elements, to be compared after one feature was spoilt.
std::vector<std::vector<double>> features_of(const Problem &problem) {
    std::vector<std::vector<double>> features;
    for (int64_t feature = 0; feature < problem.setting.shape.features(); ++feature) {
        std::vector<double> actual;
        for (const Buffer *buffer : {&problem.mean, &problem.mean_low, &problem.m2, &problem.inv_std, &problem.sum_dz,
                                     &problem.sum_dz_centred})
            actual.push_back(buffer->get(feature));
        for_each_element(problem.setting.shape, feature, [&](int64_t element, int64_t) {
            for (const Buffer *buffer : {&problem.y, &problem.dx, &problem.dz}) actual.push_back(buffer->get(element));
        });
        features.push_back(std::move(actual));
    }
    return features;
}

void forward_and_backward(Problem &problem) {
    bn_call call = problem.call();
    check(bn_forward(&call) == BN_OK, "forward refuses " + problem.setting.text());
    call = problem.affine_call();
    check(bn_affine(&call) == BN_OK, "affine refuses " + problem.setting.text());
    call = problem.backward_call(true);
    check(bn_backward(&call) == BN_OK, "backward refuses " + problem.setting.text());
}

void check_spoilt(const Setting &setting, double bad) {
    Problem problem(setting);
    forward_and_backward(problem);
    const auto before = features_of(problem);
    const int64_t spoilt = setting.shape.features() / 2;
    int64_t place = -1, count = 0;
    for_each_element(setting.shape, spoilt, [&](int64_t element, int64_t) {
        if (count++ == setting.shape.reduced() / 3) place = element;
    });
    problem.x.set(place, bad);
    forward_and_backward(problem);
    const auto after = features_of(problem);
    for (int64_t feature = 0; feature < setting.shape.features(); ++feature) {
        const std::string where = std::to_string(feature) + " of " + std::to_string(setting.shape.features());
        if (feature != spoilt)
            check(before[feature] == after[feature],
                  std::to_string(bad) + " in another feature reached " + where + ": " + setting.text());
    }
    const std::string what = " of a feature that holds " + std::to_string(bad) + ": " + setting.text();
    check(!std::isfinite(problem.mean.get(spoilt)), "a finite mean" + what);
    check(!std::isfinite(problem.m2.get(spoilt)), "a finite m2" + what);
}

} // namespace

BN_TEST(infinity_and_nan_stay_in_their_feature) {
    const Shape shapes[] = {{3, 1, 1, 5, 49}, {2, 3, 3, 4, 17}, {2, 1, 1, 3, 3136}, {1, 1, 200, 64, 1},
                            {1, 3, 33, 65, 1}, {1, 1, 5000, 3, 1}, {1, 1, 50, 31, 1}, {1, 1, 7, 130, 1}};
    for (const Shape &shape : shapes)
        for (int dtype = 0; dtype < 4; ++dtype)
            for (const double bad : {HUGE_VAL, -HUGE_VAL, std::nan("")}) {
                Setting setting;
                setting.shape = shape, setting.dtype = static_cast<bn_dtype>(dtype);
                setting.activation = dtype % 2 ? BN_RELU : BN_SILU;
                setting.residual = dtype > 1;
                check_spoilt(setting, bad);
            }
}

// Every activation keeps NaN, relu too; bits hold it as "not > 0".
BN_TEST(activations_keep_nan) {
    for (int activation = 0; activation < 7; ++activation)
        for (int dtype = 0; dtype < 4; ++dtype) {
            Setting setting;
            setting.shape = {1, 1, 37, 19, 1};
            setting.dtype = static_cast<bn_dtype>(dtype), setting.activation = static_cast<bn_activation>(activation);
            setting.residual = true;
            Problem problem(setting);
            for (int64_t i = 0; i < problem.residual.count(); i += 3) problem.residual.set(i, std::nan(""));
            const bn_call forward = problem.affine_call(), backward = problem.backward_call(true);
            bn_affine(&forward);
            bn_backward_elementwise(&backward);
            int64_t lost = 0, spread = 0, passed = 0;
            for (int64_t i = 0; i < problem.y.count(); ++i) {
                const bool kept = std::isnan(problem.y.get(i));
                lost += i % 3 == 0 && !kept;
                spread += i % 3 != 0 && kept;
                passed += i % 3 == 0 && problem.dz.get(i) != 0;
            }
            check(lost == 0, std::to_string(lost) + " NaN lost: " + setting.text());
            check(spread == 0, std::to_string(spread) + " NaN too many: " + setting.text());
            if (activation == BN_RELU) check(passed == 0, "dz passes where z is NaN, by bits: " + setting.text());
        }
}

// A NaN of any bits stays one in 16 bits: rounding alone would carry some into −0.
BN_TEST(every_nan_stays_one_in_16_bits) {
    for (const uint32_t nan : {0x7fffffffu, 0xffffffffu, 0x7f800001u, 0xff800001u})
        for (const bn_dtype dtype : {BN_BFLOAT16, BN_FLOAT16})
            for (const char *name : instruction_sets(false)) {
                bn_use_instruction_set(name);
                Setting setting;
                setting.shape = {1, 1, 5, 19, 1}, setting.dtype = dtype;
                Problem problem(setting);
                std::memcpy(problem.mean.data(), &nan, sizeof nan); // of the first feature
                const bn_call call = problem.affine_call();
                bn_affine(&call);
                int64_t lost = 0;
                for (int64_t row = 0; row < 5; ++row) lost += !std::isnan(problem.y.get(row * 19));
                check(lost == 0, std::to_string(lost) + " NaN lost by " + name + ": " + setting.text());
            }
}

// The ends of the range: saturated, finite, without NaN in the gradient.
BN_TEST(activations_saturate) {
    for (int activation = 0; activation < 7; ++activation)
        for (int dtype = 0; dtype < 4; ++dtype) {
            Setting setting;
            setting.shape = {1, 1, 40, 16, 1};
            setting.dtype = static_cast<bn_dtype>(dtype), setting.activation = static_cast<bn_activation>(activation);
            setting.residual = true;
            Problem problem(setting);
            const double ends[] = {-6e4, -800, -88, -20, 20, 88, 800, 6e4};
            for (int64_t i = 0; i < problem.residual.count(); ++i) problem.residual.set(i, ends[i % 8]);
            const bn_call forward = problem.affine_call(), backward = problem.backward_call(false);
            bn_affine(&forward);
            bn_backward_elementwise(&backward);
            int64_t bad = 0;
            for (int64_t i = 0; i < problem.y.count(); ++i)
                bad += !std::isfinite(problem.y.get(i)) || !std::isfinite(problem.dz.get(i)) ||
                       !std::isfinite(problem.dx.get(i));
            check(bad == 0, std::to_string(bad) + " not finite at the ends: " + setting.text());
        }
}

} // namespace bn_tests
