// Sixteen float lanes: one AVX-512 register, or two of AVX2. The same operations lane by lane, in
// the same order, whichever it is; nothing is contracted (-ffp-contract=off): where a product and a
// sum are rounded once, the code says fma.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace octavo {

constexpr int kLanes = 16;

// A bfloat16: the upper half of a float.
struct bf16 {
  uint16_t bits;
};

inline float widen(bf16 x) {
  uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float out;
  std::memcpy(&out, &bits, 4);
  return out;
}

#ifdef __AVX512F__

struct Lanes {
  __m512 v;
};

inline __mmask16 first_lanes(int count) { return static_cast<__mmask16>((1u << count) - 1); }

inline Lanes zero() { return {_mm512_setzero_ps()}; }
inline Lanes all(float x) { return {_mm512_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Lanes x) { _mm512_storeu_ps(p, x.v); }
inline Lanes operator+(Lanes a, Lanes b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Lanes operator-(Lanes a, Lanes b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Lanes operator*(Lanes a, Lanes b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Lanes operator/(Lanes a, Lanes b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Lanes fma(Lanes a, Lanes b, Lanes c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Lanes magnitude(Lanes x) { return {_mm512_abs_ps(x.v)}; }
// Of a NaN in either, `b` is the result.
inline Lanes max(Lanes a, Lanes b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Lanes min(Lanes a, Lanes b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Lanes round(Lanes x) {
  return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)};
}
// 2^n for whole n in -126 .. 127.
inline Lanes power_of_two(Lanes n) {
  __m512i e = _mm512_add_epi32(_mm512_cvtps_epi32(n.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(e, 23))};
}
// x where a >= b, else 0; of a NaN, x.
inline Lanes where_not_below(Lanes a, Lanes b, Lanes x) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ), x.v)};
}
inline Lanes load(const bf16* p) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
// To nearest, ties to even; a NaN stays one. AVX512_BF16 takes subnormal numbers for zero.
inline __m256i narrow(Lanes x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x.v);
#else
  __m512i bits = _mm512_castps_si512(x.v);
  __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, _mm512_set1_epi32(0x7fff)), odd);
  __mmask16 nan = _mm512_cmp_ps_mask(x.v, x.v, _CMP_UNORD_Q);
  up = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x00400000));
  return _mm512_cvtepi32_epi16(_mm512_srli_epi32(up, 16));
#endif
}
inline void store(bf16* p, Lanes x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x));
}
// Only the first `count` lanes; the others are zero, and their memory is not touched.
inline Lanes load(const float* p, int count) {
  return {_mm512_maskz_loadu_ps(first_lanes(count), p)};
}
inline Lanes load(const bf16* p, int count) {
  __m512i wide = _mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(first_lanes(count), p));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline void store(float* p, Lanes x, int count) {
  _mm512_mask_storeu_ps(p, first_lanes(count), x.v);
}
inline void store(bf16* p, Lanes x, int count) {
  _mm256_mask_storeu_epi16(p, first_lanes(count), narrow(x));
}
inline __m256 low_half(Lanes x) { return _mm512_castps512_ps256(x.v); }
inline __m256 high_half(Lanes x) {
  return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(x.v), 1));
}
// x in the lanes whose bit is set, `other` in the rest.
inline Lanes select(uint32_t lanes, Lanes x, Lanes other) {
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(lanes), other.v, x.v)};
}
// Lanes as pairs of bfloat16: each half as a float.
inline Lanes lower_halves(Lanes x) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x.v), 16))};
}
inline Lanes upper_halves(Lanes x) {
  const __m512i upper = _mm512_set1_epi32(static_cast<int>(0xffff0000));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x.v), upper))};
}
// The reverse, of floats that are bfloat16.
inline Lanes pair_up(Lanes lower, Lanes upper) {
  const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(lower.v), 16);
  return {_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_castps_si512(upper.v)))};
}

#else  // AVX2 with FMA

struct Lanes {
  __m256 low, high;
};

