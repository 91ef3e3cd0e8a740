#include "thread_pool.h"

#include <pthread.h>

#include <chrono>

namespace subsecond {
namespace {

constexpr int kSpinsBeforeYield = 1000;                     // some 50 us; a thread that shares its core must let go
constexpr auto kIdleSpin = std::chrono::microseconds(500);  // between steps, before a worker sleeps

ThreadPool* pool = nullptr;

}  // namespace

void Barrier::wait() {
  const uint32_t generation = generation_.load(std::memory_order_acquire);
  if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads_) {
    arrived_.store(0, std::memory_order_relaxed);
    generation_.store(generation + 1, std::memory_order_release);
    return;
  }
  for (int spins = 0; generation_.load(std::memory_order_acquire) == generation; ++spins) {
    pause_processor();
    if (spins > kSpinsBeforeYield) std::this_thread::yield();
  }
}

struct ThreadPool::Worker {
  struct Job {
    const Work* work = nullptr;
    Barrier* barrier = nullptr;
    int thread = 0;
  };

  alignas(64) std::atomic<uint32_t> posted{0};
  alignas(64) std::atomic<uint32_t> finished{0};
  Job job;
  std::thread thread;

  void loop() {
    for (uint32_t seen = 0;; ++seen) {
      const auto deadline = std::chrono::steady_clock::now() + kIdleSpin;
      while (posted.load(std::memory_order_acquire) == seen && std::chrono::steady_clock::now() < deadline)
        for (int i = 0; i < 32 && posted.load(std::memory_order_acquire) == seen; ++i) pause_processor();
      posted.wait(seen, std::memory_order_acquire);
      (*job.work)(job.thread, *job.barrier);
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
    worker->thread = std::thread([pointer = worker.get()] { pointer->loop(); });
    worker->thread.detach();
    workers_.push_back(std::move(worker));
  }
}

void ThreadPool::run(int num_threads, const Work& work) {
  std::lock_guard lock(mutex_);
  start_workers(num_threads - 1);
  Barrier barrier(num_threads);
  for (int i = 1; i < num_threads; ++i) workers_[i - 1]->post({&work, &barrier, i});
  work(0, barrier);
  for (int i = 1; i < num_threads; ++i) workers_[i - 1]->wait_finished();
}

}  // namespace subsecond
