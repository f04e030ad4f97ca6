// The threads that compute: one pool per process and library, its threads as persistent as it.
#pragma once

#include <cstdint>
#include <type_traits>

namespace octavo {

// How many threads compute, the caller's own included.
int threads();

// Calls body(closure, task) once for each task 0 .. tasks - 1, from several threads.
void run_tasks(int64_t tasks, void (*body)(void*, int64_t), void* closure);

// body(task) once for each task, in any order and at the same time, and returns when all are done.
// Which thread does what is decided by who has time: a task must give the same result anywhere.
// Waking a sleeping thread costs some 5 us, handing over to one awake 1 us: work smaller than that
// is a loop's.
template <typename Body>
void parallel(int64_t tasks, Body&& body) {
  if (tasks <= 1 || threads() == 1) {
    for (int64_t task = 0; task < tasks; ++task) body(task);
    return;
  }
  using Plain = std::remove_reference_t<Body>;
  auto call = [](void* closure, int64_t task) { (*static_cast<Plain*>(closure))(task); };
  run_tasks(tasks, call, const_cast<void*>(static_cast<const void*>(&body)));
}

}  // namespace octavo
