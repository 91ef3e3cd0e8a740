// What one thread sees of a step, and how the threads share its work; included by the executor's files alone.
#pragma once

#include <utility>

#include "executor.h"

namespace subsecond {

struct Executor::Step {
  const Batch& batch;
  int thread;
  int num_threads;
  Barrier& barrier;
  uint8_t* scratch;
  uint8_t* private_packed;
  WorkQueue* queues;  // of this piece of work, one a thread, and
  WorkQueue* spare;   // of the next

  // Run [0, total) as single items. Each thread walks a contiguous share of its own, since neighbouring items lie side
  // by side in memory and are fetched ahead; one that is done takes from the ends of the others. Which thread runs an
  // item never changes its result. A barrier must follow before the threads share anything else.
  template <class F>
  void share(int64_t total, F&& run) {
    spare[thread].taken.store(0, std::memory_order_relaxed);  // all have left it: there was a barrier after its use
    for (int i = 0; i < num_threads; ++i) {
      const int owner = (thread + i) % num_threads;
      const int64_t begin = total * owner / num_threads, end = total * (owner + 1) / num_threads;
      for (int64_t item; (item = take(queues[owner].taken, begin, end, i == 0)) >= 0;) run(item);
    }
    std::swap(queues, spare);
  }

  // A queue counts what was taken from the front (low half) and from the back (high half) of [begin, end).
  static int64_t take(std::atomic<uint64_t>& queue, int64_t begin, int64_t end, bool is_front) {
    uint64_t taken = queue.load(std::memory_order_relaxed);
    for (;;) {
      const auto front = static_cast<int64_t>(taken & 0xffffffff), back = static_cast<int64_t>(taken >> 32);
      if (begin + front >= end - back) return -1;
      const uint64_t next = taken + (is_front ? 1 : uint64_t{1} << 32);
      if (queue.compare_exchange_weak(taken, next, std::memory_order_relaxed))
        return is_front ? begin + front : end - back - 1;
    }
  }
};

}  // namespace subsecond