inline Lanes zero() { return {_mm256_setzero_ps(), _mm256_setzero_ps()}; }
inline Lanes all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Lanes load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Lanes x) {
  _mm256_storeu_ps(p, x.low);
  _mm256_storeu_ps(p + 8, x.high);
}
inline Lanes operator+(Lanes a, Lanes b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Lanes operator-(Lanes a, Lanes b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Lanes operator*(Lanes a, Lanes b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Lanes operator/(Lanes a, Lanes b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Lanes fma(Lanes a, Lanes b, Lanes c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Lanes magnitude(Lanes x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
inline Lanes max(Lanes a, Lanes b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Lanes min(Lanes a, Lanes b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Lanes round(Lanes x) {
  constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
  return {_mm256_round_ps(x.low, nearest), _mm256_round_ps(x.high, nearest)};
}
inline __m256 power_of_two(__m256 n) {
  __m256i e = _mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127));
  return _mm256_castsi256_ps(_mm256_slli_epi32(e, 23));
}
inline Lanes power_of_two(Lanes n) { return {power_of_two(n.low), power_of_two(n.high)}; }
inline Lanes where_not_below(Lanes a, Lanes b, Lanes x) {
  return {_mm256_and_ps(_mm256_cmp_ps(a.low, b.low, _CMP_NLT_UQ), x.low),
          _mm256_and_ps(_mm256_cmp_ps(a.high, b.high, _CMP_NLT_UQ), x.high)};
}
inline __m256 widen8(__m128i x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline Lanes load(const bf16* p) {
  auto q = reinterpret_cast<const __m128i*>(p);
  return {widen8(_mm_loadu_si128(q)), widen8(_mm_loadu_si128(q + 1))};
}
inline __m256i rounded(__m256 x) {
  __m256i bits = _mm256_castps_si256(x);
  __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x7fff)), odd);
  __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  __m256i quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x00400000));
  return _mm256_srli_epi32(_mm256_blendv_epi8(up, quiet, nan), 16);
}
inline __m256i narrow(Lanes x) {
  __m256i packed = _mm256_packus_epi32(rounded(x.low), rounded(x.high));
  return _mm256_permute4x64_epi64(packed, 0xd8);
}
inline void store(bf16* p, Lanes x) {
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), narrow(x));
}
template <typename T>
inline Lanes load(const T* p, int count) {
  T padded[kLanes] = {};
  std::memcpy(padded, p, count * sizeof(T));
  return load(padded);
}
template <typename T>
inline void store(T* p, Lanes x, int count) {
  T padded[kLanes];
  store(padded, x);
  std::memcpy(p, padded, count * sizeof(T));
}
inline __m256 low_half(Lanes x) { return x.low; }
inline __m256 high_half(Lanes x) { return x.high; }
inline __m256 select8(uint32_t lanes, __m256 x, __m256 other) {
  const __m256i bits = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i set = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(lanes)), bits);
  return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(_mm256_cmpeq_epi32(set, bits)));
}
inline Lanes select(uint32_t lanes, Lanes x, Lanes other) {
  return {select8(lanes, x.low, other.low), select8(lanes >> 8, x.high, other.high)};
}
inline __m256 lower_halves(__m256 x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 16));
}
inline __m256 upper_halves(__m256 x) {
  const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
  return _mm256_and_ps(x, _mm256_castsi256_ps(upper));
}
inline Lanes lower_halves(Lanes x) { return {lower_halves(x.low), lower_halves(x.high)}; }
inline Lanes upper_halves(Lanes x) { return {upper_halves(x.low), upper_halves(x.high)}; }
inline Lanes pair_up(Lanes lower, Lanes upper) {
  auto half = [](__m256 lower, __m256 upper) {
    const __m256i low = _mm256_srli_epi32(_mm256_castps_si256(lower), 16);
    return _mm256_or_ps(_mm256_castsi256_ps(low), upper);
  };
  return {half(lower.low, upper.low), half(lower.high, upper.high)};
}

#endif

// Up to 16 elements, or none: what lies behind `count` is zero, and is not touched in memory.
template <typename T>
inline Lanes load_some(const T* p, int count) {
  return count >= kLanes ? load(p) : count > 0 ? load(p, count) : zero();
}
template <typename T>
inline void store_some(T* p, Lanes x, int count) {
  if (count >= kLanes) return store(p, x);
  if (count > 0) store(p, x, count);
}

inline Lanes& operator+=(Lanes& a, Lanes b) { return a = a + b; }

// The sum of all lanes: halves are added until one lane is left.
inline float sum(Lanes x) {
  __m256 eight = _mm256_add_ps(low_half(x), high_half(x));
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_movehdup_ps(two)));
}

inline float largest(Lanes x) {
  __m256 eight = _mm256_max_ps(low_half(x), high_half(x));
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(two, _mm_movehdup_ps(two)));
}

// e^x within 2 units in the last place; 0 below -86.6, infinite above 88.72; a NaN stays one.
// Range reduction and polynomial as in Moshier's Cephes library (expf).
inline Lanes exp(Lanes x) {
  Lanes lowest = all(-86.6f);
  Lanes bounded = min(all(89.0f), max(lowest, x));
  Lanes n = round(bounded * all(1.44269504088896341f));
  Lanes r = fma(n, all(-0.693359375f), bounded);
  r = fma(n, all(2.12194440e-4f), r);
  Lanes p = all(1.9875691500e-4f);
  p = fma(p, r, all(1.3981999507e-3f));
  p = fma(p, r, all(8.3334519073e-3f));
  p = fma(p, r, all(4.1665795894e-2f));
  p = fma(p, r, all(1.6666665459e-1f));
  p = fma(p, r, all(5.0000001201e-1f));
  p = fma(p, r * r, r) + all(1.0f);
  // In two steps, because 2^128 is no float.
  return where_not_below(x, lowest, p * power_of_two(n - all(1.0f)) * all(2.0f));
}

}  // namespace octavo
