// The gated linear unit of Shazeer 2020, silu(gate) * up.
#pragma once

#include "simd.h"

namespace octavo {

inline Lanes silu(Lanes x) { return x / (all(1.0f) + exp(zero() - x)); }

}  // namespace octavo
