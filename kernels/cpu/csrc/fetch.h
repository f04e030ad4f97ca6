// Fetching of cells into the first-level cache before they are wanted.
//
// The processor's own prefetchers do not see through tables of blocks, and a core has only so many
// lines under way: what is asked for beyond them is forgotten (some 120 on Zen 5), or stops the core
// until there is room. So lines are asked for a few at a time, between other work.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace octavo {

class Fetch {
 public:
  // What comes now are strips of so many bytes; lets go of what was not yet fetched.
  void begin(int64_t bytes) {
    bytes_ = bytes;
    strips_ = 0;
    place_ = end_ = nullptr;
  }

  void add(const void* strip) {
    if (strips_ < kMostStrips) strip_[strips_++] = static_cast<const char*>(strip);
  }

  // Inlined always: GCC 12 takes what only prefetches for without effect, and leaves it out.
  __attribute__((always_inline)) void some() {
    if (place_ >= end_) {
      if (strips_ == 0) return;
      place_ = strip_[--strips_];
      end_ = place_ + bytes_;
    }
    for (int i = 0; i < kAtOnce; ++i) _mm_prefetch(place_ + i * kLine, _MM_HINT_T0);
    place_ += kAtOnce * kLine;
  }

 private:
  static constexpr int kLine = 64, kAtOnce = 3, kMostStrips = 16;
  const char* place_ = nullptr;
  const char* end_ = nullptr;
  int strips_ = 0;
  int64_t bytes_ = 0;
  const char* strip_[kMostStrips];
};

}  // namespace octavo
