// Vectors of 64 bytes, the same lanes on every instruction set: where the machine's own are narrower, they are pairs of
// halves. Everything lies in a namespace of the instruction set, so that no linker can mix them up.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#pragma GCC diagnostic ignored "-Wpsabi"  // no vector crosses the border of a file

#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"  // in GCC's own intrinsics

#define BN_INLINE inline __attribute__((always_inline))
#define BN_CALLED static __attribute__((noinline))  // long, and not worth a copy wherever it is used

namespace batchnorm::BN_ISA {

struct bfloat16 { uint16_t bits; };
struct float16 { uint16_t bits; };

// ---- GCC keeps a vector that is wider than the machine's own in memory, wherever branches or rounds of a loop meet ----

#if defined(__AVX512F__)
inline constexpr int OWN_BYTES = 64;
#elif defined(__AVX2__)
inline constexpr int OWN_BYTES = 32;
#else
inline constexpr int OWN_BYTES = 16;
#endif

template <class V> using Lane = std::decay_t<decltype(std::declval<V>()[0])>;

template <class H> struct Pair {
    H low, high;
    BN_INLINE Lane<H> operator[](int i) const {
        constexpr int half = sizeof(H) / sizeof(Lane<H>);
        return i < half ? low[i] : high[i - half];
    }
};
template <class V> inline constexpr bool is_pair = false;
template <class H> inline constexpr bool is_pair<Pair<H>> = true;

template <class E, int bytes, bool own = (bytes <= OWN_BYTES)> struct VectorOf {
    typedef E type __attribute__((vector_size(bytes)));
};
template <class E, int bytes> struct VectorOf<E, bytes, false> {
    using type = Pair<typename VectorOf<E, bytes / 2>::type>;
};

#define BN_OPERATOR(op)                                                            \
    template <class H> BN_INLINE Pair<H> operator op(Pair<H> a, Pair<H> b) {       \
        return {a.low op b.low, a.high op b.high};                                 \
    }                                                                              \
    template <class H> BN_INLINE Pair<H> operator op(Pair<H> a, Lane<H> b) {       \
        return {a.low op b, a.high op b};                                          \
    }                                                                              \
    template <class H, class B> BN_INLINE Pair<H> &operator op##=(Pair<H> &a, B b) { return a = a op b; }
BN_OPERATOR(+)
BN_OPERATOR(-)
BN_OPERATOR(*)
BN_OPERATOR(/)
BN_OPERATOR(&)
BN_OPERATOR(|)
BN_OPERATOR(<<)
BN_OPERATOR(>>)
#undef BN_OPERATOR

using Floats16 = VectorOf<float, 64>::type;
using Ints16 = VectorOf<int32_t, 64>::type;
using UnsignedInts16 = VectorOf<uint32_t, 64>::type;
using Shorts16 = VectorOf<uint16_t, 32>::type;
using Floats8 = VectorOf<float, 32>::type;
using Doubles8 = VectorOf<double, 64>::type;
using Long8 = VectorOf<int64_t, 64>::type;

template <class A> struct Lanes;
template <> struct Lanes<float> { using Vector = Floats16; using Integer = Ints16; static constexpr int count = 16; };
template <> struct Lanes<double> { using Vector = Doubles8; using Integer = Long8; static constexpr int count = 8; };

// The working type of a storage type.
template <class T> struct Working { using type = float; };
template <> struct Working<double> { using type = double; };

template <class To, class From> BN_INLINE To bit_cast(const From &from) {
    static_assert(sizeof(To) == sizeof(From));
    if constexpr (is_pair<To> && is_pair<From>) {
        return {bit_cast<decltype(To::low)>(from.low), bit_cast<decltype(To::high)>(from.high)};
    } else {
        To to;
        std::memcpy(&to, &from, sizeof to);
        return to;
    }
}

// The halves of any vector, and the vector of halves.
template <class V> BN_INLINE auto halves(V v) {
    if constexpr (is_pair<V>) return v;
    else return bit_cast<Pair<typename VectorOf<Lane<V>, sizeof(V) / 2>::type>>(v);
}
template <class V, class H> BN_INLINE V joined(H low, H high) { return bit_cast<V>(Pair<H>{low, high}); }

template <class V> BN_INLINE V read(const void *p) {
    if constexpr (is_pair<V>) {
        return {read<decltype(V::low)>(p), read<decltype(V::high)>(static_cast<const char *>(p) + sizeof(V) / 2)};
    } else {
        V v;
        std::memcpy(&v, p, sizeof v);
        return v;
    }
}
template <class V> BN_INLINE void write(void *p, V v) {
    if constexpr (is_pair<V>) write(p, v.low), write(static_cast<char *>(p) + sizeof v / 2, v.high);
    else std::memcpy(p, &v, sizeof v);
}

// f of vectors of one number of lanes, by vectors of the machine's own.
template <class F, class V, class... More> BN_INLINE auto by_parts(const F &f, V v, More... more) {
    if constexpr (is_pair<V>) {
        const auto low = by_parts(f, v.low, more.low...), high = by_parts(f, v.high, more.high...);
        return Pair<std::decay_t<decltype(low)>>{low, high};
    } else {
        return f(v, more...);
    }
}

template <class V> BN_INLINE V all(Lane<V> value) {
    if constexpr (is_pair<V>) return {all<decltype(V::low)>(value), all<decltype(V::high)>(value)};
    else return value - V{};  // minus: 0 + −0 would be +0
}
template <class A> BN_INLINE typename Lanes<A>::Vector broadcast(A value) { return all<typename Lanes<A>::Vector>(value); }

template <class A> BN_INLINE typename Lanes<A>::Integer numbered() {
    static constexpr Lane<typename Lanes<A>::Integer> numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    return read<typename Lanes<A>::Integer>(numbers);
}

template <class V> BN_INLINE auto below(V a, V b) { return by_parts([](auto p, auto q) { return p < q; }, a, b); }
template <class V> BN_INLINE auto unequal(V a, V b) { return by_parts([](auto p, auto q) { return p != q; }, a, b); }
template <class V> BN_INLINE auto same(V a, V b) { return by_parts([](auto p, auto q) { return p == q; }, a, b); }

template <class A> BN_INLINE auto first(int lanes) { return below(numbered<A>(), all<typename Lanes<A>::Integer>(lanes)); }

template <class V, class M> BN_INLINE V select(M mask, V yes, V no) {
    return by_parts([](auto m, auto p, auto q) { return m ? p : q; }, mask, yes, no);
}

// a·b + c of a vector of the machine's own, with one rounding where the machine has an instruction for it: a call of the C
// library for each lane takes ten times as long, and a hundred times without hardware. Explicit, since -ffp-contract=off
// keeps the compiler from fusing.
template <class V> BN_INLINE V fused(V a, V b, V c) {
#if defined(__AVX512F__)
    if constexpr (sizeof(Lane<V>) == 4) return bit_cast<V>(_mm512_fmadd_ps(bit_cast<__m512>(a), bit_cast<__m512>(b), bit_cast<__m512>(c)));
    else return bit_cast<V>(_mm512_fmadd_pd(bit_cast<__m512d>(a), bit_cast<__m512d>(b), bit_cast<__m512d>(c)));
#elif defined(__AVX2__)
    if constexpr (sizeof(Lane<V>) == 4) return bit_cast<V>(_mm256_fmadd_ps(bit_cast<__m256>(a), bit_cast<__m256>(b), bit_cast<__m256>(c)));
    else return bit_cast<V>(_mm256_fmadd_pd(bit_cast<__m256d>(a), bit_cast<__m256d>(b), bit_cast<__m256d>(c)));
#elif defined(__FP_FAST_FMAF) && defined(__FP_FAST_FMA)
    for (unsigned i = 0; i < sizeof(V) / sizeof(Lane<V>); ++i) {
        if constexpr (sizeof(Lane<V>) == 4) c[i] = __builtin_fmaf(a[i], b[i], c[i]);
        else c[i] = __builtin_fma(a[i], b[i], c[i]);
    }
    return c;
#else
    return a * b + c;
#endif
}
template <class V> BN_INLINE V fused(V a, Lane<V> b, V c) { return fused(a, all<V>(b), c); }
template <class V> BN_INLINE V fused(V a, Lane<V> b, Lane<V> c) { return fused(a, all<V>(b), all<V>(c)); }

// z between −limit and limit, of a vector of the machine's own; NaN stays, as the second argument of these instructions,
// which GCC does not find by itself.
template <class V> BN_INLINE V clamped(V z, Lane<V> limit) {
    const V low = all<V>(-limit), high = all<V>(limit);
#if defined(__AVX2__) && !defined(__AVX512F__)
    if constexpr (sizeof(Lane<V>) == 4) {
        const __m256 above = _mm256_max_ps(bit_cast<__m256>(low), bit_cast<__m256>(z));
        return bit_cast<V>(_mm256_min_ps(bit_cast<__m256>(high), above));
    } else {
        const __m256d above = _mm256_max_pd(bit_cast<__m256d>(low), bit_cast<__m256d>(z));
        return bit_cast<V>(_mm256_min_pd(bit_cast<__m256d>(high), above));
    }
#endif
    const V above = z < low ? low : z;
    return above > high ? high : above;
}

// ---- between 16, 32 and 64 bits; __builtin_convertvector is several times slower where GCC 12 cuts it into pieces ----

#if defined(__AVX512F__)
BN_INLINE UnsignedInts16 longer(Shorts16 v) { return bit_cast<UnsignedInts16>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(v))); }
BN_INLINE Shorts16 shorter(UnsignedInts16 v) { return bit_cast<Shorts16>(_mm512_cvtepi32_epi16(bit_cast<__m512i>(v))); }
BN_INLINE Doubles8 longer(Floats8 v) { return bit_cast<Doubles8>(_mm512_cvtps_pd(bit_cast<__m256>(v))); }
BN_INLINE Floats8 shorter(Doubles8 v) { return bit_cast<Floats8>(_mm512_cvtpd_ps(bit_cast<__m512d>(v))); }
#elif defined(__AVX2__)
BN_INLINE UnsignedInts16 longer(Shorts16 v) {
    const __m256i raw = bit_cast<__m256i>(v);
    using H = decltype(UnsignedInts16::low);
    return {bit_cast<H>(_mm256_cvtepu16_epi32(_mm256_castsi256_si128(raw))),
            bit_cast<H>(_mm256_cvtepu16_epi32(_mm256_extracti128_si256(raw, 1)))};
}
BN_INLINE Shorts16 shorter(UnsignedInts16 v) {  // each lane holds 16 bits
    const __m256i low = bit_cast<__m256i>(v.low), high = bit_cast<__m256i>(v.high);
    return bit_cast<Shorts16>(_mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8));
}
BN_INLINE Doubles8 longer(Floats8 v) {
    const __m256 raw = bit_cast<__m256>(v);
    using H = decltype(Doubles8::low);
    return {bit_cast<H>(_mm256_cvtps_pd(_mm256_castps256_ps128(raw))), bit_cast<H>(_mm256_cvtps_pd(_mm256_extractf128_ps(raw, 1)))};
}
BN_INLINE Floats8 shorter(Doubles8 v) {
    const __m128 low = _mm256_cvtpd_ps(bit_cast<__m256d>(v.low)), high = _mm256_cvtpd_ps(bit_cast<__m256d>(v.high));
    return bit_cast<Floats8>(_mm256_set_m128(high, low));
}
#else
// The compiler's own conversion, of vectors of any width.
template <class To, class From> BN_INLINE To converted(From v) {
    typedef Lane<From> Narrow __attribute__((vector_size(sizeof v)));
    typedef Lane<To> Wide __attribute__((vector_size(sizeof(To))));
    return bit_cast<To>(__builtin_convertvector(bit_cast<Narrow>(v), Wide));
}
BN_INLINE UnsignedInts16 longer(Shorts16 v) { return converted<UnsignedInts16>(v); }
BN_INLINE Shorts16 shorter(UnsignedInts16 v) { return converted<Shorts16>(v); }
BN_INLINE Doubles8 longer(Floats8 v) { return converted<Doubles8>(v); }
BN_INLINE Floats8 shorter(Doubles8 v) { return converted<Floats8>(v); }
#endif

