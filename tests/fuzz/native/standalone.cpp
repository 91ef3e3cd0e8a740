// Runs a fuzz target on generated inputs where the compiler has no libFuzzer: `TARGET -runs=N -seed=S`.
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size);

int main(int count, char** arguments) {
  long runs = 1000;
  uint64_t state = 1;
  for (int i = 1; i < count; ++i) {
    if (std::strncmp(arguments[i], "-runs=", 6) == 0) runs = std::atol(arguments[i] + 6);
    if (std::strncmp(arguments[i], "-seed=", 6) == 0) state = std::strtoull(arguments[i] + 6, nullptr, 10);
  }
  for (long run = 0; run < runs; ++run) {
    std::vector<uint8_t> input(128);
    for (uint8_t& byte : input) {
      state = state * 6364136223846793005u + 1442695040888963407u;
      byte = static_cast<uint8_t>(state >> 56);
    }
    LLVMFuzzerTestOneInput(input.data(), input.size());
  }
  std::printf("Done %ld runs\n", runs);
  return 0;
}
