#include "cpu_features.h"

#include <initializer_list>

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
#if SUBSECOND_EMULATE_AMX
constexpr bool kIsAmxEmulated = true;
#else
constexpr bool kIsAmxEmulated = false;
#endif

bool request_tiles() {
#ifdef __linux__
  constexpr long kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

// Features by the names that Linux gives them in /proc/cpuinfo.
struct Feature {
  const char* name;
  bool is_present;
};

using Missing = std::vector<std::string>;

// What is missing of a set that extends another and has `features`. Whether the operating system saves the set's
// registers matters only where the processor has them.
Missing missing_of(Missing missing, std::initializer_list<Feature> features, Feature saved_registers) {
  for (const Feature& feature : features)
    if (!feature.is_present) missing.emplace_back(feature.name);
  if (missing.empty() && !saved_registers.is_present) missing.emplace_back(saved_registers.name);
  return missing;
}

struct MissingFeatures {
  Missing avx2, avx_vnni, avx512, avx512_vnni, avx512_fp16, amx;
};

MissingFeatures detect() {
  const Registers one = cpuid(1, 0), seven = cpuid(7, 0), seven_one = cpuid(7, 1);
  const uint64_t state = saved_state();
  const Feature ymm{"AVX registers saved by the operating system", (state & 0x6) == 0x6};
  const Feature zmm{"AVX-512 registers saved by the operating system", (state & 0xe6) == 0xe6};
  const Feature tiles{"AMX tiles saved by the operating system", (state & 0x60000) == 0x60000};
  MissingFeatures m;
  m.avx2 = missing_of(
      {}, {{"avx2", bit(seven.b, 5)}, {"fma", bit(one.c, 12)}, {"f16c", bit(one.c, 29)}, {"bmi2", bit(seven.b, 8)}},
      ymm);
  m.avx_vnni = missing_of(m.avx2, {{"avx_vnni", bit(seven_one.a, 4)}}, ymm);
  m.avx512 = missing_of(m.avx2,
                        {{"avx512f", bit(seven.b, 16)},
                         {"avx512dq", bit(seven.b, 17)},
                         {"avx512cd", bit(seven.b, 28)},
                         {"avx512bw", bit(seven.b, 30)},
                         {"avx512vl", bit(seven.b, 31)}},
                        zmm);
  m.avx512_vnni = missing_of(m.avx512, {{"avx512_vnni", bit(seven.c, 11)}}, zmm);
  m.avx512_fp16 = missing_of(m.avx512, {{"avx512_fp16", bit(seven.d, 23)}}, zmm);
  m.amx = missing_of(m.avx512_vnni,
                     {
                         {"avx512vbmi", bit(seven.c, 1)},
                         {"avx512_vbmi2", bit(seven.c, 6)},
                         {"avx512_bf16", bit(seven_one.a, 5)},
#if !SUBSECOND_EMULATE_AMX
                         {"amx_bf16", bit(seven.d, 22)},
                         {"amx_tile", bit(seven.d, 24)},
                         {"amx_int8", bit(seven.d, 25)},
#endif
                     },
                     kIsAmxEmulated ? zmm : tiles);
  if (m.amx.empty() && !kIsAmxEmulated && !request_tiles())
    m.amx.emplace_back("AMX tiles granted by the operating system");
  return m;
}

const MissingFeatures& missing_features() {
  static const MissingFeatures missing = detect();
  return missing;
}

#endif

std::vector<IsaSupport> list_isas() {
  std::vector<IsaSupport> list;
#if SUBSECOND_X86
  const MissingFeatures& missing = missing_features();
  list.push_back({"amx", missing.amx, amx::kernels});
  list.push_back({"avx512vnni", missing.avx512_vnni, avx512vnni::kernels});
  list.push_back({"avx512", missing.avx512, avx512::kernels});
  list.push_back({"avxvnni", missing.avx_vnni, avxvnni::kernels});
  list.push_back({"avx2", missing.avx2, avx2::kernels});
#endif
  list.push_back({"scalar", {}, scalar::kernels});
  return list;
}

std::vector<const Kernels*> list_kernels() {
  std::vector<const Kernels*> list;
  for (const IsaSupport& support : isa_support())
    if (support.missing.empty()) list.push_back(&support.kernels());
  return list;
}

CpuFeatures list_features() {
  CpuFeatures f;
#if SUBSECOND_X86
  const MissingFeatures& missing = missing_features();
  f.avx2 = missing.avx2.empty();
  f.avx_vnni = missing.avx_vnni.empty();
  f.avx512 = missing.avx512.empty();
  f.avx512_vnni = missing.avx512_vnni.empty();
  f.avx512_fp16 = missing.avx512_fp16.empty();
  f.amx = missing.amx.empty();
#endif
  return f;
}

}  // namespace

const CpuFeatures& cpu_features() {
  static const CpuFeatures features = list_features();
  return features;
}

const std::vector<IsaSupport>& isa_support() {
  static const std::vector<IsaSupport> list = list_isas();
  return list;
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

const AttentionKernels* find_attention(const Kernels& kernels, const std::string& kv_type) {
  for (const AttentionKernels& attention : kernels.attention)
    if (attention.kv_type && (kv_type.empty() || kv_type == attention.kv_type)) return &attention;
  return nullptr;
}

}  // namespace subsecond
