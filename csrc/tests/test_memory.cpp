// Alignment and aliasing: neither changes a bit.
#include "check.h"
#include "settings.h"

#include <cstring>

namespace bn_tests {
namespace {

std::vector<Setting> some_settings() {
    std::vector<Setting> settings;
    for (const Setting &setting : pairwise_settings())
        if (setting.seed % 5 == 0) settings.push_back(setting);
    const std::vector<Setting> large = large_settings();
    settings.push_back(large[0]);
    settings.push_back(large[2]);
    for (const Setting &setting : layout_settings()) settings.push_back(setting);
    return settings;
}

void copy(const Buffer &from, const Buffer &to) { std::memcpy(to.data(), from.data(), from.bytes()); }

} // namespace

BN_TEST(same_bits_for_every_alignment) {
    for (Setting setting : some_settings()) {
        setting.offsets = 0;
        Problem aligned(setting);
        const Digests expected = run_everything(aligned);
        const bool heavy = setting.shape.elements() > 1000000;
        // Each array alone, some against each other, all.
        for (const int offsets : {1, 2, 4, 8, 16, 32, 3, 12, 5, 10, 48, 63}) {
            if (heavy && offsets != 2 && offsets != 8 && offsets != 63) continue;
            setting.offsets = offsets;
            Problem problem(setting);
            check_same(run_everything(problem), expected, "alignment: " + setting.text());
            check_guards(problem, "everything");
        }
    }
}

BN_TEST(same_bits_in_place) {
    for (const Setting &setting : some_settings()) {
        Problem problem(setting);
        bn_call call = problem.affine_call();
        bn_affine(&call);
        const uint64_t y = problem.y.digest(), bits = problem.bits.digest();
        copy(problem.x, problem.y);
        problem.bits.fill(0xFF);
        call.x = call.y;
        check(bn_affine(&call) == BN_OK, "affine in place refuses " + setting.text());
        check(problem.y.digest() == y, "y in place of x differs: " + setting.text());
        check(problem.bits.digest() == bits, "bits differ with y in place of x: " + setting.text());

        for (const bool fixed : {false, true})
            for (int (*function)(const bn_call *) : {bn_backward, bn_backward_elementwise}) {
                const auto run = [&](void *dx, void *dz) {
                    call.dx = dx, call.dz = dz;
                    check(function(&call) == BN_OK, "backward in place refuses " + setting.text());
                };
                call = problem.backward_call(true);
                call.fixed = fixed;
                if (fixed) call.of_centred = call.constant = nullptr;  // how the elementwise call says so
                function(&call);
                const uint64_t dx = problem.dx.digest(), dz = problem.dz.digest();
                for (const bool with_dz : {true, false}) {
                    copy(problem.dy, problem.dx);
                    call.dy = problem.dx.data();
                    run(problem.dx.data(), with_dz ? problem.dz.data() : nullptr);
                    check(problem.dx.digest() == dx, "dx in place of dy differs: " + setting.text());
                    check(problem.dz.digest() == dz, "dz differs with dx in place of dy: " + setting.text());
                }
                copy(problem.dy, problem.dz);
                call.dy = problem.dz.data();
                run(problem.dx.data(), problem.dz.data());
                check(problem.dz.digest() == dz, "dz in place of dy differs: " + setting.text());
                check(problem.dx.digest() == dx, "dx differs with dz in place of dy: " + setting.text());
            }
        check_guards(problem, "in place");
    }
}

} // namespace bn_tests
