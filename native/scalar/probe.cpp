// What the processor does without an optional instruction set; see probe.h.

#include "../probe.h"

namespace subsecond::scalar {
namespace {

// A value that the compiler can neither foresee nor drop.
inline void keep(float& v) { __asm__ volatile("" : "+m"(v)); }

#include "../probe_chains.inl.h"

void multiply_add(int64_t num_rounds) {
  float x = 0.5f, y = 1e-3f;
  keep(x), keep(y);
  run_chains(num_rounds, 1.0f, [&](float& sum) { sum = sum * x + y; });
}

uint64_t read(const uint8_t* data, int64_t num_bytes) {
  return read_streams(
      data, num_bytes, uint64_t{0},
      [](const uint8_t* p) {
        uint64_t word;
        __builtin_memcpy(&word, p, sizeof(word));
        return word;
      },
      [](uint64_t a, uint64_t b) { return a + b; });
}

constexpr Instruction kInstructions[] = {{"fp32 multiply and add", kChains * 2, multiply_add}};

}  // namespace

IsaProbe probe() { return {kInstructions, 1, read}; }

}  // namespace subsecond::scalar
