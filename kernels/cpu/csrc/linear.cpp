// x @ weight.T + bias with a packed weight, x having any number of rows.
//
// A packed weight is cut into panels of 64 outputs (the last may have 16, 32 or 48), a panel into
// steps along the inputs. A step has 64 bytes for each unit of 16 outputs: one input of float32, or
// two of bfloat16. Thus a panel is one stream of memory, and each lane owns one output and runs
// over its inputs alone, from the first to the last, one after the other: its sum is taken in one
// order, however many rows there are, and however rows and outputs are cut into tiles or given to
// threads. Between blocks of inputs, which keep what is read again and again in the cache, sums wait
// in memory as the floats they are.

#include <algorithm>

#include "packed.h"
#include "pool.h"
#include "product.h"
#include "replay.h"
#include "simd.h"

namespace octavo {
namespace {

// Of a panel: 96 KiB, which stay in the second-level cache while tile after tile of rows is multiplied
// with them, and from which they come as fast as they are needed.
constexpr int64_t kBlockSteps = 384;
constexpr int64_t kBlockRows = 192;  // rows of x in a task

// How a step is multiplied: `X` is what rows of x are stored as for that, `kRows` and `kUnits` the
// largest tile whose sums and operands fit the registers.

struct Singles {  // float32
  using X = float;
  static constexpr int kInputs = 1;
#ifdef __AVX512F__
  static constexpr int kRows = 6, kUnits = 4;
#else
  static constexpr int kRows = 5, kUnits = 1;
#endif
  using Weights = Lanes;
  using Row = Lanes;
  static Weights weights(const char* p) { return load(reinterpret_cast<const float*>(p)); }
  static Row row(const X* p) { return all(*p); }
  static Lanes add(Lanes sum, Weights w, Row x) { return fma(w, x, sum); }
};

#ifdef __AVX512BF16__

struct Pairs {  // bfloat16
  using X = bf16;
  static constexpr int kInputs = 2;
  static constexpr int kRows = 6, kUnits = 4;
  using Weights = __m512i;
  using Row = __m512i;
  static Weights weights(const char* p) { return _mm512_loadu_si512(p); }
  static Row row(const X* p) {
    int32_t pair;
    std::memcpy(&pair, p, sizeof pair);
    return _mm512_set1_epi32(pair);
  }
  static Lanes add(Lanes sum, Weights w, Row x) {
    return {_mm512_dpbf16_ps(sum.v, (__m512bh)w, (__m512bh)x)};
  }
};

#else

struct Pairs {
  using X = float;
  static constexpr int kInputs = 2;
#ifdef __AVX512F__
  static constexpr int kRows = 4, kUnits = 4;
#else
  static constexpr int kRows = 4, kUnits = 1;
#endif
  struct Weights {
    Lanes even, odd;
  };
  using Row = Weights;
  static Weights weights(const char* p) {
#ifdef __AVX512F__
    __m512i both = _mm512_loadu_si512(p);
    __m512i odd = _mm512_and_si512(both, _mm512_set1_epi32(static_cast<int>(0xffff0000)));
    return {{_mm512_castsi512_ps(_mm512_slli_epi32(both, 16))}, {_mm512_castsi512_ps(odd)}};
#else
    const __m256i upper = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    __m256i low = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
    __m256i high = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + 32));
    return {{_mm256_castsi256_ps(_mm256_slli_epi32(low, 16)),
             _mm256_castsi256_ps(_mm256_slli_epi32(high, 16))},
            {_mm256_castsi256_ps(_mm256_and_si256(low, upper)),
             _mm256_castsi256_ps(_mm256_and_si256(high, upper))}};
#endif
  }
  static Row row(const X* p) { return {all(p[0]), all(p[1])}; }
  static Lanes add(Lanes sum, const Weights& w, const Row& x) {
    return fma(w.odd, x.odd, fma(w.even, x.even, sum));
  }
};

#endif

// A part of a panel, and the rows to multiply it with.
template <typename Step, typename T, typename Out>
struct Tile {
  const char* weights;
  int64_t stride;  // bytes from step to step
  int64_t steps;
  const typename Step::X* x;
  int64_t row_size;
  float* sums;  // kPanel for each row
  bool first, last;  // whether nothing waits in sums; whether nothing is added after this
  Target<T, Out> target;
  Fetch fetch;
};

