// Many threads at once, and a child of fork after its parent has used the pool.
#include "check.h"
#include "settings.h"

#include <memory>
#include <thread>
#include <vector>

#ifdef __unix__
#include <sys/wait.h>
#include <unistd.h>
#endif

namespace bn_tests {
namespace {

// Large enough for the pool, different in family and type.
Setting busy_setting(uint64_t seed) {
    Setting setting;
    setting.shape = seed % 2 ? Shape{8, 1, 1, 13, 1023} : Shape{1, 1, 2003, 65, 1};
    setting.dtype = static_cast<bn_dtype>(seed / 2 % 4);
    setting.activation = BN_RELU;
    setting.residual = seed % 3 == 0;
    setting.seed = seed;
    return setting;
}

} // namespace

BN_TEST(calls_from_many_threads) {
    constexpr int count = 8, rounds = 6;
    bn_use_threads(4);
    std::vector<std::unique_ptr<Problem>> problems;
    std::vector<Digests> expected;
    for (int i = 0; i < count; ++i) {
        problems.push_back(std::make_unique<Problem>(busy_setting(static_cast<uint64_t>(i))));
        expected.push_back(run_everything(*problems.back()));
    }
    std::vector<std::thread> threads;
    for (int i = 0; i < count; ++i)
        threads.emplace_back([&, i] {
            for (int round = 0; round < rounds; ++round)
                check_same(run_everything(*problems[i]), expected[i], "at once: " + problems[i]->setting.text());
        });
    for (std::thread &thread : threads) thread.join();
}

// A task that calls the library itself must neither wait for its own thread nor mix up anything.
BN_TEST(calls_from_a_parallel_for) {
    bn_use_threads(3);
    Problem inner(busy_setting(2)), outer(busy_setting(1));
    static Problem *nested;
    static Digests expected_inner;
    nested = &inner;
    expected_inner = run_everything(inner);
    const Digests expected = run_everything(outer);
    const auto with_a_call = [](int64_t begin, int64_t end, int64_t, void (*task)(int64_t, int64_t, void *),
                                void *context) {
        check_same(run_everything(*nested), expected_inner, "nested: " + nested->setting.text());
        if (begin < end) task(begin, end, context);
        return 0;
    };
    check_same(run_everything(outer, with_a_call), expected, "around a nested call: " + outer.setting.text());
}

BN_TEST(child_of_fork) {
#ifndef __unix__
    skip("no fork on this system");
#else
    bn_use_threads(3);
    Problem problem(busy_setting(1));
    const Digests expected = run_everything(problem);
    for (int generation = 0; generation < 3; ++generation) {
        const pid_t child = fork();
        if (child == 0) {
            alarm(60); // threads that were not carried over would be waited for in vain
            bool same = run_everything(problem) == expected;
            bn_use_threads(2);
            same = same && run_everything(problem) == expected;
            _exit(same ? 0 : 1);
        }
        check(child > 0, "fork fails");
        int status = -1;
        waitpid(child, &status, 0);
        check(WIFEXITED(status) && WEXITSTATUS(status) == 0,
              WIFSIGNALED(status) ? "the child ended by signal " + std::to_string(WTERMSIG(status))
                                  : std::string("the child finds other bits"));
        check_same(run_everything(problem), expected, "the parent after fork: " + problem.setting.text());
    }
#endif
}

} // namespace bn_tests
