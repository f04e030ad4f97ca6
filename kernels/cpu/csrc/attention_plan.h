// How the work of one call of attention is divided among threads.
//
// A tile is some queries of one sequence with all their heads. Its work is the splits of the context
// that they see, for each kv head. It is one task, or is divided by kv heads (many queries: bound by
// arithmetic) or into ranges of splits (few queries and a long context: bound by memory, which is
// then read in its own order). How it is divided changes no result.
#pragma once

#include <algorithm>
#include <cstdint>
#include <vector>

#include "attention_split.h"

namespace octavo {

// The numbers of a call that have nothing to do with its tensors' types.
struct Shape {
  const int32_t* offsets;   // [sequences + 1] first tokens
  const int32_t* contexts;  // [sequences]
  const int64_t* marks;     // [tokens] tree masks; null: no query is of a tree
  int64_t sequences, heads, kv_heads, head_dim, block_size;
  int window;  // 0: none

  int group() const { return static_cast<int>(heads / kv_heads); }
  int width() const { return static_cast<int>((head_dim + kLanes - 1) / kLanes * kLanes); }
  int first_seen(int position) const { return window ? std::max(0, position - window + 1) : 0; }
};

struct Tile {
  int sequence, first_token, queries;
  int start;           // position of the first query of the sequence
  int first_position;  // of the tile's
  int low, end;        // positions that some query sees: low .. end - 1
  int first_split, end_split;
  bool alone;        // all that its sequence has in this step, and each head one task's
  int ranges = 1;    // tasks that its splits are divided into; then their states are kept
  int64_t kept = 0;  // where, in floats
};

// What a tile's query number q sees.
inline Sight sight_of(const Shape& shape, const Tile& tile, int q) {
  const int64_t marks = shape.marks == nullptr ? -1 : shape.marks[tile.first_token + q];
  if (marks < 0) {
    const int position = tile.first_position + q;
    return {shape.first_seen(position), position + 1, position + 1, 0};
  }
  const auto bits = static_cast<uint64_t>(marks);
  const int position = tile.start + __builtin_popcountll(bits) - 1;
  return {shape.first_seen(position), tile.start + 64 - __builtin_clzll(bits), tile.start, bits};
}

struct Task {
  int tile, first_split, end_split, first_kv, end_kv;
};

class AttentionPlan {
 public:
  std::vector<Tile> tiles;
  std::vector<Task> tasks;
  std::vector<int> unfinished;  // tasks of each tile
  int64_t kept_floats = 0;
  int together = 0;  // tiles that are not alone

  void make(const Shape& shape, int threads) {
    tiles.clear();
    tasks.clear();
    unfinished.clear();
    kept_floats = 0;
    const int64_t all_rows = int64_t{shape.offsets[shape.sequences]} * shape.group();
    const int64_t wanted = threads * kTasksPerThread / shape.kv_heads + 1;
    const int rows = static_cast<int>(std::clamp<int64_t>(all_rows / wanted, kFewRows, kMostRows));
    int64_t cost = 0;
    for (int s = 0; s < shape.sequences; ++s) cost += add_tiles(shape, s, rows);
    const int64_t grain = threads == 1 ? cost + 1 : cost / (threads * kTasksPerThread) + 1;
    for (int i = 0; i < static_cast<int>(tiles.size()); ++i) {
      divide(shape, i, (cost_of(shape, tiles[i]) + grain - 1) / grain);
    }
    together = 0;
    for (const Tile& tile : tiles) {
      unfinished.push_back(tile.ranges);
      if (!tile.alone) ++together;
    }
  }

 private:
  // Rows of a kv head that read a split after each other: as many as leave each thread its tasks, for
  // a tile that has all of its sequence stores it, and reads what it stored while it is in the cache.
  static constexpr int kFewRows = 96, kMostRows = 384;
  static constexpr int kReadingCost = 3;  // of a split and kv head, in the cost of one row
  static constexpr int kTasksPerThread = 4;
  static constexpr int kManyRows = 24;  // arithmetic takes longer than memory

  static int64_t cost_of(const Shape& shape, const Tile& tile) {
    const int splits = tile.end_split - tile.first_split;
    return splits * shape.kv_heads * (kReadingCost + tile.queries * shape.group());
  }

  int64_t add_tiles(const Shape& shape, int sequence, int rows) {
    const int first = shape.offsets[sequence], end = shape.offsets[sequence + 1];
    const int before = shape.contexts[sequence] - (end - first);  // tokens of earlier steps
    const bool tree = shape.marks != nullptr && std::any_of(shape.marks + first, shape.marks + end,
                                                            [](int64_t mark) { return mark >= 0; });
    const int step = std::max(1, rows / shape.group());
    int64_t cost = 0;
    for (int token = first; token < end; token += step) {
      Tile tile;
      tile.sequence = sequence;
      tile.first_token = token;
      tile.queries = std::min(step, end - token);
      tile.alone = tile.queries == end - first;
      tile.start = before;
      tile.first_position = before + token - first;
      tile.low = shape.first_seen(tree ? before : tile.first_position);
      tile.end = tree ? before + end - first : tile.first_position + tile.queries;
      tile.first_split = tile.low / kSplit;
      tile.end_split = (tile.end - 1) / kSplit + 1;
      cost += cost_of(shape, tile);
      tiles.push_back(tile);
    }
    return cost;
  }

  void divide(const Shape& shape, int index, int64_t parts) {
    Tile& tile = tiles[index];
    const int splits = tile.end_split - tile.first_split;
    const int kv_heads = static_cast<int>(shape.kv_heads);
    const bool by_heads = tile.queries * shape.group() >= kManyRows || splits < 2 * parts;
    const int count = static_cast<int>(by_heads ? std::min<int64_t>(parts, kv_heads) : parts);
    if (by_heads || count == 1) {
      for (int i = 0; i < count; ++i) {
        tasks.push_back({index, tile.first_split, tile.end_split, kv_heads * i / count,
                         kv_heads * (i + 1) / count});
      }
      return;
    }
    tile.alone = false;
    tile.ranges = count;
    tile.kept = kept_floats;
    kept_floats += splits * State::floats(tile.queries * static_cast<int>(shape.heads), shape.width());
    for (int i = 0; i < count; ++i) {
      tasks.push_back({index, tile.first_split + splits * i / count,
                       tile.first_split + splits * (i + 1) / count, 0, kv_heads});
    }
  }
};

}  // namespace octavo
