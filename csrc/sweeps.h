// What is built once for each instruction set: a sweep over a part of the data.
#pragma once

#include <cstdint>

#include "batchnorm.h"

namespace batchnorm {

// A part of one group: some of its rows, channels and inner positions.
struct Tile {
    int64_t group;
    int64_t first_row, last_row;  // of outer × rows
    int64_t first_channel, last_channel;
    int64_t first_inner, last_inner;
};

inline constexpr int64_t WIDEST = 128;  // channels of a tile that has all of their data
inline constexpr int64_t PIECE = 4096;  // inner positions that are added in one go, to four vectors of sums
inline constexpr int64_t FLUSH = 2048;  // values of a channel that are added in the working type, then in double

inline constexpr int64_t FAR_BYTES = 2 << 20;     // what is larger was hardly left in the cache of a core: it is fetched ahead

// Sums of a tile in double, one of each a channel: mean and m2, or Σdz and Σdz·(x−μ).
struct Sums {
    double *first, *second;
    double count;
};

// How many masks the inner positions of a channel have: one more than they would fill, where they may begin amid a vector.
inline int64_t masks_of(int64_t inner, int64_t lanes) { return inner / lanes + (inner % lanes ? 2 : 0); }

// One storage type on one instruction set. `sums` begin at the tile's first channel, and have room for a whole vector
// more; the arrays of features in `call` begin at the first channel of the first group. `reduce` writes dz, and dx as it is
// where the statistics are constants, unless they are NULL.
struct Sweeps {
    void (*moments)(const bn_call &call, const Tile &tile, Sums &sums);
    void (*reduce)(const bn_call &call, const Tile &tile, Sums &sums);
    void (*affine)(const bn_call &call, const Tile &tile, bool stream);
    void (*elementwise)(const bn_call &call, const Tile &tile, bool stream);
};

using Table = Sweeps[4];  // by bn_dtype

namespace portable { extern const Table table; }
namespace avx2 { extern const Table table; }
namespace avx512 { extern const Table table; }

}  // namespace batchnorm
