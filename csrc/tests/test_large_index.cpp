// Arrays of more than 2^31 elements. Their memory is a few MiB: the same pages are mapped again and again, but for the
// last ones, which lie beyond every 32-bit offset and hold other numbers.
#include "check.h"
#include "buffer.h"

#include <cmath>
#include <string>

#if defined(__linux__) && UINTPTR_MAX > UINT32_MAX
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#define BN_HAS_REPEATED_MAPPINGS 1
#endif

namespace bn_tests {

#ifndef BN_HAS_REPEATED_MAPPINGS
BN_TEST(more_elements_than_31_bits) { skip("needs Linux on a 64-bit machine"); }
#else
namespace {

constexpr int64_t period = int64_t{1} << 21;              // elements of two bytes: 4 MiB
constexpr int64_t repetitions = (int64_t{1} << 10) + 2;   // of the first period, 2^31 + 2^22 elements
constexpr int64_t elements = (repetitions + 1) * period;  // and the last one

// bfloat16, first the repeated period, then the last one; `at` is how the library sees it.
struct Repeated {
    unsigned char *at = nullptr;
    unsigned char *memory = nullptr; // the two periods themselves

    Repeated() {
        const int file = memfd_create("batchnorm", 0);
        if (file < 0 || ftruncate(file, 4 * period) != 0) return;
        void *reserved = mmap(nullptr, 2 * elements, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
        void *own = mmap(nullptr, 4 * period, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
        if (reserved == MAP_FAILED || own == MAP_FAILED) return;
        at = static_cast<unsigned char *>(reserved), memory = static_cast<unsigned char *>(own);
        for (int64_t i = 0; i <= repetitions; ++i)
            if (mmap(at + i * 2 * period, 2 * period, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_FIXED, file,
                     i == repetitions ? 2 * period : 0) == MAP_FAILED)
                at = nullptr;
        close(file);
    }
    ~Repeated() {
        if (memory) munmap(memory, 4 * period);
        if (at) munmap(at, 2 * elements);
    }
    Repeated(const Repeated &) = delete;
    Repeated &operator=(const Repeated &) = delete;

    double get(int64_t i) const { return load(BN_BFLOAT16, memory, i); }
};

// Small whole numbers: sums of them are exact. The last period's are greater.
double value_at(int64_t i) { return static_cast<double>(i * 7 % 5) - 2 + (i < period ? 0 : 32); }

struct Exact {
    double mean = 0, m2 = 0;
};

// Of every `stride`-th element from `start` on of so many repeated periods and so many last ones.
Exact exact_moments_of(int64_t start, int64_t stride, int64_t repeated, int64_t last) {
    double count = 0, sum = 0, squares = 0;
    for (int64_t i = start; i < 2 * period; i += stride) {
        const double times = static_cast<double>(i < period ? repeated : last);
        count += times, sum += times * value_at(i), squares += times * value_at(i) * value_at(i);
    }
    return {sum / count, squares - sum * sum / count};
}

// Planes are whole periods here, of which the very last is in the last channel.
Exact exact_moments_of(const bn_call &call, int64_t channel) {
    if (call.inner == 1) return exact_moments_of(channel, call.channels, repetitions, 1);
    const int64_t last = channel == call.channels - 1;
    return exact_moments_of(0, 1, call.outer * call.inner / period - last, last);
}

bool close_to(double actual, double expected) { return std::fabs(actual - expected) <= 1e-5 * (1 + std::fabs(expected)); }

// Runs in a child: what a wrong index does first is to crash. 0, or the number of the first thing that is wrong.
int moments_and_affine(int64_t outer, int64_t rows, int64_t channels, int64_t inner) {
    Repeated x, y;
    if (!x.at || !y.at) return 10;
    for (int64_t i = 0; i < 2 * period; ++i) store(BN_BFLOAT16, x.memory, i, value_at(i));
    Buffer mean(BN_FLOAT32, channels), mean_low(BN_FLOAT32, channels), m2(BN_FLOAT32, channels);
    Buffer shift(BN_FLOAT32, channels);
    for (int64_t channel = 0; channel < channels; ++channel) shift.set(channel, 1);
    bn_call call{};
    call.outer = outer, call.groups = 1, call.rows = rows, call.channels = channels, call.inner = inner;
    call.dtype = BN_BFLOAT16, call.activation = BN_RELU;
    call.x = x.at, call.y = y.at;
    call.mean = mean.data(), call.mean_low = mean_low.data(), call.m2 = m2.data(), call.shift = shift.data();
    if (bn_moments(&call) != BN_OK) return 11;
    for (int64_t channel = 0; channel < channels; ++channel) {
        const Exact exact = exact_moments_of(call, channel);
        if (!close_to(mean.get(channel), exact.mean)) return 12;
        if (!close_to(m2.get(channel), exact.m2)) return 13;
        mean.set(channel, 3), mean_low.set(channel, 0);
    }
    if (bn_affine(&call) != BN_OK) return 14;
    for (int64_t i = 0; i < 2 * period; ++i)
        if (y.get(i) != std::fmax(value_at(i) - 2, 0)) return i < period ? 15 : 16;
    return 0;
}

void check_in_child(const char *what, int64_t outer, int64_t rows, int64_t channels, int64_t inner) {
    if (outer * rows * channels * inner != elements) {
        check(false, std::string("the test's own shape is wrong: ") + what);
        return;
    }
    const pid_t child = fork();
    if (child == 0) {
        alarm(100);
        _exit(moments_and_affine(outer, rows, channels, inner));
    }
    int status = -1;
    waitpid(child, &status, 0);
    if (WIFEXITED(status) && WEXITSTATUS(status) == 10) {
        skip("the mappings are refused");
        return;
    }
    static const char *const wrong[] = {"moments refused", "mean", "m2", "affine refused", "y", "y of the last period"};
    const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    check(WIFEXITED(status), std::string(what) + ": ended by signal " + std::to_string(WTERMSIG(status)));
    check(code == 0, std::string(what) + ": " + (code > 10 && code < 17 ? wrong[code - 11] : "failed"));
}

} // namespace

BN_TEST(more_elements_than_31_bits) {
    if (sanitized) {
        skip("a sanitizer's shadow of 4 GiB is too much");
        return;
    }
    check_in_child("interleaved", 1, elements / 64, 64, 1);
    check_in_child("planar", 13, 1, elements / period / 13, period);
    check_in_child("one plane", 1, 1, 1, elements);
}

#endif
} // namespace bn_tests
