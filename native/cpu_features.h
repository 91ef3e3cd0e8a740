// What this processor and its operating system allow; decides which kernels may run.
#pragma once

#include <string>
#include <vector>

#include "kernels.h"

namespace subsecond {

struct CpuFeatures {
  bool avx2 = false;  // AVX2, FMA, F16C, BMI2
  bool avx_vnni = false;
  bool avx512 = false;  // F, BW, VL, DQ, CD
  bool avx512_vnni = false;
  bool avx512_fp16 = false;
  bool amx = false;  // tiles with int8 and bf16, AVX512_BF16, VBMI and VBMI2, and the leave to use them
};

const CpuFeatures& cpu_features();

// An instruction set that this build has kernels for, and what it needs that is missing here; it runs if nothing is.
struct IsaSupport {
  const char* isa;
  std::vector<std::string> missing;
  const Kernels& (*kernels)();  // to be called only where nothing is missing: its own code is of that set
};

// Every instruction set of this build, best first; "scalar" is always the last and misses nothing.
const std::vector<IsaSupport>& isa_support();

// Kernel tables that may run here, best first; "scalar" is always the last.
const std::vector<const Kernels*>& available_kernels();

// The table of that instruction set, the best one for an empty name; null when it cannot run here or is unknown.
const Kernels* find_kernels(const std::string& isa);

// The attention kernels for that type of keys and values, the default ones for an empty name; null when there are none.
const AttentionKernels* find_attention(const Kernels& kernels, const std::string& kv_type);

}  // namespace subsecond
