// x @ weight.T + bias with a weight of 8 or 4 bits, and x brought to 8 bits on the way.
//
// Inputs are taken in groups. A group of a weight's row has a scale, and so has a group of a row of
// x; within a group whole numbers are multiplied and added, which is exact in any order. The groups'
// sums are scaled and added as floats, from the first group to the last: as in linear.cpp no result
// depends on tiles, threads or company.
//
// A panel is as in linear.cpp, cut into groups: of each first the scales of its outputs (bfloat16),
// then its steps, of which the last group may have fewer. A step has 64 bytes for each unit of 16
// outputs: 4 inputs each of 8 bits, or 8 of 4 bits, the first 4 in the lower halves. Weights are stored
// as unsigned numbers, `zero` above their value, because that is how VNNI multiplies; the excess is
// taken off as zero * sum of x.

#include "buffer.h"
#include "ints.h"
#include "packed.h"
#include "pool.h"
#include "product.h"
#include "replay.h"
#include "rounding.h"
#include "simd.h"

namespace octavo {
namespace {

constexpr int64_t kBlockRows = 384;
constexpr int64_t kNumbersPerTask = 8192;  // brought to 8 bits: less is done before a thread is awake

// `kBlockGroups` of a panel, some 96 KiB, stay in the second-level cache while tile after tile of rows
// is multiplied with them.
template <int Bits>
struct Format;

template <>
struct Format<8> {
  static constexpr int kGroup = 512, kZero = 128, kStepInputs = 4, kBlockGroups = 3;
};

template <>
struct Format<4> {
  static constexpr int kGroup = 32, kZero = 8, kStepInputs = 8, kBlockGroups = 96;
};

constexpr int64_t kScaleBytes = kUnit * sizeof(bf16);  // of a unit in a group

// How the inputs of a matrix are cut. The last group may have fewer steps than the others.
template <int Bits>
struct Cut {
  static constexpr int64_t kSteps = Format<Bits>::kGroup / Format<Bits>::kStepInputs;
  int64_t steps, groups;

  explicit Cut(int64_t inputs)
      : steps(ceil_div(inputs, Format<Bits>::kStepInputs)), groups(ceil_div(steps, kSteps)) {}
  int64_t steps_of(int64_t group) const { return least(kSteps, steps - group * kSteps); }
  // Of a row of x in 8 bits: whole lines, zeros after the last input.
  int64_t row_size() const { return ceil_div(steps * Format<Bits>::kStepInputs, 64) * 64; }
  int64_t unit_bytes() const { return bytes_to(groups); }
  // Of a unit, before a group begins.
  int64_t bytes_to(int64_t group) const {
    return group * kScaleBytes + least(group * kSteps, steps) * kUnitBytes;
  }
};

#ifdef __AVX512F__
constexpr int kRows = 6, kUnits = 4;  // of a tile that fits the registers
#else
constexpr int kRows = 4, kUnits = 1;
#endif

// Rows of x in 8 bits.
template <int Bits>
struct Rows {
  Cut<Bits> cut;
  const int8_t* values;   // [rows, row_size]
  const float* scales;    // [rows, groups]
  const int32_t* excess;  // [rows, groups] what the products come to too much, negated

