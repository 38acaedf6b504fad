// How a call is cut into tiles, by its shape alone, and how they are shared among threads.
#pragma once

#include <atomic>
#include <memory>
#include <new>

#include "parallel.h"
#include "sweeps.h"

namespace batchnorm {

inline constexpr int64_t INLINE_BYTES = 64 << 10;  // less than this does not pay for waking a thread
inline constexpr int64_t BLOCK_BYTES = 256 << 10;  // of one array, that stay in a cache between two sweeps
inline constexpr int64_t TILES = 16;               // at least, for every thread to have some
inline constexpr int64_t VECTOR = 16;              // sums have room for one more

inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline constexpr int64_t SIZES[] = {4, 8, 2, 2};  // bytes, by bn_dtype

// Channels into blocks, and where these are few, rows or inner positions into parts.
struct Cut {
    int64_t rows, features, bytes;
    int64_t block, blocks, part, parts;
    bool by_inner;

    explicit Cut(const bn_call &c) {
        const int64_t size = SIZES[c.dtype];
        rows = c.outer * c.rows;
        features = c.groups * c.channels;
        groups_ = c.groups;
        const int64_t slab = rows * c.inner * size;  // of one channel
        bytes = slab * features;
        if (c.inner > 1) {
            block = most(1, least(least(BLOCK_BYTES / most(slab, 1), over(c.channels, TILES)), WIDEST));
        } else {
            const int64_t narrow = 256 / size;  // four cache lines of a row
            const bool fits = slab * narrow <= BLOCK_BYTES && over(c.channels, narrow) * c.groups >= TILES / 2;
            block = most(1, fits ? narrow : c.channels);
        }
        by_inner = rows * c.groups < TILES && c.inner >= 2 * PIECE;
        const int64_t length = most(1, by_inner ? c.inner : rows);
        const int64_t tiles = over(c.channels, block) * c.groups;
        int64_t wanted = tiles >= TILES / 2 ? 1 : least(over(4 * TILES, most(1, tiles)), slab * block / BLOCK_BYTES);
        if (c.inner <= 1) wanted = least(wanted, rows / 64);  // parts of few rows are little more than their sums
        part = over(length, least(length, most(1, wanted)));
        if (by_inner) part = over(part, PIECE) * PIECE;
        parts = over(length, part);
        if (parts == 1) block = least(block, WIDEST);
        blocks = over(c.channels, block);
    }

    int64_t tiles() const { return blocks * groups_; }

    Tile tile(const bn_call &c, int64_t which, int64_t of_part) const {
        const int64_t channel = which % blocks * block;
        Tile t{which / blocks, 0, rows, channel, least(c.channels, channel + block), 0, c.inner};
        int64_t &first = by_inner ? t.first_inner : t.first_row, &last = by_inner ? t.last_inner : t.last_row;
        first = part * of_part;
        last = least(last, first + part);
        return t;
    }

    int64_t room() const { return block + VECTOR; }  // for the sums of a tile

private:
    int64_t groups_ = 0;
};

// For maps alone: pieces that lie together in memory, since nothing has to be finished for a channel as a whole.
struct Pieces {
    int64_t rows, row, channels, channel, inner, position;  // of all, and of a piece
    int64_t by_row, by_channel, by_position;                // how many pieces

    explicit Pieces(const bn_call &c) : rows(c.outer * c.rows), channels(c.channels), inner(c.inner) {
        const int64_t elements = c.groups * rows * channels * inner;
        const int64_t positions = most(BLOCK_BYTES / SIZES[c.dtype], elements / TILES);
        position = inner > positions ? over(positions, PIECE) * PIECE : inner;
        channel = least(channels, most(1, positions / most(1, inner)));
        if (channel < channels && inner <= 1) channel = over(channel, 4 * VECTOR) * 4 * VECTOR;
        row = most(1, least(rows, positions / most(1, inner * channels)));
        by_row = over(rows, row), by_channel = over(channels, most(1, channel)), by_position = over(inner, most(1, position));
    }

    int64_t count(const bn_call &c) const { return c.groups * by_row * by_channel * by_position; }

    Tile tile(int64_t which) const {
        const int64_t p = which % by_position * position, k = which / by_position % by_channel * channel;
        const int64_t line = which / (by_position * by_channel), r = line % by_row * row;
        return {line / by_row, r, least(rows, r + row), k, least(channels, k + channel), p, least(inner, p + position)};
    }
};

// Which of n pieces some thread has taken.
class Taken {
public:
    explicit Taken(int64_t n) : more_(n > FEW ? new (std::nothrow) std::atomic<bool>[size_t(n)] : nullptr) {
        pieces_ = n > FEW ? more_.get() : few_;
        for (int64_t i = 0; pieces_ && i < n; ++i) pieces_[i].store(false, std::memory_order_relaxed);
    }

    bool has_memory() const { return pieces_; }
    bool take(int64_t i) { return !pieces_[i].exchange(true, std::memory_order_relaxed); }

private:
    static constexpr int64_t FEW = 256;
    std::atomic<bool> few_[FEW];
    std::unique_ptr<std::atomic<bool>[]> more_;
    std::atomic<bool> *pieces_;
};

// Run `each(i)` for 0 ≤ i < n. A thread begins with its own share, which is the same part of the memory in every call and
// in the operations of frameworks: a good part of it is in the cache of the thread's core. Then it helps the others, from
// the ends of their shares that they come to last, since cores are seldom equally free. `backwards`: each share from its end.
template <class Each> int everywhere(const bn_call &c, int64_t bytes, int64_t n, const Each &each, bool backwards = false) {
    if (bytes <= INLINE_BYTES || n < 2) {
        for (int64_t i = 0; i < n; ++i) each(backwards ? n - 1 - i : i);
        return BN_OK;
    }
    struct Job {
        const Each &each;
        int64_t n;
        bool backwards;
        Taken taken;

        void run(int64_t i) {
            if (taken.take(i)) each(i);
        }
    } job{each, n, backwards, Taken(n)};
    if (!job.taken.has_memory()) return BN_NO_MEMORY;
    const auto work = [](int64_t first, int64_t last, void *context) {
        Job &job = *static_cast<Job *>(context);
        if (job.backwards) {
            for (int64_t i = last - 1; i >= first; --i) job.run(i);
            for (int64_t i = last; i < job.n; ++i) job.run(i);
            for (int64_t i = 0; i < first; ++i) job.run(i);
        } else {
            for (int64_t i = first; i < last; ++i) job.run(i);
            for (int64_t i = first - 1; i >= 0; --i) job.run(i);
            for (int64_t i = job.n - 1; i >= last; --i) job.run(i);
        }
    };
    return (c.parallel_for ? c.parallel_for : pool_parallel_for)(0, n, 1, work, &job) ? BN_BAD_PARALLEL_FOR : BN_OK;
}

}  // namespace batchnorm
