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

// How weights are fetched. The first tile of rows meets them first: it fetches what it will need
// itself, `kReadAhead` bytes later. Each other one fetches a share of what all will need next.
constexpr int64_t kReadAhead = 8192;
// From how many tiles on a line in each step of each of them is enough.
constexpr int64_t kManyTiles = kPanelUnits + 1;

struct Fetch {
  const char* next;
  int64_t pace;  // bytes from step to step

  // Share `number` of `shares` of `size` bytes from `first` on, in so many steps.
  static Fetch share(const char* first, int64_t size, int64_t steps, int64_t number,
                     int64_t shares) {
    return {first + size / shares * number, ceil_div(size, shares * steps)};
  }
  // `Once`: they are read once and not again in this step. So they need not push out of the larger
  // caches what lives there: the code of what the host does between two steps.
  template <int Lines, bool Once>
  void lines() {
    constexpr auto hint = Once ? _MM_HINT_NTA : _MM_HINT_T0;
#pragma GCC unroll 8
    for (int i = 0; i < Lines; ++i) _mm_prefetch(next + i * 64, hint);
    next += pace;
  }
};

// Where the sums of a tile go in the end: its first row and output, of `count` up to the last.
template <typename T, typename Out>
struct Target {
  const T* bias;  // or nullptr
  Out* out;
  int64_t stride;  // from row to row
  int64_t count;

  Target from(int64_t row, int64_t output) const {
    return {bias == nullptr ? nullptr : bias + output, out + row * stride + output, stride,
            count - output};
  }

  // Of a tile, what it will write to.
  template <int Rows, int Units>
  void fetch() const {
    for (int r = 0; r < Rows; ++r) {
      const char* row = reinterpret_cast<const char*>(out + r * stride);
      for (size_t i = 0; i < Units * kUnit * sizeof(Out); i += 64) {
        _mm_prefetch(row + i, _MM_HINT_T0);
      }
    }
  }
};

// Inlined always: the sums are in registers, and a call would take them through memory.
template <int Rows, int Units, typename T, typename Out>
__attribute__((always_inline)) inline void finish(const Lanes (&sum)[Rows][Units], const Target<T, Out>& target) {
#pragma GCC unroll 8
  for (int u = 0; u < Units; ++u) {
    const int left = static_cast<int>(least(kLanes, target.count - u * kUnit));
    const bool biased = target.bias != nullptr;
    const Lanes bias = biased ? load_some(target.bias + u * kUnit, left) : zero();
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      store_some(target.out + r * target.stride + u * kUnit, biased ? sum[r][u] + bias : sum[r][u],
                 left);
    }
  }
}

}  // namespace octavo
