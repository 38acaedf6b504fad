// Vectors of 64 bytes, the same lanes on every instruction set: what a machine has no instruction for, the compiler
// makes of several. Everything lies in a namespace of the instruction set, so that no linker can mix them up.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>
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

typedef float Float16 __attribute__((vector_size(64)));
typedef int32_t Int16 __attribute__((vector_size(64)));
typedef uint32_t Unsigned16 __attribute__((vector_size(64)));
typedef uint16_t Short16 __attribute__((vector_size(32)));
typedef double Double8 __attribute__((vector_size(64)));
typedef int64_t Long8 __attribute__((vector_size(64)));

template <class A> struct Lanes;
template <> struct Lanes<float> { using Vector = Float16; using Integer = Int16; static constexpr int count = 16; };
template <> struct Lanes<double> { using Vector = Double8; using Integer = Long8; static constexpr int count = 8; };

// The working type of a storage type.
template <class T> struct Working { using type = float; };
template <> struct Working<double> { using type = double; };

template <class To, class From> BN_INLINE To bit_cast(const From &from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    std::memcpy(&to, &from, sizeof to);
    return to;
}

template <class A> BN_INLINE typename Lanes<A>::Integer numbered() {
    if constexpr (sizeof(A) == 4) return Int16{0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
    else return Long8{0, 1, 2, 3, 4, 5, 6, 7};
}

// ---- GCC takes lane by lane, and by way of the stack, what is wider than the machine's own vectors ----

#if defined(__AVX512F__)
inline constexpr int OWN_BYTES = 64;
#elif defined(__AVX2__)
inline constexpr int OWN_BYTES = 32;
#else
inline constexpr int OWN_BYTES = 16;
#endif

template <class V> using Lane = std::decay_t<decltype(V{}[0])>;
template <class V> struct Half {
    typedef Lane<V> type __attribute__((vector_size(sizeof(V) / 2)));
};
template <class V> struct Split {
    typename Half<V>::type low, high;
};

template <class V> BN_INLINE V all(Lane<V> value) {
    if constexpr (sizeof(V) <= OWN_BYTES) return value - V{};  // minus: 0 + −0 would be +0
    else return bit_cast<V>(Split<V>{all<typename Half<V>::type>(value), all<typename Half<V>::type>(value)});
}
template <class A> BN_INLINE typename Lanes<A>::Vector broadcast(A value) { return all<typename Lanes<A>::Vector>(value); }

// z between −limit and limit, of a vector of the machine's own; NaN stays, as the second argument of these instructions,
// which GCC does not find by itself.
template <class V> BN_INLINE V clamped(V z, Lane<V> limit) {
    const V low = all<V>(-limit), high = all<V>(limit);
#if defined(__AVX2__) && !defined(__AVX512F__)
    if constexpr (sizeof(V) == 32 && sizeof(Lane<V>) == 4) {
        const __m256 above = _mm256_max_ps(bit_cast<__m256>(low), bit_cast<__m256>(z));
        return bit_cast<V>(_mm256_min_ps(bit_cast<__m256>(high), above));
    } else if constexpr (sizeof(V) == 32) {
        const __m256d above = _mm256_max_pd(bit_cast<__m256d>(low), bit_cast<__m256d>(z));
        return bit_cast<V>(_mm256_min_pd(bit_cast<__m256d>(high), above));
    }
#endif
    const V above = z < low ? low : z;
    return above > high ? high : above;
}

// f of vectors of one size, by parts of the machine's own.
template <class F, class... V> BN_INLINE auto by_parts(const F &f, V... v) {
    using R = decltype(f(v...));
    if constexpr (sizeof(R) <= OWN_BYTES) return f(v...);
    else
        return bit_cast<R>(Split<R>{by_parts(f, bit_cast<Split<V>>(v).low...),
                                    by_parts(f, bit_cast<Split<V>>(v).high...)});
}

template <class V> BN_INLINE auto below(V a, V b) { return by_parts([](auto p, auto q) { return p < q; }, a, b); }
template <class V> BN_INLINE auto same(V a, V b) { return by_parts([](auto p, auto q) { return p == q; }, a, b); }

template <class A> BN_INLINE auto first(int lanes) { return below(numbered<A>(), all<typename Lanes<A>::Integer>(lanes)); }

template <class V, class M> BN_INLINE V select(M mask, V yes, V no) {
    return by_parts([](auto m, auto p, auto q) { return m ? p : q; }, mask, yes, no);
}

// ---- between 16, 32 and 64 bits; __builtin_convertvector is several times slower where GCC 12 cuts it into pieces ----

typedef float Float8 __attribute__((vector_size(32)));
struct Halves { Float8 low, high; };

#if defined(__AVX512F__)
BN_INLINE Unsigned16 longer(Short16 v) { return bit_cast<Unsigned16>(_mm512_cvtepu16_epi32(bit_cast<__m256i>(v))); }
BN_INLINE Short16 shorter(Unsigned16 v) { return bit_cast<Short16>(_mm512_cvtepi32_epi16(bit_cast<__m512i>(v))); }
BN_INLINE Double8 longer(Float8 v) { return bit_cast<Double8>(_mm512_cvtps_pd(bit_cast<__m256>(v))); }
BN_INLINE Float8 shorter(Double8 v) { return bit_cast<Float8>(_mm512_cvtpd_ps(bit_cast<__m512d>(v))); }
#elif defined(__AVX2__)
struct ShortHalves { __m128i low, high; };
struct IntHalves { __m256i low, high; };
BN_INLINE Unsigned16 longer(Short16 v) {
    const ShortHalves h = bit_cast<ShortHalves>(v);
    return bit_cast<Unsigned16>(IntHalves{_mm256_cvtepu16_epi32(h.low), _mm256_cvtepu16_epi32(h.high)});
}
BN_INLINE Short16 shorter(Unsigned16 v) {  // each lane holds 16 bits
    const IntHalves h = bit_cast<IntHalves>(v);
    return bit_cast<Short16>(_mm256_permute4x64_epi64(_mm256_packus_epi32(h.low, h.high), 0xd8));
}
BN_INLINE Double8 longer(Float8 v) { return __builtin_convertvector(v, Double8); }
BN_INLINE Float8 shorter(Double8 v) { return __builtin_convertvector(v, Float8); }
#else
BN_INLINE Unsigned16 longer(Short16 v) { return __builtin_convertvector(v, Unsigned16); }
BN_INLINE Short16 shorter(Unsigned16 v) { return __builtin_convertvector(v, Short16); }
BN_INLINE Double8 longer(Float8 v) { return __builtin_convertvector(v, Double8); }
BN_INLINE Float8 shorter(Double8 v) { return __builtin_convertvector(v, Float8); }
#endif

BN_INLINE Float16 widen(Short16 raw, bfloat16) { return bit_cast<Float16>(longer(raw) << 16); }

BN_INLINE Short16 narrow(Float16 v, bfloat16) {  // to nearest, ties to even; NaN stays one
    Unsigned16 raw = bit_cast<Unsigned16>(v);
    Unsigned16 rounded = (raw + 0x7fffu + ((raw >> 16) & 1u)) >> 16;
    Unsigned16 nan = (raw >> 16) | 0x40u;
    return shorter(select(same(v, v), rounded, nan));
}

#if defined(__AVX512F__)
BN_INLINE Float16 widen(Short16 raw, float16) { return bit_cast<Float16>(_mm512_cvtph_ps(bit_cast<__m256i>(raw))); }
BN_INLINE Short16 narrow(Float16 v, float16) {
    return bit_cast<Short16>(_mm512_cvtps_ph(bit_cast<__m512>(v), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
#elif defined(__F16C__)
struct FloatHalves { __m256 low, high; };
BN_INLINE Float16 widen(Short16 raw, float16) {
    const ShortHalves h = bit_cast<ShortHalves>(raw);
    return bit_cast<Float16>(FloatHalves{_mm256_cvtph_ps(h.low), _mm256_cvtph_ps(h.high)});
}
BN_INLINE Short16 narrow(Float16 v, float16) {
    const FloatHalves h = bit_cast<FloatHalves>(v);
    return bit_cast<Short16>(ShortHalves{_mm256_cvtps_ph(h.low, 0), _mm256_cvtps_ph(h.high, 0)});
}
#else
BN_CALLED Float16 widen(Short16 raw, float16) {  // shift the exponent into place; 2^112 rebuilds it, subnormals too
    const Unsigned16 wide = longer(raw);
    const Unsigned16 sign = (wide & 0x8000u) << 16, rest = (wide & 0x7fffu) << 13;
    const Float16 value = bit_cast<Float16>(rest) * 0x1p112f;
    const Unsigned16 special = rest | 0x7f800000u;  // inf or NaN
    const Unsigned16 bits = select(below(rest, Unsigned16{} + 0x0f800000u), bit_cast<Unsigned16>(value), special);
    const Unsigned16 quiet = bits | 0x400000u;
    const Float16 number = bit_cast<Float16>(bits);
    return bit_cast<Float16>(sign | select(same(number, number), bits, quiet));
}
BN_CALLED Short16 narrow(Float16 v, float16) {
    const Unsigned16 raw = bit_cast<Unsigned16>(v), sign = (raw >> 16) & 0x8000u, size = raw & 0x7fffffffu;
    // Normal: round the 13 bits away. Subnormal: let an addition round to multiples of 2^-24.
    const Unsigned16 normal = (size + 0xfffu + ((size >> 13) & 1u) - (112u << 23)) >> 13;
    const Unsigned16 small = bit_cast<Unsigned16>(bit_cast<Float16>(size) + 0.5f) - 0x3f000000u;
    Unsigned16 half = select(below(size, Unsigned16{} + 0x38800000u), small, normal);
    half = select(below(size, Unsigned16{} + 0x477ff000u), half, Unsigned16{} + 0x7c00u);
    half = select(below(Unsigned16{} + 0x7f800000u, size), ((size >> 13) & 0x3ffu) | 0x7e00u, half);
    return shorter(half | sign);
}
#endif

// ---- memory ----

BN_INLINE Float16 load(const float *p) { Float16 v; std::memcpy(&v, p, sizeof v); return v; }
BN_INLINE Double8 load(const double *p) { Double8 v; std::memcpy(&v, p, sizeof v); return v; }
template <class T> BN_INLINE Float16 load(const T *p) { Short16 raw; std::memcpy(&raw, p, sizeof raw); return widen(raw, T{}); }

template <class V> BN_INLINE void copy(void *p, V v) {  // by parts: GCC copies wider ones by way of the stack
    if constexpr (sizeof v > OWN_BYTES) {
        const Split<V> parts = bit_cast<Split<V>>(v);
        copy(p, parts.low), copy(static_cast<char *>(p) + sizeof v / 2, parts.high);
    } else {
        std::memcpy(p, &v, sizeof v);
    }
}
BN_INLINE void store(float *p, Float16 v) { copy(p, v); }
BN_INLINE void store(double *p, Double8 v) { copy(p, v); }
template <class T> BN_INLINE void store(T *p, Float16 v) { copy(p, narrow(v, T{})); }

// The first `lanes` only; the others read as 0 and are not written.
#if defined(__AVX512BW__) && defined(__AVX512VL__)
BN_INLINE Float16 load(const float *p, int lanes) { return bit_cast<Float16>(_mm512_maskz_loadu_ps((1u << lanes) - 1, p)); }
BN_INLINE Double8 load(const double *p, int lanes) { return bit_cast<Double8>(_mm512_maskz_loadu_pd((1u << lanes) - 1, p)); }
template <class T> BN_INLINE Float16 load(const T *p, int lanes) {
    return widen(bit_cast<Short16>(_mm256_maskz_loadu_epi16((1u << lanes) - 1, p)), T{});
}
BN_INLINE void store(float *p, Float16 v, int lanes) { _mm512_mask_storeu_ps(p, (1u << lanes) - 1, bit_cast<__m512>(v)); }
BN_INLINE void store(double *p, Double8 v, int lanes) { _mm512_mask_storeu_pd(p, (1u << lanes) - 1, bit_cast<__m512d>(v)); }
template <class T> BN_INLINE void store(T *p, Float16 v, int lanes) {
    _mm256_mask_storeu_epi16(p, (1u << lanes) - 1, bit_cast<__m256i>(narrow(v, T{})));
}
#else
template <class T> BN_INLINE auto load(const T *p, int lanes) {
    T some[Lanes<typename Working<T>::type>::count] = {};
    std::memcpy(some, p, lanes * sizeof(T));
    return load(some);
}
template <class T, class V> BN_INLINE void store(T *p, V v, int lanes) {
    T some[Lanes<typename Working<T>::type>::count];
    store(some, v);
    std::memcpy(p, some, lanes * sizeof(T));
}
#if defined(__AVX2__)  // a masked store takes twice as long as a copy
BN_INLINE Float16 load(const float *p, int lanes) {
    const Split<Int16> mask = bit_cast<Split<Int16>>(first<float>(lanes));
    return bit_cast<Float16>(FloatHalves{_mm256_maskload_ps(p, bit_cast<__m256i>(mask.low)),
                                         _mm256_maskload_ps(p + 8, bit_cast<__m256i>(mask.high))});
}
#endif
#endif

// Past the cache, where `p` is aligned to a whole vector: pays for outputs that no cache would hold.
template <class T> BN_INLINE bool streamable(const T *p) {
    return reinterpret_cast<uintptr_t>(p) % (Lanes<typename Working<T>::type>::count * sizeof(T)) == 0;
}
#if defined(__AVX512F__)
BN_INLINE void stream(float *p, Float16 v) { _mm512_stream_ps(p, bit_cast<__m512>(v)); }
BN_INLINE void stream(double *p, Double8 v) { _mm512_stream_pd(p, bit_cast<__m512d>(v)); }
template <class T> BN_INLINE void stream(T *p, Float16 v) {
    _mm256_stream_si256(reinterpret_cast<__m256i *>(p), bit_cast<__m256i>(narrow(v, T{})));
}
#elif defined(__SSE2__)
struct Pieces { __m128i piece[4]; };
struct HalfPieces { __m128i piece[2]; };
template <class P, class T, class R> BN_INLINE void stream_pieces(T *p, R raw) {
    const P pieces = bit_cast<P>(raw);
    for (unsigned i = 0; i < sizeof(P) / 16; ++i) _mm_stream_si128(reinterpret_cast<__m128i *>(p) + i, pieces.piece[i]);
}
BN_INLINE void stream(float *p, Float16 v) { stream_pieces<Pieces>(p, v); }
BN_INLINE void stream(double *p, Double8 v) { stream_pieces<Pieces>(p, v); }
template <class T> BN_INLINE void stream(T *p, Float16 v) { stream_pieces<HalfPieces>(p, narrow(v, T{})); }
#else
template <class T, class V> BN_INLINE void stream(T *p, V v) { store(p, v); }
#endif

BN_INLINE void finish_streams() {
#ifdef __SSE2__
    _mm_sfence();
#endif
}

// ---- one bit a lane ----

BN_INLINE uint16_t positive_bits(Float16 z) {
#if defined(__AVX512F__)
    return _mm512_cmp_ps_mask(bit_cast<__m512>(z), _mm512_setzero_ps(), _CMP_GT_OQ);
#elif defined(__AVX2__)
    const Split<Float16> positive = bit_cast<Split<Float16>>(below(Float16{}, z));
    return uint16_t(_mm256_movemask_ps(bit_cast<__m256>(positive.low)) |
                    _mm256_movemask_ps(bit_cast<__m256>(positive.high)) << 8);
#else
    uint16_t bits = 0;
    for (int i = 0; i < 16; ++i) bits |= uint16_t(z[i] > 0) << i;
    return bits;
#endif
}

BN_CALLED uint16_t positive_bits(Double8 z) {
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
        const Split<V> parts = bit_cast<Split<V>>(v);
        return total(parts.low + parts.high);
    }
}
BN_INLINE double total(Float16 v) {
    const Halves h = bit_cast<Halves>(v);
    return total(longer(h.low) + longer(h.high));
}

}  // namespace batchnorm::BN_ISA
