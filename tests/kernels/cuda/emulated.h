// As much of CUDA as decode_attention.cu uses, on a CPU: a block's threads are threads, one block
// after the other. Lanes of a warp exchange what they shuffle through memory.
#pragma once

#include <barrier>
#include <cmath>
#include <cstring>
#include <memory>
#include <thread>
#include <vector>

#define __device__
#define __global__
#define __shared__ static
#define __launch_bounds__(threads)

struct Index {
  int x = 0, y = 0, z = 0;
};
inline Index blockIdx;
inline thread_local Index threadIdx;

constexpr int kWarp = 32;
struct Warp {
  std::barrier<> meeting{kWarp};
  float held[kWarp];
};
inline std::vector<std::unique_ptr<Warp>> warps;
inline std::unique_ptr<std::barrier<>> block;

inline void __syncthreads() { block->arrive_and_wait(); }

inline float __shfl_xor_sync(unsigned, float value, int apart) {
  Warp& warp = *warps[threadIdx.x / kWarp];
  const int lane = threadIdx.x % kWarp;
  warp.held[lane] = value;
  warp.meeting.arrive_and_wait();
  const float other = warp.held[lane ^ apart];
  warp.meeting.arrive_and_wait();
  return other;
}

template <typename To, typename From>
To same_bits(From from) {
  To to;
  static_assert(sizeof to == sizeof from);
  std::memcpy(&to, &from, sizeof to);
  return to;
}
inline float __int_as_float(int bits) { return same_bits<float>(bits); }
inline float __uint_as_float(unsigned bits) { return same_bits<float>(bits); }
inline unsigned __float_as_uint(float number) { return same_bits<unsigned>(number); }

// Run `kernel()` as a grid of blocks of so many threads.
template <typename Kernel>
void launch(int x, int y, int z, int threads, Kernel kernel) {
  for (int i = 0; i < x * y * z; ++i) {
    blockIdx.x = i % x;
    blockIdx.y = i / x % y;
    blockIdx.z = i / x / y;
    warps.clear();
    for (int w = 0; w < threads / kWarp; ++w) warps.push_back(std::make_unique<Warp>());
    block = std::make_unique<std::barrier<>>(threads);
    std::vector<std::thread> team;
    for (int t = 0; t < threads; ++t) {
      team.emplace_back([t, &kernel] {
        threadIdx.x = t;
        kernel();
      });
    }
    for (std::thread& member : team) member.join();
  }
}
