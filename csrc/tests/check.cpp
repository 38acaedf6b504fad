#include "check.h"

#include "../batchnorm.h"

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <vector>

namespace bn_tests {
namespace {

struct Named {
    const char *name;
    Test test;
};

// Within a function, so that it exists before the first registration of another file.
std::vector<Named> &registered() {
    static std::vector<Named> tests;
    return tests;
}

constexpr int printed_per_test = 8;
std::atomic<long> checks{0}, failures{0};
std::atomic<int> failures_of_test{0};
std::mutex printing;
const char *running = "";

} // namespace

Registration::Registration(const char *name, Test test) { registered().push_back({name, test}); }

bool check(bool held, const std::string &what) {
    ++checks;
    if (held) return true;
    ++failures;
    const int nth = ++failures_of_test;
    const std::lock_guard<std::mutex> lock(printing);
    if (nth <= printed_per_test) std::printf("FAILED %s: %s\n", running, what.c_str());
    return false;
}

void skip(const std::string &reason) {
    const std::lock_guard<std::mutex> lock(printing);
    std::printf("skipped %s: %s\n", running, reason.c_str());
}

std::vector<const char *> instruction_sets(bool smooth) {
    const std::string before = bn_instruction_set();
    std::vector<const char *> actual;
    for (const char *name : {"portable", "avx2", "avx512"})
        if (bn_use_instruction_set(name) == 0) actual.push_back(name);
    bn_use_instruction_set(before.c_str());
#if !defined(__FP_FAST_FMAF) // portable is compiled as this file is, and rounds twice where others round once
    if (smooth && actual.size() > 1) actual.erase(actual.begin());
#endif
    return actual;
}

// Leaves the library as it was, so that no test depends on another having run.
void run(const Named &named) {
    const std::string instruction_set = bn_instruction_set();
    const int64_t threads = bn_threads();
    running = named.name;
    failures_of_test = 0;
    const auto start = std::chrono::steady_clock::now();
    named.test();
    const std::chrono::duration<double> seconds = std::chrono::steady_clock::now() - start;
    if (failures_of_test > printed_per_test)
        std::printf("FAILED %s: %d more\n", named.name, failures_of_test - printed_per_test);
    std::printf("%-7s %-40s %6.2f s\n", failures_of_test ? "FAILED" : "passed", named.name, seconds.count());
    std::fflush(stdout); // a forked child must not print it again, and a crash must not lose it
    bn_use_instruction_set(instruction_set.c_str());
    bn_use_threads(threads);
}

} // namespace bn_tests

int main(int arguments, char **argument) {
    using namespace bn_tests;
    const char *wanted = arguments > 1 ? argument[1] : "";
    int ran = 0, failed = 0;
    for (const Named &named : registered()) {
        if (!std::strstr(named.name, wanted)) continue;
        run(named);
        ++ran;
        failed += failures_of_test > 0;
    }
    std::printf("%d tests, %d failed; %ld checks, %ld failed (%s, %lld threads)\n", ran, failed, checks.load(),
                failures.load(), bn_instruction_set(), static_cast<long long>(bn_threads()));
    if (ran == 0) std::printf("no test has \"%s\" in its name\n", wanted);
    return ran == 0 || failures > 0;
}
