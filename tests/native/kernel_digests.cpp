// Prints a line for every kernel of this processor, with the bits of its results as a digest: the same program on two
// processors shows whether they compute the same. Returns 1 when a kernel fails its self-test.

#include <cinttypes>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cpu_features.h"
#include "self_test.h"

namespace subsecond {
namespace {

constexpr int64_t kNumRows = 3, kWidth = 72, kHeadDim = 24;

std::vector<float> made_up(int64_t count, float step) {
  std::vector<float> values;
  for (int64_t i = 0; i < count; ++i) values.push_back(step * static_cast<float>(i * 37 % 101 - 50));
  return values;
}

void print(const char* isa, const char* kernel, const std::vector<float>& values) {
  uint64_t digest = 14695981039346656037ull;
  for (const float value : values) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    digest = (digest ^ bits) * 1099511628211ull;
  }
  std::printf("%s %s %016" PRIx64 "\n", isa, kernel, digest);
}

void run_elementwise(const Kernels& kernels) {
  std::vector<float> left = made_up(kNumRows * kWidth, 0.13f), right = made_up(kNumRows * kWidth, 0.21f);
  std::vector<float> weight = made_up(kWidth, 0.01f), angles = made_up(8 * kHeadDim, 0.02f), output(left.size());
  const Matrix a{left.data(), kWidth}, b{right.data(), kWidth}, y{output.data(), kWidth};
  const int32_t positions[kNumRows] = {0, 5, 7};
  kernels.rms_norm(a, y, kWidth, weight.data(), 1e-5f, 0, kNumRows);
  print(kernels.isa, "rms_norm", output);
  kernels.gated_silu(a, b, y, kWidth, 0, kNumRows);
  print(kernels.isa, "gated_silu", output);
  kernels.add(a, b, y, kWidth, 0, kNumRows);
  print(kernels.isa, "add", output);
  for (const bool is_interleaved : {false, true}) {
    kernels.rope(a, y, {angles.data(), kHeadDim, is_interleaved}, kHeadDim, kWidth / kHeadDim, positions, 0, kNumRows);
    print(kernels.isa, is_interleaved ? "rope_interleaved" : "rope_halves", output);
  }
}

}  // namespace
}  // namespace subsecond

int main() {
  bool has_passed = true;
  for (const subsecond::Kernels* kernels : subsecond::available_kernels()) {
    for (const subsecond::SelfTestResult& result : subsecond::self_test(*kernels)) {
      std::printf("%s %s %016" PRIx64 "%s\n", kernels->isa, result.kernel.c_str(), result.digest,
                  result.has_passed() ? "" : " failed");
      has_passed = has_passed && result.has_passed();
    }
    subsecond::run_elementwise(*kernels);
  }
  return has_passed ? 0 : 1;
}
