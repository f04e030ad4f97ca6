// Paged attention of steps in which every sequence has one query: a second way to do what
// attention_kernels.py does, to measure that against.
//
// A block of four warps takes one split of one sequence's context, for all query heads that share a
// kv head. As many lanes as a head has vectors of 16 bytes hold a cell's key and value; so a warp
// works on several cells at once, every cell is read once, in its own order, and the heads of the
// group share it. Each such stream of cells keeps its own softmax; in the end they are merged in
// their order. Splits are as those of Triton's kernel, and so are the parts that are written.
//
// Plain C++: no header is needed. Compiled for one shape at a time:
//   HEAD_DIM 64, 128 or 256; GROUP query heads of a kv head; BLOCK_SIZE; SPLIT; FLOAT16 or bfloat16;
//   PARTS: contexts of more than one split, whose parts merge_kernel merges.

typedef unsigned short Number;  // the bits of a float of 16
struct alignas(16) Vector {
  unsigned words[4];
};

constexpr int kThreads = 128;
constexpr int kPerVector = 8;
constexpr int kLanes = HEAD_DIM / kPerVector;  // of a stream
constexpr int kStreams = kThreads / kLanes;
constexpr int kAhead = GROUP > 4 ? 2 : 4;  // cells of a stream whose loads are under way together
constexpr float kLog2E = 1.4426950408889634f;

static_assert(HEAD_DIM == 64 || HEAD_DIM == 128 || HEAD_DIM == 256, "a stream lies in one warp");

__device__ inline float minus_infinity() { return __int_as_float(static_cast<int>(0xff800000u)); }

__device__ inline void widen(const Vector& vector, float* numbers) {
  for (int i = 0; i < 4; ++i) {
    const unsigned word = vector.words[i];
#ifdef FLOAT16
    asm("cvt.f32.f16 %0, %1;" : "=f"(numbers[2 * i]) : "h"(static_cast<Number>(word)));
    asm("cvt.f32.f16 %0, %1;" : "=f"(numbers[2 * i + 1]) : "h"(static_cast<Number>(word >> 16)));
#else
    numbers[2 * i] = __uint_as_float(word << 16);
    numbers[2 * i + 1] = __uint_as_float(word & 0xffff0000u);
#endif
  }
}

__device__ inline Number narrowed(float number) {
#ifdef FLOAT16
  Number bits;
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(number));
  return bits;
