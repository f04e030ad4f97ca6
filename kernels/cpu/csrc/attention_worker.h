// What one task of attention does.
#pragma once

#include <algorithm>
#include <cstdint>

#include "attention_plan.h"
#include "buffer.h"

namespace octavo {

template <typename T>
struct Call {
  Shape shape;
  Scoring scoring;
  const T* query;  // a token's heads are next to each other, tokens query_stride apart
  int64_t query_stride;
  T* out;  // [tokens, heads, head_dim]
  CacheShape<T> cache;
  const int32_t* tables;  // [sequences, table_stride]
  int64_t table_stride;

  int words() const { return static_cast<int>(shape.head_dim) / kInWord<T>; }  // of one head
};

// What one thread works in; grows to the largest task it has met.
struct Workspace {
  Buffer queries, gathered, products, weights, state, fresh;
  Fetch fetch;
};

template <typename T>
class Worker {
 public:
  Worker(const Call<T>& call, const Tile& tile, const Task& task, Workspace& space, float* kept)
      : call_(call), shape_(call.shape), tile_(tile), task_(task), space_(space),
        kept_(kept + tile.kept), group_(call.shape.group()) {}

  // Where the task reads first; in a cache in vectors.
  Cells<T> beginning() const { return find_cells(task_.first_split); }

  // `after`: what this thread will most likely want next; null: it is not known.
  void attend(const Cells<T>* after) {
    pack_queries();
    const bool in_vectors = call_.cache.in_vectors();
    Cells<T> here, next;
    if (in_vectors) here = beginning();
    space_.fetch.begin(0);
    for (int split = task_.first_split; split < task_.end_split; ++split) {
      for (int h = 0; h < heads(); ++h) {
        if (!in_vectors) {
          here = gather(split, task_.first_kv + h);
        } else if (h + 1 < heads()) {
          next = here.moved(call_.cache.head_size());
        } else if (split + 1 < task_.end_split) {
          next = find_cells(split + 1);
        } else if (after != nullptr) {
          next = *after;
        } else {
          next.first = next.end = 0;
        }
        if (in_vectors) fetch(next);
        attend_split(split, h, here);
        here = next;
      }
    }
  }

  // All tasks of a tile that was divided into ranges are done.
  void finish() {
    for (int kv = 0; kv < static_cast<int>(shape_.kv_heads); ++kv) {
      for (int row = 0; row < rows(); row += kTileRows) {
        const Rows group = rows_from(row);
        const State total = kept_state(group.first_split).from_row(kv * rows() + row);
        for (int split = group.first_split + 1; split < group.end_split; ++split) {
          merge(total, kept_state(split).from_row(kv * rows() + row), group.count);
        }
        write(total, kv, group);
      }
    }
  }

 private:
  // Rows that are computed together, and the splits of which one of them sees something.
  struct Rows {
    int first, count;
    int low, high;  // positions seen: low .. high - 1
    int first_split, end_split;
    Sight sights[kTileRows];
  };

  bool whole() const { return tile_.ranges == 1; }
  int rows() const { return tile_.queries * group_; }  // of one kv head
  int heads() const { return task_.end_kv - task_.first_kv; }

  Rows rows_from(int row) const {
    Rows group;
    group.first = row;
    group.count = std::min(kTileRows, rows() - row);
    int query = row / group_, head = row - query * group_;
    Sight sight = sight_of(shape_, tile_, query);
    group.low = sight.begin;
    group.high = sight.stop;
    for (int r = 0; r < group.count; ++r, ++head) {
      if (head == group_) {
        head = 0;
        sight = sight_of(shape_, tile_, ++query);
        group.low = std::min(group.low, sight.begin);
        group.high = std::max(group.high, sight.stop);
      }
      group.sights[r] = sight;
    }
    group.first_split = group.low / kSplit;
    group.end_split = (group.high - 1) / kSplit + 1;
    return group;
  }

  // Of all rows of the task, head by head.
  State running_state() {
    const int all = heads() * rows();
    return State::at(space_.state.reserve(State::floats(all, shape_.width())), all, shape_.width());
  }

  State kept_state(int split) const {
    const int all = static_cast<int>(shape_.kv_heads) * rows();
    const int64_t floats = State::floats(all, shape_.width());
    return State::at(kept_ + (split - tile_.first_split) * floats, all, shape_.width());
  }