template <int Rows, int Units, int Lines, typename Step, typename T, typename Out>
void add_tile(const Tile<Step, T, Out>& tile) {
  Lanes sum[Rows][Units];
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < Units; ++u) {
      sum[r][u] = tile.first ? zero() : load(tile.sums + r * kPanel + u * kUnit);
    }
  }
  const char* w = tile.weights;
  const typename Step::X* x = tile.x;
  const int64_t stride = tile.stride, row_size = tile.row_size;
  Fetch fetch = tile.fetch;
  for (int64_t s = 0; s < tile.steps; ++s, w += stride, x += Step::kInputs) {
    typename Step::Weights weights[Units];
#pragma GCC unroll 8
    for (int u = 0; u < Units; ++u) weights[u] = Step::weights(w + u * kUnitBytes);
    fetch.template lines<Lines, Rows == 1>();
#pragma GCC unroll 8
    for (int r = 0; r < Rows; ++r) {
      auto row = Step::row(x + r * row_size);
#pragma GCC unroll 8
      for (int u = 0; u < Units; ++u) sum[r][u] = Step::add(sum[r][u], weights[u], row);
    }
  }
  if (tile.last) return finish<Rows, Units>(sum, tile.target);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < Units; ++u) store(tile.sums + r * kPanel + u * kUnit, sum[r][u]);
  }
}

template <int Units, int Lines, typename Step, typename T, typename Out>
void add_rows(const Tile<Step, T, Out>& tile, int rows) {
  switch (rows) {
    case 1: return add_tile<1, Units, Lines>(tile);
    case 2: return add_tile<2, Units, Lines>(tile);
    case 3: return add_tile<3, Units, Lines>(tile);
    case 4: return add_tile<4, Units, Lines>(tile);
    case 5: return add_tile<5, Units, Lines>(tile);
    case 6: return add_tile<6, Units, Lines>(tile);
  }
}

// `number` of `tiles` that are multiplied with the same weights.
template <typename Step, typename T, typename Out>
void add_units(Tile<Step, T, Out> tile, int rows, int units, int64_t number, int64_t tiles) {
  if (rows == 1) {  // fits the registers with all units, whatever kUnits is
    // As fast as memory gives it: measured best nearer by.
    tile.fetch = {tile.weights + kReadAhead / 2, tile.stride};
    switch (units) {
      case 1: return add_tile<1, 1, 1>(tile);
      case 2: return add_tile<1, 2, 2>(tile);
      case 3: return add_tile<1, 3, 3>(tile);
      case 4: return add_tile<1, 4, 4>(tile);
    }
  }
  tile.fetch = {tile.weights + kReadAhead, tile.stride};
  if (units == 1) return add_rows<1, 1>(tile, rows);
  if constexpr (Step::kUnits > 1) {
    if (units == 2) return add_rows<2, 2>(tile, rows);
    if (units == 3) return add_rows<3, 3>(tile, rows);
    if (number == 0) return add_rows<4, 4>(tile, rows);
    const int64_t size = tile.steps * tile.stride;
    tile.fetch = Fetch::share(tile.weights + size, size, tile.steps, number - 1, tiles - 1);
    if (tiles >= kManyTiles) return add_rows<4, 1>(tile, rows);
    add_rows<4, 4>(tile, rows);
  }
}

// Cuts rows x units into tiles that fit the registers.
template <typename Step, typename T, typename Out>
void add_block(const Tile<Step, T, Out>& block, int64_t rows, int units) {
  const int64_t tiles = ceil_div(rows, Step::kRows);
  const int side = rows == 1 ? units : Step::kUnits;
  for (int u = 0; u < units; u += side) {
    for (int64_t t = 0; t < tiles; ++t) {
      const int64_t first = rows * t / tiles;
      const int count = static_cast<int>(rows * (t + 1) / tiles - first);
      Tile<Step, T, Out> tile = block;
      tile.weights += u * kUnitBytes;
      tile.x += first * block.row_size;
      tile.sums += first * kPanel + u * kUnit;
      tile.target = block.target.from(first, u * kUnit);
      add_units(tile, count, std::min(side, units - u), t, tiles);
    }
  }
}

// Rows of x as `Step` wants them: of a whole number of steps, zeros after the last input.
template <typename Step, typename T>
class Prepared {
 public:
  Prepared(const T* x, int64_t rows, int64_t inputs)
      : size_(ceil_div(inputs, Step::kInputs) * Step::kInputs) {
    using X = typename Step::X;
    if constexpr (std::is_same_v<X, T>) {
      if (size_ == inputs) {
        x_ = x;
        return;
      }
    }
    copy_ = Scratch<X>(rows * size_);
    X* to = copy_.data();
    parallel(ceil_div(rows, kRowsPerTask), [&](int64_t task) {
      int64_t last = least(rows, (task + 1) * kRowsPerTask);
      for (int64_t row = task * kRowsPerTask; row < last; ++row) {
        convert(x + row * inputs, inputs, to + row * size_);
        for (int64_t i = inputs; i < size_; ++i) to[row * size_ + i] = X{};
      }
    });
    x_ = to;
  }
  const typename Step::X* row(int64_t index) const { return x_ + index * size_; }
  int64_t row_size() const { return size_; }