BN_INLINE Floats16 widen(Shorts16 raw, bfloat16) { return bit_cast<Floats16>(longer(raw) << 16); }

BN_INLINE Shorts16 narrow(Floats16 v, bfloat16) {  // to nearest, ties to even; every NaN becomes 0xffff
    UnsignedInts16 raw = bit_cast<UnsignedInts16>(v);
    UnsignedInts16 rounded = raw + (((raw >> 16) & 1u) + 0x7fffu);
    return shorter((rounded | bit_cast<UnsignedInts16>(unequal(v, v))) >> 16);
}

#if defined(__AVX512F__)
BN_INLINE Floats16 widen(Shorts16 raw, float16) { return bit_cast<Floats16>(_mm512_cvtph_ps(bit_cast<__m256i>(raw))); }
BN_INLINE Shorts16 narrow(Floats16 v, float16) {
    return bit_cast<Shorts16>(_mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
BN_INLINE Floats16 widen(Shorts16 raw, float16) {
    const __m256i bits = bit_cast<__m256i>(raw);
    return {bit_cast<Floats8>(_mm256_cvtph_ps(_mm256_castsi256_si128(bits))),
            bit_cast<Floats8>(_mm256_cvtph_ps(_mm256_extracti128_si256(bits, 1)))};
}
BN_INLINE Shorts16 narrow(Floats16 v, float16) {
    const __m128i low = _mm256_cvtps_ph(bit_cast<__m256>(v.low), 0), high = _mm256_cvtps_ph(bit_cast<__m256>(v.high), 0);
    return bit_cast<Shorts16>(_mm256_set_m128i(high, low));
}
#else
BN_CALLED Floats16 widen(Shorts16 raw, float16) {  // shift the exponent into place; 2^112 rebuilds it, subnormals too
    const UnsignedInts16 wide = longer(raw);
    const UnsignedInts16 sign = (wide & 0x8000u) << 16, rest = (wide & 0x7fffu) << 13;
    const Floats16 value = bit_cast<Floats16>(rest) * 0x1p112f;
    const UnsignedInts16 special = rest | 0x7f800000u;  // inf or NaN
    const UnsignedInts16 bits = select(below(rest, UnsignedInts16{} + 0x0f800000u), bit_cast<UnsignedInts16>(value), special);
    const UnsignedInts16 quiet = bits | 0x400000u;
    const Floats16 number = bit_cast<Floats16>(bits);
    return bit_cast<Floats16>(sign | select(same(number, number), bits, quiet));
}
BN_CALLED Shorts16 narrow(Floats16 v, float16) {
    const UnsignedInts16 raw = bit_cast<UnsignedInts16>(v), sign = (raw >> 16) & 0x8000u, size = raw & 0x7fffffffu;
    // Normal: round the 13 bits away. Subnormal: let an addition round to multiples of 2^-24.
    const UnsignedInts16 normal = (size + 0xfffu + ((size >> 13) & 1u) - (112u << 23)) >> 13;
    const UnsignedInts16 small = bit_cast<UnsignedInts16>(bit_cast<Floats16>(size) + 0.5f) - 0x3f000000u;
    UnsignedInts16 half = select(below(size, UnsignedInts16{} + 0x38800000u), small, normal);
    half = select(below(size, UnsignedInts16{} + 0x477ff000u), half, UnsignedInts16{} + 0x7c00u);
    half = select(below(UnsignedInts16{} + 0x7f800000u, size), ((size >> 13) & 0x3ffu) | 0x7e00u, half);
    return shorter(half | sign);
}
#endif

// ---- memory ----

#if defined(__AVX2__) && !defined(__AVX512F__)  // each word into the upper half of a lane, in one instruction
BN_INLINE Floats16 load(const bfloat16 *p) {
    constexpr char o = -1;  // a byte of 0
    const __m256i places = _mm256_setr_epi8(o, o, 0, 1, o, o, 2, 3, o, o, 4, 5, o, o, 6, 7,
                                            o, o, 8, 9, o, o, 10, 11, o, o, 12, 13, o, o, 14, 15);
    const auto eight = [&](const bfloat16 *from) {
        const __m128i words = _mm_loadu_si128(reinterpret_cast<const __m128i *>(from));
        return bit_cast<decltype(Floats16::low)>(_mm256_shuffle_epi8(_mm256_broadcastsi128_si256(words), places));
    };
    return {eight(p), eight(p + 8)};
}
#endif
BN_INLINE Floats16 load(const float *p) { return read<Floats16>(p); }
BN_INLINE Doubles8 load(const double *p) { return read<Doubles8>(p); }
template <class T> BN_INLINE Floats16 load(const T *p) { return widen(read<Shorts16>(p), T{}); }

// A vector as it lies in memory.
BN_INLINE Floats16 stored(const float *, Floats16 v) { return v; }
BN_INLINE Doubles8 stored(const double *, Doubles8 v) { return v; }
template <class T> BN_INLINE Shorts16 stored(const T *, Floats16 v) { return narrow(v, T{}); }

template <class T, class V> BN_INLINE void store(T *p, V v) { write(p, stored(p, v)); }

// The first `lanes` only, fewer than all; the others read as 0 and are not written.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
BN_INLINE Floats16 load(const float *p, int lanes) { return bit_cast<Floats16>(_mm512_maskz_loadu_ps((1u << lanes) - 1, p)); }
BN_INLINE Doubles8 load(const double *p, int lanes) { return bit_cast<Doubles8>(_mm512_maskz_loadu_pd((1u << lanes) - 1, p)); }
template <class T> BN_INLINE Floats16 load(const T *p, int lanes) {
    return widen(bit_cast<Shorts16>(_mm256_maskz_loadu_epi16((1u << lanes) - 1, p)), T{});
}
BN_INLINE void store(float *p, Floats16 v, int lanes) { _mm512_mask_storeu_ps(p, (1u << lanes) - 1, bit_cast<__m512>(v)); }
BN_INLINE void store(double *p, Doubles8 v, int lanes) { _mm512_mask_storeu_pd(p, (1u << lanes) - 1, bit_cast<__m512d>(v)); }
template <class T> BN_INLINE void store(T *p, Floats16 v, int lanes) {
    _mm256_mask_storeu_epi16(p, (1u << lanes) - 1, bit_cast<__m256i>(narrow(v, T{})));
}
#else
template <class T> BN_INLINE auto load(const T *p, int lanes) {
    T some[Lanes<typename Working<T>::type>::count] = {};
    std::memcpy(some, p, lanes * sizeof(T));
    return load(some);
}
// The first bytes of a vector, in pieces of 32, 16, 8, 4 and 2: fewer than all, of which it would write none. A masked
// store takes twice as long.
template <class V> BN_INLINE void write_first(char *p, V v, int bytes) {
    constexpr int half = sizeof(V) / 2;
    if constexpr (half >= 16) {
        const auto parts = halves(v);
        if (bytes & half) write(p, parts.low);
        write_first(p + (bytes & half), bytes & half ? parts.high : parts.low, bytes);
    } else {
        uint64_t words[2];
        write(words, v);
        if (bytes & 8) std::memcpy(p, words, 8), p += 8, words[0] = words[1];
        if (bytes & 4) std::memcpy(p, words, 4), p += 4, words[0] >>= 32;
        if (bytes & 2) std::memcpy(p, words, 2);
    }
}
template <class T, class V> BN_INLINE void store(T *p, V v, int lanes) {
    write_first(reinterpret_cast<char *>(p), stored(p, v), lanes * int(sizeof(T)));
}
#if defined(__AVX2__)
BN_INLINE Floats16 load(const float *p, int lanes) {
    const Ints16 mask = first<float>(lanes);
    return {bit_cast<Floats8>(_mm256_maskload_ps(p, bit_cast<__m256i>(mask.low))),
            bit_cast<Floats8>(_mm256_maskload_ps(p + 8, bit_cast<__m256i>(mask.high)))};
}
template <class T> BN_INLINE Floats16 load_words(const T *p, int lanes) {
    // Pairs by a masked load of 32-bit words, and an odd last element by itself: nothing past it is read.
    const __m256i numbers = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7), twos = _mm256_set1_epi32(lanes / 2);
    __m256i words = _mm256_maskload_epi32(reinterpret_cast<const int *>(p), _mm256_cmpgt_epi32(twos, numbers));
    if (lanes % 2) {
        const __m256i last = _mm256_set1_epi32(p[lanes - 1].bits);
        words = _mm256_or_si256(words, _mm256_and_si256(_mm256_cmpeq_epi32(twos, numbers), last));
    }
    return widen(bit_cast<Shorts16>(words), T{});
}
BN_INLINE Floats16 load(const bfloat16 *p, int lanes) { return load_words(p, lanes); }
BN_INLINE Floats16 load(const float16 *p, int lanes) { return load_words(p, lanes); }
#endif
#endif

// Past the cache, where `p` is aligned to a whole vector: pays for outputs that no cache would hold.
template <class T> BN_INLINE bool streamable(const T *p) {
    return reinterpret_cast<uintptr_t>(p) % (Lanes<typename Working<T>::type>::count * sizeof(T)) == 0;
}
#if defined(__AVX512F__)
BN_INLINE void stream(float *p, Floats16 v) { _mm512_stream_ps(p, bit_cast<__m512>(v)); }
BN_INLINE void stream(double *p, Doubles8 v) { _mm512_stream_pd(p, bit_cast<__m512d>(v)); }
template <class T> BN_INLINE void stream(T *p, Floats16 v) {
    _mm256_stream_si256(reinterpret_cast<__m256i *>(p), bit_cast<__m256i>(narrow(v, T{})));
}
#elif defined(__SSE2__)
template <class V> BN_INLINE void write_past(void *p, V v) {
    if constexpr (is_pair<V>) {
        write_past(p, v.low), write_past(static_cast<char *>(p) + sizeof v / 2, v.high);
    } else {
#ifdef __AVX2__
        _mm256_stream_si256(static_cast<__m256i *>(p), bit_cast<__m256i>(v));
#else
        _mm_stream_si128(static_cast<__m128i *>(p), bit_cast<__m128i>(v));
#endif
    }
}
template <class T, class V> BN_INLINE void stream(T *p, V v) { write_past(p, stored(p, v)); }
#else
template <class T, class V> BN_INLINE void stream(T *p, V v) { store(p, v); }
#endif

BN_INLINE void finish_streams() {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

// ---- one bit a lane ----

BN_INLINE uint16_t positive_bits(Floats16 z) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(bit_cast<__m512>(z), _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(__AVX2__)
    const auto positive = below(Floats16{}, z);
    return uint16_t(_mm256_movemask_ps(bit_cast<__m256>(positive.low)) |
                    _mm256_movemask_ps(bit_cast<__m256>(positive.high)) << 8);
#else
    uint16_t bits = 0;
    for (int i = 0; i < 16; ++i) bits |= uint16_t(z[i] > 0) << i;
    return bits;
#endif
}

BN_CALLED uint16_t positive_bits(Doubles8 z) {
    uint16_t bits = 0;
    for (int i = 0; i < 8; ++i) bits |= uint16_t(z[i] > 0) << i;
    return bits;
}

template <class A> BN_INLINE typename Lanes<A>::Integer lanes_of(uint16_t bits) {
    using Integer = typename Lanes<A>::Integer;
    const Integer own = (Integer{} + 1) << numbered<A>();
    return same(all<Integer>(bits) & own, own);
}

// ---- sums ----

template <class V> BN_INLINE double total(V v) {
    if constexpr (sizeof v == 16) {
        return v[0] + v[1];
    } else {
        const auto parts = halves(v);
        return total(parts.low + parts.high);
    }
}
BN_INLINE double total(Floats16 v) {
    const auto parts = halves(v);
    return total(longer(parts.low) + longer(parts.high));
}

}  // namespace batchnorm::BN_ISA
