// Drawing a token by the Gumbel-max trick, in one pass over a row of logits.
//
// The noise is defined by kernels/reference/sampling.py. Its integer part is the same here, bit for
// bit. Its logarithms are not: two columns whose sums come nearer to each other than both sides'
// rounding are told to the caller, who then asks the reference (one draw in some ten thousand).
//
// Most logarithms are never taken: -log(-log1p(-w)) <= -log(w), and for that the bits of w read as
// an integer give an upper bound at once. A vector of columns that cannot reach the best so far is
// left after its hash.

#include <cmath>

#include "pool.h"
#include "softmax.h"

namespace octavo {
namespace {

constexpr float kLn2 = 0.693147181f;
constexpr float kBelowOne = 1.0f - 1.0f / (1 << 24);

uint64_t finalise(uint64_t x) {
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

struct Key {
  uint32_t low, high;

  static Key of(int64_t seed, int64_t position) {
    const uint64_t step = static_cast<uint64_t>(position) * 0x9E3779B97F4A7C15ull;
    const uint64_t key = finalise(finalise(static_cast<uint64_t>(seed)) + step);
    return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
  }
};

#ifdef __AVX512F__
using Ints = __m512i;
constexpr int kInts = 16;
inline Ints ints(uint32_t x) { return _mm512_set1_epi32(static_cast<int>(x)); }
inline Ints load_ints(const uint32_t* p) { return _mm512_loadu_si512(p); }
inline Ints exclusive_or(Ints a, Ints b) { return _mm512_xor_si512(a, b); }
inline Ints times(Ints a, Ints b) { return _mm512_mullo_epi32(a, b); }
template <int kBits>
inline Ints shifted(Ints x) { return _mm512_srli_epi32(x, kBits); }
inline void store_as_floats(float* p, Ints x) { _mm512_storeu_ps(p, _mm512_cvtepi32_ps(x)); }
#else
using Ints = __m256i;
constexpr int kInts = 8;
inline Ints ints(uint32_t x) { return _mm256_set1_epi32(static_cast<int>(x)); }
inline Ints load_ints(const uint32_t* p) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p));
}
inline Ints exclusive_or(Ints a, Ints b) { return _mm256_xor_si256(a, b); }
inline Ints times(Ints a, Ints b) { return _mm256_mullo_epi32(a, b); }
template <int kBits>
inline Ints shifted(Ints x) { return _mm256_srli_epi32(x, kBits); }
inline void store_as_floats(float* p, Ints x) { _mm256_storeu_ps(p, _mm256_cvtepi32_ps(x)); }
#endif

template <int kBits>
inline Ints xor_shifted(Ints x) { return exclusive_or(x, shifted<kBits>(x)); }

// The uniform numbers w of 16 token ids.
inline Lanes uniforms(const Key& key, const uint32_t* ids) {
  float whole[kLanes];
  for (int i = 0; i < kLanes; i += kInts) {
    Ints x = exclusive_or(load_ints(ids + i), ints(key.low));
    x = exclusive_or(times(xor_shifted<16>(x), ints(0x21F0AAADu)), ints(key.high));
    x = xor_shifted<15>(times(xor_shifted<15>(x), ints(0xD35A2D97u)));
    store_as_floats(whole + i, shifted<1>(x));
  }
  const Lanes scaled = (load(whole) + all(0.5f)) * all(1.0f / 2147483648.0f);
  return min(scaled, all(kBelowOne));
}

// An upper bound of -log(w): the bits of a float grow at most as fast as its logarithm.
inline Lanes bound_of_noise(Lanes w) {
  float numbers[kLanes];
  store(numbers, w);
  float as_floats[kLanes];
  for (int i = 0; i < kLanes; i += kInts) {
    store_as_floats(as_floats + i, load_ints(reinterpret_cast<const uint32_t*>(numbers) + i));
  }
  return fma(load(as_floats), all(-kLn2 / (1 << 23)), all(127.0f * kLn2 + 1e-3f));
}

// The best column so far, and whether another one came too near to be told apart from it.
struct Best {
  float value = -kInfinity, second = -kInfinity;
  int64_t column = 0;

  void take(float candidate, int64_t at) {
    if (candidate > value) {
      second = value;
      value = candidate;
      column = at;
    } else if (candidate > second) {
      second = candidate;
    }
  }
};

// What the noise here and there may differ by (logarithms of numbers up to 22, a few units in their
// last place) and what the sums are rounded by.
float margin(float value, float temperature) {
  return temperature == 0.0f ? 0.0f : 4e-5f * temperature + 1e-6f * std::fabs(value);
}

