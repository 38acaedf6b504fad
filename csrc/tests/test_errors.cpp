// A call that cannot be right is refused, and has done nothing.
#include "check.h"
#include "problem.h"

#include <string>
#include <vector>

namespace bn_tests {
namespace {

using Function = int (*)(const bn_call *);
struct Named {
    const char *name;
    Function function;
};
const Named functions[] = {{"moments", bn_moments},
                           {"affine", bn_affine},
                           {"forward", bn_forward},
                           {"backward_reduce", bn_backward_reduce},
                           {"backward_elementwise", bn_backward_elementwise},
                           {"backward", bn_backward}};

Problem small_problem() {
    Setting setting;
    setting.shape = {2, 3, 4, 5, 6};
    return Problem(setting);
}

uint64_t digest_of_outputs(const Problem &problem) {
    uint64_t digest = 0;
    for (const auto &[name, buffer] : problem.outputs()) digest = digest * 31 + buffer->digest();
    return digest;
}

void check_refused(Problem &problem, const Named &named, const bn_call &call, bn_error error, const std::string &why) {
    const uint64_t before = digest_of_outputs(problem);
    const int actual = named.function(&call);
    check(actual == error, std::string(named.name) + " with " + why + " returns " + std::to_string(actual) + ", not " +
                              std::to_string(error));
    check(digest_of_outputs(problem) == before, std::string(named.name) + " with " + why + " wrote something");
}

} // namespace

BN_TEST(refuses_what_it_does_not_know) {
    Problem problem = small_problem();
    for (const Named &named : functions) {
        for (const int64_t dtype : {-1, 4, 1000}) {
            bn_call call = problem.affine_call();
            call.dtype = dtype;
            check_refused(problem, named, call, BN_BAD_DTYPE, "dtype " + std::to_string(dtype));
        }
        if (named.function == bn_moments) continue; // it has no activation
        for (const int64_t activation : {-1, 7, 1000}) {
            bn_call call = problem.affine_call();
            call.activation = activation;
            check_refused(problem, named, call, BN_BAD_ACTIVATION, "activation " + std::to_string(activation));
        }
    }
}

BN_TEST(refuses_negative_sizes) {
    Problem problem = small_problem();
    int64_t bn_call::*const sizes[] = {&bn_call::outer, &bn_call::groups, &bn_call::rows, &bn_call::channels,
                                       &bn_call::inner};
    for (const Named &named : functions)
        for (size_t axis = 0; axis < 5; ++axis) {
            bn_call call = problem.affine_call();
            call.*sizes[axis] = -1;
            check_refused(problem, named, call, BN_BAD_SHAPE, "-1 on axis " + std::to_string(axis));
            call.*sizes[(axis + 1) % 5] = -1; // two of them: the product is positive
            check_refused(problem, named, call, BN_BAD_SHAPE, "-1 on two axes from " + std::to_string(axis));
        }
}

BN_TEST(refuses_null_pointers) {
    struct Needed {
        const char *pointer;
        void (*remove)(bn_call &);
        std::vector<Function> by;
    };
    const std::vector<Needed> needed = {
        {"x", [](bn_call &call) { call.x = nullptr; },
         {bn_moments, bn_affine, bn_forward, bn_backward_reduce, bn_backward_elementwise, bn_backward}},
        {"mean", [](bn_call &call) { call.mean = nullptr; },
         {bn_moments, bn_affine, bn_forward, bn_backward_reduce, bn_backward_elementwise, bn_backward}},
        {"mean_low", [](bn_call &call) { call.mean_low = nullptr; }, {bn_moments, bn_forward}},
        {"m2", [](bn_call &call) { call.m2 = nullptr; }, {bn_moments, bn_forward}},
        {"inv_std", [](bn_call &call) { call.inv_std = nullptr; }, {bn_forward, bn_backward}},
        {"y", [](bn_call &call) { call.y = nullptr; }, {bn_affine, bn_forward}},
        {"dy", [](bn_call &call) { call.dy = nullptr; }, {bn_backward_reduce, bn_backward_elementwise, bn_backward}},
        {"sum_dz", [](bn_call &call) { call.sum_dz = nullptr; }, {bn_backward_reduce}},
        {"sum_dz_centred", [](bn_call &call) { call.sum_dz_centred = nullptr; }, {bn_backward_reduce}},
    };
    Problem problem = small_problem();
    for (const Needed &one : needed)
        for (const Named &named : functions)
            for (const Function function : one.by) {
                if (function != named.function) continue;
                bn_call call = problem.affine_call();
                one.remove(call);
                check_refused(problem, named, call, BN_NULL_POINTER, std::string("no ") + one.pointer);
            }
}

// mean_low may be NULL where it is read, and then counts as 0.
BN_TEST(low_part_of_the_mean_is_optional) {
    Problem problem = small_problem();
    for (int64_t i = 0; i < problem.mean_low.count(); ++i) problem.mean_low.set(i, 0);
    for (const Named &named : {functions[1], functions[3], functions[4], functions[5]}) {
        bn_call call = problem.affine_call();
        problem.clear_outputs();
        check(named.function(&call) == BN_OK, std::string(named.name) + " refuses a mean_low");
        const uint64_t expected = digest_of_outputs(problem);
        problem.clear_outputs();
        call.mean_low = nullptr;
        check(named.function(&call) == BN_OK, std::string(named.name) + " refuses a NULL mean_low");
        problem.mean_low.fill(0);
        check(digest_of_outputs(problem) == expected, std::string(named.name) + " differs without mean_low");
    }
}

BN_TEST(library_describes_itself) {
    check(bn_interface() == BN_INTERFACE, "the library has another interface than its header");
    const std::string name = bn_instruction_set();
    check(name == "portable" || name == "avx2" || name == "avx512", "unknown instruction set " + name);
    check(bn_use_instruction_set("nonsense") == 1, "accepts the instruction set \"nonsense\"");
    check(bn_instruction_set() == name, "a refused instruction set changed the one in use");
    check(bn_use_instruction_set("portable") == 0, "the portable instruction set is missing");
    check(bn_instruction_set() == std::string("portable"), "portable was accepted, but is not in use");
    for (const int64_t threads : {3, 1, 2}) {
        bn_use_threads(threads);
        check(bn_threads() == threads, "bn_threads is not what bn_use_threads was given");
    }
    bn_use_threads(0);
    check(bn_threads() >= 1, "fewer than one thread");
}

} // namespace bn_tests
