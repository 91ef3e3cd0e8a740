#include "processors.h"

#ifdef __linux__
#include <sched.h>
#endif

#include <algorithm>

namespace subsecond {

#ifdef __linux__
namespace {

void move(pthread_t thread, const cpu_set_t& processors) {
  pthread_setaffinity_np(thread, sizeof(processors), &processors);
}

void move(pthread_t thread, int processor) {
  cpu_set_t one;
  CPU_ZERO(&one);
  CPU_SET(static_cast<size_t>(processor), &one);
  move(thread, one);
}

}  // namespace

void Processors::place(int num_threads, const std::vector<pthread_t>& workers) {
  if (num_threads == 1) return;
  cpu_set_t
      allowed;  // the caller's affinity within the control group's set; none when a machine has more than it holds
  CPU_ZERO(&allowed);
  sched_getaffinity(0, sizeof(allowed), &allowed);
  if (CPU_COUNT(&allowed) != num_threads) {
    if (!places_.empty())
      for (const pthread_t worker : workers) move(worker, allowed);
    places_.clear();
    return;
  }
  const auto is_allowed = [&](int place) { return CPU_ISSET(static_cast<size_t>(place), &allowed); };
  const bool is_known = places_.size() == static_cast<size_t>(num_threads) && std::ranges::all_of(places_, is_allowed);
  if (!is_known) {
    places_.clear();
    for (int i = 0; i < CPU_SETSIZE; ++i)
      if (is_allowed(i)) places_.push_back(i);
  }
  const auto here = std::ranges::find(places_, sched_getcpu());
  if (here != places_.end() && here != places_.begin()) {
    std::swap(*here, places_[0]);
    move(workers[static_cast<size_t>(here - places_.begin()) - 1], *here);
  }
  if (!is_known)
    for (size_t i = 1; i < places_.size(); ++i) move(workers[i - 1], places_[i]);
}
#else
void Processors::place(int, const std::vector<pthread_t>&) {}
#endif

}  // namespace subsecond
