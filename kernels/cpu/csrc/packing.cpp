// Bringing a weight [outputs, inputs] into panels, and rows of it back out.

#include "packed.h"
#include "pool.h"
#include "replay.h"

namespace octavo {
namespace {

// Inputs of one step: 4 bytes for each output.
template <typename T>
constexpr int64_t kInputs = 4 / sizeof(T);

// `packed` may be the memory of `weight` where neither outputs nor inputs need padding: a panel is
// made of the rows that lie in its place.
template <typename T>
void pack(const T* weight, T* packed, int64_t outputs, int64_t inputs) {
  const int64_t steps = ceil_div(inputs, kInputs<T>);
  const int64_t padded = ceil_div(outputs, kUnit) * kUnit;
  parallel(ceil_div(padded, kPanel), [&](int64_t panel) {
    const int64_t first = panel * kPanel;
    const int64_t width = least(kPanel, padded - first);
    const int64_t rows = least(width, outputs - first);
    Scratch<T> copy(rows * inputs);
    std::memcpy(copy.data(), weight + first * inputs, rows * inputs * sizeof(T));
    T* to = packed + first * steps * kInputs<T>;
    for (int64_t step = 0; step < steps; ++step) {
      for (int64_t row = 0; row < width; ++row) {
        for (int64_t i = step * kInputs<T>; i < (step + 1) * kInputs<T>; ++i) {
          *to++ = row < rows && i < inputs ? copy.data()[row * inputs + i] : T{};
        }
      }
    }
  });
}

// out[i] = row ids[i] of the weight.
template <typename T>
void unpack_rows(const T* packed, const int64_t* ids, T* out, int64_t count, int64_t inputs,
                 int64_t outputs) {
  constexpr int64_t kRowsPerTask = 8;
  const int64_t steps = ceil_div(inputs, kInputs<T>);
  const int64_t padded = ceil_div(outputs, kUnit) * kUnit;
  parallel(ceil_div(count, kRowsPerTask), [&](int64_t task) {
    const int64_t last = least(count, (task + 1) * kRowsPerTask);
    for (int64_t at = task * kRowsPerTask; at < last; ++at) {
      const int64_t first = ids[at] / kPanel * kPanel;
      const int64_t width = least(kPanel, padded - first);
      const T* from = packed + (first * steps + ids[at] - first) * kInputs<T>;
      T* to = out + at * inputs;
      for (int64_t step = 0; step < steps; ++step, from += width * kInputs<T>) {
        for (int64_t i = 0; i < kInputs<T> && step * kInputs<T> + i < inputs; ++i) *to++ = from[i];
      }
    }
  });
}

}  // namespace
}  // namespace octavo

extern "C" {

using octavo::bf16;

void octavo_pack_f32(const float* weight, float* packed, int64_t outputs, int64_t inputs) {
  octavo::pack(weight, packed, outputs, inputs);
}

void octavo_pack_bf16(const bf16* weight, bf16* packed, int64_t outputs, int64_t inputs) {
  octavo::pack(weight, packed, outputs, inputs);
}

void octavo_unpack_rows_f32(const float* packed, const int64_t* ids, float* out, int64_t count,
                            int64_t inputs, int64_t outputs) {
  octavo::unpack_rows(packed, ids, out, count, inputs, outputs);
}

void octavo_unpack_rows_bf16(const bf16* packed, const int64_t* ids, bf16* out, int64_t count,
                             int64_t inputs, int64_t outputs) {
  octavo::unpack_rows(packed, ids, out, count, inputs, outputs);
}
}

OCTAVO_REPLAYABLE(unpack_rows_f32)
OCTAVO_REPLAYABLE(unpack_rows_bf16)
