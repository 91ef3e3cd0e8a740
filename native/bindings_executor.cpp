// The executor as a Python class: add weights, vectors and calls once, then one call a step with the GIL released.

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <cmath>
#include <limits>

#include "bindings.h"
#include "cpu_features.h"
#include "executor.h"

namespace subsecond {
namespace {

// The key/value cache of all layers in bytes, or -1 when that is no size a machine could have.
int64_t cache_bytes(const AttentionKernels& attention, const ExecutorConfig& config) {
  int64_t bytes = attention.head_bytes(config.head_dim);
  for (const int64_t factor : {config.num_layers, config.num_blocks, config.num_kv_heads})
    if (__builtin_mul_overflow(bytes, factor, &bytes) || bytes > int64_t{1} << 46) return -1;
  return bytes;
}

ExecutorConfig checked_config(const AttentionKernels& attention, const ExecutorConfig& config) {
  if (config.num_threads < 1 || config.max_rows < 1 || config.num_blocks < 1)
    throw nb::value_error("threads, rows and blocks are at least 1");
  // Bounds far above any use, below which no product of sizes overflows.
  if (config.num_threads > 1024 || config.max_rows > int64_t{1} << 24 || config.all_floats > int64_t{1} << 32 ||
      config.selected_floats > int64_t{1} << 32)
    throw nb::value_error("so many threads, rows or floats a row fit into no machine");
  if (config.head_dim < 1 || config.head_dim > 1024) throw nb::value_error("head_dim must lie between 1 and 1024");
  if (config.output_width < 1 || config.all_floats < 0 || config.selected_floats < 0 || config.num_layers < 0 ||
      config.num_kv_heads < 1)
    throw nb::value_error("sizes of an executor must not be negative");
  if (cache_bytes(attention, config) < 0) throw nb::value_error("so many key/value blocks fit into no memory");
  return config;
}

Call::Index checked_index(const std::string& name) {
  constexpr const char* names[] = {"token", "position", "first"};
  static_assert(sizeof(names) / sizeof(names[0]) == static_cast<size_t>(Call::Index::kCount));
  for (int i = 0; i < static_cast<int>(Call::Index::kCount); ++i)
    if (name == names[i]) return static_cast<Call::Index>(i);
  throw nb::value_error(("there is no index " + name).c_str());
}

class PyExecutor {
 public:
  PyExecutor(const std::string& isa, const std::string& kv_type, int num_threads, int64_t max_rows,
             int64_t output_width, int64_t all_floats, int64_t selected_floats, int64_t num_layers, int64_t num_blocks,
             int64_t num_kv_heads, int64_t head_dim)
      : executor_(checked_kernels(isa), checked_attention(checked_kernels(isa), kv_type),
                  checked_config(checked_attention(checked_kernels(isa), kv_type),
                                 ExecutorConfig{num_threads, max_rows, output_width, all_floats, selected_floats,
                                                num_layers, num_blocks, num_kv_heads, head_dim})) {}

  int64_t add_weight(const std::string& name, int64_t num_outputs, int64_t num_inputs, const Bytes& packed) {
    weights_.push_back(checked_weight(name, num_outputs, num_inputs, packed));
    kept_.append(nb::cast(packed));
    return static_cast<int64_t>(weights_.size()) - 1;
  }

  int64_t add_vector(const Floats& values) {
    kept_.append(nb::cast(values));
    vectors_.push_back(values.data());
    vector_sizes_.push_back(static_cast<int64_t>(values.shape(0)));
    return static_cast<int64_t>(vectors_.size()) - 1;
  }

  int add_rotary(std::vector<double> frequencies, bool is_interleaved, double magnitude) {
    if (frequencies.empty()) throw nb::value_error("a rotary embedding has at least one pair of channels");
    rotary_dims_.push_back(2 * static_cast<int64_t>(frequencies.size()));
    return executor_.add_rotary(std::move(frequencies), is_interleaved, magnitude);
  }