#else
  if (number != number) return 0x7fc0;
  const unsigned bits = __float_as_uint(number);
  return static_cast<Number>((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
#endif
}

__device__ inline Vector load(const Number* numbers) {
  return *reinterpret_cast<const Vector*>(numbers);
}

extern "C" __global__ void __launch_bounds__(kThreads) attend_decodes(
    const Number* query, const Number* cache, Number* out, float* part_sum, float* part_max,
    float* part_total, const int* tables, const int* contexts, float scale, float softcap,
    int window, long long query_stride, long long block_stride, long long half_stride,
    long long cell_stride, long long head_stride, long long table_stride, int heads, int splits) {
  __shared__ float all_mixed[kStreams][GROUP][HEAD_DIM];
  __shared__ float all_peaks[kStreams][GROUP];
  __shared__ float all_totals[kStreams][GROUP];

  const int sequence = blockIdx.x, kv_head = blockIdx.y;
  [[maybe_unused]] const int split = blockIdx.z;  // of no use without PARTS
  const int thread = threadIdx.x, lane = thread % kLanes, stream = thread / kLanes;
  const int context = contexts[sequence];
  const int first = context - window > 0 ? context - window : 0;
  int begin = first, end = context;
#ifdef PARTS
  begin = begin > split * SPLIT ? begin : split * SPLIT;
  end = end < (split + 1) * SPLIT ? end : (split + 1) * SPLIT;
  const long long first_head = static_cast<long long>(sequence) * heads + kv_head * GROUP;
  if (begin >= end) {  // merge_kernel reads no further
    if (thread < GROUP) part_max[(first_head + thread) * splits + split] = minus_infinity();
    return;
  }
#else
  const long long first_head = static_cast<long long>(sequence) * heads + kv_head * GROUP;
#endif

  float q[GROUP][kPerVector], mixed[GROUP][kPerVector], peak[GROUP], total[GROUP];
#pragma unroll
  for (int g = 0; g < GROUP; ++g) {
    const Number* from = query + sequence * query_stride + (kv_head * GROUP + g) * HEAD_DIM;
    widen(load(from + lane * kPerVector), q[g]);
    peak[g] = minus_infinity();
    total[g] = 0.0f;
#pragma unroll
    for (int i = 0; i < kPerVector; ++i) mixed[g][i] = 0.0f;
  }

  const int* table = tables + sequence * table_stride;
  for (int base = begin; base < end; base += kStreams * kAhead) {
    const Number* cells[kAhead];
    Vector keys[kAhead], values[kAhead];
    float scores[kAhead][GROUP];
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int cell = base + a * kStreams + stream;
      cells[a] = nullptr;
      keys[a] = values[a] = Vector{{0, 0, 0, 0}};
      if (cell < end) {
        cells[a] = cache + table[cell / BLOCK_SIZE] * block_stride +
                   (cell % BLOCK_SIZE) * cell_stride + kv_head * head_stride + lane * kPerVector;
        keys[a] = load(cells[a]);
      }
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      if (cells[a] != nullptr) values[a] = load(cells[a] + half_stride);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      float key[kPerVector];
      widen(keys[a], key);
#pragma unroll
      for (int g = 0; g < GROUP; ++g) {
        float product = 0.0f;
#pragma unroll
        for (int i = 0; i < kPerVector; ++i) product += q[g][i] * key[i];
#pragma unroll
        for (int apart = 1; apart < kLanes; apart *= 2) {
          product += __shfl_xor_sync(0xffffffffu, product, apart);
        }
        product *= scale;
        if (softcap > 0.0f) {  // softcap * tanh(product / softcap)
          product = softcap * (1.0f - 2.0f / (1.0f + exp2f(2.0f * kLog2E * product / softcap)));
        }
        scores[a][g] = cells[a] == nullptr ? minus_infinity() : product * kLog2E;
      }
    }
#pragma unroll
    for (int g = 0; g < GROUP; ++g) {
      float higher = peak[g];
#pragma unroll
      for (int a = 0; a < kAhead; ++a) higher = scores[a][g] > higher ? scores[a][g] : higher;
      const float shift = higher == minus_infinity() ? 0.0f : higher;
      const float fade = exp2f(peak[g] - shift);
      total[g] *= fade;
#pragma unroll
      for (int i = 0; i < kPerVector; ++i) mixed[g][i] *= fade;
#pragma unroll
      for (int a = 0; a < kAhead; ++a) {
        scores[a][g] = exp2f(scores[a][g] - shift);
        total[g] += scores[a][g];
      }
      peak[g] = higher;
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      float value[kPerVector];
      widen(values[a], value);
#pragma unroll
      for (int g = 0; g < GROUP; ++g) {
#pragma unroll
        for (int i = 0; i < kPerVector; ++i) mixed[g][i] += scores[a][g] * value[i];
      }
    }
  }

#pragma unroll
  for (int g = 0; g < GROUP; ++g) {
#pragma unroll
    for (int i = 0; i < kPerVector; ++i) {
      all_mixed[stream][g][lane * kPerVector + i] = mixed[g][i];
    }
    if (lane == 0) {
      all_peaks[stream][g] = peak[g];
      all_totals[stream][g] = total[g];
    }
  }
  __syncthreads();

  for (int at = thread; at < GROUP * HEAD_DIM; at += kThreads) {
    const int g = at / HEAD_DIM, column = at % HEAD_DIM;
    float higher = minus_infinity();
    for (int s = 0; s < kStreams; ++s) {
      higher = all_peaks[s][g] > higher ? all_peaks[s][g] : higher;
    }
    const float shift = higher == minus_infinity() ? 0.0f : higher;
    float sum = 0.0f, all = 0.0f;
    for (int s = 0; s < kStreams; ++s) {
      const float share = exp2f(all_peaks[s][g] - shift);
      sum += all_mixed[s][g][column] * share;
      all += all_totals[s][g] * share;
    }
    const long long head = first_head + g;
#ifdef PARTS
    const long long part = head * splits + split;
    part_sum[part * HEAD_DIM + column] = sum;
    if (column == 0) {
      part_max[part] = higher;
      part_total[part] = all;
    }
#else
    out[head * HEAD_DIM + column] = narrowed(all == 0.0f ? 0.0f : sum / all);
#endif
  }
}
