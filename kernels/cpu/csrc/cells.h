// Where a token's keys and values lie in a layer's cache, [blocks, 2, block_size, kv_heads, head_dim].
#pragma once

#include <cstdint>

#include "softmax.h"

namespace octavo {

template <typename T>
struct CacheShape {
  T* memory;
  int64_t block_size, kv_heads, head_dim;

  int64_t cell_stride() const { return kv_heads * head_dim; }
  int64_t to_values() const { return block_size * cell_stride(); }
  // The keys of slot block * block_size + offset.
  T* keys(int64_t slot) const {
    return memory + slot / block_size * 2 * to_values() + slot % block_size * cell_stride();
  }
};

// NaN and infinities, which have the largest exponent, become 0.
inline Lanes finite_or_zero(Lanes x) {
#ifdef __AVX512F__
  constexpr int kNotFinite = 0x01 | 0x80 | 0x08 | 0x10;  // quiet, signalling NaN, both infinities
  return {_mm512_mask_mov_ps(x.v, _mm512_fpclass_ps_mask(x.v, kNotFinite), _mm512_setzero_ps())};
#else
  auto half = [](__m256 x) {
    const __m256i largest = _mm256_set1_epi32(0x7F800000);
    const __m256i own = _mm256_and_si256(_mm256_castps_si256(x), largest);
    return _mm256_andnot_ps(_mm256_castsi256_ps(_mm256_cmpeq_epi32(own, largest)), x);
  };
  return {half(x.low), half(x.high)};
#endif
}

// What is stored is finite: a sequence that went wrong cannot spread through its blocks.
template <typename T>
inline void store_finite(T* to, const T* from, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const int left = static_cast<int>(size - i);
    store_some(to + i, finite_or_zero(load_some(from + i, left)), left);
  }
}

}  // namespace octavo
