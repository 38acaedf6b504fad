// Which shapes, types, activations, weights and values the tests run over.
#ifndef BN_TESTS_SETTINGS_H
#define BN_TESTS_SETTINGS_H

#include "problem.h"

#include <vector>

namespace bn_tests {

// Every pair of levels of any two factors occurs in one setting at least, where the shape is of moderate size: some
// hundreds of settings in place of a million. With `inner` > 1 (planar), and with `inner` == 1 (interleaved).
const std::vector<Setting> &pairwise_settings();

// Sizes of 0 along each axis.
std::vector<Setting> empty_settings();

// Ways through the data that the factors do not meet: rows that are folded, long rows that come from memory, dz that stays
// in the cache.
std::vector<Setting> layout_settings();

// Outputs of 16 MiB and more, and arrays of few channels that only a split within the channels spreads over threads.
std::vector<Setting> large_settings();

} // namespace bn_tests
#endif
