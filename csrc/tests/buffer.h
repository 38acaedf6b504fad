// Arrays of the four element types, between guards.
#ifndef BN_TESTS_BUFFER_H
#define BN_TESTS_BUFFER_H

#include "../batchnorm.h"

#include <cstddef>
#include <cstdint>
#include <vector>

namespace bn_tests {

size_t size_of(bn_dtype dtype);
bn_dtype working_type(bn_dtype dtype);
const char *name_of(bn_dtype dtype);

// `value` to the nearest number of the type, ties to even. Any value of any of the types is exact as a double.
double rounded(bn_dtype dtype, double value);
double load(bn_dtype dtype, const void *array, int64_t index);
void store(bn_dtype dtype, void *array, int64_t index, double value);

// An array that starts `offset` elements behind a 64-byte boundary. On both sides lie bytes that nobody may touch:
// AddressSanitizer is told so, and `guards_intact` finds writes without it. Elements start as NaN.
class Buffer {
public:
    Buffer() = default;
    Buffer(bn_dtype dtype, int64_t count, int offset = 0);
    Buffer(Buffer &&other) noexcept { swap(other); }
    Buffer &operator=(Buffer &&other) noexcept { swap(other); return *this; }
    ~Buffer();

    void *data() const { return data_; }
    int64_t count() const { return count_; }
    size_t bytes() const { return static_cast<size_t>(count_) * size_of(dtype_); }
    double get(int64_t index) const { return load(dtype_, data_, index); }
    void set(int64_t index, double value) { store(dtype_, data_, index, value); }
    void fill(unsigned char byte);
    bool guards_intact() const;
    uint64_t digest() const; // of the elements' bytes

private:
    void swap(Buffer &other) noexcept;
    void poison(bool on) const;

    bn_dtype dtype_ = BN_FLOAT32;
    int64_t count_ = 0;
    size_t total_ = 0;
    unsigned char *base_ = nullptr, *data_ = nullptr;
};

// Random numbers, the same everywhere: the distributions of <random> differ between standard libraries.
class Random {
public:
    explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15u + 1) {}
    uint64_t next();
    int64_t below(int64_t bound) { return static_cast<int64_t>((next() >> 11) % static_cast<uint64_t>(bound)); }
    double uniform() { return static_cast<double>(next() >> 11) * 0x1p-53; }
    double normal(); // nearly: the sum of four uniforms, mean 0 and variance 1

private:
    uint64_t state_;
};

} // namespace bn_tests
#endif
