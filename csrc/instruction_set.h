// Which build of the sweeps serves this machine.
#pragma once

#include <atomic>

#include "sweeps.h"

namespace batchnorm {

struct InstructionSet {
    const char *name;
    const Table *table;
    bool (*here)();
};

inline const InstructionSet SETS[] = {
#ifdef BN_HAVE_AVX512
    {"avx512", &avx512::table, [] { return bool(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                                                __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
                                                __builtin_cpu_supports("avx512cd")); }},
#endif
#ifdef BN_HAVE_AVX2
    {"avx2", &avx2::table, [] { return bool(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("bmi2") &&
                                            __builtin_cpu_supports("fma")); }},
#endif
    {"portable", &portable::table, [] { return true; }},
};

inline const InstructionSet *best_set() {
    for (const InstructionSet &set : SETS) {
        if (set.here()) return &set;
    }
    return nullptr;
}

inline std::atomic<const InstructionSet *> chosen_set{nullptr};

inline const InstructionSet *instruction_set() {
    const InstructionSet *set = chosen_set.load(std::memory_order_relaxed);
    if (!set) chosen_set.store(set = best_set(), std::memory_order_relaxed);
    return set;
}

}  // namespace batchnorm
