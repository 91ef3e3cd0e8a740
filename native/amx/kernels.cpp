// The table of the AMX kernels: bf16 arithmetic in tiles, all else from AVX-512 with VNNI.

#include "amx.h"

namespace subsecond::amx {
namespace {

int64_t scratch_bytes(int64_t max_inputs, int64_t head_dim) {
  const int64_t linear = linear_scratch_bytes(max_inputs), attend = attend_scratch_bytes(head_dim);
  const int64_t channel = channel_scratch_bytes(max_inputs),
                shared = avx512vnni::kernels().scratch_bytes(max_inputs, head_dim);
  int64_t most = linear;
  for (const int64_t bytes : {attend, channel, shared})
    if (bytes > most) most = bytes;
  return most;
}

Kernels make_kernels() {
  Kernels table = avx512vnni::kernels();
  table.isa = "amx";
  table.arithmetic = "bf16";
  table.stored = {activation_bytes, pack_rows, linear};
  table.channel.activation_bytes = quantized_bytes;
  table.channel.linear = channel_linear;
  table.scratch_bytes = scratch_bytes;
  // Other types than that of the tiles have the kernels, and the bits, of AVX-512.
  for (int i = kMaxKvTypes - 1; i > 0; --i) table.attention[i] = table.attention[i - 1];
  table.attention[0] = {.kv_type = "bf16",
                        .head_bytes = head_bytes,
                        .store_kv = store_kv,
                        .attend = attend,
                        .attend_rows = attend_rows,
                        .attend_part = nullptr,
                        .merge_parts = nullptr,
                        .part_floats = nullptr};
  return table;
}

}  // namespace

const Kernels& kernels() {
  static const Kernels table = make_kernels();
  return table;
}

}  // namespace subsecond::amx
