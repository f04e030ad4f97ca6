// Powers of two of lanes, and what else a softmax needs beside simd.h.
#pragma once

#include <algorithm>
#include <limits>

#include "simd.h"

namespace octavo {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr float kLog2E = 1.44269504f;

// A bit for each of the lanes begin .. end - 1, as far as there are such.
inline uint32_t lanes_between(int begin, int end) {
  const uint32_t below = begin <= 0 ? 0 : begin >= kLanes ? 0xffff : (1u << begin) - 1;
  const uint32_t under = end <= 0 ? 0 : end >= kLanes ? 0xffff : (1u << end) - 1;
  return under & ~below;
}

// 2^x within 2e-7 of its value, for x up to 127; 0 below -126; 1 for 0; a NaN stays one.
//
// The whole number nearest to x goes into the exponent; for the rest, in -0.5 .. 0.5, there is a
// polynomial of least maximal relative error (9e-8), whose constant term is 1.
inline Lanes exp2(Lanes x) {
  const Lanes lowest = all(-126.0f);
  const Lanes bounded = max(lowest, x);
  const Lanes whole = round(bounded);
  const Lanes rest = bounded - whole;
  Lanes p = all(0.001326472731307149f);
  p = fma(p, rest, all(0.009671512991189957f));
  p = fma(p, rest, all(0.05550733581185341f));
  p = fma(p, rest, all(0.24022242426872253f));
  p = fma(p, rest, all(0.6931470036506653f));
  p = fma(p, rest, all(1.0f));
  return where_not_below(x, lowest, p * power_of_two(whole));
}

}  // namespace octavo
