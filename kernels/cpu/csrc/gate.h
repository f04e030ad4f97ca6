// The gated linear unit of Shazeer 2020, silu(gate) * up, of the sums of a product.
#pragma once

#include <cstdint>

#include "packed.h"

namespace octavo {

inline Lanes silu(Lanes x) { return x / (all(1.0f) + exp(zero() - x)); }

// Where the sums of a part of a panel wait, from this output on: kPanel for each row.
template <typename T>
inline Target<T, float> panel_target(const T* bias, int64_t output, float* sums) {
  return {bias == nullptr ? nullptr : bias + output, sums, kPanel, kPanel};
}

// Both are kPanel for each of `rows`, of which `units` are there; rows of `out` lie stride apart.
template <typename T>
void gate_block(const float* gates, const float* ups, int64_t rows, int units, T* out,
                int64_t stride) {
  for (int64_t r = 0; r < rows; ++r, gates += kPanel, ups += kPanel, out += stride) {
    for (int i = 0; i < units * kUnit; i += kUnit) {
      store(out + i, silu(load(gates + i)) * load(ups + i));
    }
  }
}

}  // namespace octavo
