// Packing and the linear kernels of every format and instruction set, on stored blocks of arbitrary bytes.
//
// Beyond what the sanitizers see: sets of the "i16" arithmetic give the bits of the scalar one, NaN for NaN.
#include "cpu_features.h"
#include "packed_weight.h"
#include "same_bits.h"
#include "stream.h"

namespace subsecond::fuzz {
namespace {

struct Case {
  Format format;
  int64_t num_outputs, num_inputs, num_rows;
  bool is_gated, has_bias, has_norm, has_residual;
  Activation activation;
  std::vector<float> input, bias, norm, residual;
};

std::vector<float> run_linear(const Kernels& kernels, const Case& c, const PackedWeight* weights) {
  Bytes activations(kernels.stored.activation_bytes(c.num_rows, c.num_inputs));
  Bytes scratch(kernels.scratch_bytes(c.num_inputs, 64));
  Bytes input(static_cast<int64_t>(c.input.size() * sizeof(float)));
  std::memcpy(input.data(), c.input.data(), input.size());
  const int num_weights = c.is_gated ? 2 : 1;
  std::vector<float> output(static_cast<size_t>(c.num_rows * c.num_outputs), 7.0f), residual = c.residual;
  const PackArgs pack{{input.floats(), c.num_inputs},       c.num_rows, c.num_inputs,
                      c.has_norm ? c.norm.data() : nullptr, 1e-5f,      activations.data()};
  kernels.stored.pack_rows(pack, 0, (c.num_rows + kGroupRows - 1) / kGroupRows, scratch.data());
  const float* biases[2] = {c.has_bias ? c.bias.data() : nullptr, c.has_bias ? c.bias.data() : nullptr};
  const LinearArgs args{activations.data(),
                        c.num_rows,
                        weights,
                        biases,
                        num_weights,
                        c.is_gated,
                        c.activation,
                        c.has_residual ? Matrix{residual.data(), c.num_outputs} : Matrix{},
                        {output.data(), c.num_outputs}};
  kernels.stored.linear(args, 0, linear_units(args), scratch.data());
  return output;
}

Case draw_case(Stream& stream) {
  Case c{};
  c.format = static_cast<Format>(stream.between(0, static_cast<int64_t>(Format::kCount) - 1));
  const int64_t block = format_info(c.format).block_elements;
  c.num_outputs = stream.between(1, 70);
  c.num_inputs = block == 1 ? stream.between(1, 100) : block * stream.between(1, block == 256 ? 3 : 9);
  c.num_rows = stream.between(1, stream.flag() ? 4 : 40);
  c.is_gated = stream.flag();
  c.has_bias = stream.flag();
  c.has_norm = stream.flag();
  c.has_residual = stream.flag();
  c.activation = static_cast<Activation>(stream.between(0, static_cast<int64_t>(Activation::kCount) - 1));
  stream.start_numbers();
  c.input = stream.numbers(c.num_rows * c.num_inputs);
  c.bias = stream.numbers(c.num_outputs);
  c.norm = stream.numbers(c.num_inputs);
  c.residual = stream.numbers(c.num_rows * c.num_outputs);
  return c;
}

void fill_blocks(Stream& stream, const Bytes& stored) {
  const bool is_noise = stream.flag();
  const uint8_t fill = stream.byte();
  for (size_t i = 0; i < stored.size(); ++i)
    stored.data()[i] = is_noise ? static_cast<uint8_t>(stream.random()) : static_cast<uint8_t>(fill + i % 3);
}

void run(Stream stream) {
  const Case c = draw_case(stream);
  const FormatInfo& info = format_info(c.format);
  Bytes stored(c.num_outputs * (c.num_inputs / info.block_elements) * info.block_bytes);
  Bytes packed(packed_bytes(c.format, c.num_outputs, c.num_inputs));
  fill_blocks(stream, stored);
  pack_weight(c.format, c.num_outputs, c.num_inputs, stored.data(), packed.data());
  const PackedWeight weight{c.format, c.num_outputs, c.num_inputs, packed.data()};
  const PackedWeight weights[2] = {weight, weight};
  const std::vector<float> expected = run_linear(scalar::kernels(), c, weights);
  for (const Kernels* kernels : available_kernels()) {
    std::vector<float> row(static_cast<size_t>(c.num_inputs)), scalar_row(row);
    for (int64_t n = 0; n < c.num_outputs; ++n) {
      kernels->unpack_row(weight, n, row.data());
      scalar::kernels().unpack_row(weight, n, scalar_row.data());
      if (has_exact_linears(*kernels))
        check_same("row", *kernels, info.name, scalar_row.data(), row.data(), row.size());
    }
    const std::vector<float> actual = run_linear(*kernels, c, weights);
    if (has_exact_linears(*kernels))
      check_same("linear", *kernels, info.name, expected.data(), actual.data(), actual.size());
  }
}

}  // namespace
}  // namespace subsecond::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  subsecond::fuzz::run(subsecond::fuzz::Stream(data, size));
  return 0;
}
