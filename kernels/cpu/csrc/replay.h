// Calls that were noted once and are made again, one after the other, without whoever made them
// first.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <utility>

namespace octavo {

// A function as it is called from a list: its arguments lie one after the other, each in the first
// bytes of 8.
using Again = void (*)(const int64_t* arguments);

struct Note {
  Again function;
  const int64_t* arguments;
};

template <auto Function>
struct Unpacked;

template <typename... Arguments, void (*Function)(Arguments...)>
struct Unpacked<Function> {
  static void call(const int64_t* slots) { call(slots, std::index_sequence_for<Arguments...>{}); }

 private:
  template <size_t... I>
  static void call(const int64_t* slots, std::index_sequence<I...>) {
    Function(read<Arguments>(slots + I)...);
  }

  template <typename T>
  static T read(const int64_t* slot) {
    static_assert(sizeof(T) <= sizeof *slot);
    T value;
    std::memcpy(&value, slot, sizeof value);
    return value;
  }
};

}  // namespace octavo

// Lets `octavo_<name>`, which is declared above, be called from a list, as `octavo_again_<name>`.
#define OCTAVO_REPLAYABLE(NAME)                                     \
  extern "C" void octavo_again_##NAME(const int64_t* arguments) {   \
    octavo::Unpacked<octavo_##NAME>::call(arguments);               \
  }
