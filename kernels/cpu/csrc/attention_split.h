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

#include <cstdint>

#include "softmax.h"
#include "tile.h"
#include "transpose.h"

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
  void clear(int rows) const {
    std::fill_n(largest, rows, -kInfinity);
    std::fill_n(sum, rows, 0.0f);
    std::fill_n(mixed, int64_t{rows} * width, 0.0f);
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

// The cells of a split that some row of a tile sees: those of the vectors first .. end - 1, of 16
// cells each. Cells from `known` on belong to nobody yet: their memory is not read, and they count
// as zeros.
template <typename T>
struct Cells {
  const T* keys[kSplit];  // of all kv heads
  int64_t to_values;      // from a cell's keys to its values
  int first = 0, end = 0, known = 0;
};

template <typename T>
inline Lanes load_words(const T* row, int words) {
  if constexpr (kPairs<T>) {
    return load_some(reinterpret_cast<const float*>(row), words);
  } else {
    return load_some(row, words);
  }
}

// Keys of one vector of cells as the right side of a product: packed [words of head_dim, kSplit].
// `head`: numbers from a cell's first kv head to the one wanted.
template <typename T>
void pack_keys(const Cells<T>& cells, int vector, int64_t head, int head_dim, float* packed) {
  const T* const* keys = cells.keys + vector * kLanes;
  const int words = head_dim / kPerWord<T>, known = cells.known - vector * kLanes;
  float* target = packed + vector * kLanes;
  Lanes block[kLanes];
  int w = 0;
  if (known >= kLanes) {  // no lane to leave out: the usual case, with loops of known lengths
    for (; w + kLanes <= words; w += kLanes) {
      for (int i = 0; i < kLanes; ++i) block[i] = load_words(keys[i] + head + w * kPerWord<T>, kLanes);
      transpose(block);
      for (int i = 0; i < kLanes; ++i) store(target + (w + i) * kSplit, block[i]);
    }
  }
  for (; w < words; w += kLanes) {
    for (int i = 0; i < kLanes; ++i) {
      block[i] = i < known ? load_words(keys[i] + head + w * kPerWord<T>, words - w) : zero();
    }
    transpose(block);
    for (int i = 0; i < kLanes && w + i < words; ++i) store(target + (w + i) * kSplit, block[i]);
  }
}

// A word of each of two neighbouring cells' values: both, where words are pairs, the first one in
// the lower half; else the first.
template <typename T>
inline Lanes pair_up(Lanes even, Lanes odd) {
#ifdef __AVX512BF16__
  if constexpr (kPairs<T>) {
    const __m512i low = _mm512_srli_epi32(_mm512_castps_si512(even.v), 16);
    return {_mm512_castsi512_ps(_mm512_or_si512(low, _mm512_castps_si512(odd.v)))};
  }
#endif
  (void)odd;
  return even;
}

#ifdef __AVX512BF16__
// Thirty-two bfloat16 of each become as many words.
inline void pair_up(__m512i even, __m512i odd, float* words) {
  // The interleaving within 128-bit parts, and then the parts in their order.
  const __m512i low = _mm512_unpacklo_epi16(even, odd), high = _mm512_unpackhi_epi16(even, odd);
  const __m512i first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
  const __m512i last = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
  _mm512_storeu_si512(words, _mm512_permutex2var_epi64(low, first, high));
  _mm512_storeu_si512(words + kLanes, _mm512_permutex2var_epi64(low, last, high));
}
#endif

// Values of one vector of cells as the right side: packed [cells / kPerWord, width], zeros behind
// head_dim.
template <typename T>
void pack_values(const Cells<T>& cells, int vector, int64_t head, int head_dim, int width,
                 float* packed) {
  const T* const* keys = cells.keys + vector * kLanes;
  const int known = cells.known - vector * kLanes;
  float* target = packed + vector * kLanes / kPerWord<T> * width;
  for (int c = 0; c < kLanes; c += kPerWord<T>, target += width) {
    const int next = c + kPerWord<T> - 1;
    int d = 0;
    if (next < known) {
      const T *even = keys[c] + cells.to_values + head, *odd = keys[next] + cells.to_values + head;
#ifdef __AVX512BF16__
      if constexpr (kPairs<T>) {
        for (; d + 2 * kLanes <= head_dim; d += 2 * kLanes) {
          pair_up(_mm512_loadu_si512(even + d), _mm512_loadu_si512(odd + d), target + d);
        }
      }
#endif
      for (; d + kLanes <= head_dim; d += kLanes) {
        store(target + d, pair_up<T>(load(even + d), load(odd + d)));
      }
    }
    for (; d < width; d += kLanes) {
      auto some = [&](int cell) {
        if (cell >= known) return zero();
        return load_some(keys[cell] + cells.to_values + head + d, head_dim - d);
      };
      store(target + d, pair_up<T>(some(c), some(next)));
    }
  }
}

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

// The vectors first .. end - 1 of one row's products become weights. The row sees of the split the
// cells begin .. stop - 1, which may reach beyond it.
template <typename T>
void soften(float* products, int first, int end, int begin, int stop, const Scoring& scoring,
            float* weights, float* largest_score, float* sum_of_weights) {
  Lanes most = all(-kInfinity);
  for (int v = first; v < end; ++v) {
    Lanes score = scoring(load(products + v * kLanes));
    if (begin > v * kLanes || stop < (v + 1) * kLanes) {
      score = within(begin - v * kLanes, stop - v * kLanes, score, all(-kInfinity));
    }
    store(products + v * kLanes, score);
    most = max(most, score);
  }
  *largest_score = largest(most);
  const Lanes base = all(*largest_score == -kInfinity ? 0.0f : *largest_score);
  Lanes total = zero();
  for (int v = first; v < end; ++v) {
    total += store_weights<T>(weights, v * kLanes, exp2(load(products + v * kLanes) - base));
  }
  *sum_of_weights = sum(total);
}

}  // namespace octavo
