// Single kernels of any instruction set for the tests that compare them; the product runs them through the executor.

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <chrono>
#include <cmath>

#include "bindings.h"
#include "cpu_features.h"
#include "experts.h"

namespace subsecond {
namespace {

Matrix matrix(const FloatRows& rows) {
  if (rows.shape(1) > 1 && rows.stride(1) != 1) throw nb::value_error("the columns of a matrix must be adjacent");
  return {rows.data(), rows.stride(0)};
}

struct Weight {
  PackedWeight packed;
};

Weight make_weight(const std::string& name, int64_t num_outputs, int64_t num_inputs, const Bytes& packed) {
  return {checked_weight(name, num_outputs, num_inputs, packed)};
}

// Runs the kernel `repeats` times and returns the shortest time in seconds, packing of activations included.
double run_linear(const std::string& isa, const FloatRows& input, const std::vector<Weight>& weights,
                  const std::vector<nb::object>& biases, nb::object norm, float norm_eps, const std::string& gated,
                  nb::object residual, const FloatRows& output, int repeats) {
  const Kernels& kernels = checked_kernels(isa);
  std::vector<PackedWeight> packed;
  std::vector<const float*> bias_data;
  for (const Weight& weight : weights) packed.push_back(weight.packed);
  for (const nb::object& bias : biases)
    bias_data.push_back(bias.is_none() ? nullptr : nb::cast<Floats>(bias, false).data());
  const auto num_rows = static_cast<int64_t>(input.shape(0)), width = static_cast<int64_t>(input.shape(1));
  const LinearKernels& linear = kernels.linear_of(packed.at(0).format);
  Buffer activations(static_cast<size_t>(linear.activation_bytes(num_rows, width)));
  Buffer scratch(static_cast<size_t>(kernels.scratch_bytes(width, 64)));
  const float* norm_weight = norm.is_none() ? nullptr : nb::cast<Floats>(norm, false).data();
  const PackArgs pack{matrix(input), num_rows, width, norm_weight, norm_eps, activations.data()};
  const LinearArgs args{activations.data(),
                        num_rows,
                        packed.data(),
                        bias_data.data(),
                        static_cast<int>(packed.size()),
                        !gated.empty(),
                        gated.empty() ? Activation::kSilu : checked_activation(gated),
                        residual.is_none() ? Matrix{} : matrix(nb::cast<FloatRows>(residual, false)),
                        matrix(output)};
  double best = INFINITY;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    linear.pack_rows(pack, 0, (num_rows + kGroupRows - 1) / kGroupRows, scratch.data());
    linear.linear(args, 0, linear_units(args), scratch.data());
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

// The two steps of threads that share positions.
void attend_in_parts(const AttentionKernels& attention, const AttentionArgs& args, const Span& span, int64_t begin,
                     int64_t end, int64_t head, uint8_t* scratch) {
  const int64_t num_parts = (span.position + (span.row_end - span.row_start) + kPartTokens - 1) / kPartTokens;
  const int64_t stride = (end - begin) * args.num_heads / args.num_kv_heads * attention.part_floats(args.head_dim);
  std::vector<float> results(static_cast<size_t>(num_parts * stride), NAN);
  for (int64_t part = num_parts - 1; part >= 0; --part)
    attention.attend_part(args, span, begin, end, head, part, results.data() + part * stride, scratch);
  attention.merge_parts(args, span, begin, end, head, results.data(), stride, scratch);
}

// Rows of one sequence from position 0: all are stored, those from `first` on attend, `chunk` rows a call. Returns the
// shortest time in seconds that they took to attend.
double run_attention(const std::string& isa, const std::string& kv_type, const FloatRows& query, const FloatRows& key,
                     const FloatRows& value, const Ints& blocks, int64_t num_heads, int64_t num_kv_heads,
                     int64_t head_dim, float scale, const Floats& cos_sin, int64_t rotary_dims, bool is_interleaved,
                     int64_t first, int64_t chunk, int64_t window, float softcap, bool is_causal, bool is_split,
                     const FloatRows& output, int repeats) {
  const Kernels& kernels = checked_kernels(isa);
  const AttentionKernels& attention = checked_attention(kernels, kv_type);
  if (is_split && !attention.attend_part) throw nb::value_error((isa + " does not split attention").c_str());
  int64_t num_blocks = 0;
  for (size_t i = 0; i < blocks.shape(0); ++i) num_blocks = std::max<int64_t>(num_blocks, blocks.data()[i] + 1);
  Buffer cache(static_cast<size_t>(num_blocks * num_kv_heads * attention.head_bytes(head_dim)));
  Buffer scratch(static_cast<size_t>(kernels.scratch_bytes(64, head_dim)));
  AttentionArgs args{};
  args.query = matrix(query);
  args.key = matrix(key);
  args.value = matrix(value);
  args.output = matrix(output);
  args.cache = {cache.data(), attention.head_bytes(head_dim)};
  args.rotary = {cos_sin.data(), rotary_dims, is_interleaved};
  args.num_heads = num_heads;
  args.num_kv_heads = num_kv_heads;
  args.head_dim = head_dim;
  args.scale = scale;
  args.window = window;
  args.softcap = softcap;
  args.is_causal = is_causal;
  const auto num_rows = static_cast<int64_t>(query.shape(0));
  if (static_cast<int64_t>(blocks.shape(0)) * kBlockTokens < num_rows) throw nb::value_error("too few blocks");
  const Span span{0, num_rows, 0, blocks.data()};
  const int64_t step = std::min(chunk, attention.attend_rows(num_heads / num_kv_heads));
  for (int64_t head = 0; head < num_kv_heads; ++head)
    for (int64_t row = 0; row < num_rows; ++row) attention.store_kv(args, span, row, row + 1, head, scratch.data());
  double best = INFINITY;
  for (int i = 0; i < repeats; ++i) {
    const auto start = std::chrono::steady_clock::now();
    for (int64_t head = 0; head < num_kv_heads; ++head)
      for (int64_t row = first; row < num_rows; row += step) {
        const int64_t end = std::min(row + step, num_rows);
        if (is_split)
          attend_in_parts(attention, args, span, row, end, head, scratch.data());
        else
          attention.attend(args, span, row, end, head, scratch.data());
      }
    best = std::min(best, std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  return best;
}

void run_normalize(const std::string& isa, const FloatRows& input, const Floats& weight, nb::object bias, float eps,
                   bool is_layer, const FloatRows& output) {
  const float* bias_data = bias.is_none() ? nullptr : nb::cast<Floats>(bias, false).data();
  const NormArgs norm{weight.data(), bias_data, eps, is_layer, static_cast<int64_t>(weight.shape(0))};
  checked_kernels(isa).normalize(matrix(input), matrix(output), static_cast<int64_t>(input.shape(1)), norm, 0,
                                 static_cast<int64_t>(input.shape(0)));
}

void run_rope(const std::string& isa, const FloatRows& input, const Floats& cos_sin, int64_t dims, bool is_interleaved,
              int64_t head_dim, const Ints& positions, const FloatRows& output) {
  checked_kernels(isa).rope(matrix(input), matrix(output), {cos_sin.data(), dims, is_interleaved}, head_dim,
                            static_cast<int64_t>(input.shape(1)) / head_dim, positions.data(), 0,
                            static_cast<int64_t>(input.shape(0)));
}

void run_gated_activation(const std::string& isa, const FloatRows& gate, const FloatRows& up,
                          const std::string& activation, const FloatRows& output) {
  checked_kernels(isa).gated_activation(matrix(gate), matrix(up), matrix(output), static_cast<int64_t>(gate.shape(1)),
                                        checked_activation(activation), 0, static_cast<int64_t>(gate.shape(0)));
}

void run_activate(const std::string& isa, const FloatRows& input, const std::string& activation,
                  const FloatRows& output) {
  checked_kernels(isa).activate(matrix(input), matrix(output), static_cast<int64_t>(input.shape(1)),
                                checked_activation(activation), 0, static_cast<int64_t>(input.shape(0)));
}

void run_scale(const std::string& isa, const FloatRows& input, float factor, const FloatRows& output) {
  checked_kernels(isa).scale(matrix(input), matrix(output), static_cast<int64_t>(input.shape(1)), factor, 0,
                             static_cast<int64_t>(input.shape(0)));
}

void run_softcap(const std::string& isa, const FloatRows& input, float cap, const FloatRows& output) {
  checked_kernels(isa).softcap(matrix(input), matrix(output), static_cast<int64_t>(input.shape(1)), cap, 0,
                               static_cast<int64_t>(input.shape(0)));
}

// Experts [rows][num_chosen] of rows of router logits, and their weights.
void run_choose_experts(const std::string& isa, const FloatRows& logits, bool is_normalized,
                        const nb::ndarray<int32_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>& experts,
                        const FloatRows& weights) {
  const ExpertsShape shape{static_cast<int64_t>(logits.shape(1)), static_cast<int64_t>(experts.shape(1)), is_normalized,
                           0, 0};
  if (experts.shape(0) != logits.shape(0) || experts.shape(1) < 1 || experts.shape(1) > logits.shape(1))
    throw nb::value_error("as many rows of experts as of logits, and as many experts as are chosen");
  std::vector<float> probabilities(logits.shape(1));
  for (int64_t row = 0; row < static_cast<int64_t>(logits.shape(0)); ++row)
    choose_experts(checked_kernels(isa), shape, matrix(logits).row(row), probabilities.data(),
                   experts.data() + row * shape.num_chosen, matrix(weights).row(row));
}

void run_add(const std::string& isa, const FloatRows& left, const FloatRows& right, const FloatRows& output) {
  checked_kernels(isa).add(matrix(left), matrix(right), matrix(output), static_cast<int64_t>(left.shape(1)), 0,
                           static_cast<int64_t>(left.shape(0)));
}

void run_unpack(const std::string& isa, const Weight& weight, const FloatRows& output) {
  const Matrix rows = matrix(output);
  for (int64_t n = 0; n < weight.packed.num_outputs; ++n)
    checked_kernels(isa).unpack_row(weight.packed, n, rows.row(n));
}

}  // namespace

void bind_kernels(nb::module_& module) {
  nb::module_ kernels = module.def_submodule("kernels", "Single kernels for tests; shapes are the caller's duty.");
  nb::class_<Weight>(kernels, "Weight");
  kernels.def("weight", &make_weight, nb::arg("format"), nb::arg("num_outputs"), nb::arg("num_inputs"),
              nb::arg("packed").noconvert(), nb::keep_alive<0, 4>());
  kernels.def("linear", &run_linear, nb::arg("isa"), nb::arg("input").noconvert(), nb::arg("weights"),
              nb::arg("biases"), nb::arg("norm").none(), nb::arg("norm_eps"), nb::arg("gated"),
              nb::arg("residual").none(), nb::arg("output").noconvert(), nb::arg("repeats") = 1);
  kernels.def("attention", &run_attention, nb::arg("isa"), nb::arg("kv_type"), nb::arg("query").noconvert(),
              nb::arg("key").noconvert(), nb::arg("value").noconvert(), nb::arg("blocks").noconvert(),
              nb::arg("num_heads"), nb::arg("num_kv_heads"), nb::arg("head_dim"), nb::arg("scale"),
              nb::arg("cos_sin").noconvert(), nb::arg("rotary_dims"), nb::arg("is_interleaved"), nb::arg("first"),
              nb::arg("chunk"), nb::arg("window"), nb::arg("softcap"), nb::arg("is_causal"), nb::arg("is_split"),
              nb::arg("output").noconvert(), nb::arg("repeats") = 1);
  kernels.def("normalize", &run_normalize, nb::arg("isa"), nb::arg("input").noconvert(), nb::arg("weight"),
              nb::arg("bias").none(), nb::arg("eps"), nb::arg("is_layer"), nb::arg("output").noconvert());
  kernels.def("rope", &run_rope, nb::arg("isa"), nb::arg("input").noconvert(), nb::arg("cos_sin").noconvert(),
              nb::arg("dims"), nb::arg("is_interleaved"), nb::arg("head_dim"), nb::arg("positions").noconvert(),
              nb::arg("output").noconvert());
  kernels.def("gated_activation", &run_gated_activation, nb::arg("isa"), nb::arg("gate").noconvert(),
              nb::arg("up").noconvert(), nb::arg("activation"), nb::arg("output").noconvert());
  kernels.def("activate", &run_activate, nb::arg("isa"), nb::arg("input").noconvert(), nb::arg("activation"),
              nb::arg("output").noconvert());
  kernels.def("scale", &run_scale, nb::arg("isa"), nb::arg("input").noconvert(), nb::arg("factor"),
              nb::arg("output").noconvert());
  kernels.def("softcap", &run_softcap, nb::arg("isa"), nb::arg("input").noconvert(), nb::arg("cap"),
              nb::arg("output").noconvert());
  kernels.def("choose_experts", &run_choose_experts, nb::arg("isa"), nb::arg("logits").noconvert(),
              nb::arg("is_normalized"), nb::arg("experts").noconvert(), nb::arg("weights").noconvert());
  kernels.def("add", &run_add, nb::arg("isa"), nb::arg("left").noconvert(), nb::arg("right").noconvert(),
              nb::arg("output").noconvert());
  kernels.def("unpack", &run_unpack, nb::arg("isa"), nb::arg("weight"), nb::arg("output").noconvert());
}

}  // namespace subsecond