  void add_embed(nb::object output, int64_t weight, const std::string& index) {
    Call call;
    call.kind = Call::Kind::kEmbed;
    call.weights.push_back(stored_weight(weight));
    call.width = call.weights[0].num_inputs;
    if (call.width > int64_t{1} << 20) throw nb::value_error("a row of an embedding has at most 2^20 values");
    call.index = checked_index(index);
    if (call.index == Call::Index::kToken) num_tokens_ = std::min(num_tokens_, call.weights[0].num_outputs);
    if (call.index == Call::Index::kPosition) num_positions_ = std::min(num_positions_, call.weights[0].num_outputs);
    call.output = operand(output, call.width);
    add(std::move(call));
  }

  void add_linear(nb::object output, nb::object input, const std::vector<int64_t>& weights,
                  const std::vector<int64_t>& biases, int64_t norm, float norm_eps, const std::string& gated,
                  nb::object residual) {
    Call call;
    call.kind = Call::Kind::kLinear;
    if (weights.empty() || weights.size() != biases.size())
      throw nb::value_error("a linear has one bias entry a weight");
    for (const int64_t index : weights) call.weights.push_back(weights_.at(static_cast<size_t>(index)));
    for (size_t i = 0; i < biases.size(); ++i) call.biases.push_back(vector(biases[i], call.weights[i].num_outputs));
    call.width = call.weights[0].num_inputs;
    for (const PackedWeight& weight : call.weights)
      if (weight.num_inputs != call.width || is_channel(weight.format) != is_channel(call.weights[0].format))
        throw nb::value_error("the weights of a linear differ in inputs, or in whether they are of a channel format");
    call.is_gated = !gated.empty();
    if (call.is_gated) call.activation = checked_activation(gated);
    if (call.is_gated && (weights.size() != 2 || call.weights[0].num_outputs != call.weights[1].num_outputs))
      throw nb::value_error("a gated linear has two weights of one shape");
    int64_t num_outputs = 0;
    for (const PackedWeight& weight : call.weights) num_outputs += weight.num_outputs;
    if (call.is_gated) num_outputs /= 2;
    call.output = operand(output, num_outputs);
    call.inputs[0] = operand(input, call.width);
    if (!residual.is_none()) call.residual = operand(residual, num_outputs);
    call.norm = {vector(norm, call.width), nullptr, norm_eps, false, call.width};
    add(std::move(call));
  }

  void add_attention(nb::object output, nb::object query, nb::object key, nb::object value, int64_t layer,
                     int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, float scale, int rotary, int64_t window,
                     float softcap, bool is_causal) {
    const ExecutorConfig& config = executor_.config();
    if (layer < 0 || layer >= config.num_layers || num_kv_heads != config.num_kv_heads || head_dim != config.head_dim ||
        num_heads < 1 || num_heads > int64_t{1} << 20 || num_heads % num_kv_heads != 0 || !fits_head(rotary, head_dim))
      throw nb::value_error("the attention does not fit the key/value cache");
    if (window < 0 || !(softcap >= 0.0f) || !std::isfinite(softcap) || !std::isfinite(scale) || (window && !is_causal))
      throw nb::value_error("window and softcap of an attention are positive or 0, and only a causal one has a window");
    Call call;
    call.kind = Call::Kind::kAttention;
    call.output = operand(output, num_heads * head_dim);
    call.inputs[0] = operand(query, num_heads * head_dim);
    call.inputs[1] = operand(key, num_kv_heads * head_dim);
    call.inputs[2] = operand(value, num_kv_heads * head_dim);
    call.layer = layer;
    call.num_heads = num_heads;
    call.num_kv_heads = num_kv_heads;
    call.head_dim = head_dim;
    call.factor = scale;
    call.rotary = rotary;
    call.window = window;
    call.softcap = softcap;
    call.is_causal = is_causal;
    needs_whole_sequences_ |= !is_causal;
    add(std::move(call));
  }

