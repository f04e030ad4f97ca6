// Between the product that projects to queries, keys and values and attention: the norm of each
// head (Henry et al. 2020), where a model has one, and the rotation (Su et al. 2021), in one pass.
// All is float32 until a head is written.
#pragma once

#include <cmath>
#include <cstdint>

#include "cells.h"

namespace octavo {

// How one head is changed. `cosine` and `sine` are a token's, `rotary` of each, null for none; the
// first half of the sine is negated. `norm`: head_dim weights, null for none.
template <typename T>
struct HeadChange {
  const T* cosine;
  const T* sine;
  int rotary;
  const T* norm;
  float epsilon;
  int head_dim;
};

template <typename T>
inline Lanes inverse_root_mean_square(const T* x, int size, float epsilon) {
  Lanes squares = zero();
  for (int i = 0; i < size; i += kLanes) {
    const Lanes part = load_some(x + i, size - i);
    squares = fma(part, part, squares);
  }
  return all(1.0f / std::sqrt(sum(squares) / static_cast<float>(size) + epsilon));
}

// `finish` is done to what is written.
template <typename T, typename Finish>
inline void change_head(const HeadChange<T>& change, const float* from, T* to, Finish finish) {
  const bool normed = change.norm != nullptr;
  const Lanes scale =
      normed ? inverse_root_mean_square(from, change.head_dim, change.epsilon) : all(1.0f);
  auto read = [&](int at, int count) {
    const Lanes x = load_some(from + at, count);
    return normed ? x * scale * load_some(change.norm + at, count) : x;
  };
  const int half = change.rotary / 2;
  for (int i = 0; i < half; i += kLanes) {
    const int left = half - i, j = half + i;
    const Lanes first = read(i, left), second = read(j, left);
    const Lanes turned = second * load_some(change.sine + i, left);
    const Lanes turned_back = first * load_some(change.sine + j, left);
    store_some(to + i, finish(fma(first, load_some(change.cosine + i, left), turned)), left);
    store_some(to + j, finish(fma(second, load_some(change.cosine + j, left), turned_back)), left);
  }
  for (int i = change.rotary; i < change.head_dim; i += kLanes) {
    const int left = change.head_dim - i;
    store_some(to + i, finish(read(i, left)), left);
  }
}

}  // namespace octavo
