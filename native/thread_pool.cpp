#include "thread_pool.h"

#include <chrono>

namespace subsecond {
namespace {

constexpr int kSpinsBeforeYield = 1000;                     // some 50 us; a thread that shares its core must let go
constexpr auto kIdleSpin = std::chrono::microseconds(500);  // between steps, before a worker sleeps

ThreadPool* pool = nullptr;

}  // namespace

void Barrier::wait() {
  ++count_;
  ArrivalFlag* flags = flags_;
  for (int distance = 1; distance < num_threads_; distance *= 2, flags += num_threads_) {
    flags[(thread_ + distance) % num_threads_].count.store(count_, std::memory_order_release);
    const std::atomic<uint32_t>& arrived = flags[thread_].count;
    // the other may be one barrier ahead already
    for (int spins = 0; static_cast<int32_t>(arrived.load(std::memory_order_acquire) - count_) < 0; ++spins) {
      pause_processor();
      if (spins > kSpinsBeforeYield) std::this_thread::yield();
    }
  }
}

int Barrier::num_flags(int num_threads) {
  int num_rounds = 0;
  while (1 << num_rounds < num_threads) ++num_rounds;
  return num_rounds * num_threads;
}

struct ThreadPool::Worker {
  struct Job {
    const Work* work = nullptr;
    ArrivalFlag* flags = nullptr;
    int num_threads = 0;
    int thread = 0;
  };

  alignas(64) std::atomic<uint32_t> posted{0};
  alignas(64) std::atomic<uint32_t> finished{0};
  Job job;

  void loop() {
    for (uint32_t seen = 0;; ++seen) {
      const auto deadline = std::chrono::steady_clock::now() + kIdleSpin;
      while (posted.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < deadline)
        for (int i = 0; i < 32 && posted.load(std::memory_order_acquire) == seen; ++i) pause_processor();
      posted.wait(seen, std::memory_order_acquire);
      Barrier barrier(job.flags, job.num_threads, job.thread);
      (*job.work)(job.thread, barrier);
      finished.store(seen + 1, std::memory_order_release);
    }
  }

  void post(const Job& next) {
    job = next;
    posted.fetch_add(1, std::memory_order_acq_rel);
    posted.notify_one();
  }

  void wait_finished() const {
    const uint32_t wanted = posted.load(std::memory_order_relaxed);
    for (int spins = 0; finished.load(std::memory_order_acquire) != wanted; ++spins) {
      pause_processor();
      if (spins > kSpinsBeforeYield) std::this_thread::yield();
    }
  }
};

ThreadPool& ThreadPool::instance() {
  static std::once_flag once;
  std::call_once(once, [] {
    pool = new ThreadPool;
    pthread_atfork(nullptr, nullptr, [] { pool = new ThreadPool; });
  });
  return *pool;
}

void ThreadPool::start_workers(int count) {
  while (static_cast<int>(workers_.size()) < count) {
    auto worker = std::make_unique<Worker>();
    std::thread thread([pointer = worker.get()] { pointer->loop(); });
    handles_.push_back(thread.native_handle());
    thread.detach();
    workers_.push_back(std::move(worker));
  }
}

void ThreadPool::run(int num_threads, const Work& work) {
  std::lock_guard lock(mutex_);
  start_workers(num_threads - 1);
  processors_.place(num_threads, handles_);
  const auto num_flags = static_cast<size_t>(Barrier::num_flags(num_threads));
  if (flags_.size() < num_flags) flags_ = std::vector<ArrivalFlag>(num_flags);
  for (ArrivalFlag& flag : flags_) flag.count.store(0, std::memory_order_relaxed);
  for (int i = 1; i < num_threads; ++i) workers_[i - 1]->post({&work, flags_.data(), num_threads, i});
  Barrier barrier(flags_.data(), num_threads, 0);
  work(0, barrier);
  for (int i = 1; i < num_threads; ++i) workers_[i - 1]->wait_finished();
}

}  // namespace subsecond