  void add_normalize(nb::object output, nb::object input, int64_t width, int64_t weight, int64_t bias, float eps,
                     bool is_layer, int64_t group_width) {
    if (weight < 0 || group_width < 1 || width % group_width != 0)
      throw nb::value_error("a norm has a weight, and groups that fill its rows");
    Call call = element_wise(Call::Kind::kNormalize, output, input, nb::none(), width);
    call.norm = {vector(weight, group_width), vector(bias, group_width), eps, is_layer, group_width};
    add(std::move(call));
  }

  // `weights`: gate, up and down of the first expert, of the second, and so on.
  void add_experts(nb::object output, nb::object input, nb::object router, const std::vector<int64_t>& weights,
                   int64_t num_chosen, bool is_normalized, const std::string& activation) {
    Call call;
    call.kind = Call::Kind::kExperts;
    const auto num_experts = static_cast<int64_t>(weights.size() / 3);
    if (num_experts < 1 || weights.size() % 3 != 0 || num_chosen < 1 || num_chosen > num_experts)
      throw nb::value_error("experts have three weights each, and at least as many as are chosen");
    for (const int64_t index : weights) call.weights.push_back(stored_weight(index));
    const int64_t width = call.weights[0].num_inputs, ff_width = call.weights[0].num_outputs;
    for (size_t i = 0; i < call.weights.size(); ++i) {
      const PackedWeight& weight = call.weights[i];
      const bool is_down = i % 3 == 2;
      if (weight.num_inputs != (is_down ? ff_width : width) || weight.num_outputs != (is_down ? width : ff_width))
        throw nb::value_error("the weights of experts have different shapes");
    }
    int64_t bytes = executor_.config().max_rows;
    if (num_chosen * executor_.config().max_rows > std::numeric_limits<int32_t>::max())
      throw nb::value_error("so many rows of experts cannot be counted");
    for (const int64_t factor : {num_experts, std::max(width, ff_width), int64_t{sizeof(float)}})
      if (__builtin_mul_overflow(bytes, factor, &bytes) || bytes > int64_t{1} << 50)
        throw nb::value_error("so many rows of experts fit into no memory");
    call.experts = {num_experts, num_chosen, is_normalized, width, ff_width};
    call.activation = checked_activation(activation);
    call.output = operand(output, width);
    call.inputs[0] = operand(input, width);
    call.inputs[1] = operand(router, num_experts);
    call.width = width;
    add(std::move(call));
  }

  void add_rope(nb::object output, nb::object input, int64_t width, int64_t head_dim, int rotary) {
    if (rotary < 0 || head_dim < 1 || width % head_dim != 0 || !fits_head(rotary, head_dim))
      throw nb::value_error("the rotary embedding does not fit the heads");
    Call call = element_wise(Call::Kind::kRope, output, input, nb::none(), width);
    call.head_dim = head_dim;
    call.rotary = rotary;
    add(std::move(call));
  }

  void add_gated_activation(nb::object output, nb::object gate, nb::object up, int64_t width,
                            const std::string& activation) {
    Call call = element_wise(Call::Kind::kGatedActivation, output, gate, up, width);
    call.activation = checked_activation(activation);
    add(std::move(call));
  }

  void add_activate(nb::object output, nb::object input, int64_t width, const std::string& activation) {
    Call call = element_wise(Call::Kind::kActivate, output, input, nb::none(), width);
    call.activation = checked_activation(activation);
    add(std::move(call));
  }

  void add_scale(nb::object output, nb::object input, int64_t width, float factor) {
    if (!std::isfinite(factor)) throw nb::value_error("a factor is a finite number");
    Call call = element_wise(Call::Kind::kScale, output, input, nb::none(), width);
    call.factor = factor;
    add(std::move(call));
  }

  void add_softcap(nb::object output, nb::object input, int64_t width, float cap) {
    if (!(cap > 0.0f) || !std::isfinite(cap)) throw nb::value_error("a softcap is positive");
    Call call = element_wise(Call::Kind::kSoftcap, output, input, nb::none(), width);
    call.factor = cap;
    add(std::move(call));
  }

  void add_add(nb::object output, nb::object left, nb::object right, int64_t width) {
    add(element_wise(Call::Kind::kAdd, output, left, right, width));
  }