  int query_floats() const { return call_.words() * kFactors<T>; }  // of one row

  // [heads of the task, rows, query_floats]: the left sides of products. Rows go token by token.
  void pack_queries() {
    const int floats = query_floats();
    float* packed = space_.queries.reserve(int64_t{heads()} * rows() * floats);
    for (int kv = task_.first_kv; kv < task_.end_kv; ++kv) {
      for (int q = 0; q < tile_.queries; ++q) {
        const T* head = call_.query + (tile_.first_token + q) * call_.query_stride +
                        kv * group_ * shape_.head_dim;
        for (int g = 0; g < group_; ++g, head += shape_.head_dim, packed += floats) {
          for (int i = 0; i < floats; i += kLanes) {
            const int left = floats - i;
            Lanes part;
            if constexpr (kPairs<T>) {
              part = load_words(head + i * kInWord<T>, left);
            } else {
              part = load_some(head + i, left);
            }
            store_some(packed + i, part, left);
          }
        }
      }
    }
  }

  // The vectors of a split that some row of the tile sees.
  Cells<T> seen_of(int split) const {
    const int begin = split * kSplit;
    Cells<T> cells;
    cells.first = std::max(tile_.low - begin, 0) / kLanes;
    cells.end = (std::min(tile_.end - begin, kSplit) + kLanes - 1) / kLanes;
    return cells;
  }

  const int32_t* table() const { return call_.tables + tile_.sequence * call_.table_stride; }

  // Of the task's first head.
  Cells<T> find_cells(int split) const {
    Cells<T> cells = seen_of(split);
    const int position = split * kSplit + cells.first * kLanes;
    const int block_size = static_cast<int>(shape_.block_size);
    int block = position / block_size, cell = position % block_size;
    for (int v = cells.first; v < cells.end; ++v) {
      cells.keys[v] = call_.cache.key(table()[block], cell, task_.first_kv);
      cells.values[v] = call_.cache.value(table()[block], cell, task_.first_kv);
      if ((cell += kLanes) == block_size) cell = 0, ++block;
    }
    return cells;
  }

  // The cells of a cache that is not in vectors, brought into such. Those behind the tile's end belong
  // to nobody yet: their memory is not read, and they count as zeros.
  Cells<T> gather(int split, int kv) {
    constexpr int kNumbers = kInWord<T>;
    const int head_dim = static_cast<int>(shape_.head_dim);
    const int block_size = static_cast<int>(shape_.block_size);
    const int64_t floats = int64_t{kSplit} / kNumbers * head_dim;  // of keys, and of values
    float* memory = space_.gathered.reserve(2 * floats);
    std::fill_n(memory, 2 * floats, 0.0f);
    T* keys = reinterpret_cast<T*>(memory);
    T* values = reinterpret_cast<T*>(memory + floats);
    Cells<T> cells = seen_of(split);
    const int begin = split * kSplit;
    for (int c = cells.first * kLanes; c < std::min(tile_.end - begin, kSplit); ++c) {
      const int block = (begin + c) / block_size, cell = (begin + c) % block_size;
      const T* key = call_.cache.plain_key(table()[block], cell, kv);
      const T* value = key + call_.cache.plain_to_values();
      for (int d = 0; d < head_dim; ++d) {
        keys[(d / kNumbers * kSplit + c) * kNumbers + d % kNumbers] = key[d];
        values[(c / kNumbers * head_dim + d) * kNumbers + c % kNumbers] = value[d];
      }
    }
    for (int v = cells.first; v < cells.end; ++v) {
      cells.keys[v] = keys + v * kLanes * kNumbers;
      cells.values[v] = values + v * kLanes * head_dim;
    }
    return cells;
  }

  // These cells are to be fetched while others are attended.
  void fetch(const Cells<T>& cells) {
    const int64_t strip = kLanes * shape_.head_dim, keys = shape_.block_size * shape_.head_dim;
    space_.fetch.begin(strip * sizeof(T));
    // A block's keys are parted among its vectors like its values, whatever cells they are of.
    for (int v = cells.end; v-- > cells.first;) space_.fetch.add(cells.values[v]);
    for (int v = cells.end; v-- > cells.first;) space_.fetch.add(cells.values[v] - keys);
  }

