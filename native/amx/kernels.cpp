// The table of the AMX kernels: bf16 arithmetic in tiles, element-wise operators from AVX-512.

#include "amx.h"

namespace subsecond::amx {
namespace {

int64_t scratch_bytes(int64_t max_inputs, int64_t head_dim) {
  const int64_t linear = linear_scratch_bytes(max_inputs), attend = attend_scratch_bytes(head_dim);
  return linear > attend ? linear : attend;
}

Kernels make_kernels() {
  Kernels table = avx512::kernels();
  table.isa = "amx";
  table.arithmetic = "bf16";
  table.kv_type = "bf16";
  table.activation_bytes = activation_bytes;
  table.scratch_bytes = scratch_bytes;
  table.head_bytes = head_bytes;
  table.pack_rows = pack_rows;
  table.linear = linear;
  table.store_kv = store_kv;
  table.attend = attend;
  table.attend_rows = attend_rows;
  table.attend_part = nullptr;
  table.merge_parts = nullptr;
  table.part_floats = nullptr;
  return table;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels table = make_kernels();
  return table;
}

}  // namespace subsecond::amx
