// How pieces are shared among threads: each once, one's own share first.
#include "../cut.h"
#include "check.h"

#include <numeric>
#include <string>
#include <thread>
#include <vector>

namespace bn_tests {
namespace {

using namespace batchnorm;

constexpr int64_t THREADS = 3;

int in_turn(int64_t begin, int64_t end, int64_t, Task task, void *context) {
    for (int64_t i = THREADS - 1; i >= 0; --i) {
        task(begin + (end - begin) * i / THREADS, begin + (end - begin) * (i + 1) / THREADS, context);
    }
    return 0;
}

int at_the_same_time(int64_t begin, int64_t end, int64_t, Task task, void *context) {
    std::vector<std::thread> threads;
    for (int64_t i = 0; i < THREADS; ++i) {
        threads.emplace_back(task, begin + (end - begin) * i / THREADS, begin + (end - begin) * (i + 1) / THREADS, context);
    }
    for (std::thread &thread : threads) thread.join();
    return 0;
}

std::vector<int64_t> order(int64_t n, int64_t bytes, bool backwards) {
    bn_call call{};
    call.parallel_for = in_turn;
    std::vector<int64_t> actual;
    everywhere(call, bytes, n, [&](int64_t i) { actual.push_back(i); }, backwards);
    return actual;
}

} // namespace

BN_TEST(own_share_first_then_the_ends_of_others) {
    const int64_t large = INLINE_BYTES + 1;
    check(order(6, large, false) == std::vector<int64_t>{4, 5, 3, 2, 1, 0}, "not the last share, then from its begin down");
    check(order(6, large, true) == std::vector<int64_t>{5, 4, 0, 1, 2, 3}, "not the last share from its end, then up");
    check(order(3, 1, false) == std::vector<int64_t>{0, 1, 2}, "small arrays not in order");
    check(order(3, 1, true) == std::vector<int64_t>{2, 1, 0}, "small arrays not from the end");
}

BN_TEST(each_piece_once) {
    bn_call call{};
    call.parallel_for = at_the_same_time;
    for (const int64_t n : {2, 5, 256, 257, 5000}) {
        for (const bool backwards : {false, true}) {
            std::vector<std::atomic<int>> times(static_cast<size_t>(n));
            everywhere(call, INLINE_BYTES + 1, n, [&](int64_t i) { ++times[size_t(i)]; }, backwards);
            const int all = std::accumulate(times.begin(), times.end(), 0, [](int sum, const auto &one) { return sum + (one == 1); });
            check(all == n, std::to_string(n) + " pieces, not each once");
        }
    }
}

} // namespace bn_tests
