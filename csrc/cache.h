// How much the last cache holds: what does not fit goes past it.
#pragma once

#include <atomic>
#include <cstdint>
#include <cstdio>
#ifdef __linux__
#include <unistd.h>
#endif

namespace batchnorm {

// What cores have to themselves lies between these, whatever a machine says: virtual ones tell of a whole socket's.
inline constexpr int64_t LEAST_CACHE = 8 << 20, MOST_CACHE = 32 << 20, UNKNOWN_CACHE = 16 << 20;

inline int64_t read_cache_bytes() {
    int64_t bytes = 0;
#ifdef __linux__
    char unit = 0;
    long long size = 0;
    if (std::FILE *file = std::fopen("/sys/devices/system/cpu/cpu0/cache/index3/size", "r")) {
        if (std::fscanf(file, "%lld%c", &size, &unit) == 2) bytes = size << (unit == 'M' ? 20 : 10);
        std::fclose(file);
    }
#ifdef _SC_LEVEL3_CACHE_SIZE
    if (bytes <= 0) bytes = sysconf(_SC_LEVEL3_CACHE_SIZE);
#endif
#endif
    if (bytes <= 0) return UNKNOWN_CACHE;
    return bytes < LEAST_CACHE ? LEAST_CACHE : bytes > MOST_CACHE ? MOST_CACHE : bytes;
}

inline std::atomic<int64_t> known_cache_bytes{0};  // 0: not yet; tests set it

inline int64_t cache_bytes() {
    int64_t bytes = known_cache_bytes.load(std::memory_order_relaxed);
    if (!bytes) known_cache_bytes.store(bytes = read_cache_bytes(), std::memory_order_relaxed);
    return bytes;
}

}  // namespace batchnorm