  void add_select_rows(nb::object output, nb::object input, int64_t width) {
    Call call = element_wise(Call::Kind::kSelectRows, output, input, nb::none(), width);
    if (call.output.arena != Operand::Arena::kSelected || call.inputs[0].arena != Operand::Arena::kAll)
      throw nb::value_error("rows are selected from the arena of all rows into the other one");
    add(std::move(call));
  }

  void finish(nb::object output) {
    executor_.finish(operand(output, executor_.config().output_width));
    is_finished_ = true;
  }

  // The output [selected rows][output_width] as a view that the next step overwrites.
  nb::object forward(const Ints& token_ids, const Ints& positions, const Ints& row_sequence,
                     const IntRows& block_tables, const Ints& logits_rows) {
    const Batch batch{token_ids.data(),    positions.data(),
                      row_sequence.data(), static_cast<int64_t>(token_ids.shape(0)),
                      block_tables.data(), static_cast<int64_t>(block_tables.shape(1)),
                      logits_rows.data(),  static_cast<int64_t>(logits_rows.shape(0))};
    if (positions.shape(0) != token_ids.shape(0) || row_sequence.shape(0) != token_ids.shape(0))
      throw nb::value_error("token_ids, positions and row_sequence have different lengths");
    if (!is_finished_) throw nb::value_error("an executor runs after it is finished");
    check_batch(batch, static_cast<int64_t>(block_tables.shape(0)));
    const float* rows;
    {
      nb::gil_scoped_release release;
      rows = executor_.forward(batch);
    }
    const size_t shape[2] = {static_cast<size_t>(batch.num_selected),
                             static_cast<size_t>(executor_.config().output_width)};
    return nb::cast(nb::ndarray<nb::numpy, const float, nb::ndim<2>>(rows, 2, shape, nb::find(this)));
  }

  void set_profiling(bool is_on) {
    executor_.is_profiling = is_on;
    std::fill(executor_.call_ns.begin(), executor_.call_ns.end(), 0);
  }
  std::vector<int64_t> call_ns() const { return executor_.call_ns; }
  int64_t kv_bytes() const { return executor_.kv_bytes(); }

 private:
  const PackedWeight& stored_weight(int64_t index) const {
    const PackedWeight& weight = weights_.at(static_cast<size_t>(index));
    if (is_channel(weight.format)) throw nb::value_error("only linears take weights of a channel format");
    return weight;
  }

  // (arena, offset, column, stride) of a value that is `width` columns wide, checked against the arenas.
  Operand operand(nb::handle given, int64_t width) const {
    if (is_finished_) throw nb::value_error("the executor is finished and takes no more calls");
    const nb::tuple parts = nb::cast<nb::tuple>(given);
    Operand operand;
    const int arena = nb::cast<int>(parts[0]);
    operand.arena = static_cast<Operand::Arena>(arena);
    operand.offset = nb::cast<int64_t>(parts[1]);
    operand.column = nb::cast<int64_t>(parts[2]);
    operand.stride = nb::cast<int64_t>(parts[3]);
    const int64_t floats = arena == 0 ? executor_.config().all_floats : executor_.config().selected_floats;
    if (arena < 0 || arena > 1 || operand.offset < 0 || operand.column < 0 || operand.stride < 0 || width < 1 ||
        width > operand.stride - operand.column || operand.stride > floats - operand.offset)
      throw nb::value_error("an operand does not lie within its arena");
    return operand;
  }

  bool fits_head(int rotary, int64_t head_dim) const {
    if (rotary < 0) return true;
    return static_cast<size_t>(rotary) < rotary_dims_.size() && rotary_dims_[static_cast<size_t>(rotary)] <= head_dim;
  }

  const float* vector(int64_t index, int64_t size) const {
    if (index < 0) return nullptr;
    if (vector_sizes_.at(static_cast<size_t>(index)) != size)
      throw nb::value_error("a vector has not the width it is used for");
    return vectors_[static_cast<size_t>(index)];
  }

