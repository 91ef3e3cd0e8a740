// Attention over blocks and the element-wise kernels of every instruction set, at odd sizes and with odd numbers.
//
// Beyond what the sanitizers see: all sets give the bits of the scalar one, NaN for NaN, for keys and values in half
// precision as for those in codes of eight bits, and so does attention in parts.
#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "cpu_features.h"
#include "same_bits.h"
#include "stream.h"

namespace subsecond::fuzz {
namespace {

struct Shape {
  int64_t head_dim, num_kv_heads, group, position, num_rows, rotary_dims;
  int64_t window;
  float softcap;
  bool is_interleaved, is_causal, is_layer, has_bias, is_grouped;
  Activation activation;
  const char* kv_type;  // empty: the default of every set
  int64_t num_heads() const { return num_kv_heads * group; }
};

// The two steps of threads that share positions.
void attend_in_parts(const AttentionKernels& kernels, const AttentionArgs& args, const Span& span, int64_t begin,
                     int64_t end, int64_t head, uint8_t* scratch) {
  const int64_t num_parts = (span.position + span.row_end + kPartTokens - 1) / kPartTokens;
  const int64_t stride = (end - begin) * args.num_heads / args.num_kv_heads * kernels.part_floats(args.head_dim);
  std::vector<float> results(static_cast<size_t>(num_parts * stride), NAN);
  for (int64_t part = 0; part < num_parts; ++part)
    kernels.attend_part(args, span, begin, end, head, part, results.data() + part * stride, scratch);
  kernels.merge_parts(args, span, begin, end, head, results.data(), stride, scratch);
}

// What the rows of the last step attend to.
std::vector<float> attend(const AttentionKernels& kernels, int64_t scratch_bytes, const Shape& shape, bool is_split,
                          Stream stream) {
  const int64_t num_positions = shape.position + shape.num_rows;
  const int64_t num_blocks = (num_positions + kBlockTokens - 1) / kBlockTokens;
  std::vector<int32_t> blocks(static_cast<size_t>(num_blocks));
  std::iota(blocks.begin(), blocks.end(), 0);
  std::reverse(blocks.begin(), blocks.end());
  const int64_t query_width = shape.num_heads() * shape.head_dim, kv_width = shape.num_kv_heads * shape.head_dim;
  Bytes cache(num_blocks * shape.num_kv_heads * kernels.head_bytes(shape.head_dim), 0);
  Bytes scratch(scratch_bytes);
  std::vector<float> cos_sin = stream.numbers(num_positions * shape.rotary_dims);
  AttentionArgs args{};
  args.cache = {cache.data(), kernels.head_bytes(shape.head_dim)};
  args.rotary = {cos_sin.data(), shape.rotary_dims, shape.is_interleaved};
  args.num_heads = shape.num_heads();
  args.num_kv_heads = shape.num_kv_heads;
  args.head_dim = shape.head_dim;
  args.scale = 0.25f;
  args.window = shape.window;
  args.softcap = shape.softcap;
  args.is_causal = shape.is_causal;
  std::vector<float> attended;
  // All positions are stored, in steps of as many rows as come at once; the last step also attends.
  for (int64_t first = 0; first < num_positions;) {
    const int64_t end = first < shape.position ? std::min(first + shape.num_rows, shape.position) : num_positions;
    const int64_t rows = end - first;
    std::vector<float> query = stream.numbers(rows * query_width), key = stream.numbers(rows * kv_width),
                       value = stream.numbers(rows * kv_width), output(query.size());
    args.query = {query.data(), query_width};
    args.key = {key.data(), kv_width};
    args.value = {value.data(), kv_width};
    args.output = {output.data(), query_width};
    const Span span{0, rows, first, blocks.data()};
    const int64_t step = kernels.attend_rows(shape.group);
    for (int64_t head = 0; head < shape.num_kv_heads; ++head) {
      for (int64_t row = 0; row < rows;) {
        const int64_t stop = std::min(rows, row + kBlockTokens - (first + row) % kBlockTokens);
        kernels.store_kv(args, span, row, stop, head, scratch.data());
        row = stop;
      }
      for (int64_t stop = rows; end == num_positions && stop > 0; stop -= step) {
        const int64_t begin = std::max<int64_t>(0, stop - step);
        if (is_split)
          attend_in_parts(kernels, args, span, begin, stop, head, scratch.data());
        else
          kernels.attend(args, span, begin, stop, head, scratch.data());
      }
    }
    first = end;
    attended = std::move(output);
  }
  return attended;
}

// The results of every operator, one after the other.
std::vector<float> run_element_wise(const Kernels& kernels, const Shape& shape, Stream stream) {
  const int64_t rows = shape.num_rows, width = shape.num_heads() * shape.head_dim;
  const int64_t group_width = shape.is_grouped ? shape.head_dim : width;
  std::vector<float> left = stream.numbers(rows * width), right = stream.numbers(rows * width), output(left.size()),
                     weight = stream.numbers(group_width), bias = stream.numbers(group_width),
                     cos_sin = stream.numbers((rows + 1) * shape.rotary_dims), results;
  std::vector<int32_t> positions(static_cast<size_t>(rows));
  std::iota(positions.begin(), positions.end(), 0);
  const Matrix a{left.data(), width}, b{right.data(), width}, out{output.data(), width};
  const auto keep = [&] { results.insert(results.end(), output.begin(), output.end()); };
  kernels.normalize(a, out, width,
                    {weight.data(), shape.has_bias ? bias.data() : nullptr, 1e-6f, shape.is_layer, group_width}, 0,
                    rows);
  keep();
  kernels.add(a, b, out, width, 0, rows);
  keep();
  kernels.gated_activation(a, b, out, width, shape.activation, 0, rows);
  keep();
  kernels.activate(a, out, width, shape.activation, 0, rows);
  keep();
  kernels.scale(a, out, width, -0.7f, 0, rows);
  keep();
  kernels.softcap(a, out, width, shape.softcap > 0.0f ? shape.softcap : 1.0f, 0, rows);
  keep();
  kernels.rope(a, out, {cos_sin.data(), shape.rotary_dims, shape.is_interleaved}, shape.head_dim, shape.num_heads(),
               positions.data(), 0, rows);
  keep();
  for (int64_t row = 0; row < rows; ++row) kernels.softmax(a.row(row), out.row(row), width);
  keep();
  for (int64_t row = 0; row < rows; ++row) kernels.add_scaled(b.row(row), out.row(row), width, weight[0]);
  keep();
  return results;
}

Shape draw_shape(Stream& stream) {
  constexpr float kSoftcaps[] = {0.0f, 30.0f, 1.0f, 1e-30f, 3e38f};
  Shape shape{};
  shape.head_dim = 2 * stream.between(1, stream.flag() ? 16 : 66);
  shape.num_kv_heads = stream.between(1, 3);
  shape.group = stream.between(1, 9);
  shape.is_causal = stream.byte() % 4 != 0;
  shape.position = shape.is_causal ? stream.between(0, stream.flag() ? 3 : 300) : 0;
  shape.window = shape.is_causal && stream.flag() ? stream.between(1, stream.flag() ? 4 : 350) : 0;
  shape.num_rows = stream.between(1, 40);
  shape.rotary_dims = 2 * stream.between(0, shape.head_dim / 2);
  shape.is_interleaved = stream.flag();
  shape.softcap = kSoftcaps[stream.between(0, 4)];
  shape.is_layer = stream.flag();
  shape.has_bias = stream.flag();
  shape.is_grouped = stream.flag();
  shape.activation = static_cast<Activation>(stream.between(0, static_cast<int64_t>(Activation::kCount) - 1));
  shape.kv_type = stream.flag() ? "int8" : "";
  return shape;
}

void run(Stream stream) {
  const Shape shape = draw_shape(stream);
  stream.start_numbers();
  const std::vector<float> results = run_element_wise(scalar::kernels(), shape, stream);
  for (const Kernels* kernels : available_kernels()) {
    const std::vector<float> its_results = run_element_wise(*kernels, shape, stream);
    check_same("operators", *kernels, "float32", results.data(), its_results.data(), results.size());
  }
  const AttentionKernels& reference = *find_attention(scalar::kernels(), shape.kv_type);
  const int64_t scratch_bytes = scalar::kernels().scratch_bytes(32, shape.head_dim);
  const std::vector<float> attended = attend(reference, scratch_bytes, shape, false, stream);
  for (const Kernels* kernels : available_kernels()) {
    const AttentionKernels& attention = *find_attention(*kernels, shape.kv_type);
    const std::vector<float> its_attended =
        attend(attention, kernels->scratch_bytes(32, shape.head_dim), shape, attention.attend_part, stream);
    if (has_exact_attention(attention))
      check_same("attention", *kernels, attention.kv_type, attended.data(), its_attended.data(), attended.size());
  }
}

}  // namespace
}  // namespace subsecond::fuzz

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  subsecond::fuzz::run(subsecond::fuzz::Stream(data, size));
  return 0;
}
