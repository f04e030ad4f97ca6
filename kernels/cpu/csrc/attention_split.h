// Attention of a few rows of queries to one split of the context.
//
// A row is one query head of one token; rows that share a kv head are computed together (grouped
// queries, Ainslie et al. 2023). The context is cut into splits of kSplit cells, counted from its
// beginning. Each split is attended by itself (largest score, sum of weights, weighted sum of
// values), and the results of the splits are merged one after the other, in order, with the online
// softmax of Milakov and Gimelshein 2018, as in FlashAttention (Dao et al. 2022). Cells that a row
// does not see have the weight 0 and change no bit of it. So a row's result depends on its query and
// the cells it sees alone: not on the batch, on the chunk, or on who computed which split.
#pragma once

#include <algorithm>
#include <cstdint>

#include "softmax.h"
#include "tile.h"

namespace octavo {

constexpr int kSplit = 128;  // cells; keys and values of one head and split fit in the L1 cache

// What is known of some rows after some splits; `mixed` has `width` floats per row.
struct State {
  float* largest;  // of the scores, in units of log2; -inf where nothing was seen
  float* sum;      // of the weights 2^(score - largest)
  float* mixed;    // of weight * value
  int width;

  static int64_t floats(int rows, int width) { return int64_t{rows} * (2 + width); }
  static State at(float* memory, int rows, int width) {
    return {memory, memory + rows, memory + 2 * rows, width};
  }
  State from_row(int row) const {
    return {largest + row, sum + row, mixed + int64_t{row} * width, width};
  }
};

// into = into and then from; at most kTileRows rows. Changes nothing where `from` has seen nothing.
inline void merge(const State& into, const State& from, int rows) {
  const Lanes before = load(into.largest, rows), after = load(from.largest, rows);
  const Lanes both = max(before, after);
  const Lanes base = max(all(-std::numeric_limits<float>::max()), both);  // -inf - (-inf) is NaN
  float keep[kLanes], take[kLanes];
  store(keep, exp2(before - base));
  store(take, exp2(after - base));
  store(into.largest, both, rows);
  for (int r = 0; r < rows; ++r) {
    into.sum[r] = into.sum[r] * keep[r] + from.sum[r] * take[r];
    const Lanes k = all(keep[r]), t = all(take[r]);
    float* sum = into.mixed + int64_t{r} * into.width;
    const float* more = from.mixed + int64_t{r} * into.width;
    for (int d = 0; d < into.width; d += kLanes) {
      store(sum + d, fma(load(sum + d), k, load(more + d) * t));
    }
  }
}

// Where the cells of a split lie that some row of a tile sees, of one kv head: those of the vectors
// first .. end - 1, of 16 cells each.
template <typename T>
struct Cells {
  const T* keys[kSplit / kLanes];
  const T* values[kSplit / kLanes];
  int first = 0, end = 0;

  // The same of another kv head; numbers to it, in a cache in vectors.
  Cells moved(int64_t by) const {
    Cells there = *this;
    for (int v = first; v < end; ++v) there.keys[v] += by, there.values[v] += by;
    return there;
  }
};

// Which positions a row sees: begin .. stop - 1 and, from `tree` on, only those whose bits are set.
struct Sight {
  int begin, stop;
  int tree;
  uint64_t marks;

  // A bit for each of the cells position .. position + 15 that are seen.
  uint32_t lanes(int position) const {
    const uint32_t between = lanes_between(begin - position, stop - position);
    const int passed = position - tree;
    if (passed >= 64) return 0;
    if (passed >= 0) return between & static_cast<uint32_t>(marks >> passed);
    if (passed <= -kLanes) return between;
    return between & (static_cast<uint32_t>(marks << -passed) | ((1u << -passed) - 1));
  }
};

// How scores come from products of query and key, in units of log2.
struct Scoring {
  float scale;    // with a softcap: scale / softcap * 2 log2(e), for the power in its tanh
  float softcap;  // softcap * log2(e); 0: none

  static Scoring of(float scale, float softcap) {
    if (softcap == 0.0f) return {scale * kLog2E, 0.0f};
    return {scale / softcap * 2.0f * kLog2E, softcap * kLog2E};
  }

  Lanes operator()(Lanes product) const {
    const Lanes scaled = product * all(scale);
    if (softcap == 0.0f) return scaled;
    const Lanes power = exp2(min(all(126.0f), scaled));  // tanh(x) = 1 - 2 / (1 + e^2x)
    return (all(1.0f) - all(2.0f) / (all(1.0f) + power)) * all(softcap);
  }
};

// Stores weights as the left side of a product; gives them as they were stored.
template <typename T>
inline Lanes store_weights(float* weights, int cell, Lanes x) {
#ifdef __AVX512BF16__
  if constexpr (kPairs<T>) {
    const auto halves = reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(x.v));
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(weights + cell / 2), halves);
    return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(halves), 16))};
  }
#endif
  store(weights + cell, x);
  return x;
}

// The vectors first .. end - 1 of one row's products become weights; the split is that of `begin`.
template <typename T>
void soften(float* products, int first, int end, int begin, const Sight& sight,
            const Scoring& scoring, float* weights, float* largest_score, float* sum_of_weights,
            Fetch& fetch) {
  const int whole = std::min(sight.stop, sight.tree);  // no cell before it is left out
  Lanes most = all(-kInfinity);
  for (int v = first; v < end; ++v) {
    const int position = begin + v * kLanes;
    Lanes score = scoring(load(products + v * kLanes));
    if (sight.begin > position || whole < position + kLanes) {
      score = select(sight.lanes(position), score, all(-kInfinity));
    }
    store(products + v * kLanes, score);
    fetch.some();
    most = max(most, score);
  }
  *largest_score = largest(most);
  const Lanes base = all(*largest_score == -kInfinity ? 0.0f : *largest_score);
  Lanes total = zero();
  for (int v = first; v < end; ++v) {
    fetch.some();
    total += store_weights<T>(weights, v * kLanes, exp2(load(products + v * kLanes) - base));
  }
  *sum_of_weights = sum(total);
}

}  // namespace octavo