  // Rows of one operator are all of one arena; tokens and positions are known of the rows of all alone.
  void add(Call call) {
    const Operand::Arena arena = call.output.arena;
    bool is_one = true;
    for (const Operand* source : {&call.inputs[0], &call.inputs[1], &call.inputs[2], &call.residual})
      is_one &= source->offset < 0 || source->arena == arena;
    const bool is_placed =
        call.kind == Call::Kind::kEmbed || call.kind == Call::Kind::kRope || call.kind == Call::Kind::kAttention;
    if ((!is_one && call.kind != Call::Kind::kSelectRows) || (is_placed && arena != Operand::Arena::kAll))
      throw nb::value_error("the operands of an operator belong to different rows");
    executor_.add_call(std::move(call));
  }

  Call element_wise(Call::Kind kind, nb::object output, nb::object first, nb::object second, int64_t width) const {
    Call call;
    call.kind = kind;
    call.output = operand(output, width);
    call.inputs[0] = operand(first, width);
    if (!second.is_none()) call.inputs[1] = operand(second, width);
    call.width = width;
    return call;
  }

  void check_batch(const Batch& batch, int64_t num_sequences) const {
    const ExecutorConfig& config = executor_.config();
    if (batch.num_rows < 1 || batch.num_rows > config.max_rows) throw nb::value_error("a step has 1 to max_rows rows");
    for (int64_t r = 0; r < batch.num_rows; ++r) {
      const int64_t sequence = batch.row_sequence[r], position = batch.positions[r];
      if (batch.token_ids[r] < 0 || batch.token_ids[r] >= num_tokens_) throw nb::value_error("token id out of range");
      if (sequence < 0 || sequence >= num_sequences) throw nb::value_error("row_sequence out of range");
      if (position < 0 || position >= num_positions_ || position / kBlockTokens >= batch.blocks_per_sequence)
        throw nb::value_error("position out of range");
      const bool is_first = r == 0 || batch.row_sequence[r - 1] != sequence;
      if (needs_whole_sequences_ && is_first && position != 0)
        throw nb::value_error("position out of range: this model reads a text in one step, from position 0 on");
      for (int64_t b = is_first ? 0 : position / kBlockTokens; b <= position / kBlockTokens; ++b) {
        const int64_t block = batch.block_tables[sequence * batch.blocks_per_sequence + b];
        if (block < 0 || block >= config.num_blocks) throw nb::value_error("block table entry out of range");
      }
      if (r && (sequence < batch.row_sequence[r - 1] ||
                (sequence == batch.row_sequence[r - 1] && position != batch.positions[r - 1] + 1)))
        throw nb::value_error("rows must be ordered by sequence and at consecutive positions");
    }
    for (int64_t i = 0; i < batch.num_selected; ++i)
      if (batch.logits_rows[i] < (i ? batch.logits_rows[i - 1] + 1 : 0) || batch.logits_rows[i] >= batch.num_rows)
        throw nb::value_error("logits_rows must be ascending rows of the step");
  }

