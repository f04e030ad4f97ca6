// Paged attention over ragged slices: decodes, chunks of prompts and drafts in one call.

#include "attention_plan.h"
#include "buffer.h"
#include "pool.h"
#include "replay.h"
#include "rotary.h"

namespace octavo {
namespace {

constexpr int64_t kNumbersPerTask = 1 << 15;

template <typename T>
struct Call {
  Shape shape;
  Scoring scoring;
  const T* query;  // a token's heads are next to each other, tokens query_stride apart
  int64_t query_stride;
  T* out;                 // [tokens, heads, head_dim]
  const T* cache;         // [blocks, 2, block_size, kv_heads, head_dim]
  const int32_t* tables;  // [sequences, table_stride]
  int64_t table_stride;

  int words() const { return static_cast<int>(shape.head_dim) / kPerWord<T>; }  // of one head
  int64_t cell_stride() const { return shape.kv_heads * shape.head_dim; }
  int64_t packed_keys() const { return int64_t{words()} * kSplit; }
  int64_t packed_values() const { return int64_t{kSplit / kPerWord<T>} * shape.width(); }
};

// What one thread works in; grows to the largest task it has met.
struct Workspace {
  Buffer queries, keys, values, products, weights, state, fresh;
};

// The cells of a split that some query of a tile sees.
template <typename T>
Cells<T> find_cells(const Call<T>& call, const Tile& tile, int split) {
  const Shape& shape = call.shape;
  const int begin = split * kSplit;
  const int end = std::min(begin + kSplit, tile.first_position + tile.queries);
  const int low = std::max(begin, shape.first_seen(tile.first_position));
  const int block_size = static_cast<int>(shape.block_size);
  Cells<T> cells;
  cells.to_values = block_size * call.cell_stride();
  cells.first = (low - begin) / kLanes;
  cells.end = (end - begin + kLanes - 1) / kLanes;
  cells.known = end - begin;
  const int32_t* table = call.tables + tile.sequence * call.table_stride;
  for (int position = begin + cells.first * kLanes; position < end;) {
    const int block = position / block_size, offset = position % block_size;
    const int stop = std::min(end, (block + 1) * block_size);
    const T* key = call.cache + table[block] * 2 * cells.to_values + offset * call.cell_stride();
    for (; position < stop; ++position, key += call.cell_stride()) {
      cells.keys[position - begin] = key;
    }
  }
  return cells;
}

// Carries out one task.
template <typename T>
class Worker {
 public:
  Worker(const Call<T>& call, const Tile& tile, const Task& task, Workspace& space, float* kept)
      : call_(call), shape_(call.shape), tile_(tile), task_(task), space_(space),
        kept_(kept + tile.kept) {}

  // `after`: the cells that this thread will most likely want next.
  void attend(const Cells<T>& after) {
    pack_queries();
    const State running = whole() ? running_state(heads() * rows()) : State{};
    Cells<T> two[2] = {find_cells(task_.first_split)};
    for (int split = task_.first_split; split < task_.end_split; ++split) {
      const Cells<T>& cells = two[(split - task_.first_split) % 2];
      Cells<T>& next = two[(split - task_.first_split + 1) % 2];
      next = split + 1 < task_.end_split ? find_cells(split + 1) : after;
      const State target = whole() ? running : kept_state(split);
      for (int h = 0; h < heads(); ++h) {
        pack(cells, next, h);
        attend_split(split * kSplit, h, target.from_row(h * rows()));
      }
    }
    if (whole()) write(running, task_.first_kv, task_.end_kv);
  }

  // All tasks of a tile that was divided into ranges are done.
  void finish() {
    const int all = static_cast<int>(shape_.kv_heads) * rows();
    const State total = running_state(all);
    for (int split = tile_.first_split; split < tile_.end_split; ++split) {
      for (int row = 0; row < all; row += kTileRows) {
        merge(total.from_row(row), kept_state(split).from_row(row), std::min(kTileRows, all - row));
      }
    }
    write(total, 0, static_cast<int>(shape_.kv_heads));
  }

 private:
  bool whole() const { return tile_.ranges == 1; }
  int rows() const { return tile_.queries * shape_.group(); }  // of one kv head
  int heads() const { return task_.end_kv - task_.first_kv; }
  int position_of(int row) const { return tile_.first_position + row / shape_.group(); }

  State running_state(int rows) {
    float* memory = space_.state.reserve(State::floats(rows, shape_.width()));
    const State state = State::at(memory, rows, shape_.width());
    state.clear(rows);
    return state;
  }

  State kept_state(int split) const {
    const int all = static_cast<int>(shape_.kv_heads) * rows();
    const int64_t floats = State::floats(all, shape_.width());
    return State::at(kept_ + (split - tile_.first_split) * floats, all, shape_.width());
  }

