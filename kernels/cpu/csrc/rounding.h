// Inputs of a product brought to 8 bits: a group of a row, its scale and its sum.
#pragma once

#include <type_traits>

#include "ints.h"

namespace octavo {

constexpr float kNothing = 1e-30f;

inline float inverse_of(float largest) { return largest > kNothing ? 127.0f / largest : 0.0f; }

// Whole numbers of at most 127; anything for one that is none.
inline void store_bytes(int8_t* p, Lanes x) {
#ifdef __AVX512F__
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(x.v)));
#else
  const __m256i sixteen = _mm256_permute4x64_epi64(
      _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)), 0xd8);
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p),
                   _mm_packs_epi16(_mm256_castsi256_si128(sixteen),
                                   _mm256_extracti128_si256(sixteen, 1)));
#endif
}

#ifdef __AVX512F__

// The same as `quantize`, with half its instructions. Two bfloat16 lie in a word; without their sign
// their bits have the order of magnitudes, with what is not finite above all others. Stores 64 bytes
// at a time.
inline int32_t quantize_pairs(const bf16* x, int64_t count, int8_t* values, float* scale) {
  auto pairs = [&](int64_t first) {
    const int64_t left = count - first;
    if (left >= 32) return _mm512_loadu_si512(x + first);
    return _mm512_maskz_loadu_epi16(left > 0 ? (1u << left) - 1 : 0, x + first);
  };
  const __m512i unsigned_bits = _mm512_set1_epi16(0x7fff);
  __m512i most = _mm512_setzero_si512(), most_too = most;
  for (int64_t i = 0; i < count; i += 64) {
    most = _mm512_max_epu16(most, _mm512_and_si512(pairs(i), unsigned_bits));
    most_too = _mm512_max_epu16(most_too, _mm512_and_si512(pairs(i + 32), unsigned_bits));
  }
  most = _mm512_max_epu16(most, most_too);
  const Lanes both{_mm512_castsi512_ps(most)};
  const float largest = octavo::largest(max(lower_halves(both), upper_halves(both)));
  const bool finite = _mm512_cmpge_epu16_mask(most, _mm512_set1_epi16(0x7f80)) == 0;
  *scale = finite ? largest / 127.0f : __builtin_nanf("");
  if (!finite) return 0;

  const Lanes inverse = all(inverse_of(largest));
  auto words = [&](int64_t first) {
    const Lanes two{_mm512_castsi512_ps(pairs(first))};
    const __m512i even = _mm512_cvtps_epi32((lower_halves(two) * inverse).v);
    const __m512i odd = _mm512_cvtps_epi32((upper_halves(two) * inverse).v);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16));
  };
  const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
  Ints total = all_ints(0);
  for (int64_t i = 0; i < count; i += 64) {
    const Bytes rounded{
        _mm512_permutexvar_epi64(order, _mm512_packs_epi16(words(i), words(i + 32)))};
    _mm512_storeu_si512(values + i, rounded.v);
    total = dot(total, {_mm512_set1_epi8(1)}, rounded);
  }
  return _mm512_reduce_add_epi32(total.v);
}

#endif

// One group of a row: the largest magnitude becomes 127, or all is zero where it is next to nothing.
// `count` of its `size` numbers are there, the others are zero. Gives the sum of all. Where something
// is not finite, the scale becomes a NaN.
template <int Group, typename T>
int32_t quantize(const T* x, int64_t count, int64_t size, int8_t* values, float* scale) {
#ifdef __AVX512F__
  if constexpr (std::is_same_v<T, bf16> && Group % 64 == 0) {
    return quantize_pairs(x, count, values, scale);
  }
#endif
  constexpr int kVectors = Group / kLanes;
  Lanes some[kVectors], most = zero();
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    some[i] = load_some(x + i * kLanes, static_cast<int>(count - i * kLanes));
    most = max(most, magnitude(some[i]));
  }
  const float largest = octavo::largest(most);
  *scale = largest / 127.0f;
  const Lanes inverse = all(inverse_of(largest));
  Lanes total = zero();  // of whole numbers, and far below 2^24: exact; a NaN stays one
#pragma GCC unroll 8
  for (int i = 0; i < kVectors; ++i) {
    const Lanes rounded = round(some[i] * inverse);
    if (i * kLanes < size) store_bytes(values + i * kLanes, rounded);
    total += rounded;
  }
  const float whole = sum(total);
  if (whole == whole) return static_cast<int32_t>(whole);
  *scale = __builtin_nanf("");
  return 0;
}

}  // namespace octavo