  Executor executor_;
  bool is_finished_ = false;
  std::vector<PackedWeight> weights_;
  std::vector<const float*> vectors_;
  std::vector<int64_t> vector_sizes_;
  std::vector<int64_t> rotary_dims_;
  nb::list kept_;
  int64_t num_tokens_ = INT32_MAX, num_positions_ = INT32_MAX;  // rows of the smallest tables
  bool needs_whole_sequences_ = false;
};

}  // namespace

void bind_executor(nb::module_& module) {
  nb::class_<PyExecutor>(module, "Executor", "Runs one segment of a plan; see executor.h.")
      .def(nb::init<const std::string&, const std::string&, int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t,
                    int64_t, int64_t>(),
           nb::arg("isa"), nb::arg("kv_type"), nb::arg("num_threads"), nb::arg("max_rows"), nb::arg("output_width"),
           nb::arg("all_floats"), nb::arg("selected_floats"), nb::arg("num_layers"), nb::arg("num_blocks"),
           nb::arg("num_kv_heads"), nb::arg("head_dim"))
      .def("add_weight", &PyExecutor::add_weight, nb::arg("format"), nb::arg("num_outputs"), nb::arg("num_inputs"),
           nb::arg("packed").noconvert())
      .def("add_vector", &PyExecutor::add_vector, nb::arg("values").noconvert())
      .def("add_rotary", &PyExecutor::add_rotary, nb::arg("frequencies"), nb::arg("is_interleaved"),
           nb::arg("magnitude"))
      .def("add_embed", &PyExecutor::add_embed, nb::arg("output"), nb::arg("weight"), nb::arg("index"))
      .def("add_linear", &PyExecutor::add_linear, nb::arg("output"), nb::arg("input"), nb::arg("weights"),
           nb::arg("biases"), nb::arg("norm"), nb::arg("norm_eps"), nb::arg("gated"), nb::arg("residual").none())
      .def("add_attention", &PyExecutor::add_attention, nb::arg("output"), nb::arg("query"), nb::arg("key"),
           nb::arg("value"), nb::arg("layer"), nb::arg("num_heads"), nb::arg("num_kv_heads"), nb::arg("head_dim"),
           nb::arg("scale"), nb::arg("rotary"), nb::arg("window"), nb::arg("softcap"), nb::arg("is_causal"))
      .def("add_normalize", &PyExecutor::add_normalize, nb::arg("output"), nb::arg("input"), nb::arg("width"),
           nb::arg("weight"), nb::arg("bias"), nb::arg("eps"), nb::arg("is_layer"), nb::arg("group_width"))
      .def("add_experts", &PyExecutor::add_experts, nb::arg("output"), nb::arg("input"), nb::arg("router"),
           nb::arg("weights"), nb::arg("num_chosen"), nb::arg("is_normalized"), nb::arg("activation"))
      .def("add_rope", &PyExecutor::add_rope, nb::arg("output"), nb::arg("input"), nb::arg("width"),
           nb::arg("head_dim"), nb::arg("rotary"))
      .def("add_gated_activation", &PyExecutor::add_gated_activation, nb::arg("output"), nb::arg("gate"), nb::arg("up"),
           nb::arg("width"), nb::arg("activation"))
      .def("add_activate", &PyExecutor::add_activate, nb::arg("output"), nb::arg("input"), nb::arg("width"),
           nb::arg("activation"))
      .def("add_scale", &PyExecutor::add_scale, nb::arg("output"), nb::arg("input"), nb::arg("width"),
           nb::arg("factor"))
      .def("add_softcap", &PyExecutor::add_softcap, nb::arg("output"), nb::arg("input"), nb::arg("width"),
           nb::arg("cap"))
      .def("add_add", &PyExecutor::add_add, nb::arg("output"), nb::arg("left"), nb::arg("right"), nb::arg("width"))
      .def("add_select_rows", &PyExecutor::add_select_rows, nb::arg("output"), nb::arg("input"), nb::arg("width"))
      .def("finish", &PyExecutor::finish, nb::arg("output"))
      .def("forward", &PyExecutor::forward, nb::arg("token_ids").noconvert(), nb::arg("positions").noconvert(),
           nb::arg("row_sequence").noconvert(), nb::arg("block_tables").noconvert(), nb::arg("logits_rows").noconvert(),
           nb::sig("def forward(self, token_ids: numpy.typing.NDArray[numpy.int32], "
                   "positions: numpy.typing.NDArray[numpy.int32], row_sequence: numpy.typing.NDArray[numpy.int32], "
                   "block_tables: numpy.typing.NDArray[numpy.int32], logits_rows: numpy.typing.NDArray[numpy.int32]"
                   ") -> numpy.typing.NDArray[numpy.float32]"))
      .def("set_profiling", &PyExecutor::set_profiling, nb::arg("is_on"))
      .def("call_ns", &PyExecutor::call_ns)
      .def("kv_bytes", &PyExecutor::kv_bytes);
}

}  // namespace subsecond
