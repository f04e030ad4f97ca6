#include "gate.h"
#include "pool.h"
#include "replay.h"

namespace octavo {
namespace {

constexpr int64_t kElementsPerTask = 16384;

template <typename T>
void silu_mul(const T* gate_up, T* out, int64_t rows, int64_t size) {
  int64_t rows_per_task = size < kElementsPerTask ? kElementsPerTask / (size + 1) : 1;
  if (rows_per_task < 1) rows_per_task = 1;
  parallel((rows + rows_per_task - 1) / rows_per_task, [&](int64_t task) {
    int64_t last = (task + 1) * rows_per_task < rows ? (task + 1) * rows_per_task : rows;
    for (int64_t row = task * rows_per_task; row < last; ++row) {
      const T* gate = gate_up + row * 2 * size;
      const T* up = gate + size;
      T* to = out + row * size;
      int64_t i = 0;
      for (; i + kLanes <= size; i += kLanes) store(to + i, silu(load(gate + i)) * load(up + i));
      if (int rest = static_cast<int>(size - i)) {
        store(to + i, silu(load(gate + i, rest)) * load(up + i, rest), rest);
      }
    }
  });
}

}  // namespace
}  // namespace octavo

extern "C" void octavo_silu_mul_f32(const float* gate_up, float* out, int64_t rows, int64_t size) {
  octavo::silu_mul(gate_up, out, rows, size);
}

extern "C" void octavo_silu_mul_bf16(const octavo::bf16* gate_up, octavo::bf16* out, int64_t rows,
                                     int64_t size) {
  octavo::silu_mul(gate_up, out, rows, size);
}

OCTAVO_REPLAYABLE(silu_mul_f32)
OCTAVO_REPLAYABLE(silu_mul_bf16)
