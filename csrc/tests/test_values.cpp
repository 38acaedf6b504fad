// Every function against the oracle, over shapes, types, activations, weights and regimes.
#include "check.h"
#include "settings.h"
#include "values.h"

namespace bn_tests {

template <typename Check> void over_all(Check check_one) {
    for (const std::vector<Setting> &settings : {pairwise_settings(), empty_settings()})
        for (const Setting &setting : settings) {
            Problem problem(setting);
            check_one(problem);
        }
}

// Bits serve half of the backwards that they can serve; the other half have the residual.
bool bits_serve(const Problem &problem) { return problem.setting.seed % 2 == 0; }

BN_TEST(moments) { over_all(check_moments); }
BN_TEST(affine) { over_all(check_affine); }
BN_TEST(forward) { over_all(check_forward); }
BN_TEST(backward_reduce) {
    over_all([](Problem &problem) { check_backward_reduce(problem, bits_serve(problem)); });
}
BN_TEST(backward_elementwise) {
    over_all([](Problem &problem) { check_backward_elementwise(problem, bits_serve(problem)); });
}
BN_TEST(backward) {
    over_all([](Problem &problem) { check_backward(problem, bits_serve(problem)); });
}

BN_TEST(layouts) {
    for (const Setting &setting : layout_settings()) {
        Problem problem(setting);
        check_forward(problem);
        check_affine(problem);
        check_backward(problem, true);
        check_backward(problem, false);
    }
}

BN_TEST(large_arrays) {
    for (const Setting &setting : large_settings()) {
        Problem problem(setting);
        check_forward(problem);
        // The longest is there for the stores of 16 bits alone, which forward and backward share.
        if (setting.shape.elements() < 8000000) check_backward(problem, true);
    }
}

// Arrays that are not wanted are not written, and wanting fewer changes nothing of the rest.
BN_TEST(outputs_not_wanted) {
    std::vector<Setting> settings = layout_settings();
    for (const Setting &setting : pairwise_settings())
        if (setting.seed % 3 == 0) settings.push_back(setting);
    for (const Setting &setting : settings) {
        Problem problem(setting);
        problem.clear_outputs();
        const uint64_t unwritten_dx = problem.dx.digest(), unwritten_dz = problem.dz.digest();
        for (const int64_t fixed : {0, 1}) {
            bn_call call = problem.backward_call(false);
            call.fixed = fixed;
            bn_backward(&call);
            const uint64_t dx = problem.dx.digest(), dz = problem.dz.digest(), sums = problem.sum_dz_centred.digest();
            const auto run_with = [&](void *wanted_dx, void *wanted_dz) {
                problem.clear_outputs();
                call.dx = wanted_dx, call.dz = wanted_dz;
                check(bn_backward(&call) == BN_OK, "backward refuses " + setting.text());
                check(problem.sum_dz_centred.digest() == sums, "sums differ without dx or dz: " + setting.text());
                check(problem.dx.digest() == (wanted_dx ? dx : unwritten_dx), "dx without dz: " + setting.text());
                check(problem.dz.digest() == (wanted_dz ? dz : unwritten_dz), "dz without dx: " + setting.text());
            };
            run_with(problem.dx.data(), nullptr);
            run_with(nullptr, problem.dz.data());
            run_with(nullptr, nullptr);
        }
        // One after another: each call is compiled by what it asks for.
        for (const bool constants : {false, true}) {
            bn_call call = problem.backward_call(false);
            if (constants) call.of_centred = call.constant = nullptr;
            bn_backward_elementwise(&call);
            const uint64_t dx = problem.dx.digest(), dz = problem.dz.digest();
            const auto run_with = [&](void *wanted_dx, void *wanted_dz) {
                problem.clear_outputs();
                call.dx = wanted_dx, call.dz = wanted_dz;
                check(bn_backward_elementwise(&call) == BN_OK, "backward_elementwise refuses " + setting.text());
                check(problem.dx.digest() == (wanted_dx ? dx : unwritten_dx), "elementwise dx alone: " + setting.text());
                check(problem.dz.digest() == (wanted_dz ? dz : unwritten_dz), "elementwise dz alone: " + setting.text());
            };
            run_with(problem.dx.data(), nullptr);
            run_with(nullptr, problem.dz.data());
            run_with(nullptr, nullptr);
        }
    }
}

} // namespace bn_tests