  Rows from(int64_t row) const {
    return {cut, values + row * cut.row_size(), scales + row * cut.groups,
            excess + row * cut.groups};
  }
};

// A part of a panel, and the rows to multiply it with.
template <int Bits, typename T, typename Out>
struct Tile {
  const char* panel;
  int64_t width;  // units of the panel
  int64_t unit;   // the first one to multiply with
  int64_t first_group, end_group;
  Rows<Bits> x;
  float* sums;  // kPanel for each row
  Target<T, Out> target;
  Fetch fetch;
};

template <int RowCount, int Units, int Lines, int Bits, typename T, typename Out>
void add_tile(const Tile<Bits, T, Out>& tile) {
  const Rows<Bits>& x = tile.x;
  const int64_t row_size = x.cut.row_size(), groups = x.cut.groups;
  const int64_t step_bytes = tile.width * kUnitBytes;
  const char* group = tile.panel + tile.width * x.cut.bytes_to(tile.first_group);
  const int8_t* values = x.values + tile.first_group * Format<Bits>::kGroup;
  Fetch fetch = tile.fetch;
  // So few steps are done before the results are stored that memory is asked for them now.
  if (tile.end_group == groups) tile.target.template fetch<RowCount, Units>();
  for (int64_t g = tile.first_group; g < tile.end_group; ++g) {
    const bf16* scales = reinterpret_cast<const bf16*>(group) + tile.unit * kUnit;
    const char* w = group + tile.width * kScaleBytes + tile.unit * kUnitBytes;
    Ints sum[RowCount][Units];
#pragma GCC unroll 8
    for (int r = 0; r < RowCount; ++r) {
#pragma GCC unroll 8
      for (int u = 0; u < Units; ++u) sum[r][u] = all_ints(x.excess[r * groups + g]);
    }
    const int64_t steps = x.cut.steps_of(g);
    group += tile.width * (kScaleBytes + steps * kUnitBytes);
    for (int64_t s = 0; s < steps; ++s, w += step_bytes, values += Format<Bits>::kStepInputs) {
      Bytes weights[Units];
#pragma GCC unroll 8
      for (int u = 0; u < Units; ++u) weights[u] = bytes(w + u * kUnitBytes);
      fetch.template lines<Lines, RowCount == 1>();
#pragma GCC unroll 8
      for (int r = 0; r < RowCount; ++r) {
        const Bytes first = broadcast(values + r * row_size);
#pragma GCC unroll 8
        for (int u = 0; u < Units; ++u) {
          if constexpr (Bits == 8) {
            sum[r][u] = dot(sum[r][u], weights[u], first);
          } else {
            const Bytes second = broadcast(values + r * row_size + 4);
            sum[r][u] = dot(sum[r][u], lower(weights[u]), first);
            sum[r][u] = dot(sum[r][u], upper(weights[u]), second);
          }
        }
      }
    }
    // The floats stay in memory: kept in registers from group to group, they would drive the whole
    // numbers out of these.
    asm volatile("" ::: "memory");
    Lanes scale[Units];
#pragma GCC unroll 8
    for (int u = 0; u < Units; ++u) scale[u] = load(scales + u * kUnit);
#pragma GCC unroll 8
    for (int r = 0; r < RowCount; ++r) {
      const Lanes row_scale = all(x.scales[r * groups + g]);
#pragma GCC unroll 8
      for (int u = 0; u < Units; ++u) {
        float* total = tile.sums + r * kPanel + u * kUnit;
        const Lanes before = g == 0 ? zero() : load(total);
        store(total, fma(floats(sum[r][u]), scale[u] * row_scale, before));
      }
    }
    asm volatile("" ::: "memory");
  }
  if (tile.end_group < groups) return;
  Lanes total[RowCount][Units];
#pragma GCC unroll 8
  for (int r = 0; r < RowCount; ++r) {
#pragma GCC unroll 8
    for (int u = 0; u < Units; ++u) total[r][u] = load(tile.sums + r * kPanel + u * kUnit);
  }
  finish<RowCount, Units>(total, tile.target);
}

template <int Units, int Lines, int Bits, typename T, typename Out>
void add_rows(const Tile<Bits, T, Out>& tile, int rows) {
  switch (rows) {
    case 1: return add_tile<1, Units, Lines>(tile);
    case 2: return add_tile<2, Units, Lines>(tile);
    case 3: return add_tile<3, Units, Lines>(tile);
    case 4: return add_tile<4, Units, Lines>(tile);
    case 5: return add_tile<5, Units, Lines>(tile);
    case 6: return add_tile<6, Units, Lines>(tile);
  }
}

// `number` of `tiles` that are multiplied with the same weights. Sets `fetch`: a copy of the tile
// would have to wait until what was just written to it is in the cache.
template <int Bits, typename T, typename Out>
void add_units(Tile<Bits, T, Out>& tile, int rows, int units, int64_t number, int64_t tiles) {
  const Cut<Bits>& cut = tile.x.cut;
  const int64_t before = tile.width * cut.bytes_to(tile.first_group);
  tile.fetch = {tile.panel + before + tile.unit * kUnitBytes + kReadAhead, tile.width * kUnitBytes};
  if constexpr (kUnits == 1) return add_rows<1, 1>(tile, rows);
  if (units < kUnits) {
    if (units == 1) return add_rows<1, 1>(tile, rows);
    if (units == 2) return add_rows<2, 2>(tile, rows);
    return add_rows<3, 3>(tile, rows);
  }
  if (number == 0) return add_rows<4, 4>(tile, rows);
  const int64_t end = tile.width * cut.bytes_to(tile.end_group);
  const int64_t steps = least(tile.end_group * cut.kSteps, cut.steps) - tile.first_group * cut.kSteps;
  tile.fetch = Fetch::share(tile.panel + end, end - before, steps, number - 1, tiles - 1);
  if (tiles >= kManyTiles) return add_rows<4, 1>(tile, rows);
  add_rows<4, 4>(tile, rows);
}

// A product of some rows. What they become in 8 bits lies in memory of the calling thread's, which
// has one product at a time.
template <int Bits, typename T>
class Product {
 public:
  Product(const T* x, const char* packed, int64_t rows, int64_t inputs, int64_t outputs)
      : x_(rounded(x, rows, inputs)), packed_(packed),
        units_(ceil_div(outputs, kUnit)) {}

