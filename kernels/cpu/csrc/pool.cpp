// Each thread begins with its own contiguous share of the tasks (what it computed with last time is
// in its cache) and, when that is done, takes from the others'. So nobody waits for a thread that
// was not given a core: the caller alone would finish everything. It waits only for threads that are
// in the middle of a task.
//
// A thread without work spins for some 50 us, which covers the gap between two operations of a
// model, and then sleeps on a futex: an idle engine costs nothing. While it spins it lets others have
// its core: a front end that waits for one is given it here, and not, by the system, in the middle
// of a task, where everybody would wait for this thread. The caller keeps its own core: it goes on
// soon, and whoever was let in would stay for milliseconds.

#include "pool.h"

#include <immintrin.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <climits>
#include <new>

namespace octavo {
namespace {

constexpr int kMostThreads = 256;
constexpr int64_t kSpinNanoseconds = 50'000;

int64_t now() {
  timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return t.tv_sec * 1'000'000'000ll + t.tv_nsec;
}

void sleep_while(std::atomic<uint32_t>& word, uint32_t value) {
  syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, value, nullptr, nullptr, 0);
}

void wake(std::atomic<uint32_t>& word) {
  syscall(SYS_futex, &word, FUTEX_WAKE_PRIVATE, INT_MAX, nullptr, nullptr, 0);
}

// Whether `done` became true within the time to spin. `yielding`: whoever else is ready may run.
template <typename Condition>
bool spin_until(Condition done, bool yielding) {
  int64_t deadline = 0;
  for (;;) {
    for (int i = 0; i < 64; ++i) {
      if (done()) return true;
      _mm_pause();
    }
    int64_t time = now();
    if (deadline == 0) deadline = time + kSpinNanoseconds;
    if (time > deadline) return false;
    if (yielding) sched_yield();
  }
}

struct alignas(64) Share {
  std::atomic<int64_t> next{0};
  int64_t end = 0;
};

class Pool {
 public:
  int threads() const { return threads_.load(std::memory_order_relaxed); }

  // Takes effect with the next run. `cpus`: thread i is pinned to cpus[i % count]; none: unpinned.
  void resize(int threads, const int64_t* cpus, int count) {
    pthread_mutex_lock(&busy_);
    if (threads < 1) threads = 1;
    if (threads > kMostThreads) threads = kMostThreads;
    pinned_ = count < kMostThreads ? count : kMostThreads;
    for (int i = 0; i < pinned_; ++i) cpus_[i] = static_cast<int>(cpus[i]);
    threads_.store(threads, std::memory_order_relaxed);
    pthread_mutex_unlock(&busy_);
  }

  void run(int64_t tasks, void (*body)(void*, int64_t), void* closure) {
    // Another engine in this process is computing: this one does without help.
    if (pthread_mutex_trylock(&busy_) != 0) {
      for (int64_t task = 0; task < tasks; ++task) body(closure, task);
      return;
    }
    start_missing();
    int64_t shares = threads() < tasks ? threads() : tasks;
    for (int64_t i = 0; i < shares; ++i) {
      shares_[i].next.store(tasks * i / shares, std::memory_order_relaxed);
      shares_[i].end = tasks * (i + 1) / shares;
    }
    count_ = static_cast<int>(shares);
    body_ = body;
    closure_ = closure;
    job_.fetch_add(1);  // odd: open
    if (sleeping_.load() > 0) wake(job_);
    work(0);
    job_.fetch_add(1);  // even: closed; whoever comes now goes back
    if (!spin_until([this] { return inside_.load() == 0; }, false)) {
      for (uint32_t left; (left = inside_.load()) != 0;) sleep_while(inside_, left);
    }
    pthread_mutex_unlock(&busy_);
  }

 private:
  void work(int me) {
    for (int i = 0; i < count_; ++i) {
      Share& share = shares_[(me + i) % count_];
      for (;;) {
        int64_t task = share.next.fetch_add(1, std::memory_order_relaxed);
        if (task >= share.end) break;
        body_(closure_, task);
      }
    }
  }

  void serve(int me) {
    uint32_t seen = 0;
    for (;;) {
      auto fresh = [&] { return (job_.load() & 1) && job_.load() != seen; };
      if (!spin_until(fresh, true)) {
        uint32_t word = job_.load();
        if (!(word & 1) || word == seen) {
          sleeping_.fetch_add(1);
          sleep_while(job_, word);
          sleeping_.fetch_sub(1);
        }
        continue;
      }
      // Either we see that the job was closed, or its owner sees us inside.
      inside_.fetch_add(1);
      uint32_t word = job_.load();
      if (word & 1) {
        seen = word;
        if (me < threads()) work(me % count_);
      }
      if (inside_.fetch_sub(1) == 1 && !(job_.load() & 1)) wake(inside_);
    }
  }

  // Threads live as long as the process; those beyond a smaller number sleep.
  void start_missing() {
    while (started_ < threads() - 1) {
      ++started_;
      pthread_t thread;
      auto* born = new (std::nothrow) Born{this, started_};
      auto begin = [](void* argument) -> void* {
        Born self = *static_cast<Born*>(argument);
        delete static_cast<Born*>(argument);
        self.pool->serve(self.number);
        return nullptr;
      };
      if (born == nullptr || pthread_create(&thread, nullptr, begin, born) != 0) {
        delete born;
        threads_.store(started_--, std::memory_order_relaxed);  // those there are must do
        return;
      }
      pin(thread, started_);
      pthread_setname_np(thread, "octavo-kernel");
      pthread_detach(thread);
    }
  }

  void pin(pthread_t thread, int number) {
    if (pinned_ == 0) return;
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET(cpus_[number % pinned_], &set);
    pthread_setaffinity_np(thread, sizeof set, &set);
  }

  struct Born {
    Pool* pool;
    int number;
  };

  // The number of jobs opened and closed so far; odd while one is open. A futex of idle threads.
  alignas(64) std::atomic<uint32_t> job_{0};
  alignas(64) std::atomic<uint32_t> inside_{0};  // threads at work; a futex of the caller
  std::atomic<uint32_t> sleeping_{0};
  alignas(64) void (*body_)(void*, int64_t) = nullptr;
  void* closure_ = nullptr;
  int count_ = 0;
  std::atomic<int> threads_{1};
  int started_ = 0;
  int pinned_ = 0;
  int cpus_[kMostThreads];
  pthread_mutex_t busy_ = PTHREAD_MUTEX_INITIALIZER;
  Share shares_[kMostThreads];
};

// Never destroyed: threads may be asleep in it when the process ends.
Pool& pool() {
  static Pool* only = new Pool;
  return *only;
}

}  // namespace

int threads() { return pool().threads(); }

void run_tasks(int64_t tasks, void (*body)(void*, int64_t), void* closure) {
  pool().run(tasks, body, closure);
}

}  // namespace octavo

extern "C" void octavo_set_threads(int64_t count, const int64_t* cpus, int64_t cpu_count) {
  octavo::pool().resize(static_cast<int>(count), cpus, static_cast<int>(cpu_count));
}
