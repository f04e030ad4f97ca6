// Sixteen whole numbers, and the 64 bytes whose products they add up: one AVX-512 register, or two
// of AVX2.
#pragma once

#include "simd.h"

namespace octavo {

#ifdef __AVX512F__

struct Ints {
  __m512i v;
};
using Bytes = Ints;

inline Ints all_ints(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Bytes bytes(const char* p) { return {_mm512_loadu_si512(p)}; }
inline Lanes floats(Ints x) { return {_mm512_cvtepi32_ps(x.v)}; }
inline Bytes lower(Bytes x) { return {_mm512_and_si512(x.v, _mm512_set1_epi8(15))}; }
inline Bytes upper(Bytes x) { return lower({_mm512_srli_epi16(x.v, 4)}); }

// sum + the four products of unsigned and signed bytes in each lane.
inline Ints dot(Ints sum, Bytes u, Bytes s) {
#ifdef __AVX512VNNI__
  // Not by the intrinsic: GCC 12 makes copies of all sums around it, in every step.
  asm("vpdpbusd %2, %1, %0" : "+v"(sum.v) : "v"(u.v), "v"(s.v));
  return sum;
#else
  __m512i even = _mm512_madd_epi16(_mm512_and_si512(u.v, _mm512_set1_epi16(255)),
                                   _mm512_srai_epi16(_mm512_slli_epi16(s.v, 8), 8));
  __m512i odd = _mm512_madd_epi16(_mm512_srli_epi16(u.v, 8), _mm512_srai_epi16(s.v, 8));
  return {_mm512_add_epi32(sum.v, _mm512_add_epi32(even, odd))};
#endif
}

#else

struct Ints {
  __m256i low, high;
};
using Bytes = Ints;

inline Ints all_ints(int32_t x) { return {_mm256_set1_epi32(x), _mm256_set1_epi32(x)}; }
inline Bytes bytes(const char* p) {
  auto q = reinterpret_cast<const __m256i*>(p);
  return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline Lanes floats(Ints x) { return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)}; }
inline Bytes lower(Bytes x) {
  const __m256i mask = _mm256_set1_epi8(15);
  return {_mm256_and_si256(x.low, mask), _mm256_and_si256(x.high, mask)};
}
inline Bytes upper(Bytes x) {
  return lower({_mm256_srli_epi16(x.low, 4), _mm256_srli_epi16(x.high, 4)});
}
inline __m256i dot(__m256i sum, __m256i u, __m256i s) {
  __m256i even = _mm256_madd_epi16(_mm256_and_si256(u, _mm256_set1_epi16(255)),
                                   _mm256_srai_epi16(_mm256_slli_epi16(s, 8), 8));
  __m256i odd = _mm256_madd_epi16(_mm256_srli_epi16(u, 8), _mm256_srai_epi16(s, 8));
  return _mm256_add_epi32(sum, _mm256_add_epi32(even, odd));
}
inline Ints dot(Ints sum, Bytes u, Bytes s) {
  return {dot(sum.low, u.low, s.low), dot(sum.high, u.high, s.high)};
}

#endif

inline Bytes broadcast(const int8_t* p) {
  int32_t four;
  std::memcpy(&four, p, sizeof four);
  return all_ints(four);
}

}  // namespace octavo
