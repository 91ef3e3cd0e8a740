// Prints a line for every kernel of this processor, with the bits of its results as a digest: the same program on two
// processors shows whether they compute the same. Returns 1 when a kernel fails its self-test.

#include <cinttypes>
#include <cstdio>

#include "cpu_features.h"
#include "self_test.h"

int main() {
  bool has_passed = true;
  for (const subsecond::Kernels* kernels : subsecond::available_kernels()) {
    for (const subsecond::SelfTestResult& result : subsecond::self_test(*kernels)) {
      std::printf("%s %s %016" PRIx64 "%s\n", kernels->isa, result.kernel.c_str(), result.digest,
                  result.has_passed() ? "" : " failed");
      has_passed = has_passed && result.has_passed();
    }
  }
  return has_passed ? 0 : 1;
}
