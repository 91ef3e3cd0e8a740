// What this machine can do at most: operations a second of the multiply instructions that the kernels use, and bytes a
// second read from memory; and what the threads of a step cost. Measures, and runs no kernel.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace subsecond {

// A multiply instruction in a loop of independent chains.
struct Instruction {
  const char* name;
  int64_t round_operations;  // multiplications and additions of one round
  void (*run)(int64_t num_rounds);
};

// What an instruction set brings to be measured. `read` reads a multiple of kReadBytes and returns a sum of what is
// there; null where another set reads as fast.
struct IsaProbe {
  const Instruction* instructions;
  int num_instructions;
  uint64_t (*read)(const uint8_t* data, int64_t num_bytes);
};

constexpr int kReadStreams = 4;          // places that a thread reads side by side, as `linear` does
constexpr int64_t kReadBytes = 1 << 14;  // unit of a working set: every stream gets whole cache lines
constexpr int kPrefetchBytes = 1024;     // ahead of each stream

struct Peak {
  std::string isa;
  std::string instruction;
  double operations_s;  // of all threads together
};

// Every instruction of every set that runs here, on `num_threads` threads at once: the best of several tries, each of
// about `try_s` seconds.
std::vector<Peak> measure_peaks(int num_threads, double try_s);

struct ReadRate {
  int num_threads;
  int64_t thread_bytes;
  double bytes_s;  // of all threads together
};

// Rates of threads that each read `thread_bytes` of their own over and over, for every entry of `thread_bytes`, which
// ascend; of one thread and of `num_threads`. Once `limit_s` seconds are gone, entries after the first are left out.
std::vector<ReadRate> measure_read_rates(int num_threads, const std::vector<int64_t>& thread_bytes, double limit_s);

struct PoolTimes {
  double run_s;      // an empty run of the pool, its threads being awake
  double barrier_s;  // one barrier within a run
};

PoolTimes measure_pool(int num_threads);

// Share of the processors' time that `num_threads` threads get which ask for all of it for `seconds`: less than 1 where
// other programs run, or where threads share a processor.
double measure_processor_share(int num_threads, double seconds);

namespace scalar {
IsaProbe probe();
}
namespace avx2 {
IsaProbe probe();
}
namespace avxvnni {
IsaProbe probe();
}
namespace avx512 {
IsaProbe probe();
}
namespace avx512vnni {
IsaProbe probe();
}
namespace amx {
IsaProbe probe();
}

}  // namespace subsecond
