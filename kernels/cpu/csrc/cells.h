// Where keys and values lie in a layer's cache, and how they come there.
//
// They lie as the right sides of products, so that nothing is packed when they are read. A "word" is
// 32 bits, one float32 or two bfloat16 (a pair, as AVX512_BF16 multiplies it). A block is, for each
// kv head,
//   keys    [head_dim / numbers in a word, block_size] words, each of one cell, and then
//   values  [block_size / numbers in a word, head_dim] words, each of neighbouring cells,
// so that 16 cells of a dimension are a vector, and 16 dimensions of a cell (or two).
//
// Where block_size is not a multiple of 16, a block is [2, block_size, kv_heads, head_dim], keys and
// then values, and is brought into the form above when it is read.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "simd.h"
#include "transpose.h"

namespace octavo {

// Numbers of type T in a word.
template <typename T>
constexpr int kInWord = 4 / sizeof(T);

template <typename T>
struct CacheShape {
  T* memory;
  int64_t block_size, kv_heads, head_dim;

  bool in_vectors() const { return block_size % kLanes == 0; }
  // Numbers in a block of one kv head, of them all.
  int64_t head_size() const { return 2 * block_size * head_dim; }
  int64_t size() const { return kv_heads * head_size(); }

  // In vectors: the first words of a cell's key and value; a value's is shared by a pair of cells.
  T* key(int64_t block, int64_t cell, int64_t kv) const {
    return memory + block * size() + kv * head_size() + cell * kInWord<T>;
  }
  T* value(int64_t block, int64_t cell, int64_t kv) const {
    return memory + block * size() + kv * head_size() + block_size * head_dim +
           cell / kInWord<T> * kInWord<T> * head_dim;
  }
  // From one word of a key, or of a value's dimension, to the next: so many numbers.
  int64_t key_stride() const { return block_size * kInWord<T>; }
  int64_t value_stride() const { return head_dim * kInWord<T>; }

  // Not in vectors.
  T* plain_key(int64_t block, int64_t cell, int64_t kv) const {
    return memory + block * size() + (cell * kv_heads + kv) * head_dim;
  }
  int64_t plain_to_values() const { return block_size * kv_heads * head_dim; }
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

// What is stored is finite: a sequence that went wrong cannot spread through its blocks. That goes
// for what rounding to T would make infinite, too.
template <typename T>
inline Lanes storable(Lanes x) {
  x = finite_or_zero(x);
  if constexpr (std::is_same_v<T, float>) return x;
  constexpr float kLargest = 0x1.fep127f;
  return max(all(-kLargest), min(all(kLargest), x));
}

template <typename T, typename From>
inline void copy_finite(T* to, const From* from, int64_t size) {
  for (int64_t i = 0; i < size; i += kLanes) {
    const int left = static_cast<int>(size - i);
    store_some(to + i, storable<T>(load_some(from + i, left)), left);
  }
}

// Words of numbers next to each other, as lanes of no arithmetic meaning.
template <typename T>
inline Lanes load_words(const T* numbers, int words) {
  return load_some(reinterpret_cast<const float*>(numbers), words);
}

// Key and value [head_dim] of a cell.
template <typename T>
inline void place_cell(const CacheShape<T>& cache, int64_t slot, int64_t kv, const T* key,
                       const T* value) {
  const int64_t block = slot / cache.block_size, cell = slot % cache.block_size;
  const int64_t head_dim = cache.head_dim;
  if (!cache.in_vectors()) {
    T* plain = cache.plain_key(block, cell, kv);
    std::memcpy(plain, key, head_dim * sizeof(T));
    std::memcpy(plain + cache.plain_to_values(), value, head_dim * sizeof(T));
    return;
  }
  T* word = cache.key(block, cell, kv);
  for (int64_t d = 0; d < head_dim; d += kInWord<T>, word += cache.key_stride()) {
    std::memcpy(word, key + d, 4);
  }
  T* number = cache.value(block, cell, kv) + cell % kInWord<T>;
  for (int64_t d = 0; d < head_dim; ++d) number[d * kInWord<T>] = value[d];
}

// Keys and values [16, head_dim] of the cells of a vector, the first of which has this slot.
template <typename T>
inline void place_vector(const CacheShape<T>& cache, int64_t slot, int64_t kv, const T* keys,
                         const T* values) {
  const int64_t block = slot / cache.block_size, cell = slot % cache.block_size;
  const int head_dim = static_cast<int>(cache.head_dim), words = head_dim / kInWord<T>;
  T* key = cache.key(block, cell, kv);
  for (int w = 0; w < words; w += kLanes) {
    Lanes rows[kLanes];
    for (int i = 0; i < kLanes; ++i) {
      rows[i] = load_words(keys + i * head_dim + w * kInWord<T>, words - w);
    }
    transpose(rows);
    for (int i = 0; i < kLanes && w + i < words; ++i) {
      store(reinterpret_cast<float*>(key + (w + i) * cache.key_stride()), rows[i]);
    }
  }
  T* value = cache.value(block, cell, kv);
  for (int i = 0; i < kLanes; i += kInWord<T>, value += cache.value_stride()) {
    const T *even = values + i * head_dim, *odd = even + (kInWord<T> - 1) * head_dim;
    for (int d = 0; d < head_dim; d += kLanes) {
      const int left = head_dim - d;
      Lanes word = load_some(even + d, left);
      if constexpr (kInWord<T> == 2) word = pair_up(word, load_some(odd + d, left));
      store_some(reinterpret_cast<float*>(value + d * kInWord<T>), word, left);
    }
  }
}

// Whether the tokens from this one on fill the cells of a vector.
template <typename T>
inline bool fill_vector(const CacheShape<T>& cache, const int64_t* slots, int64_t tokens) {
  if (!cache.in_vectors() || tokens < kLanes || slots[0] % kLanes != 0) return false;
  for (int i = 1; i < kLanes; ++i) {
    if (slots[i] != slots[0] + i) return false;
  }
  return true;
}

// Calls body(token, count) for all tokens begin .. end - 1, count being 16 where they fill a vector
// and else 1. A vector that begins before `end` is done whole, one that began before `begin` not at
// all, so that ranges next to each other do each token once.
template <typename T, typename Body>
inline void by_vectors(const CacheShape<T>& cache, const int64_t* slots, int64_t tokens,
                       int64_t begin, int64_t end, Body body) {
  auto fills = [&](int64_t t) { return fill_vector(cache, slots + t, tokens - t); };
  int64_t t = begin;
  if (begin < end) {
    const int64_t first = begin - slots[begin] % kLanes;
    if (first < begin && first >= 0 && fills(first)) t = first + kLanes;
  }
  while (t < end) {
    const int count = fills(t) ? kLanes : 1;
    body(t, count);
    t += count;
  }
}

}  // namespace octavo
