#include "settings.h"

#include <set>
#include <tuple>

namespace bn_tests {
namespace {

// Factors: five axes, dtype, activation, residual, weights, regime, plain, offsets.
using Levels = std::vector<int64_t>;
using Factors = std::vector<Levels>;

Factors factors(Levels outer, Levels rows, Levels channels, Levels inner) {
    return {std::move(outer), {1, 3},       std::move(rows),       std::move(channels), std::move(inner), {0, 1, 2, 3},
            {0, 1, 2, 3, 4, 5, 6}, {0, 1}, {0, 1, 2, 3}, {0, 1, 2, 3, 4, 5, 6}, {0, 0, 1}, {0, 1, 22, 63}};
}

Setting setting_of(const Levels &chosen, uint64_t seed) {
    Setting setting;
    setting.shape = {chosen[0], chosen[1], chosen[2], chosen[3], chosen[4]};
    setting.dtype = static_cast<bn_dtype>(chosen[5]);
    setting.activation = static_cast<bn_activation>(chosen[6]);
    setting.residual = chosen[7] != 0;
    setting.weights = static_cast<Weights>(chosen[8]);
    setting.regime = static_cast<Regime>(chosen[9]);
    setting.plain = chosen[10] != 0;
    setting.offsets = static_cast<int>(chosen[11]);
    setting.seed = seed;
    return setting;
}

using Pair = std::tuple<size_t, int64_t, size_t, int64_t>;

std::vector<Pair> pairs_of(const Levels &chosen) {
    std::vector<Pair> pairs;
    for (size_t i = 0; i < chosen.size(); ++i)
        for (size_t j = i + 1; j < chosen.size(); ++j) pairs.emplace_back(i, chosen[i], j, chosen[j]);
    return pairs;
}

Levels drawn(const Factors &factors, Random &random) {
    Levels chosen;
    for (const Levels &levels : factors)
        chosen.push_back(levels[static_cast<size_t>(random.below(static_cast<int64_t>(levels.size())))]);
    return chosen;
}

int64_t unseen(const std::set<Pair> &seen, const Levels &chosen) {
    int64_t count = 0;
    for (const Pair &pair : pairs_of(chosen)) count += seen.count(pair) == 0;
    return count;
}

// Greedy: of some candidates the one with the most new pairs, until candidates bring nothing new.
void add_pairwise(const Factors &factors, int64_t most_elements, std::vector<Setting> &settings) {
    Random random(settings.size() + 7);
    std::set<Pair> seen;
    for (int fruitless = 0; fruitless < 60;) {
        Levels best;
        int64_t gain = 0;
        for (int candidate = 0; candidate < 40; ++candidate) {
            const Levels chosen = drawn(factors, random);
            if (setting_of(chosen, 0).shape.elements() > most_elements) continue;
            const int64_t fresh = unseen(seen, chosen);
            if (fresh > gain) gain = fresh, best = chosen;
        }
        fruitless = gain ? 0 : fruitless + 1;
        if (!gain) continue;
        for (const Pair &pair : pairs_of(best)) seen.insert(pair);
        settings.push_back(setting_of(best, settings.size() + 1));
    }
}

Setting made(Shape shape, bn_dtype dtype, bn_activation activation, bool residual, Weights weights) {
    Setting setting;
    setting.shape = shape, setting.dtype = dtype, setting.activation = activation;
    setting.residual = residual, setting.weights = weights;
    setting.regime = Regime::mean_1e2;
    return setting;
}

} // namespace

const std::vector<Setting> &pairwise_settings() {
    static const std::vector<Setting> settings = [] {
        std::vector<Setting> made;
        add_pairwise(factors({1, 2, 3, 7}, {1, 2, 5}, {1, 2, 3, 7, 16, 65}, {2, 3, 15, 16, 17, 49, 196, 1023, 3136}),
                     200000, made);
        add_pairwise(factors({1, 2}, {1, 2, 31, 32, 33, 200, 5000},
                             {1, 2, 3, 7, 15, 16, 17, 31, 48, 64, 65, 100, 130}, {1}),
                     660000, made);
        return made;
    }();
    return settings;
}

std::vector<Setting> empty_settings() {
    std::vector<Setting> settings;
    for (const Shape &full : {Shape{2, 3, 2, 5, 7}, Shape{1, 3, 20, 17, 1}})
        for (int axis = 0; axis < 5; ++axis) {
            Setting setting;
            setting.shape = full;
            int64_t *const sizes[] = {&setting.shape.outer, &setting.shape.groups, &setting.shape.rows,
                                      &setting.shape.channels, &setting.shape.inner};
            *sizes[axis] = 0;
            setting.dtype = static_cast<bn_dtype>(axis % 4);
            setting.weights = axis % 2 ? Weights::mask : Weights::none;
            settings.push_back(setting);
        }
    return settings;
}

std::vector<Setting> layout_settings() {
    std::vector<Setting> settings = {
        // Folded, with rows left over.
        made({1, 1, 1001, 24, 1}, BN_FLOAT32, BN_RELU, true, Weights::none),
        made({1, 1, 1003, 32, 1}, BN_FLOAT32, BN_SILU, false, Weights::none),
        made({3, 1, 303, 40, 1}, BN_BFLOAT16, BN_LEAKY_RELU, true, Weights::none),
        made({1, 1, 1001, 72, 1}, BN_FLOAT16, BN_IDENTITY, false, Weights::none),
        made({1, 1, 1001, 120, 1}, BN_FLOAT32, BN_GELU, false, Weights::none),
        made({1, 1, 1001, 28, 1}, BN_FLOAT64, BN_RELU, true, Weights::none),
        // Long rows of 2 MiB and more, with lanes left over.
        made({1, 1, 4100, 261, 1}, BN_BFLOAT16, BN_RELU, true, Weights::none),
        made({1, 1, 3000, 131, 1}, BN_FLOAT32, BN_RELU, true, Weights::none),
        made({1, 1, 4001, 67, 1}, BN_FLOAT64, BN_TANH, false, Weights::fractional),
        made({1, 8, 1100, 200, 1}, BN_FLOAT32, BN_IDENTITY, true, Weights::none),
        // As most layers call it: without residual and weights, with lanes left over.
        made({9, 1, 1, 37, 49}, BN_FLOAT32, BN_RELU, false, Weights::none),
        made({9, 1, 1, 37, 49}, BN_BFLOAT16, BN_RELU, false, Weights::none),
        made({1, 1, 333, 67, 1}, BN_FLOAT64, BN_RELU, false, Weights::none),
        made({1, 1, 333, 67, 1}, BN_FLOAT16, BN_RELU, false, Weights::none),
        made({9, 1, 1, 37, 49}, BN_FLOAT16, BN_IDENTITY, false, Weights::none),
        made({1, 1, 333, 67, 1}, BN_BFLOAT16, BN_IDENTITY, false, Weights::none),
        // Tile by tile, where the gradient of a smooth activation is kept.
        made({7, 1, 1, 65, 49}, BN_FLOAT32, BN_SILU, false, Weights::none),
        made({7, 1, 1, 65, 49}, BN_FLOAT64, BN_SIGMOID, true, Weights::mask),
        made({1, 1, 130, 520, 1}, BN_FLOAT32, BN_GELU, true, Weights::fractional),
        made({1, 1, 130, 520, 1}, BN_FLOAT64, BN_TANH, false, Weights::none),
    };
    for (size_t i = 0; i < settings.size(); ++i) settings[i].seed = 1000 + i;
    return settings;
}

std::vector<Setting> large_settings() {
    std::vector<Setting> settings = {
        made({16, 1, 1, 96, 3136}, BN_FLOAT32, BN_RELU, true, Weights::none),          // planar, 18 MiB
        made({1, 1, 75264, 64, 1}, BN_FLOAT32, BN_RELU, true, Weights::none),          // interleaved, 18 MiB
        made({1, 2, 16500, 130, 1}, BN_FLOAT32, BN_LEAKY_RELU, false, Weights::mask),  // no multiple of a vector
        made({15, 1, 1, 3, 40401}, BN_FLOAT32, BN_IDENTITY, false, Weights::none),     // 3 channels, odd planes
        made({2, 1, 1, 1, 1100003}, BN_FLOAT64, BN_RELU, false, Weights::fractional),  // one channel
        made({1, 1, 2900000, 3, 1}, BN_BFLOAT16, BN_RELU, false, Weights::none),       // few channels, 16 MiB
        made({100003, 1, 1, 2, 7}, BN_FLOAT32, BN_SILU, false, Weights::none),         // short planes, many of them
        made({4, 1, 32, 8, 1023}, BN_FLOAT16, BN_GELU, true, Weights::none),           // rows and planes at once
    };
    settings[2].offsets = 63; // nothing aligned: streaming stores must not be taken for granted
    return settings;
}

} // namespace bn_tests