// The 16 logits at `column`; what stays below `floor` is neither the best nor too near to it.
inline void draw_from(const float* logits, const uint32_t* ids, int64_t column, const Key& key,
                      float temperature, Best& best) {
  float floor = best.value - margin(best.value, temperature);
  const Lanes w = uniforms(key, ids);
  const Lanes reach = fma(bound_of_noise(w), all(temperature), load(logits));
  if (!(largest(reach) >= floor)) return;
  float numbers[kLanes], reaches[kLanes];
  store(numbers, w);
  store(reaches, reach);
  for (int i = 0; i < kLanes; ++i) {
    if (!(reaches[i] >= floor)) continue;
    const float noise = -std::log(-std::log1p(-numbers[i]));
    best.take(noise * temperature + logits[i], column + i);
    floor = best.value - margin(best.value, temperature);
  }
}

int64_t draw(const float* logits, int64_t columns, float temperature, const Key& key,
             const int64_t* token_ids) {
  Best best;
  uint32_t ids[kLanes];
  float rest[kLanes];
  for (int i = 0; i < kLanes; ++i) ids[i] = i;
  for (int64_t c = 0; c < columns; c += kLanes) {
    const int count = static_cast<int>(std::min<int64_t>(kLanes, columns - c));
    if (token_ids != nullptr) {
      for (int i = 0; i < count; ++i) ids[i] = static_cast<uint32_t>(token_ids[c + i]);
    }
    const float* part = logits + c;
    if (count < kLanes) {
      std::fill_n(rest, kLanes, -kInfinity);
      std::copy_n(part, count, rest);
      part = rest;
    }
    draw_from(part, ids, c, key, temperature, best);
    if (token_ids == nullptr) {
      for (uint32_t& id : ids) id += kLanes;
    }
  }
  const bool close = best.value - best.second <= margin(best.value, temperature);
  return close && temperature != 0.0f ? -1 : best.column;
}

// Greedy: the first of the largest. Where it is, is looked for in the block that has it.
int64_t first_largest(const float* logits, int64_t columns) {
  constexpr int64_t kBlock = 512;
  float highest = -kInfinity;
  int64_t block = 0;
  for (int64_t begin = 0; begin < columns; begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, columns);
    Lanes most = all(-kInfinity);
    int64_t c = begin;
    for (; c + kLanes <= end; c += kLanes) most = max(most, load(logits + c));
    float here = largest(most);
    for (; c < end; ++c) here = std::max(here, logits[c]);
    if (here > highest) {
      highest = here;
      block = begin;
    }
  }
  for (int64_t c = block; c < columns; ++c) {
    if (logits[c] == highest) return c;
  }
  return 0;
}

// Of a NaN, that.
float largest_or_nan(const float* logits, int64_t columns, int64_t first_largest) {
  int strange = 0;  // vectors of comparisons: no way out in the middle
  for (int64_t c = 0; c < columns; ++c) strange |= logits[c] != logits[c];
  return strange ? std::nanf("") : logits[first_largest];
}

}  // namespace
}  // namespace octavo

// As `ops.GumbelArgmax` and `ops.Draw`; token_ids and outcomes may be null. chosen [rows]: the
// columns, -1 where two are too close to be told apart here; close: how many rows those are.
// outcomes [rows]: the same, and -1 where the largest logit is not finite.
extern "C" void octavo_gumbel_argmax(const float* logits, int64_t rows, int64_t columns,
                                     const float* temperature, const int64_t* seeds,
                                     const int64_t* positions, const int64_t* token_ids,
                                     int64_t* chosen, int64_t* outcomes, int64_t* close) {
  using namespace octavo;
  parallel(rows, [&](int64_t row) {
    const float* own = logits + row * columns;
    const float heat = temperature[row];
    const int64_t* ids = token_ids == nullptr ? nullptr : token_ids + row * columns;
    const bool greedy = heat == 0.0f;
    const int64_t top = greedy || outcomes != nullptr ? first_largest(own, columns) : 0;
    chosen[row] =
        greedy ? top : draw(own, columns, heat, Key::of(seeds[row], positions[row]), ids);
    if (outcomes != nullptr) {
      outcomes[row] = std::isfinite(largest_or_nan(own, columns, top)) ? chosen[row] : -1;
    }
  });
  *close = std::count(chosen, chosen + rows, -1);
}