  // [heads of the task, rows, words]: the left sides of products. Rows go token by token.
  void pack_queries() {
    const int words = call_.words();
    float* packed = space_.queries.reserve(int64_t{heads()} * rows() * words);
    for (int kv = task_.first_kv; kv < task_.end_kv; ++kv) {
      for (int q = 0; q < tile_.queries; ++q) {
        const T* head = call_.query + (tile_.first_token + q) * call_.query_stride +
                        kv * shape_.group() * shape_.head_dim;
        for (int g = 0; g < shape_.group(); ++g, head += shape_.head_dim, packed += words) {
          for (int w = 0; w < words; w += kLanes) {
            store_some(packed + w, load_words(head + w * kPerWord<T>, words - w), words - w);
          }
        }
      }
    }
  }

  Cells<T> find_cells(int split) const { return octavo::find_cells(call_, tile_, split); }

  // The task's head number h of a split's cells, which stay in the first-level cache until they have
  // been attended. Meanwhile a part of the cells that come next is fetched: the processor's own
  // prefetchers do not see through tables of blocks, nor from one task to the next.
  void pack(const Cells<T>& cells, const Cells<T>& next, int h) {
    float* keys = space_.keys.reserve(call_.packed_keys());
    float* values = space_.values.reserve(call_.packed_values());
    const int head_dim = static_cast<int>(shape_.head_dim);
    const int64_t head = int64_t{task_.first_kv + h} * head_dim;
    const int vectors = cells.end - cells.first, wanted = next.end - next.first;
    for (int v = 0; v < vectors; ++v) {
      const int begin = next.first + wanted * v / vectors;
      const int end = next.first + wanted * (v + 1) / vectors;
      for (int w = begin; w < end; ++w) fetch(next, w, h, 0);
      pack_keys(cells, cells.first + v, head, head_dim, keys);
      for (int w = begin; w < end; ++w) fetch(next, w, h, next.to_values);
      pack_values(cells, cells.first + v, head, head_dim, shape_.width(), values);
    }
  }

  // Part h, of as many as the task has heads, of the keys or values of a vector of cells. Inlined
  // always: GCC 12 takes a function that only prefetches for one without effect, and leaves it out.
  __attribute__((always_inline)) void fetch(const Cells<T>& cells, int vector, int h, int64_t to_values) const {
    const int64_t first = task_.first_kv * shape_.head_dim, end = task_.end_kv * shape_.head_dim;
    const int stop = std::min(vector * kLanes + kLanes * (h + 1) / heads(), cells.known);
    for (int c = vector * kLanes + kLanes * h / heads(); c < stop; ++c) {
      const T* cell = cells.keys[c] + to_values;
      for (int64_t i = first; i < end; i += 64 / sizeof(T)) {
        _mm_prefetch(reinterpret_cast<const char*>(cell + i), _MM_HINT_T0);
      }
    }
  }

  // All rows of the task's head number h over the cells of a split, which have been packed.
  void attend_split(int begin, int h, State target) {
    const State fresh = State::at(space_.fresh.reserve(State::floats(kTileRows, shape_.width())),
                                  kTileRows, shape_.width());
    for (int row = 0; row < rows(); row += kTileRows) {
      const int count = std::min(kTileRows, rows() - row);
      const State part = target.from_row(row);
      const bool seen = attend_rows(begin, h, row, count, whole() ? fresh : part);
      if (whole() && seen) merge(part, fresh, count);
      if (!whole() && !seen) part.clear(count);
    }
  }

  // False where none of these rows sees any cell of the split: there is no result.
  bool attend_rows(int begin, int h, int row, int count, const State& target) {
    const int low = shape_.first_seen(position_of(row)) - begin;
    const int high = std::min(position_of(row + count - 1) + 1 - begin, kSplit);
    const int first = std::max(low, 0) / kLanes, end = (high + kLanes - 1) / kLanes;
    if (first >= end) return false;
    const int words = call_.words(), width = shape_.width();
    const float* queries = space_.queries.data() + (int64_t{h} * rows() + row) * words;
    const float* keys = space_.keys.data() + first * kLanes;
    float* products = space_.products.reserve(kTileRows * kSplit);
    multiply<kPairs<T>>(count, end - first, queries, words, keys, kSplit, words,
                        products + first * kLanes, kSplit);
    float* weights = space_.weights.reserve(kTileRows * kSplit);
    for (int r = 0; r < count; ++r) {
      const int position = position_of(row + r);
      soften<T>(products + r * kSplit, first, end, shape_.first_seen(position) - begin,
                position + 1 - begin, call_.scoring, weights + r * kSplit, target.largest + r,
                target.sum + r);
    }
    const int from = first * kLanes / kPerWord<T>, to = end * kLanes / kPerWord<T>;
    const float* values = space_.values.data() + int64_t{from} * width;
    multiply<kPairs<T>>(count, width / kLanes, weights + from, kSplit, values, width, to - from,
                        target.mixed, width);
    return true;
  }

