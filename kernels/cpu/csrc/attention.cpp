// Paged attention over ragged slices: decodes, chunks of prompts and drafts in one call.

#include "attention_worker.h"
#include "pool.h"
#include "replay.h"
#include "rotary.h"

namespace octavo {
namespace {

// What changes queries, keys and values on their way from the product to attention.
template <typename T>
struct Projected {
  const float* rows;  // [tokens, (heads + 2 * kv_heads) * head_dim], queries, then keys, then values
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

// The tokens of a tile, of some kv heads with their queries: these go where the results will be that
// take their place, keys and values into the cache. A token after the other, as they lie in memory:
// for a long prompt that is what this waits for.
template <typename T>
void rotate_and_store(const Projected<T>& projected, const Call<T>& call, const Tile& tile,
                      int first_kv, int end_kv) {
  thread_local Buffer space;
  const Shape& shape = call.shape;
  const int64_t size = shape.head_dim, group = shape.group(), kv_size = shape.kv_heads * size;
  const int64_t vector = kLanes * size;  // of keys, or of values
  T* vectors = reinterpret_cast<T*>(space.reserve(2 * vector * (end_kv - first_kv)));
  auto keys_of = [&](int64_t kv) { return vectors + 2 * vector * (kv - first_kv); };
  const int64_t end = tile.first_token + tile.queries;
  auto same = [](Lanes x) { return x; };
  by_vectors(call.cache, projected.slots, projected.tokens, tile.first_token, end,
             [&](int64_t first, int count) {
    for (int i = 0; i < count; ++i) {
      const float* row = projected.rows + (first + i) * (shape.heads * size + 2 * kv_size);
      T* query = call.out + (first + i) * shape.heads * size;
      HeadChange<T> change = projected.change(first + i, size, projected.query_norm);
      for (int64_t h = first_kv * group; h < end_kv * group; ++h) {
        change_head(change, row + h * size, query + h * size, same);
      }
      change.norm = projected.key_norm;
      for (int64_t kv = first_kv; kv < end_kv; ++kv) {
        const float* key = row + (shape.heads + kv) * size;
        change_head(change, key, keys_of(kv) + i * size, storable<T>);
        copy_finite(keys_of(kv) + vector + i * size, key + kv_size, size);
      }
    }
    for (int64_t kv = first_kv; kv < end_kv; ++kv) {
      if (count == 1) {
        place_cell(call.cache, projected.slots[first], kv, keys_of(kv), keys_of(kv) + vector);
      } else {
        place_vector(call.cache, projected.slots[first], kv, keys_of(kv), keys_of(kv) + vector);
      }
    }
  });
}

// `projected`: null where queries are ready and keys and values stored; else call.query is call.out,
// where each task finds its queries before it has results to write. The last task to finish of a
// tile that was divided into ranges merges what all of them left, in the order of the splits.
template <typename T>
void attend(const Call<T>& call, const Projected<T>* projected) {
  thread_local AttentionPlan made;
  thread_local Buffer kept;
  AttentionPlan& plan = made;
  plan.make(call.shape, threads());
  // What other tasks read has to be there before; the rest is stored by who reads it.
  if (projected != nullptr && plan.together > 0) {
    parallel(static_cast<int64_t>(plan.tiles.size()), [&](int64_t index) {
      const Tile& tile = plan.tiles[index];
      const int kv_heads = static_cast<int>(call.shape.kv_heads);
      if (!tile.alone) rotate_and_store(*projected, call, tile, 0, kv_heads);
    });
  }
  float* states = kept.reserve(plan.kept_floats);
  parallel(static_cast<int64_t>(plan.tasks.size()), [&](int64_t index) {
    thread_local Workspace space;
    auto worker_of = [&](const Task& task) {
      return Worker<T>(call, plan.tiles[task.tile], task, space, states);
    };
    const Task& task = plan.tasks[index];
    const Tile& tile = plan.tiles[task.tile];
    if (projected != nullptr && tile.alone) {
      rotate_and_store(*projected, call, tile, task.first_kv, task.end_kv);
    }
    Worker<T> worker = worker_of(task);
    if (call.cache.in_vectors() && index + 1 < static_cast<int64_t>(plan.tasks.size())) {
      const Cells<T> after = worker_of(plan.tasks[index + 1]).beginning();
      worker.attend(&after);
    } else {
      worker.attend(nullptr);
    }
    int* unfinished = &plan.unfinished[task.tile];
    if (tile.ranges > 1 && __atomic_sub_fetch(unfinished, 1, __ATOMIC_ACQ_REL) == 0) {
      worker.finish();
    }
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
    octavo::attend<T>(octavo::Call<T>{                                                             \
        {offsets, contexts, marks, sequences, heads, kv_heads, head_dim, block_size,            \
         static_cast<int>(window)},                                                             \
        octavo::Scoring::of(scale, softcap), query, query_stride, out,                          \
        {cache, block_size, kv_heads, head_dim}, tables, table_stride}, nullptr);               \
  }

// Tensors as in `ops.AttendProjected`; null for no norm.
#define OCTAVO_ATTEND_PROJECTED(SUFFIX, T)                                                      \
  extern "C" void octavo_attend_projected_##SUFFIX(                                             \
      T* out, const float* projected, T* cache, const T* cosine, const T* sine, int64_t rotary, \
      const T* query_norm, const T* key_norm, float epsilon, const int64_t* slots,              \
      int64_t tokens, const int32_t* offsets, const int32_t* contexts, const int64_t* marks,    \
      const int32_t* tables, int64_t table_stride, int64_t sequences, int64_t heads,            \
      int64_t kv_heads, int64_t head_dim, int64_t block_size, int64_t window, float scale,      \
      float softcap) {                                                                          \
    const octavo::Shape shape{offsets,  contexts, marks,      sequences,               heads,   \
                              kv_heads, head_dim, block_size, static_cast<int>(window)};        \
    const octavo::Projected<T> made{projected, cosine,  sine,  rotary, query_norm,              \
                                    key_norm,  epsilon, slots, tokens};                         \
    octavo::attend<T>(octavo::Call<T>{shape, octavo::Scoring::of(scale, softcap), out,             \
                                   heads * head_dim, out,                                       \
                                   {cache, block_size, kv_heads, head_dim}, tables,             \
                                   table_stride}, &made);                                       \
  }

OCTAVO_ATTEND(f32, float)
OCTAVO_ATTEND(bf16, octavo::bf16)
OCTAVO_ATTEND_PROJECTED(f32, float)
OCTAVO_ATTEND_PROJECTED(bf16, octavo::bf16)

OCTAVO_REPLAYABLE(attend_f32)
OCTAVO_REPLAYABLE(attend_bf16)
OCTAVO_REPLAYABLE(attend_projected_f32)
OCTAVO_REPLAYABLE(attend_projected_bf16)
