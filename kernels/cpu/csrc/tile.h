// The two products of attention, of a few rows with what lies in the cache (see cells.h).
//
// The result of a row is one chain of multiply-adds, along head_dim for scores and from cell to cell
// for weighted sums of values, whatever the number of rows and columns: bitwise the same alone and
// among others.
//
// Along with each vector of the cache that is read goes a prefetch of the vector at the same place
// "ahead", where the next call will read: the processor's own prefetchers do not see through tables of
// blocks.
#pragma once

#include <cstdint>
#include <type_traits>

#include "cells.h"

namespace octavo {

constexpr int kTileRows = 6;
#ifdef __AVX512F__
constexpr int kTileVectors = 4;  // 24 sums in 32 registers
#else
constexpr int kTileVectors = 1;  // 12 sums, two to a vector, in 16 registers
#endif

#ifdef __AVX512BF16__
constexpr bool kHasPairs = true;
#else
constexpr bool kHasPairs = false;
#endif

// Whether words of T are multiplied as they are: two bfloat16 at once.
template <typename T>
constexpr bool kPairs = kHasPairs && std::is_same_v<T, bf16>;

// A word has so many factors: one, or two where pairs must be taken apart. What a word of the cache
// is multiplied with are so many floats (one pair being a float's size).
template <typename T>
constexpr int kFactors = kPairs<T> ? 1 : kInWord<T>;

template <typename T>
inline Lanes factor(Lanes words, int which) {
  if constexpr (kFactors<T> == 1) return words;
  return which == 0 ? lower_halves(words) : upper_halves(words);
}

template <typename T>
inline Lanes multiply_add(Lanes a, Lanes b, Lanes sum) {
#ifdef __AVX512BF16__
  if constexpr (kPairs<T>) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
#endif
  return fma(a, b, sum);
}

inline void prefetch(const void* place) {
  _mm_prefetch(static_cast<const char*>(place), _MM_HINT_T0);
}

// sums [Rows][Vectors] += the rows' factors of one word * the vectors of words at `place`. The last
// vector is of `last` words only, unless these are 16.
template <typename T, int Rows, int Vectors>
inline void accumulate(const float* left, int left_stride, const Lanes (&words)[Vectors],
                       Lanes (&sums)[Rows][Vectors]) {
  for (int f = 0; f < kFactors<T>; ++f) {
    Lanes right[Vectors];
    for (int v = 0; v < Vectors; ++v) right[v] = factor<T>(words[v], f);
    for (int r = 0; r < Rows; ++r) {
      const Lanes a = all(left[r * left_stride + f]);
      for (int v = 0; v < Vectors; ++v) sums[r][v] = multiply_add<T>(a, right[v], sums[r][v]);
    }
  }
}

// The rows' queries times the keys of so many vectors of cells.
template <typename T>
struct ScoreProduct {
  const float* queries;  // [rows, words * kFactors]
  int words;
  const T* const* keys;  // of each vector
  const T* const* ahead;
  int64_t key_stride;
  float* scores;  // [rows], score_stride apart, a vector after the other
  int score_stride;

  template <int Rows, int Vectors>
  void tile() const {
    const int stride = words * kFactors<T>;
    Lanes sums[Rows][Vectors];
    for (auto& row : sums) {
      for (Lanes& sum : row) sum = zero();
    }
    for (int w = 0; w < words; ++w) {
      Lanes column[Vectors];
      for (int v = 0; v < Vectors; ++v) {
        column[v] = load_words(keys[v] + w * key_stride, kLanes);
        prefetch(ahead[v] + w * key_stride);
      }
      accumulate<T, Rows, Vectors>(queries + w * kFactors<T>, stride, column, sums);
    }
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < Vectors; ++v) store(scores + r * score_stride + v * kLanes, sums[r][v]);
    }
  }

  ScoreProduct from_vector(int v) const {
    return {queries, words, keys + v, ahead + v, key_stride, scores + v * kLanes, score_stride};
  }
};

// The rows' weights of cells times the values of these, of so many dimensions.
template <typename T>
struct MixProduct {
  const float* weights;  // [rows], weight_stride apart: [16 / kInWord * kFactors] for each vector
  int weight_stride;
  const T* const* values;  // of each vector of cells
  const T* const* ahead;
  int vectors;
  int64_t value_stride;
  int dimension;  // the first one, and how many there are in the last vector
  int last;
  float* mixed;  // [rows, mixed_stride], from the first dimension on
  int mixed_stride;

  template <int Rows, int Vectors>
  void tile() const {
    if (last == kLanes) return tile<Rows, Vectors, true>();
    tile<Rows, Vectors, false>();
  }

  template <int Rows, int Vectors, bool Whole>
  void tile() const {
    constexpr int kWords = kLanes / kInWord<T>;
    Lanes sums[Rows][Vectors];
    for (auto& row : sums) {
      for (Lanes& sum : row) sum = zero();
    }
    const float* left = weights;
    for (int c = 0; c < vectors; ++c) {
      const T* place = values[c] + dimension * kInWord<T>;
      const T* next = ahead[c] + dimension * kInWord<T>;
      for (int w = 0; w < kWords; ++w) {
        Lanes column[Vectors];
        for (int v = 0; v < Vectors; ++v) {
          const int64_t at = w * value_stride + v * kLanes * kInWord<T>;
          column[v] = load_words(place + at, Whole || v < Vectors - 1 ? kLanes : last);
          prefetch(next + at);
        }
        accumulate<T, Rows, Vectors>(left, weight_stride, column, sums);
        left += kFactors<T>;
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < Vectors; ++v) store(mixed + r * mixed_stride + v * kLanes, sums[r][v]);
    }
  }
};

// product.tile<rows, Vectors>() for 1 .. kTileRows rows.
template <int Vectors, typename Product>
void multiply_rows(int rows, const Product& product) {
  switch (rows) {
    case 1: return product.template tile<1, Vectors>();
    case 2: return product.template tile<2, Vectors>();
    case 3: return product.template tile<3, Vectors>();
    case 4: return product.template tile<4, Vectors>();
    case 5: return product.template tile<5, Vectors>();
    default: return product.template tile<6, Vectors>();
  }
}

// The same for 1 .. kTileVectors vectors, too.
template <typename Product>
void multiply(int rows, int vectors, const Product& product) {
  switch (vectors) {
    case 1: return multiply_rows<1>(rows, product);
#ifdef __AVX512F__
    case 2: return multiply_rows<2>(rows, product);
    case 3: return multiply_rows<3>(rows, product);
    case 4: return multiply_rows<4>(rows, product);
#endif
    default: return;
  }
}

}  // namespace octavo
