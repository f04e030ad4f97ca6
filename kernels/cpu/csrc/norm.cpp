// Root-mean-square norms (Zhang and Sennrich 2019), one row after the other.

#include "pool.h"
#include "replay.h"
#include "rotary.h"

namespace octavo {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 14;

template <typename X, typename T>
void scale_row(const X* x, const T* weight, T* out, int size, float epsilon) {
  const Lanes scale = inverse_root_mean_square(x, size, epsilon);
  for (int i = 0; i < size; i += kLanes) {
    const int left = size - i;
    store_some(out + i, load_some(x + i, left) * scale * load_some(weight + i, left), left);
  }
}

template <typename Row>
void for_rows(int64_t rows, int64_t size, Row&& row) {
  const int64_t step = kNumbersPerTask / (size + 1) + 1;
  parallel((rows + step - 1) / step, [&](int64_t task) {
    for (int64_t r = task * step; r < std::min(rows, (task + 1) * step); ++r) row(r);
  });
}

template <typename T>
void rms_norm(const T* x, const T* weight, T* out, int64_t rows, int64_t size, float epsilon) {
  for_rows(rows, size, [&](int64_t r) {
    scale_row(x + r * size, weight, out + r * size, static_cast<int>(size), epsilon);
  });
}

template <typename X, typename T>
void add_rms_norm(const X* x, float* residual, const T* weight, T* out, int64_t rows, int64_t size,
                  float epsilon) {
  for_rows(rows, size, [&](int64_t r) {
    float* total = residual + r * size;
    for (int64_t i = 0; i < size; i += kLanes) {
      const int left = static_cast<int>(size - i);
      store_some(total + i, load_some(total + i, left) + load_some(x + r * size + i, left), left);
    }
    scale_row(total, weight, out + r * size, static_cast<int>(size), epsilon);
  });
}

}  // namespace
}  // namespace octavo

#define OCTAVO_ADD_RMS_NORM(SUFFIX, X, T)                                                     \
  extern "C" void octavo_add_rms_norm_##SUFFIX(const X* x, float* residual, const T* weight,  \
                                               T* out, int64_t rows, int64_t size,            \
                                               float epsilon) {                               \
    octavo::add_rms_norm(x, residual, weight, out, rows, size, epsilon);                      \
  }

#define OCTAVO_RMS_NORM(SUFFIX, T)                                                            \
  extern "C" void octavo_rms_norm_##SUFFIX(const T* x, const T* weight, T* out, int64_t rows, \
                                           int64_t size, float epsilon) {                     \
    octavo::rms_norm(x, weight, out, rows, size, epsilon);                                    \
  }

OCTAVO_RMS_NORM(f32, float)
OCTAVO_RMS_NORM(bf16, octavo::bf16)
OCTAVO_ADD_RMS_NORM(f32, float, float)
OCTAVO_ADD_RMS_NORM(bf16, octavo::bf16, octavo::bf16)
OCTAVO_ADD_RMS_NORM(wide_bf16, float, octavo::bf16)

OCTAVO_REPLAYABLE(rms_norm_f32)
OCTAVO_REPLAYABLE(rms_norm_bf16)
OCTAVO_REPLAYABLE(add_rms_norm_f32)
OCTAVO_REPLAYABLE(add_rms_norm_bf16)
OCTAVO_REPLAYABLE(add_rms_norm_wide_bf16)
