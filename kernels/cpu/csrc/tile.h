// The two products of attention, of a few rows with what lies in the cache (see cells.h).
//
// The result of a row is one chain of multiply-adds, along head_dim for scores and from cell to cell
// for weighted sums of values, whatever the number of rows and columns: bitwise the same alone and
// among others.
//
// Between their steps both fetch some of what will be wanted next (see fetch.h).
#pragma once

#include <cstdint>
#include <type_traits>

#include "cells.h"
#include "fetch.h"

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

// sums [Rows][Vectors] += the rows' factors of one word * the vectors of words.
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
  int64_t key_stride;
  float* scores;  // [rows], score_stride apart, a vector after the other
  int score_stride;
  Fetch* fetch;

  static constexpr int most(int rows) {
    return rows <= kTileRows / 2 ? 2 * kTileVectors : kTileVectors;
  }

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
      }
      fetch->some();
      accumulate<T, Rows, Vectors>(queries + w * kFactors<T>, stride, column, sums);
    }
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < Vectors; ++v) store(scores + r * score_stride + v * kLanes, sums[r][v]);
    }
  }

  ScoreProduct from_vector(int v) const {
    return {queries, words, keys + v, key_stride, scores + v * kLanes, score_stride, fetch};
  }
};

// The rows' weights of cells times the values of these, of so many dimensions.
template <typename T>
struct MixProduct {
  const float* weights;  // [rows], weight_stride apart: [16 / kInWord * kFactors] for each vector
  int weight_stride;
  const T* const* values;  // of each vector of cells
  int vectors;
  int64_t value_stride;
  int dimension;  // the first one
  int last;       // dimensions of the last vector
  float* mixed;  // [rows, mixed_stride], from the first dimension on
  int mixed_stride;
  Fetch* fetch;

  static constexpr int most(int) { return kTileVectors; }

  template <int Rows, int Vectors>
  void tile() const {
    if (last == kLanes) return tile<Rows, Vectors, true>();
    // A few dimensions are left to go by themselves.
    if constexpr (Vectors == 1) tile<Rows, 1, false>();
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
      for (int w = 0; w < kWords; ++w) {
        Lanes column[Vectors];
        for (int v = 0; v < Vectors; ++v) {
          const int64_t at = w * value_stride + v * kLanes * kInWord<T>;
          column[v] = load_words(place + at, Whole || v < Vectors - 1 ? kLanes : last);
        }
        fetch->some();
        accumulate<T, Rows, Vectors>(left, weight_stride, column, sums);
        left += kFactors<T>;
      }
    }
    for (int r = 0; r < Rows; ++r) {
      for (int v = 0; v < Vectors; ++v) store(mixed + r * mixed_stride + v * kLanes, sums[r][v]);
    }
  }
};

// product.tile<Rows, vectors>() for 1 .. Most vectors.
template <int Rows, int Most, typename Product>
void multiply_vectors(int vectors, const Product& product) {
  if constexpr (Most > 1) {
    if (vectors < Most) return multiply_vectors<Rows, Most - 1>(vectors, product);
  }
  product.template tile<Rows, Most>();
}

// The same for 1 .. kTileRows rows, and Product::most(rows) vectors.
template <typename Product>
void multiply(int rows, int vectors, const Product& product) {
  switch (rows) {
    case 1: return multiply_vectors<1, Product::most(1)>(vectors, product);
    case 2: return multiply_vectors<2, Product::most(2)>(vectors, product);
    case 3: return multiply_vectors<3, Product::most(3)>(vectors, product);
    case 4: return multiply_vectors<4, Product::most(4)>(vectors, product);
    case 5: return multiply_vectors<5, Product::most(5)>(vectors, product);
    default: return multiply_vectors<6, Product::most(6)>(vectors, product);
  }
}

}  // namespace octavo