  // All rows of the task's head number h over the cells of a split.
  void attend_split(int split, int h, const Cells<T>& cells) {
    const State target = (whole() ? running_state() : kept_state(split)).from_row(h * rows());
    const State fresh = State::at(space_.fresh.reserve(State::floats(kTileRows, shape_.width())),
                                  kTileRows, shape_.width());
    for (int row = 0; row < rows(); row += kTileRows) {
      const Rows group = rows_from(row);
      if (split < group.first_split || split >= group.end_split) continue;
      const State part = target.from_row(row);
      const bool more = whole() && split > group.first_split;
      attend_rows(split * kSplit, h, group, cells, more ? fresh : part);
      if (more) merge(part, fresh, group.count);
      if (whole() && split == group.end_split - 1) write(part, task_.first_kv + h, group);
    }
  }

  void attend_rows(int begin, int h, const Rows& group, const Cells<T>& cells,
                   const State& target) {
    const int first = std::max(group.low - begin, 0) / kLanes;
    const int end = (std::min(group.high - begin, kSplit) + kLanes - 1) / kLanes;
    const int64_t row = int64_t{h} * rows() + group.first;
    float* products = space_.products.reserve(kTileRows * kSplit);
    const bool in_vectors = call_.cache.in_vectors();
    ScoreProduct<T> scores;
    scores.queries = space_.queries.data() + row * query_floats();
    scores.words = call_.words();
    scores.keys = cells.keys + first;
    scores.key_stride = in_vectors ? call_.cache.key_stride() : kSplit * kInWord<T>;
    scores.scores = products + first * kLanes;
    scores.score_stride = kSplit;
    scores.fetch = &space_.fetch;
    const int most = ScoreProduct<T>::most(group.count);
    for (int v = 0; v < end - first; v += most) {
      multiply(group.count, std::min(most, end - first - v), scores.from_vector(v));
    }
    float* weights = space_.weights.reserve(kTileRows * kSplit);
    for (int r = 0; r < group.count; ++r) {
      soften<T>(products + r * kSplit, first, end, begin, group.sights[r], call_.scoring,
                weights + r * kSplit, target.largest + r, target.sum + r, space_.fetch);
    }
    constexpr int kFloats = kLanes / kInWord<T> * kFactors<T>;  // weights of a vector of cells
    MixProduct<T> mix;
    mix.weights = weights + first * kFloats;
    mix.weight_stride = kSplit;
    mix.values = cells.values + first;
    mix.vectors = end - first;
    mix.value_stride = call_.cache.value_stride();
    mix.mixed_stride = target.width;
    mix.fetch = &space_.fetch;
    const int head_dim = static_cast<int>(shape_.head_dim);
    for (int d = 0, vectors; d < head_dim; d += vectors * kLanes) {
      const int whole = (head_dim - d) / kLanes;
      vectors = std::min(std::max(whole, 1), kTileVectors);
      mix.dimension = d;
      mix.last = std::min(head_dim - d, kLanes);
      mix.mixed = target.mixed + d;
      multiply(group.count, vectors, mix);
    }
  }

  void write(const State& state, int kv, const Rows& rows) const {
    const int head_dim = static_cast<int>(shape_.head_dim);
    int64_t token = tile_.first_token + rows.first / group_;
    int64_t head = rows.first % group_;
    for (int r = 0; r < rows.count; ++r, ++head) {
      if (head == group_) head = 0, ++token;
      T* out = call_.out + (token * shape_.heads + kv * group_ + head) * head_dim;
      const Lanes share = all(1.0f / state.sum[r]);
      const float* mixed = state.mixed + int64_t{r} * state.width;
      for (int d = 0; d < head_dim; d += kLanes) {
        // A zero may be of either sign, which depends on what was merged: + 0 makes it positive.
        store_some(out + d, load(mixed + d) * share + zero(), head_dim - d);
      }
    }
  }

  const Call<T>& call_;
  const Shape& shape_;
  const Tile& tile_;
  const Task& task_;
  Workspace& space_;
  float* kept_;
  const int group_;
};

}  // namespace octavo
