// Paged attention over ragged slices: decodes, chunks of prompts and drafts in one call.

#include "attention_worker.h"
#include "pool.h"
#include "replay.h"
#include "rotary.h"

namespace octavo {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 15;

// The last task to finish of a tile that was divided into ranges merges what all of them left, in
// the order of the splits.
template <typename T>
void attend(const Call<T>& call) {
  thread_local AttentionPlan made;
  thread_local Buffer kept;
  AttentionPlan& plan = made;
  plan.make(call.shape, threads());
  float* states = kept.reserve(plan.kept_floats);
  parallel(static_cast<int64_t>(plan.tasks.size()), [&](int64_t index) {
    thread_local Workspace space;
    auto worker_of = [&](const Task& task) {
      return Worker<T>(call, plan.tiles[task.tile], task, space, states);
    };
    const Task& task = plan.tasks[index];
    Worker<T> worker = worker_of(task);
    if (call.cache.in_vectors() && index + 1 < static_cast<int64_t>(plan.tasks.size())) {
      const Cells<T> after = worker_of(plan.tasks[index + 1]).beginning();
      worker.attend(&after);
    } else {
      worker.attend(nullptr);
    }
    int* unfinished = &plan.unfinished[task.tile];
    if (plan.tiles[task.tile].ranges > 1 && __atomic_sub_fetch(unfinished, 1, __ATOMIC_ACQ_REL) == 0) {
      worker.finish();
    }
  });
}

// What changes queries, keys and values on their way from the product to attention.
template <typename T>
struct Projected {
  T* rows;  // [tokens, (heads + 2 * kv_heads) * head_dim], queries, then keys, then values
  const T* cosine;
  const T* sine;  // both [tokens, rotary]
  int64_t rotary;
  const T* query_norm;
  const T* key_norm;
  float epsilon;
  const int64_t* slots;
  int64_t tokens;

  HeadChange<T> change(int64_t token, int64_t head_dim, const T* norm) const {
    return {cosine + token * rotary, sine + token * rotary, static_cast<int>(rotary), norm, epsilon,
            static_cast<int>(head_dim)};
  }
};

// Queries are changed where they are; keys and values go into the cache.
template <typename T>
void rotate_and_store(const Projected<T>& projected, const Shape& shape, const CacheShape<T>& cache) {
  const int64_t size = shape.head_dim, kv_size = shape.kv_heads * size;
  const int64_t stride = shape.heads * size + 2 * kv_size;
  auto same = [](Lanes x) { return x; };
  const int64_t step = kNumbersPerTask / stride + 1;
  parallel((projected.tokens + step - 1) / step, [&](int64_t task) {
    thread_local Buffer space;
    T* keys = reinterpret_cast<T*>(space.reserve(2 * kLanes * size));
    T* values = keys + kLanes * size;
    const int64_t begin = task * step, end = std::min(projected.tokens, begin + step);
    by_vectors(cache, projected.slots, projected.tokens, begin, end, [&](int64_t first, int count) {
      for (int64_t t = first; t < first + count; ++t) {
        T* query = projected.rows + t * stride;
        for (int64_t h = 0; h < shape.heads; ++h) {
          change_head(projected.change(t, size, projected.query_norm), query + h * size,
                      query + h * size, same);
        }
      }
      for (int64_t kv = 0; kv < shape.kv_heads; ++kv) {
        for (int i = 0; i < count; ++i) {
          const int64_t t = first + i;
          const T* key = projected.rows + t * stride + (shape.heads + kv) * size;
          change_head(projected.change(t, size, projected.key_norm), key, keys + i * size,
                      finite_or_zero);
          copy_finite(values + i * size, key + kv_size, size);
        }
        if (count == 1) {
          place_cell(cache, projected.slots[first], kv, keys, values);
        } else {
          place_vector(cache, projected.slots[first], kv, keys, values);
        }
      }
    });
  });
}

}  // namespace
}  // namespace octavo

// Tensors as in `ops.AttentionPlan`; the tokens of `query` lie query_stride elements apart, the rows
// of `tables` table_stride. 0 for no window, 0 for no softcap.
#define OCTAVO_ATTEND(SUFFIX, T)                                                                \
  extern "C" void octavo_attend_##SUFFIX(                                                       \
      T* out, const T* query, int64_t query_stride, T* cache, const int32_t* offsets,           \
      const int32_t* contexts, const int64_t* marks, const int32_t* tables,                     \
      int64_t table_stride, int64_t sequences, int64_t heads, int64_t kv_heads,                 \
      int64_t head_dim, int64_t block_size, int64_t window, float scale, float softcap) {       \
    octavo::attend(octavo::Call<T>{                                                             \
        {offsets, contexts, marks, sequences, heads, kv_heads, head_dim, block_size,            \
         static_cast<int>(window)},                                                             \
        octavo::Scoring::of(scale, softcap), query, query_stride, out,                          \
        {cache, block_size, kv_heads, head_dim}, tables, table_stride});                        \
  }

// Tensors as in `ops.AttendProjected`; null for no norm.
#define OCTAVO_ATTEND_PROJECTED(SUFFIX, T)                                                      \
  extern "C" void octavo_attend_projected_##SUFFIX(                                             \
      T* out, T* projected, T* cache, const T* cosine, const T* sine, int64_t rotary,           \
      const T* query_norm, const T* key_norm, float epsilon, const int64_t* slots,              \
      int64_t tokens, const int32_t* offsets, const int32_t* contexts, const int64_t* marks,    \
      const int32_t* tables, int64_t table_stride, int64_t sequences, int64_t heads,            \
      int64_t kv_heads, int64_t head_dim, int64_t block_size, int64_t window, float scale,      \
      float softcap) {                                                                          \
    const octavo::Shape shape{offsets,  contexts, marks,      sequences,               heads,   \
                              kv_heads, head_dim, block_size, static_cast<int>(window)};        \
    const octavo::CacheShape<T> held{cache, block_size, kv_heads, head_dim};                    \
    octavo::rotate_and_store<T>(                                                                \
        {projected, cosine, sine, rotary, query_norm, key_norm, epsilon, slots, tokens}, shape, \
        held);                                                                                  \
    octavo::attend(octavo::Call<T>{shape, octavo::Scoring::of(scale, softcap), projected,       \
                                   (heads + 2 * kv_heads) * head_dim, out, held, tables,        \
                                   table_stride});                                              \
  }

OCTAVO_ATTEND(f32, float)
OCTAVO_ATTEND(bf16, octavo::bf16)
OCTAVO_ATTEND_PROJECTED(f32, float)
OCTAVO_ATTEND_PROJECTED(bf16, octavo::bf16)

OCTAVO_REPLAYABLE(attend_f32)
OCTAVO_REPLAYABLE(attend_bf16)
OCTAVO_REPLAYABLE(attend_projected_f32)
OCTAVO_REPLAYABLE(attend_projected_bf16)
