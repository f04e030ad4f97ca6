// Memory that grows to what is asked of it and is used again; aligned to cache lines.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <memory>
#include <new>

namespace octavo {

class Buffer {
 public:
  // At least `count` floats. What was in it is lost when it grows.
  float* reserve(std::int64_t count) {
    if (count > size_) {
      constexpr std::int64_t kLine = 64;
      const std::int64_t bytes = (count * 4 + kLine - 1) / kLine * kLine;
      memory_.reset();
      memory_.reset(static_cast<float*>(std::aligned_alloc(kLine, bytes)));
      if (memory_ == nullptr) throw std::bad_alloc();
      size_ = count;
    }
    return memory_.get();
  }

  float* data() const { return memory_.get(); }

 private:
  struct Free {
    void operator()(float* memory) const { std::free(memory); }
  };
  std::unique_ptr<float, Free> memory_;
  std::int64_t size_ = 0;
};

}  // namespace octavo
