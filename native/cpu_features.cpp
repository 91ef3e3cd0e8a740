#include "cpu_features.h"

#if SUBSECOND_X86
#include <cpuid.h>
#endif
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace subsecond {
namespace {

#if SUBSECOND_X86

struct Registers {
  unsigned a = 0, b = 0, c = 0, d = 0;
};

Registers cpuid(unsigned leaf, unsigned subleaf) {
  Registers r;
  if (__get_cpuid_max(leaf & 0x80000000u, nullptr) < leaf) return r;
  __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
  return r;
}

bool bit(unsigned value, int index) { return (value >> index & 1) != 0; }

// State that the operating system saves (XCR0): vector and tile registers are usable only if it does.
uint64_t saved_state() {
  if (!bit(cpuid(1, 0).c, 27)) return 0;
  unsigned low, high;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

// Linux grants the tile registers on request only.
bool request_tiles() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

CpuFeatures detect() {
  CpuFeatures f;
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
  const uint64_t state = saved_state();
  const bool ymm = (state & 0x6) == 0x6, zmm = (state & 0xe6) == 0xe6, tiles = (state & 0x60000) == 0x60000;
  f.avx2 = ymm && bit(one.c, 12) && bit(one.c, 29) && bit(seven.b, 5) && bit(seven.b, 8);
  f.avx_vnni = f.avx2 && bit(seven_one.a, 4);
  f.avx512 =
      f.avx2 && zmm && bit(seven.b, 16) && bit(seven.b, 17) && bit(seven.b, 28) && bit(seven.b, 30) && bit(seven.b, 31);
  f.avx512_vnni = f.avx512 && bit(seven.c, 11);
  f.avx512_fp16 = f.avx512 && bit(seven.d, 23);
  f.amx = f.avx512 && tiles && bit(seven.c, 1) && bit(seven.c, 6) && bit(seven_one.a, 5) && bit(seven.d, 22) &&
          bit(seven.d, 24) && bit(seven.d, 25) && request_tiles();
  return f;
}

#else

CpuFeatures detect() { return {}; }

#endif

std::vector<const Kernels*> list_kernels() {
  std::vector<const Kernels*> list;
#if SUBSECOND_X86
  if (cpu_features().amx) list.push_back(&amx::kernels());
  if (cpu_features().avx512_vnni) list.push_back(&avx512vnni::kernels());
  if (cpu_features().avx512) list.push_back(&avx512::kernels());
  if (cpu_features().avx_vnni) list.push_back(&avxvnni::kernels());
  if (cpu_features().avx2) list.push_back(&avx2::kernels());
#endif
  list.push_back(&scalar::kernels());
  return list;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = detect();
  return features;
}

const std::vector<const Kernels*>& available_kernels() {
  static const std::vector<const Kernels*> list = list_kernels();
  return list;
}

const Kernels* find_kernels(const std::string& isa) {
  if (isa.empty()) return available_kernels().front();
  for (const Kernels* kernels : available_kernels())
    if (isa == kernels->isa) return kernels;
  return nullptr;
}

}  // namespace subsecond