  // These rows times `width` units of one panel; `sums` are kPanel for each row.
  template <typename Out>
  void multiply(int64_t first_row, int64_t count, int64_t first_unit, int width, float* sums,
                const Target<T, Out>& target) const {
    const Cut<Bits>& cut = x_.cut;
    const int64_t before = first_unit / kPanelUnits * kPanelUnits;  // units of panels before
    const int64_t tiles = ceil_div(count, kRows);
    const int64_t passes = tiles == 1 ? 1 : ceil_div(cut.groups, Format<Bits>::kBlockGroups);
    Tile<Bits, T, Out> tile{packed_ + before * cut.unit_bytes(), least(kPanelUnits, units_ - before),
                            0, 0, 0, x_, nullptr, target, {}};
    for (int64_t pass = 0; pass < passes; ++pass) {
      tile.first_group = cut.groups * pass / passes;
      tile.end_group = cut.groups * (pass + 1) / passes;
      for (int u = 0; u < width; u += kUnits) {
        tile.unit = first_unit - before + u;
        for (int64_t t = 0; t < tiles; ++t) {
          const int64_t row = count * t / tiles;
          const int tall = static_cast<int>(count * (t + 1) / tiles - row);
          tile.x = x_.from(first_row + row);
          tile.sums = sums + row * kPanel + u * kUnit;
          tile.target = target.from(row, u * kUnit);
          add_units(tile, tall, static_cast<int>(least(kUnits, width - u)), t, tiles);
        }
      }
    }
  }

 private:
  static Rows<Bits> rounded(const T* x, int64_t rows, int64_t inputs) {
    constexpr int kGroup = Format<Bits>::kGroup;
    const Cut<Bits> cut(inputs);
    thread_local Buffer kept;
    const int64_t numbers = rows * cut.groups;
    float* scales = kept.reserve(2 * numbers + ceil_div(rows * cut.row_size(), 4));
    int32_t* excess = reinterpret_cast<int32_t*>(scales + numbers);
    int8_t* values = reinterpret_cast<int8_t*>(scales + 2 * numbers);
    const int64_t rows_per_task = kNumbersPerTask / inputs + 1;
    parallel(ceil_div(rows, rows_per_task), [&](int64_t task) {
      const int64_t last = least(rows, (task + 1) * rows_per_task);
      for (int64_t row = task * rows_per_task; row < last; ++row) {
        for (int64_t g = 0; g < cut.groups; ++g) {
          const int64_t first = g * kGroup, at = row * cut.groups + g;
          excess[at] = -Format<Bits>::kZero *
                       quantize<kGroup>(x + row * inputs + first, least(kGroup, inputs - first),
                                        least(kGroup, cut.row_size() - first),
                                        values + row * cut.row_size() + first, scales + at);
        }
      }
    });
    return {cut, values, scales, excess};
  }

