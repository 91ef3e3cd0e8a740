// Which processors the threads of a run use.
//
// When a run has one thread for each processor that its caller may use, the workers are kept to one processor each,
// away from the caller's: a busy system left to itself puts two threads on one for many milliseconds, and at every
// barrier all others wait for those two. The caller is not ours to move; where it comes to run, its worker gives way.
// With fewer threads the choice stays the system's, since another process would keep its own to the same few
// processors; with more there is nothing to choose.
#pragma once

#include <pthread.h>

#include <vector>

namespace subsecond {

class Processors {
 public:
  // Decide for a run of the calling thread with `num_threads`, itself included, and move those workers that are not
  // where they should be. `workers` are its threads from 1 on. A refusal of the system costs speed alone.
  void place(int num_threads, const std::vector<pthread_t>& workers);

 private:
  std::vector<int> places_;  // of the caller and of each worker that was placed; -1: anywhere
};

}  // namespace subsecond
