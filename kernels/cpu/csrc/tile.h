// Products of small matrices whose operands lie packed in the cache, a "word" of 32 bits at a time.
//
// A word is one float32, or where the CPU multiplies pairs of bfloat16 (AVX512_BF16), two of these
// that are neighbours along the depth. The result of a row is one chain of multiply-adds along the
// depth, whatever the number of rows and columns: bitwise the same alone and among others.
#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "simd.h"

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

// Whether numbers of type T are multiplied as pairs; otherwise they are widened when packed.
template <typename T>
constexpr bool kPairs = kHasPairs && std::is_same_v<T, bf16>;

// Numbers of type T along the depth that one word holds.
template <typename T>
constexpr int kPerWord = kPairs<T> ? 2 : 1;

template <bool Pairs>
inline Lanes multiply_add(Lanes a, Lanes b, Lanes sum) {
#ifdef __AVX512BF16__
  if constexpr (Pairs) {
    return {_mm512_dpbf16_ps(sum.v, reinterpret_cast<__m512bh>(a.v), reinterpret_cast<__m512bh>(b.v))};
  }
#endif
  return fma(a, b, sum);
}

// c [Rows, Vectors * kLanes] = a [Rows, depth words] * b [depth words, Vectors * kLanes].
template <bool Pairs, int Rows, int Vectors>
void multiply_tile(const float* a, int a_stride, const float* b, int b_stride, int depth, float* c,
                   int c_stride) {
  Lanes sums[Rows][Vectors];
  for (auto& row : sums) {
    for (Lanes& sum : row) sum = zero();
  }
  for (int k = 0; k < depth; ++k) {
    Lanes columns[Vectors];
    for (int v = 0; v < Vectors; ++v) columns[v] = load(b + k * b_stride + v * kLanes);
    for (int r = 0; r < Rows; ++r) {
      const Lanes left = all(a[r * a_stride + k]);
      for (int v = 0; v < Vectors; ++v) {
        sums[r][v] = multiply_add<Pairs>(left, columns[v], sums[r][v]);
      }
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int v = 0; v < Vectors; ++v) store(c + r * c_stride + v * kLanes, sums[r][v]);
  }
}

// The same for 1 .. kTileRows rows.
template <bool Pairs, int Vectors>
void multiply_rows(int rows, const float* a, int a_stride, const float* b, int b_stride, int depth,
                   float* c, int c_stride) {
  switch (rows) {
    case 1: return multiply_tile<Pairs, 1, Vectors>(a, a_stride, b, b_stride, depth, c, c_stride);
    case 2: return multiply_tile<Pairs, 2, Vectors>(a, a_stride, b, b_stride, depth, c, c_stride);
    case 3: return multiply_tile<Pairs, 3, Vectors>(a, a_stride, b, b_stride, depth, c, c_stride);
    case 4: return multiply_tile<Pairs, 4, Vectors>(a, a_stride, b, b_stride, depth, c, c_stride);
    case 5: return multiply_tile<Pairs, 5, Vectors>(a, a_stride, b, b_stride, depth, c, c_stride);
    default: return multiply_tile<Pairs, 6, Vectors>(a, a_stride, b, b_stride, depth, c, c_stride);
  }
}

// The same for any number of vectors, too.
template <bool Pairs>
void multiply(int rows, int vectors, const float* a, int a_stride, const float* b,
                    int b_stride, int depth, float* c, int c_stride) {
  for (; vectors >= kTileVectors; vectors -= kTileVectors) {
    multiply_rows<Pairs, kTileVectors>(rows, a, a_stride, b, b_stride, depth, c, c_stride);
    b += kTileVectors * kLanes;
    c += kTileVectors * kLanes;
  }
  switch (vectors) {
    case 3: return multiply_rows<Pairs, 3>(rows, a, a_stride, b, b_stride, depth, c, c_stride);
    case 2: return multiply_rows<Pairs, 2>(rows, a, a_stride, b, b_stride, depth, c, c_stride);
    case 1: return multiply_rows<Pairs, 1>(rows, a, a_stride, b, b_stride, depth, c, c_stride);
    default: return;
  }
}

}  // namespace octavo