 private:
  static constexpr int64_t kRowsPerTask = 16;
  int64_t size_;
  const typename Step::X* x_;
  Scratch<typename Step::X> copy_;
};

// A product of some rows.
template <typename Step, typename T>
class Product {
 public:
  Product(const T* x, const char* packed, int64_t rows, int64_t inputs, int64_t outputs)
      : x_(x, rows, inputs), packed_(packed), steps_(ceil_div(inputs, Step::kInputs)),
        units_(ceil_div(outputs, kUnit)) {}

  // These rows times `width` units of one panel; `sums` are kPanel for each row.
  template <typename Out>
  void multiply(int64_t row, int64_t count, int64_t unit, int width, float* sums,
                const Target<T, Out>& target) const {
    const int64_t panel = unit / kPanelUnits;
    const int64_t stride = kUnitBytes * least(kPanelUnits, units_ - panel * kPanelUnits);
    const char* weights =
        packed_ + panel * kPanelUnits * kUnitBytes * steps_ + unit % kPanelUnits * kUnitBytes;
    const int64_t passes = count <= Step::kRows ? 1 : ceil_div(steps_, kBlockSteps);
    for (int64_t pass = 0; pass < passes; ++pass) {
      const int64_t step = steps_ * pass / passes, end = steps_ * (pass + 1) / passes;
      add_block<Step, T, Out>({weights + step * stride, stride, end - step,
                               x_.row(row) + step * Step::kInputs, x_.row_size(), sums, pass == 0,
                               pass == passes - 1, target, {}},
                              count, width);
    }
  }

 private:
  Prepared<Step, T> x_;
  const char* packed_;
  int64_t steps_, units_;
};

template <typename Step, typename T, typename Out>
void linear(const T* x, const char* packed, const T* bias, Out* out, int64_t rows, int64_t inputs,
            int64_t outputs) {
  const Product<Step, T> product(x, packed, rows, inputs, outputs);
  multiply_all<kBlockRows>(product, bias, out, rows, outputs);
}

template <typename Step, typename T>
void gated(const T* x, const char* packed, const T* bias, T* out, int64_t rows, int64_t inputs,
           int64_t outputs) {
  const Product<Step, T> product(x, packed, rows, inputs, outputs);
  multiply_gated<kBlockRows>(product, bias, out, rows, outputs);
}

}  // namespace
}  // namespace octavo

extern "C" {

using octavo::bf16;

void octavo_linear_f32(const float* x, const char* packed, const float* bias, float* out,
                       int64_t rows, int64_t inputs, int64_t outputs) {
  octavo::linear<octavo::Singles>(x, packed, bias, out, rows, inputs, outputs);
}

void octavo_linear_bf16(const bf16* x, const char* packed, const bf16* bias, bf16* out,
                        int64_t rows, int64_t inputs, int64_t outputs) {
  octavo::linear<octavo::Pairs>(x, packed, bias, out, rows, inputs, outputs);
}

// Sums of bfloat16 as they are, not rounded to it.
void octavo_linear_wide_bf16(const bf16* x, const char* packed, const bf16* bias, float* out,
                             int64_t rows, int64_t inputs, int64_t outputs) {
  octavo::linear<octavo::Pairs>(x, packed, bias, out, rows, inputs, outputs);
}

// See `ops.PackedLinear.gated`.
void octavo_gated_f32(const float* x, const char* packed, const float* bias, float* out,
                      int64_t rows, int64_t inputs, int64_t outputs) {
  octavo::gated<octavo::Singles>(x, packed, bias, out, rows, inputs, outputs);
}

void octavo_gated_bf16(const bf16* x, const char* packed, const bf16* bias, bf16* out,
                       int64_t rows, int64_t inputs, int64_t outputs) {
  octavo::gated<octavo::Pairs>(x, packed, bias, out, rows, inputs, outputs);
}
}

OCTAVO_REPLAYABLE(linear_f32)
OCTAVO_REPLAYABLE(linear_bf16)
OCTAVO_REPLAYABLE(linear_wide_bf16)
OCTAVO_REPLAYABLE(gated_f32)
OCTAVO_REPLAYABLE(gated_bf16)
