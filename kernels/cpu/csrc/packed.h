// Where the elements of a packed weight are; see linear.cpp.
#pragma once

#include <cstdint>
#include <cstdlib>

#include "simd.h"

namespace octavo {

constexpr int kUnit = kLanes;                  // outputs of a unit
constexpr int kPanelUnits = 4;                 // units of a panel
constexpr int kPanel = kPanelUnits * kUnit;    // outputs of a panel
constexpr int64_t kUnitBytes = 64;             // of a unit in one step

// How weights are fetched: bytes ahead of a lone tile of rows, which meets them first; and the tiles
// from which on one line of each step from each tile is enough to fetch the next block.
constexpr int64_t kReadAhead = 4096, kFewTiles = 4;

inline int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }

// Uninitialised memory, aligned to cache lines.
template <typename T>
class Scratch {
 public:
  Scratch() = default;
  explicit Scratch(int64_t count)
      : data_(static_cast<T*>(std::aligned_alloc(64, ceil_div(count * sizeof(T) + 1, 64) * 64))) {
    if (data_ == nullptr) std::abort();
  }
  Scratch& operator=(Scratch&& other) {
    std::free(data_);
    data_ = other.data_;
    other.data_ = nullptr;
    return *this;
  }
  ~Scratch() { std::free(data_); }
  T* data() const { return data_; }

 private:
  T* data_ = nullptr;
};

inline void convert(const float* from, int64_t count, float* to) {
  std::memcpy(to, from, count * sizeof(float));
}
inline void convert(const bf16* from, int64_t count, bf16* to) {
  std::memcpy(to, from, count * sizeof(bf16));
}
inline void convert(const bf16* from, int64_t count, float* to) {
  int64_t i = 0;
  for (; i + kLanes <= count; i += kLanes) store(to + i, load(from + i));
  for (; i < count; ++i) to[i] = widen(from[i]);
}

// What is done with the sums of `count` outputs from `first` on: `out` is a row's first element.
template <typename T, typename Out>
inline void finish(const float* sums, const T* bias, Out* out, int64_t first, int64_t count) {
  for (int64_t i = 0; i < count; i += kLanes) {
    Lanes sum = load(sums + i);
    int lanes = static_cast<int>(least(kLanes, count - i));
    if (bias != nullptr) sum += load(bias + first + i, lanes);
    if (lanes == kLanes) {
      store(out + first + i, sum);
    } else {
      store(out + first + i, sum, lanes);
    }
  }
}

}  // namespace octavo