  Rows<Bits> x_;
  const char* packed_;
  int64_t units_;
};

template <int Bits, typename T, typename Out>
void linear(const T* x, const char* packed, const T* bias, Out* out, int64_t rows, int64_t inputs,
            int64_t outputs) {
  const Product<Bits, T> product(x, packed, rows, inputs, outputs);
  multiply_all<kBlockRows>(product, bias, out, rows, outputs);
}

template <int Bits, typename T>
void gated(const T* x, const char* packed, const T* bias, T* out, int64_t rows, int64_t inputs,
           int64_t outputs) {
  const Product<Bits, T> product(x, packed, rows, inputs, outputs);
  multiply_gated<kBlockRows>(product, bias, out, rows, outputs);
}

// `values` [outputs, inputs], `zero` above what they stand for; `scales` [outputs, groups].
template <int Bits>
void pack(const uint8_t* values, const bf16* scales, char* packed, int64_t outputs,
          int64_t inputs) {
  constexpr int64_t kStepInputs = Format<Bits>::kStepInputs;
  const Cut<Bits> cut(inputs);
  const int64_t units = ceil_div(outputs, kUnit);
  parallel(ceil_div(units, kPanelUnits), [&](int64_t number) {
    const int64_t before = number * kPanelUnits;
    const int64_t lanes = least(kPanelUnits, units - before) * kUnit;
    char* to = packed + before * cut.unit_bytes();
    auto value = [&](int64_t output, int64_t input) {
      return output < outputs && input < inputs ? values[output * inputs + input]
                                                : static_cast<uint8_t>(Format<Bits>::kZero);
    };
    for (int64_t step = 0; step < cut.steps; ++step) {
      if (step % Cut<Bits>::kSteps == 0) {
        for (int64_t lane = 0; lane < lanes; ++lane, to += sizeof(bf16)) {
          const int64_t output = before * kUnit + lane;
          const int64_t at = output * cut.groups + step / Cut<Bits>::kSteps;
          const bf16 scale = output < outputs ? scales[at] : bf16{0};
          std::memcpy(to, &scale, sizeof scale);
        }
      }
      const int64_t input = step * kStepInputs;
      for (int64_t lane = 0; lane < lanes; ++lane) {
        for (int64_t i = input; i < input + 4; ++i) {
          int byte = value(before * kUnit + lane, i);
          if (Bits == 4) byte |= value(before * kUnit + lane, i + 4) << 4;
          *to++ = static_cast<char>(byte);
        }
      }
    }
  });
}

// out[i] = row ids[i] of the weight, as it is after quantization.
template <int Bits, typename T>
void unpack_rows(const char* packed, const int64_t* ids, T* out, int64_t count, int64_t inputs,
                 int64_t outputs) {
  constexpr int kGroup = Format<Bits>::kGroup, kStepInputs = Format<Bits>::kStepInputs;
  const Cut<Bits> cut(inputs);
  const int64_t units = ceil_div(outputs, kUnit);
  parallel(count, [&](int64_t at) {
    const int64_t before = ids[at] / kPanel * kPanelUnits;
    const int64_t lanes = least(kPanelUnits, units - before) * kUnit;
    const int64_t lane = ids[at] - before * kUnit;
    const char* group = packed + before * cut.unit_bytes();
    alignas(64) float row[kGroup];
    for (int64_t g = 0; g < cut.groups; ++g) {
      bf16 scale;
      std::memcpy(&scale, group + lane * sizeof scale, sizeof scale);
      group += lanes * sizeof scale;
      const int64_t size = cut.steps_of(g) * kStepInputs;
      for (int64_t i = 0; i < size; i += kStepInputs, group += lanes * 4) {
        for (int j = 0; j < 4; ++j) {
          const int byte = static_cast<uint8_t>(group[lane * 4 + j]);
          row[i + j] = ((Bits == 4 ? byte & 15 : byte) - Format<Bits>::kZero) * widen(scale);
          if (Bits == 4) row[i + 4 + j] = ((byte >> 4) - Format<Bits>::kZero) * widen(scale);
        }
      }
      const int64_t most = least(size, inputs - g * kGroup);
      for (int64_t i = 0; i < most; i += kLanes) {
        const int left = static_cast<int>(most - i);
        store_some(out + at * inputs + g * kGroup + i, load_some(row + i, left), left);
      }
    }
  });
}

}  // namespace
}  // namespace octavo

