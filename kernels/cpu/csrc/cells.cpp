// Writing a step's keys and values into the paged cache.

#include "cells.h"

#include "pool.h"
#include "replay.h"

namespace octavo {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 15;

template <typename T>
void store_cells(const CacheShape<T>& cache, const T* key, int64_t key_stride, const T* value,
                 int64_t value_stride, const int64_t* slots, int64_t tokens) {
  const int64_t size = cache.kv_heads * cache.head_dim;
  const int64_t step = kNumbersPerTask / size + 1;
  parallel((tokens + step - 1) / step, [&](int64_t task) {
    for (int64_t t = task * step; t < std::min(tokens, (task + 1) * step); ++t) {
      T* cell = cache.keys(slots[t]);
      store_finite(cell, key + t * key_stride, size);
      store_finite(cell + cache.to_values(), value + t * value_stride, size);
    }
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
