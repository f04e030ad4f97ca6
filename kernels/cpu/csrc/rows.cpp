// Rows of a matrix, copied.

#include <cstdint>
#include <cstring>

#include "replay.h"

// As `ops.TakeRows`. An id that is none yields zeros.
extern "C" void octavo_take_rows(const char* matrix, const int64_t* ids, char* out, int64_t count,
                                 int64_t rows, int64_t row_bytes) {
  for (int64_t i = 0; i < count; ++i, out += row_bytes) {
    if (ids[i] >= 0 && ids[i] < rows) {
      std::memcpy(out, matrix + ids[i] * row_bytes, row_bytes);
    } else {
      std::memset(out, 0, row_bytes);
    }
  }
}

OCTAVO_REPLAYABLE(take_rows)