using octavo::bf16;

#define OCTAVO_QUANTIZED(BITS)                                                                    \
  extern "C" void octavo_pack_int##BITS(const uint8_t* values, const bf16* scales, char* packed,  \
                                        int64_t outputs, int64_t inputs) {                        \
    octavo::pack<BITS>(values, scales, packed, outputs, inputs);                                  \
  }                                                                                               \
  extern "C" void octavo_linear_int##BITS##_f32(const float* x, const char* packed,               \
                                                const float* bias, float* out, int64_t rows,      \
                                                int64_t inputs, int64_t outputs) {                \
    octavo::linear<BITS>(x, packed, bias, out, rows, inputs, outputs);                            \
  }                                                                                               \
  extern "C" void octavo_linear_int##BITS##_bf16(const bf16* x, const char* packed,               \
                                                 const bf16* bias, bf16* out, int64_t rows,       \
                                                 int64_t inputs, int64_t outputs) {               \
    octavo::linear<BITS>(x, packed, bias, out, rows, inputs, outputs);                            \
  }                                                                                               \
  extern "C" void octavo_linear_wide_int##BITS##_bf16(const bf16* x, const char* packed,          \
                                                      const bf16* bias, float* out, int64_t rows, \
                                                      int64_t inputs, int64_t outputs) {          \
    octavo::linear<BITS>(x, packed, bias, out, rows, inputs, outputs);                            \
  }                                                                                               \
  extern "C" void octavo_gated_int##BITS##_f32(const float* x, const char* packed,                \
                                               const float* bias, float* out, int64_t rows,       \
                                               int64_t inputs, int64_t outputs) {                 \
    octavo::gated<BITS>(x, packed, bias, out, rows, inputs, outputs);                             \
  }                                                                                               \
  extern "C" void octavo_gated_int##BITS##_bf16(const bf16* x, const char* packed,                \
                                                const bf16* bias, bf16* out, int64_t rows,        \
                                                int64_t inputs, int64_t outputs) {                \
    octavo::gated<BITS>(x, packed, bias, out, rows, inputs, outputs);                             \
  }                                                                                               \
  extern "C" void octavo_unpack_rows_int##BITS##_f32(const char* packed, const int64_t* ids,      \
                                                     float* out, int64_t count, int64_t inputs,   \
                                                     int64_t outputs) {                           \
    octavo::unpack_rows<BITS>(packed, ids, out, count, inputs, outputs);                          \
  }                                                                                               \
  extern "C" void octavo_unpack_rows_int##BITS##_bf16(const char* packed, const int64_t* ids,     \
                                                      bf16* out, int64_t count, int64_t inputs,   \
                                                      int64_t outputs) {                          \
    octavo::unpack_rows<BITS>(packed, ids, out, count, inputs, outputs);                          \
  }                                                                                               \
  OCTAVO_REPLAYABLE(linear_int##BITS##_f32)                                                       \
  OCTAVO_REPLAYABLE(linear_int##BITS##_bf16)                                                      \
  OCTAVO_REPLAYABLE(linear_wide_int##BITS##_bf16)                                                 \
  OCTAVO_REPLAYABLE(gated_int##BITS##_f32)                                                        \
  OCTAVO_REPLAYABLE(gated_int##BITS##_bf16)                                                       \
  OCTAVO_REPLAYABLE(unpack_rows_int##BITS##_f32)                                                  \
  OCTAVO_REPLAYABLE(unpack_rows_int##BITS##_bf16)

OCTAVO_QUANTIZED(8)
OCTAVO_QUANTIZED(4)
