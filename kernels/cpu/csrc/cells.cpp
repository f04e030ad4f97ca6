// Writing a step's keys and values into the paged cache.

#include "cells.h"

#include <algorithm>

#include "buffer.h"
#include "pool.h"
#include "replay.h"

namespace octavo {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 15;

template <typename T>
void store_cells(const CacheShape<T>& cache, const T* key, int64_t key_stride, const T* value,
                 int64_t value_stride, const int64_t* slots, int64_t tokens) {
  const int64_t size = cache.head_dim;
  const int64_t step = kNumbersPerTask / (cache.kv_heads * size) + 1;
  parallel((tokens + step - 1) / step, [&](int64_t task) {
    thread_local Buffer space;
    T* keys = reinterpret_cast<T*>(space.reserve(2 * kLanes * size));
    T* values = keys + kLanes * size;
    const int64_t begin = task * step, end = std::min(tokens, begin + step);
    by_vectors(cache, slots, tokens, begin, end, [&](int64_t first, int count) {
      for (int64_t kv = 0; kv < cache.kv_heads; ++kv) {
        for (int i = 0; i < count; ++i) {
          copy_finite(keys + i * size, key + (first + i) * key_stride + kv * size, size);
          copy_finite(values + i * size, value + (first + i) * value_stride + kv * size, size);
        }
        if (count == 1) {
          place_cell(cache, slots[first], kv, keys, values);
        } else {
          place_vector(cache, slots[first], kv, keys, values);
        }
      }
    });
  });
}

}  // namespace
}  // namespace octavo

// key and value [tokens, kv_heads, head_dim], their tokens so many elements apart.
#define OCTAVO_STORE_CELLS(SUFFIX, T)                                                              \
  extern "C" void octavo_store_cells_##SUFFIX(                                                     \
      T* cache, const T* key, int64_t key_stride, const T* value, int64_t value_stride,            \
      const int64_t* slots, int64_t tokens, int64_t kv_heads, int64_t head_dim,                    \
      int64_t block_size) {                                                                        \
    octavo::store_cells<T>({cache, block_size, kv_heads, head_dim}, key, key_stride, value,        \
                           value_stride, slots, tokens);                                           \
  }

OCTAVO_STORE_CELLS(f32, float)
OCTAVO_STORE_CELLS(bf16, octavo::bf16)

OCTAVO_REPLAYABLE(store_cells_f32)
OCTAVO_REPLAYABLE(store_cells_bf16)
