// The same bits for every number of threads, every way of splitting, every instruction set and every call.
#include "../cache.h"
#include "check.h"
#include "settings.h"

#include <algorithm>
#include <atomic>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace bn_tests {
namespace {

std::atomic<int64_t> calls_of_own{0}; // of a parallel_for of these tests

using Pieces = std::vector<std::pair<int64_t, int64_t>>;

// Of at least `grain`, as the interface says, but of odd and different sizes.
Pieces odd_pieces(int64_t begin, int64_t end, int64_t grain) {
    Pieces pieces;
    const int64_t multiples[] = {1, 3, 2, 7, 1, 5};
    for (size_t i = 0; begin < end; ++i) {
        const int64_t last = std::min(end, begin + std::max<int64_t>(grain, 1) * multiples[i % 6]);
        pieces.emplace_back(begin, last);
        begin = last;
    }
    return pieces;
}

int reversed(int64_t begin, int64_t end, int64_t grain, void (*task)(int64_t, int64_t, void *), void *context) {
    ++calls_of_own;
    Pieces pieces = odd_pieces(begin, end, grain);
    std::reverse(pieces.begin(), pieces.end());
    for (const auto &[first, last] : pieces) task(first, last, context);
    return 0;
}

int at_once(int64_t begin, int64_t end, int64_t, void (*task)(int64_t, int64_t, void *), void *context) {
    ++calls_of_own;
    if (begin < end) task(begin, end, context);
    return 0;
}

int on_threads(int64_t begin, int64_t end, int64_t grain, void (*task)(int64_t, int64_t, void *), void *context) {
    ++calls_of_own;
    const Pieces pieces = odd_pieces(begin, end, std::max(grain, (end - begin) / 6));
    std::vector<std::thread> threads;
    for (const auto &piece : pieces) threads.emplace_back([=] { task(piece.first, piece.second, context); });
    for (std::thread &thread : threads) thread.join();
    return 0;
}

// Some of the large ones, too, for only they are split within channels and stored past the cache.
std::vector<Setting> settings_to_compare() {
    std::vector<Setting> settings = pairwise_settings();
    const std::vector<Setting> large = large_settings();
    for (const size_t i : {2, 3, 5, 6}) settings.push_back(large[i]);
    for (const Setting &setting : layout_settings()) settings.push_back(setting);
    return settings;
}

template <typename Compare> void over_all(const std::string &what, Compare compare) {
    for (const Setting &setting : settings_to_compare()) {
        Problem problem(setting);
        bn_use_threads(1);
        const Digests expected = run_everything(problem);
        compare(problem, expected, what + ": " + setting.text());
    }
}

} // namespace

BN_TEST(same_bits_for_every_number_of_threads) {
    over_all("threads", [](Problem &problem, const Digests &expected, const std::string &what) {
        for (const int threads : {2, 3, 4}) {
            bn_use_threads(threads);
            check_same(run_everything(problem), expected, std::to_string(threads) + " " + what);
        }
    });
}

BN_TEST(same_bits_for_every_parallel_for) {
    calls_of_own = 0;
    over_all("parallel_for", [](Problem &problem, const Digests &expected, const std::string &what) {
        check_same(run_everything(problem, reversed), expected, "reversed " + what);
        check_same(run_everything(problem, at_once), expected, "undivided " + what);
        if (problem.setting.seed % 4 == 1) // starting threads takes longer than most of the arrays
            check_same(run_everything(problem, on_threads), expected, "threaded " + what);
    });
    check(calls_of_own > 0, "parallel_for was never called");
}

BN_TEST(same_bits_past_the_cache_and_into_it) {
    const int64_t before = batchnorm::cache_bytes();
    check(before >= batchnorm::LEAST_CACHE && before <= batchnorm::MOST_CACHE, "a cache of " + std::to_string(before));
    batchnorm::known_cache_bytes = INT64_MAX;
    over_all("cache", [](Problem &problem, const Digests &expected, const std::string &what) {
        batchnorm::known_cache_bytes = 1;
        check_same(run_everything(problem), expected, "none of " + what);
        batchnorm::known_cache_bytes = INT64_MAX;
    });
    batchnorm::known_cache_bytes = before;
}

BN_TEST(same_bits_for_every_instruction_set) {
    over_all("instruction set", [](Problem &problem, const Digests &expected, const std::string &what) {
        const std::string before = bn_instruction_set();
        const bn_activation activation = problem.setting.activation;
        for (const char *name : instruction_sets(activation != BN_IDENTITY && !by_sign(activation))) {
            bn_use_instruction_set(name);
            check_same(run_everything(problem), expected, name + (" " + what));
        }
        bn_use_instruction_set(before.c_str());
    });
    const std::string before = bn_instruction_set();
    for (const char *name : {"avx2", "avx512"})
        if (bn_use_instruction_set(name) != 0) skip(std::string("no ") + name + " here");
    bn_use_instruction_set(before.c_str());
}

} // namespace bn_tests
