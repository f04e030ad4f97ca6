#include "replay.h"

extern "C" void octavo_replay(const octavo::Note* notes, int64_t count) {
  for (const octavo::Note* note = notes; note != notes + count; ++note) {
    note->function(note->arguments);
  }
}

extern "C" void octavo_clear(char* memory, int64_t size) { std::memset(memory, 0, size); }

OCTAVO_REPLAYABLE(clear)
