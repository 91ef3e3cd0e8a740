// One pool of threads for the process, shared by all loaded models: each step borrows it whole. It is never destroyed,
// so that a step may still run while the process exits, and a forked child, which inherits no threads, starts with a
// new one.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <mutex>
#include <thread>
#include <vector>

#include "processors.h"

namespace subsecond {

inline void pause_processor() {
#if SUBSECOND_X86
  __builtin_ia32_pause();
#endif
}

// What one thread tells another at a barrier: how often it has arrived. A line of its own for each pair.
struct alignas(64) ArrivalFlag {
  std::atomic<uint32_t> count{0};
};

// One thread's place at the barrier of a parallel run. Threads spin here, since the next operator is microseconds away.
// In round k a thread tells the one 2^k further on and waits for the one 2^k before it (dissemination; Hensgen, Finkel
// and Manber 1988), so that no two threads write to one line: two threads meet in the time of one transfer.
class Barrier {
 public:
  // `flags`: [rounds][threads], zero at the start of the run.
  Barrier(ArrivalFlag* flags, int num_threads, int thread)
      : flags_(flags), num_threads_(num_threads), thread_(thread) {}
  void wait();

  static int num_flags(int num_threads);

 private:
  ArrivalFlag* const flags_;
  const int num_threads_, thread_;
  uint32_t count_ = 0;
};

class ThreadPool {
 public:
  using Work = std::function<void(int thread, Barrier& barrier)>;

  static ThreadPool& instance();

  // Run `work` on `num_threads` threads, the caller being thread 0; returns when all are done. Calls queue up. Throws
  // std::system_error when the system grants no more threads.
  void run(int num_threads, const Work& work);

 private:
  struct Worker;
  ThreadPool() = default;
  void start_workers(int count);

  std::mutex mutex_;
  std::vector<std::unique_ptr<Worker>> workers_;
  std::vector<pthread_t> handles_;  // of the workers
  Processors processors_;
  std::vector<ArrivalFlag> flags_;
};

}  // namespace subsecond