  void write(const State& state, int first_kv, int end_kv) const {
    const int group = shape_.group();
    for (int kv = first_kv; kv < end_kv; ++kv) {
      for (int row = 0; row < rows(); ++row) {
        const State one = state.from_row((kv - first_kv) * rows() + row);
        const int64_t token = tile_.first_token + row / group, head = kv * group + row % group;
        T* out = call_.out + (token * shape_.heads + head) * shape_.head_dim;
        const Lanes share = all(1.0f / *one.sum);
        for (int d = 0; d < shape_.head_dim; d += kLanes) {
          store_some(out + d, load(one.mixed + d) * share, static_cast<int>(shape_.head_dim) - d);
        }
      }
    }
  }

  const Call<T>& call_;
  const Shape& shape_;
  const Tile& tile_;
  const Task& task_;
  Workspace& space_;
  float* kept_;
};

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
    const Task& task = plan.tasks[index];
    const Tile& tile = plan.tiles[task.tile];
    Worker<T> worker(call, tile, task, space, states);
    Cells<T> after;
    if (index + 1 < static_cast<int64_t>(plan.tasks.size())) {
      const Task& next = plan.tasks[index + 1];
      after = find_cells(call, plan.tiles[next.tile], next.first_split);
    }
    worker.attend(after);
    int* unfinished = &plan.unfinished[task.tile];
    if (tile.ranges > 1 && __atomic_sub_fetch(unfinished, 1, __ATOMIC_ACQ_REL) == 0) {
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
};

// Queries are changed where they are; keys and values go into the cache.
template <typename T>
void rotate_and_store(const Projected<T>& projected, const Shape& shape, const CacheShape<T>& cache) {
  const int64_t size = shape.head_dim, kv_size = shape.kv_heads * size;
  const int64_t stride = shape.heads * size + 2 * kv_size;
  auto same = [](Lanes x) { return x; };
  const int64_t step = kNumbersPerTask / stride + 1;
  parallel((projected.tokens + step - 1) / step, [&](int64_t task) {
    for (int64_t t = task * step; t < std::min(projected.tokens, (task + 1) * step); ++t) {
      HeadChange<T> change{projected.cosine + t * projected.rotary,
                           projected.sine + t * projected.rotary,
                           static_cast<int>(projected.rotary),
                           projected.query_norm,
                           projected.epsilon,
                           static_cast<int>(size)};
      T* query = projected.rows + t * stride;
      for (int64_t h = 0; h < shape.heads; ++h) {
        change_head(change, query + h * size, query + h * size, same);
      }
      change.norm = projected.key_norm;
      const T* key = query + shape.heads * size;
      T* cell = cache.keys(projected.slots[t]);
      for (int64_t h = 0; h < shape.kv_heads; ++h) {
        change_head(change, key + h * size, cell + h * size, finite_or_zero);
      }
      store_finite(cell + cache.to_values(), key + kv_size, kv_size);
    }
  });
}

}  // namespace
}  // namespace octavo

// Tensors as in `ops.AttentionPlan`; the tokens of `query` lie query_stride elements apart, the rows
// of `tables` table_stride. 0 for no window, 0 for no softcap.
#define OCTAVO_ATTEND(SUFFIX, T)                                                                \
  extern "C" void octavo_attend_##SUFFIX(                                                       \
      T* out, const T* query, int64_t query_stride, const T* cache, const int32_t* offsets,     \
      const int32_t* contexts, const int32_t* tables, int64_t table_stride, int64_t sequences,  \
      int64_t heads, int64_t kv_heads, int64_t head_dim, int64_t block_size, int64_t window,    \
      float scale, float softcap) {                                                             \
    octavo::attend(octavo::Call<T>{                                                             \
        {offsets, contexts, sequences, heads, kv_heads, head_dim, block_size,                   \
         static_cast<int>(window)},                                                             \
        octavo::Scoring::of(scale, softcap), query, query_stride, out, cache, tables,           \
        table_stride});                                                                         \
  }

// Tensors as in `ops.AttendProjected`; null for no norm.
#define OCTAVO_ATTEND_PROJECTED(SUFFIX, T)                                                      \
  extern "C" void octavo_attend_projected_##SUFFIX(                                             \
      T* out, T* projected, T* cache, const T* cosine, const T* sine, int64_t rotary,           \
      const T* query_norm, const T* key_norm, float epsilon, const int64_t* slots,              \
      int64_t tokens, const int32_t* offsets, const int32_t* contexts, const int32_t* tables,   \
      int64_t table_stride, int64_t sequences, int64_t heads, int64_t kv_heads,                 \
      int64_t head_dim, int64_t block_size, int64_t window, float scale, float softcap) {       \
    const octavo::Shape shape{offsets,  contexts, sequences,  heads,                            \
                              kv_heads, head_dim, block_size, static_cast<int>(window)};        \
    octavo::rotate_and_store<T>(                                                                \
        {projected, cosine, sine, rotary, query_norm, key_norm, epsilon, slots, tokens}, shape, \
        {cache, block_size, kv_heads, head_dim});                                               \
    octavo::attend(octavo::Call<T>{shape, octavo::Scoring::of(scale, softcap), projected,       \
                                   (heads + 2 * kv_heads) * head_dim, out, cache, tables,       \
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
