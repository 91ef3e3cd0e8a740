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

namespace subsecond {

inline void pause_processor() {
#if SUBSECOND_X86
  __builtin_ia32_pause();
#endif
}

// Threads of one parallel run wait here for each other; they spin, since the next operator is microseconds away.
class Barrier {
 public:
  explicit Barrier(int num_threads) : num_threads_(num_threads) {}
  void wait();

 private:
  const int num_threads_;
  alignas(64) std::atomic<int> arrived_{0};
  alignas(64) std::atomic<uint32_t> generation_{0};
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
};

}  // namespace subsecond
