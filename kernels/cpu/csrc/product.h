// What is made of a product, whatever its weights are: all of its outputs, or gates with what they
// gate. `Product::multiply(row, count, unit, width, sums, target)` multiplies rows, at most kRows,
// with units of one panel; `sums` are kPanel for each row.
#pragma once

#include "gate.h"
#include "packed.h"
#include "pool.h"

namespace octavo {

// Cuts a product into tasks: body(first row, how many, first unit, how many) for all rows, a block of
// them in a task, and all units of outputs.
template <typename Body>
void for_parts(int64_t rows, int64_t block, int64_t units, Body body) {
  const int64_t blocks = ceil_div(rows, block);
  // Whole panels where there are enough of them for all threads.
  int64_t wide = kPanelUnits;
  while (wide > 1 && blocks * ceil_div(units, wide) < 4 * threads()) wide /= 2;
  const int64_t parts = ceil_div(units, wide);
  parallel(blocks * parts, [&](int64_t task) {
    const int64_t row = task / parts * block, unit = task % parts * wide;
    body(row, least(block, rows - row), unit, static_cast<int>(least(wide, units - unit)));
  });
}

// `rows` of outputs, + bias.
template <int64_t kRows, typename Product, typename T, typename Out>
void multiply_all(const Product& product, const T* bias, Out* out, int64_t rows, int64_t outputs) {
  const Target<T, Out> target{bias, out, outputs, outputs};
  for_parts(rows, kRows, ceil_div(outputs, kUnit),
            [&](int64_t row, int64_t count, int64_t unit, int width) {
    alignas(64) float sums[kRows * kPanel];
    product.multiply(row, count, unit, width, sums, target.from(row, unit * kUnit));
  });
}

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

// The first half of the outputs are gates of the second; `outputs` is a multiple of two panels.
template <int64_t kRows, typename Product, typename T>
void multiply_gated(const Product& product, const T* bias, T* out, int64_t rows, int64_t outputs) {
  const int64_t size = outputs / 2;
  for_parts(rows, kRows, size / kUnit, [&](int64_t row, int64_t count, int64_t unit, int width) {
    alignas(64) float gates[kRows * kPanel], sums[kRows * kPanel];
    product.multiply(row, count, unit, width, gates, panel_target(bias, unit * kUnit, gates));
    product.multiply(row, count, unit + size / kUnit, width, sums,
                     panel_target(bias, unit * kUnit + size, sums));
    gate_block(gates, sums, count, width, out + row * size + unit * kUnit, size);
  });
}

}  // namespace octavo
