// Powers of two of lanes, and what else a softmax needs beside simd.h.
#pragma once

#include <algorithm>
#include <limits>

#include "simd.h"

namespace octavo {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504f;

// x in the lanes begin .. end - 1, `other` in the rest.
inline Lanes within(int begin, int end, Lanes x, Lanes other) {
#ifdef __AVX512F__
  const __mmask16 below = begin <= 0 ? 0 : begin >= kLanes ? 0xffff : first_lanes(begin);
  const __mmask16 under = end <= 0 ? 0 : end >= kLanes ? 0xffff : first_lanes(end);
  return {_mm512_mask_blend_ps(static_cast<__mmask16>(under & ~below), other.v, x.v)};
#else
  const __m256i low = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
  auto half = [&](__m256 x, __m256 other, int shift) {
    const __m256i inside = _mm256_andnot_si256(_mm256_cmpgt_epi32(_mm256_set1_epi32(begin - shift), low),
                                               _mm256_cmpgt_epi32(_mm256_set1_epi32(end - shift), low));
    return _mm256_blendv_ps(other, x, _mm256_castsi256_ps(inside));
  };
  return {half(x.low, other.low, 0), half(x.high, other.high, 8)};
#endif
}

// 2^x within 2e-7 of its value, for x up to 127; 0 below -126; 1 for 0; a NaN stays one.
//
// The whole number nearest to x goes into the exponent; for the rest, in -0.5 .. 0.5, there is a
// polynomial of least maximal relative error (9e-8), whose constant term is 1.
inline Lanes exp2(Lanes x) {
  const Lanes lowest = all(-126.0f);
  const Lanes bounded = max(lowest, x);
  const Lanes whole = round(bounded);
  const Lanes rest = bounded - whole;
  Lanes p = all(0.001326472731307149f);
  p = fma(p, rest, all(0.009671512991189957f));
  p = fma(p, rest, all(0.05550733581185341f));
  p = fma(p, rest, all(0.24022242426872253f));
  p = fma(p, rest, all(0.6931470036506653f));
  p = fma(p, rest, all(1.0f));
  return where_not_below(x, lowest, p * power_of_two(whole));
}

}  // namespace octavo
