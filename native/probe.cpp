#include "probe.h"

#include <time.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <numeric>

#include "cpu_features.h"
#include "memory.h"
#include "thread_pool.h"

namespace subsecond {
namespace {

constexpr int kTries = 4;
constexpr int64_t kPieceBytes = 8 << 20;  // read between two looks at the clock; small working sets several times
constexpr int kMinPieces = 32;
constexpr int64_t kTouchBytes = 16 << 20;
constexpr int kPoolRounds = 500;
constexpr int kPoolRuns = 50;

double now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

// Seconds for which the calling thread has had a processor.
double processor_time() {
  timespec time{};
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct NamedProbe {
  const char* isa;
  IsaProbe probe;
};

// The sets that run here, best first.
std::vector<NamedProbe> available_probes() {
  std::vector<NamedProbe> list;
#if SUBSECOND_X86
  const CpuFeatures& features = cpu_features();
  if (features.amx) list.push_back({"amx", amx::probe()});
  if (features.avx512_vnni) list.push_back({"avx512vnni", avx512vnni::probe()});
  if (features.avx512) list.push_back({"avx512", avx512::probe()});
  if (features.avx_vnni) list.push_back({"avxvnni", avxvnni::probe()});
  if (features.avx2) list.push_back({"avx2", avx2::probe()});
#endif
  list.push_back({"scalar", scalar::probe()});
  return list;
}

// Rounds that take a single thread about `seconds`.
int64_t rounds_of(const Instruction& instruction, double seconds) {
  for (int64_t num_rounds = 64;; num_rounds *= 4) {
    const double start = now();
    instruction.run(num_rounds);
    const double elapsed = now() - start;
    if (elapsed > seconds / 8) return std::max<int64_t>(1, static_cast<int64_t>(num_rounds * seconds / elapsed));
  }
}

// Seconds of `work` on all threads: the slowest thread's, from a barrier on; the best of several tries.
template <class Work>
double best_seconds(int num_threads, Work work) {
  std::vector<double> seconds(static_cast<size_t>(num_threads) * 8);  // a cache line a thread
  double best = INFINITY;
  for (int i = 0; i < kTries; ++i) {
    ThreadPool::instance().run(num_threads, [&](int thread, Barrier& barrier) {
      barrier.wait();
      const double start = now();
      work(thread);
      seconds[static_cast<size_t>(thread) * 8] = now() - start;
    });
    best = std::min(best, *std::max_element(seconds.begin(), seconds.end()));
  }
  return best;
}

// Bytes a second of each thread that reads its own `num_bytes`, `stride` apart, piece by piece, all threads waiting for
// each other before each piece: of the times of the pieces that which a fifth stay below, since a thread may lose its
// processor for a while.
double thread_read_rate(int num_threads, uint64_t (*read)(const uint8_t*, int64_t), const uint8_t* data, int64_t stride,
                        int64_t num_bytes) {
  const int64_t piece = std::min(kPieceBytes, num_bytes), num_repeats = kPieceBytes / piece;
  const int64_t num_pieces = std::max<int64_t>(kMinPieces, num_bytes / piece);
  std::vector<double> seconds;
  seconds.reserve(static_cast<size_t>(num_pieces));
  ThreadPool::instance().run(num_threads, [&](int thread, Barrier& barrier) {
    uint64_t sum = 0;
    double last = 0.0;
    for (int64_t i = -1; i < num_pieces; ++i) {  // the first is for warming up
      const int64_t at = std::max<int64_t>(i, 0) * piece % (num_bytes / piece * piece);
      for (int64_t repeat = 0; repeat < num_repeats; ++repeat) sum += read(data + thread * stride + at, piece);
      barrier.wait();
      if (thread != 0) continue;
      const double time = now();
      if (i >= 0) seconds.push_back(time - last);
      last = time;
    }
    __asm__ volatile("" : : "r"(sum));
  });
  std::nth_element(seconds.begin(), seconds.begin() + num_pieces / 5, seconds.end());
  return static_cast<double>(piece * num_repeats) / seconds[static_cast<size_t>(num_pieces / 5)];
}

}  // namespace

std::vector<Peak> measure_peaks(int num_threads, double try_s) {
  std::vector<Peak> peaks;
  for (const NamedProbe& named : available_probes())
    for (int i = 0; i < named.probe.num_instructions; ++i) {
      const Instruction& instruction = named.probe.instructions[i];
      const int64_t num_rounds = rounds_of(instruction, try_s);
      const double seconds = best_seconds(num_threads, [&](int) { instruction.run(num_rounds); });
      const double operations = static_cast<double>(num_rounds) * static_cast<double>(instruction.round_operations);
      peaks.push_back({named.isa, instruction.name, num_threads * operations / seconds});
    }
  return peaks;
}

std::vector<ReadRate> measure_read_rates(int num_threads, const std::vector<int64_t>& thread_bytes, double limit_s) {
  uint64_t (*read)(const uint8_t*, int64_t) = nullptr;
  for (const NamedProbe& named : available_probes())
    if (!read) read = named.probe.read;
  const double start = now();
  const int64_t stride = thread_bytes.back();
  Buffer buffer(static_cast<size_t>(num_threads * stride));
  int64_t touched = 0;
  std::vector<ReadRate> rates;
  for (const int64_t num_bytes : thread_bytes) {
    for (; touched < num_bytes && (rates.empty() || now() - start < limit_s); touched += kTouchBytes)
      ThreadPool::instance().run(num_threads, [&](int thread, Barrier&) {  // each touches what it will read
        uint8_t* own = buffer.data() + thread * stride;
        for (int64_t i = touched; i < std::min(touched + kTouchBytes, stride); i += 4096) own[i] = 1;
      });
    if (touched < num_bytes || (!rates.empty() && now() - start > limit_s)) break;
    for (int count = 1;; count = num_threads) {
      rates.push_back({count, num_bytes, count * thread_read_rate(count, read, buffer.data(), stride, num_bytes)});
      if (count == num_threads) break;
    }
  }
  return rates;
}

PoolTimes measure_pool(int num_threads) {
  PoolTimes times{INFINITY, INFINITY};
  for (int i = 0; i < kTries; ++i) {
    double start = now();
    for (int run = 0; run < kPoolRuns; ++run) ThreadPool::instance().run(num_threads, [](int, Barrier&) {});
    times.run_s = std::min(times.run_s, (now() - start) / kPoolRuns);
    start = now();
    ThreadPool::instance().run(num_threads, [](int, Barrier& barrier) {
      for (int round = 0; round < kPoolRounds; ++round) barrier.wait();
    });
    times.barrier_s = std::min(times.barrier_s, (now() - start) / kPoolRounds);
  }
  return times;
}

double measure_processor_share(int num_threads, double seconds) {
  std::vector<double> shares(static_cast<size_t>(num_threads));
  ThreadPool::instance().run(num_threads, [&](int thread, Barrier& barrier) {
    barrier.wait();
    const double start = now(), start_used = processor_time();
    while (now() - start < seconds) pause_processor();
    shares[static_cast<size_t>(thread)] = (processor_time() - start_used) / (now() - start);
  });
  return std::accumulate(shares.begin(), shares.end(), 0.0) / num_threads;
}

}  // namespace subsecond
