// The executor as a Python class: add weights, vectors and calls once, then one call a step with the GIL released.

#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include "bindings.h"
#include "cpu_features.h"
#include "executor.h"

namespace subsecond {
namespace {

// The key/value cache of all layers in bytes, or -1 when that is no size a machine could have.
int64_t cache_bytes(const Kernels& kernels, const ExecutorConfig& config) {
  int64_t bytes = kernels.head_bytes(config.head_dim);
  for (const int64_t factor : {config.num_layers, config.num_blocks, config.num_kv_heads})
    if (__builtin_mul_overflow(bytes, factor, &bytes) || bytes > int64_t{1} << 46) return -1;
  return bytes;
}

ExecutorConfig checked_config(const Kernels& kernels, const ExecutorConfig& config) {
  if (config.num_threads < 1 || config.max_rows < 1 || config.num_blocks < 1)
    throw nb::value_error("threads, rows and blocks are at least 1");
  // Bounds far above any use, below which no product of sizes overflows.
  if (config.num_threads > 1024 || config.max_rows > int64_t{1} << 24 || config.all_floats > int64_t{1} << 32 ||
      config.selected_floats > int64_t{1} << 32)
    throw nb::value_error("so many threads, rows or floats a row fit into no machine");
  if (config.head_dim < 1 || config.head_dim > 1024) throw nb::value_error("head_dim must lie between 1 and 1024");
  if (config.vocab_size < 1 || config.all_floats < 0 || config.selected_floats < 0 || config.num_layers < 0 ||
      config.num_kv_heads < 1)
    throw nb::value_error("sizes of an executor must not be negative");
  if (cache_bytes(kernels, config) < 0) throw nb::value_error("so many key/value blocks fit into no memory");
  return config;
}

const Kernels& checked_kernels(const std::string& isa) {
  const Kernels* kernels = find_kernels(isa);
  if (!kernels) throw nb::value_error(("instruction set " + isa + " cannot run here").c_str());
  return *kernels;
}

class PyExecutor {
 public:
  PyExecutor(const std::string& isa, int num_threads, int64_t max_rows, int64_t vocab_size, int64_t all_floats,
             int64_t selected_floats, int64_t num_layers, int64_t num_blocks, int64_t num_kv_heads, int64_t head_dim)
      : executor_(checked_kernels(isa),
                  checked_config(checked_kernels(isa),
                                 ExecutorConfig{num_threads, max_rows, vocab_size, all_floats, selected_floats,
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

  int add_rotary(std::vector<double> frequencies, bool is_interleaved) {
    if (frequencies.empty()) throw nb::value_error("a rotary embedding has at least one pair of channels");
    rotary_dims_.push_back(2 * static_cast<int64_t>(frequencies.size()));
    return executor_.add_rotary(std::move(frequencies), is_interleaved);
  }

  void add_embed(nb::object output, int64_t weight) {
    Call call;
    call.kind = Call::Kind::kEmbed;
    call.weights.push_back(weights_.at(static_cast<size_t>(weight)));
    call.width = call.weights[0].num_inputs;
    if (call.weights[0].num_outputs < executor_.config().vocab_size)
      throw nb::value_error("the embedding has fewer rows than the vocabulary");
    call.output = operand(output, call.width);
    executor_.add_call(std::move(call));
  }

  void add_linear(nb::object output, nb::object input, const std::vector<int64_t>& weights,
                  const std::vector<int64_t>& biases, int64_t norm, float norm_eps, bool is_gated,
                  nb::object residual) {
    Call call;
    call.kind = Call::Kind::kLinear;
    if (weights.empty() || weights.size() != biases.size())
      throw nb::value_error("a linear has one bias entry a weight");
    for (const int64_t index : weights) call.weights.push_back(weights_.at(static_cast<size_t>(index)));
    for (size_t i = 0; i < biases.size(); ++i) call.biases.push_back(vector(biases[i], call.weights[i].num_outputs));
    call.width = call.weights[0].num_inputs;
    for (const PackedWeight& weight : call.weights)
      if (weight.num_inputs != call.width) throw nb::value_error("the weights of a linear have different inputs");
    if (is_gated && (weights.size() != 2 || call.weights[0].num_outputs != call.weights[1].num_outputs))
      throw nb::value_error("a gated linear has two weights of one shape");
    int64_t num_outputs = 0;
    for (const PackedWeight& weight : call.weights) num_outputs += weight.num_outputs;
    if (is_gated) num_outputs /= 2;
    call.output = operand(output, num_outputs);
    call.inputs[0] = operand(input, call.width);
    if (!residual.is_none()) call.residual = operand(residual, num_outputs);
    call.norm_weight = vector(norm, call.width);
    call.norm_eps = norm_eps;
    call.is_gated = is_gated;
    executor_.add_call(std::move(call));
  }

  void add_attention(nb::object output, nb::object query, nb::object key, nb::object value, int64_t layer,
                     int64_t num_heads, int64_t num_kv_heads, int64_t head_dim, float scale, int rotary) {
    const ExecutorConfig& config = executor_.config();
    if (layer < 0 || layer >= config.num_layers || num_kv_heads != config.num_kv_heads || head_dim != config.head_dim ||
        num_heads < 1 || num_heads > int64_t{1} << 20 || num_heads % num_kv_heads != 0 || !fits_head(rotary, head_dim))
      throw nb::value_error("the attention does not fit the key/value cache");
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
    call.scale = scale;
    call.rotary = rotary;
    executor_.add_call(std::move(call));
  }

  void add_rms_norm(nb::object output, nb::object input, int64_t width, int64_t norm, float norm_eps) {
    if (norm < 0) throw nb::value_error("a norm needs its vector");
    Call call = element_wise(Call::Kind::kRmsNorm, output, input, nb::none(), width);
    call.norm_weight = vector(norm, width);
    call.norm_eps = norm_eps;
    executor_.add_call(std::move(call));
  }

  void add_rope(nb::object output, nb::object input, int64_t width, int64_t head_dim, int rotary) {
    if (rotary < 0 || head_dim < 1 || width % head_dim != 0 || !fits_head(rotary, head_dim))
      throw nb::value_error("the rotary embedding does not fit the heads");
    Call call = element_wise(Call::Kind::kRope, output, input, nb::none(), width);
    call.head_dim = head_dim;
    call.rotary = rotary;
    executor_.add_call(std::move(call));
  }

  void add_gated_silu(nb::object output, nb::object gate, nb::object up, int64_t width) {
    executor_.add_call(element_wise(Call::Kind::kGatedSilu, output, gate, up, width));
  }

  void add_add(nb::object output, nb::object left, nb::object right, int64_t width) {
    executor_.add_call(element_wise(Call::Kind::kAdd, output, left, right, width));
  }

  void add_select_rows(nb::object output, nb::object input, int64_t width) {
    Call call = element_wise(Call::Kind::kSelectRows, output, input, nb::none(), width);
    if (call.output.arena != Operand::Arena::kSelected || call.inputs[0].arena != Operand::Arena::kAll)
      throw nb::value_error("rows are selected from the arena of all rows into the other one");
    executor_.add_call(std::move(call));
  }

  void finish(nb::object logits) {
    executor_.finish(operand(logits, executor_.config().vocab_size));
    is_finished_ = true;
  }

  // Logits [selected rows][vocab_size] as a view that the next step overwrites.
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
    const float* logits;
    {
      nb::gil_scoped_release release;
      logits = executor_.forward(batch);
    }
    const size_t shape[2] = {static_cast<size_t>(batch.num_selected),
                             static_cast<size_t>(executor_.config().vocab_size)};
    return nb::cast(nb::ndarray<nb::numpy, const float, nb::ndim<2>>(logits, 2, shape, nb::find(this)));
  }

  void set_profiling(bool is_on) {
    executor_.is_profiling = is_on;
    std::fill(executor_.call_ns.begin(), executor_.call_ns.end(), 0);
  }
  std::vector<int64_t> call_ns() const { return executor_.call_ns; }
  int64_t kv_bytes() const { return executor_.kv_bytes(); }

 private:
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
      if (batch.token_ids[r] < 0 || batch.token_ids[r] >= config.vocab_size)
        throw nb::value_error("token id out of range");
      if (sequence < 0 || sequence >= num_sequences) throw nb::value_error("row_sequence out of range");
      if (position < 0 || position / kBlockTokens >= batch.blocks_per_sequence)
        throw nb::value_error("position out of range");
      for (int64_t b = r && batch.row_sequence[r - 1] == sequence ? position / kBlockTokens : 0;
           b <= position / kBlockTokens; ++b) {
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
};

}  // namespace

void bind_executor(nb::module_& module) {
  nb::class_<PyExecutor>(module, "Executor", "Runs one segment of a plan; see executor.h.")
      .def(nb::init<const std::string&, int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>(),
           nb::arg("isa"), nb::arg("num_threads"), nb::arg("max_rows"), nb::arg("vocab_size"), nb::arg("all_floats"),
           nb::arg("selected_floats"), nb::arg("num_layers"), nb::arg("num_blocks"), nb::arg("num_kv_heads"),
           nb::arg("head_dim"))
      .def("add_weight", &PyExecutor::add_weight, nb::arg("format"), nb::arg("num_outputs"), nb::arg("num_inputs"),
           nb::arg("packed").noconvert())
      .def("add_vector", &PyExecutor::add_vector, nb::arg("values").noconvert())
      .def("add_rotary", &PyExecutor::add_rotary, nb::arg("frequencies"), nb::arg("is_interleaved"))
      .def("add_embed", &PyExecutor::add_embed, nb::arg("output"), nb::arg("weight"))
      .def("add_linear", &PyExecutor::add_linear, nb::arg("output"), nb::arg("input"), nb::arg("weights"),
           nb::arg("biases"), nb::arg("norm"), nb::arg("norm_eps"), nb::arg("is_gated"), nb::arg("residual").none())
      .def("add_attention", &PyExecutor::add_attention, nb::arg("output"), nb::arg("query"), nb::arg("key"),
           nb::arg("value"), nb::arg("layer"), nb::arg("num_heads"), nb::arg("num_kv_heads"), nb::arg("head_dim"),
           nb::arg("scale"), nb::arg("rotary"))
      .def("add_rms_norm", &PyExecutor::add_rms_norm, nb::arg("output"), nb::arg("input"), nb::arg("width"),
           nb::arg("norm"), nb::arg("norm_eps"))
      .def("add_rope", &PyExecutor::add_rope, nb::arg("output"), nb::arg("input"), nb::arg("width"),
           nb::arg("head_dim"), nb::arg("rotary"))
      .def("add_gated_silu", &PyExecutor::add_gated_silu, nb::arg("output"), nb::arg("gate"), nb::arg("up"),
           nb::arg("width"))
      .def("add_add", &PyExecutor::add_add, nb::arg("output"), nb::arg("left"), nb::arg("right"), nb::arg("width"))
      .def("add_select_rows", &PyExecutor::add_select_rows, nb::arg("output"), nb::arg("input"), nb::arg("width"))
      .def("finish", &PyExecutor::finish, nb::arg("logits"))
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
