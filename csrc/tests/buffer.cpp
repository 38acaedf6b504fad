#include "buffer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <new>
#include <utility>

#if defined(__SANITIZE_ADDRESS__)
#define BN_POISON 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define BN_POISON 1
#endif
#endif
#ifdef BN_POISON
#include <sanitizer/asan_interface.h>
#endif

namespace bn_tests {
namespace {

struct Format {
    int fraction_bits, exponent_bits;
};
constexpr Format bfloat16{7, 8}, float16{10, 5};

uint16_t encode(double value, Format format) {
    const int bias = (1 << (format.exponent_bits - 1)) - 1;
    const int infinity = ((1 << format.exponent_bits) - 1) << format.fraction_bits;
    const int sign = std::signbit(value) ? 0x8000 : 0;
    const double magnitude = std::fabs(value);
    if (std::isnan(value)) return static_cast<uint16_t>(sign | infinity | 1 << (format.fraction_bits - 1));
    if (std::isinf(value)) return static_cast<uint16_t>(sign | infinity);
    if (magnitude == 0) return static_cast<uint16_t>(sign);
    const int exponent = std::max(std::ilogb(magnitude), 1 - bias);
    if (exponent > bias) return static_cast<uint16_t>(sign | infinity);
    // In units of the last place; a carry out of the fraction raises the exponent by itself.
    const int units = static_cast<int>(std::nearbyint(std::ldexp(magnitude, format.fraction_bits - exponent)));
    const int code = units + ((exponent + bias - 1) << format.fraction_bits);
    return static_cast<uint16_t>(sign | std::min(code, infinity));
}

double decode(uint16_t code, Format format) {
    const int bias = (1 << (format.exponent_bits - 1)) - 1;
    const int exponent = code >> format.fraction_bits & ((1 << format.exponent_bits) - 1);
    const int fraction = code & ((1 << format.fraction_bits) - 1);
    const double sign = code & 0x8000 ? -1 : 1;
    if (exponent == (1 << format.exponent_bits) - 1) return fraction ? std::nan("") : sign * HUGE_VAL;
    const int implicit = exponent ? 1 << format.fraction_bits : 0;
    return sign * std::ldexp(implicit + fraction, std::max(exponent, 1) - bias - format.fraction_bits);
}

std::vector<double> decoded(Format format) {
    std::vector<double> table(65536);
    for (int code = 0; code < 65536; ++code) table[code] = decode(static_cast<uint16_t>(code), format);
    return table;
}

template <typename T> T at(const void *array, int64_t index) {
    T value;
    std::memcpy(&value, static_cast<const char *>(array) + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
    return value;
}

template <typename T> void put(void *array, int64_t index, T value) {
    std::memcpy(static_cast<char *>(array) + index * static_cast<int64_t>(sizeof(T)), &value, sizeof(T));
}

constexpr size_t guard = 192;
constexpr unsigned char guard_byte = 0xA5;

} // namespace

size_t size_of(bn_dtype dtype) { return dtype == BN_FLOAT64 ? 8 : dtype == BN_FLOAT32 ? 4 : 2; }
bn_dtype working_type(bn_dtype dtype) { return dtype == BN_FLOAT64 ? BN_FLOAT64 : BN_FLOAT32; }

const char *name_of(bn_dtype dtype) {
    static const char *const names[] = {"float32", "float64", "bfloat16", "float16"};
    return names[dtype];
}

double load(bn_dtype dtype, const void *array, int64_t index) {
    static const std::vector<double> of_bfloat16 = decoded(bfloat16), of_float16 = decoded(float16);
    if (dtype == BN_FLOAT64) return at<double>(array, index);
    if (dtype == BN_FLOAT32) return at<float>(array, index);
    return (dtype == BN_BFLOAT16 ? of_bfloat16 : of_float16)[at<uint16_t>(array, index)];
}

void store(bn_dtype dtype, void *array, int64_t index, double value) {
    if (dtype == BN_FLOAT64) put<double>(array, index, value);
    else if (dtype == BN_FLOAT32) put<float>(array, index, static_cast<float>(value));
    else put<uint16_t>(array, index, encode(value, dtype == BN_BFLOAT16 ? bfloat16 : float16));
}

double rounded(bn_dtype dtype, double value) {
    double place;
    store(dtype, &place, 0, value);
    return load(dtype, &place, 0);
}

Buffer::Buffer(bn_dtype dtype, int64_t count, int offset) : dtype_(dtype), count_(count) {
    const size_t before = guard + static_cast<size_t>(offset) * size_of(dtype);
    total_ = before + bytes() + guard;
    base_ = static_cast<unsigned char *>(::operator new(total_, std::align_val_t(64)));
    data_ = base_ + before;
    std::memset(base_, guard_byte, total_);
    std::memset(data_, 0xFF, bytes());
    poison(true);
}

Buffer::~Buffer() {
    if (!base_) return;
    poison(false);
    ::operator delete(base_, std::align_val_t(64));
}

void Buffer::swap(Buffer &other) noexcept {
    std::swap(dtype_, other.dtype_);
    std::swap(count_, other.count_);
    std::swap(total_, other.total_);
    std::swap(base_, other.base_);
    std::swap(data_, other.data_);
}

void Buffer::poison([[maybe_unused]] bool on) const {
#ifdef BN_POISON
    const unsigned char *end = data_ + bytes();
    if (on) {
        ASAN_POISON_MEMORY_REGION(base_, data_ - base_);
        ASAN_POISON_MEMORY_REGION(end, base_ + total_ - end);
    } else {
        ASAN_UNPOISON_MEMORY_REGION(base_, total_);
    }
#endif
}

void Buffer::fill(unsigned char byte) {
    if (base_) std::memset(data_, byte, bytes());
}

bool Buffer::guards_intact() const {
    if (!base_) return true;
    const auto untouched = [](unsigned char byte) { return byte == guard_byte; };
    poison(false);
    const bool intact =
        std::all_of(base_, data_, untouched) && std::all_of(data_ + bytes(), base_ + total_, untouched);
    poison(true);
    return intact;
}

uint64_t Buffer::digest() const {
    uint64_t hash = 0xCBF29CE484222325u;
    const size_t words = bytes() / 8;
    for (size_t i = 0; i < words; ++i) {
        hash = (hash ^ at<uint64_t>(data_, static_cast<int64_t>(i))) * 0x9E3779B97F4A7C15u;
        hash ^= hash >> 32;
    }
    for (size_t i = words * 8; i < bytes(); ++i) hash = (hash ^ data_[i]) * 0x100000001B3u;
    return hash;
}

uint64_t Random::next() {
    uint64_t z = state_ += 0x9E3779B97F4A7C15u; // splitmix64
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}

double Random::normal() {
    // 16 bits of each: enough for a test, and the generator runs once instead of four times.
    const uint64_t bits = next();
    double sum = 0;
    for (int i = 0; i < 4; ++i) sum += static_cast<double>(bits >> 16 * i & 0xFFFF) * 0x1p-16;
    return (sum - 2 + 0x1p-15) * std::sqrt(3.0);
}

} // namespace bn_tests
