// The Python module: the machine, packed weights and memory; executor, kernels and sampler are in files beside this
// one.

#include "bindings.h"

#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <algorithm>

#include "cpu_features.h"
#include "list_weight.h"
#include "packed_weight.h"
#include "probe.h"
#include "self_test.h"
#include "sparse_weight.h"

namespace subsecond {
namespace {

using HalfRows = nb::ndarray<const uint16_t, nb::ndim<2>, nb::c_contig, nb::device::cpu>;
using Packed = nb::ndarray<uint8_t, nb::ndim<1>, nb::c_contig, nb::device::cpu>;

int64_t packed_size(const std::string& name, int64_t num_outputs, int64_t num_inputs) {
  const Format format = checked_format(name, num_outputs, num_inputs);
  if (has_offsets(format)) throw nb::value_error("the size of a sparse weight depends on its zeros");
  return packed_bytes(format, num_outputs, num_inputs);
}

void pack_into(const std::string& name, int64_t num_outputs, int64_t num_inputs, const Bytes& stored,
               const Packed& packed) {
  const Format format = checked_format(name, num_outputs, num_inputs);
  if (is_channel(format)) throw nb::value_error((name + " is no stored format; quantize_into makes it").c_str());
  if (has_offsets(format)) throw nb::value_error("pack_sparse_into packs sparse weights");
  const FormatInfo& info = format_info(format);
  if (static_cast<int64_t>(stored.shape(0)) != num_outputs * (num_inputs / info.block_elements) * info.block_bytes)
    throw nb::value_error("the stored tensor has not the number of bytes that its shape asks for");
  if (static_cast<int64_t>(packed.shape(0)) != packed_bytes(format, num_outputs, num_inputs))
    throw nb::value_error("the packed buffer has not the size that packed_size gives");
  nb::gil_scoped_release release;
  pack_weight(format, num_outputs, num_inputs, stored.data(), packed.data());
}

// Outputs [begin, begin + rows) of a weight of a channel format from their float32 weights, which are overwritten.
void quantize_into(const std::string& name, int64_t num_outputs, int64_t num_inputs, const Rows& rows, int64_t begin,
                   const Packed& packed) {
  const Format format = checked_format(name, num_outputs, num_inputs);
  const auto count = static_cast<int64_t>(rows.shape(0));
  if (!is_channel(format)) throw nb::value_error((name + " is no channel format; quantize_into makes those").c_str());
  if (static_cast<int64_t>(packed.shape(0)) != packed_bytes(format, num_outputs, num_inputs))
    throw nb::value_error("the packed buffer has not the size that packed_size gives");
  if (static_cast<int64_t>(rows.shape(1)) != num_inputs || begin < 0 || begin % kPanelOutputs != 0 ||
      begin > num_outputs - count || (count % kPanelOutputs != 0 && begin + count != num_outputs))
    throw nb::value_error("rows of num_inputs weights, whole panels of sixteen or up to the last output");
  nb::gil_scoped_release release;
  const float factor = 1.0f / Rotation(num_inputs).factor();
  for (int64_t row = 0; row < count; ++row) {
    float* x = rows.data() + row * num_inputs;
    available_kernels().front()->rotate(x, num_inputs);
    for (int64_t k = 0; k < num_inputs; ++k) x[k] *= factor;
  }
  quantize_weight(format, num_outputs, num_inputs, rows.data(), begin, begin + count, packed.data());
}

// A format of sparse weights; the rows are whole panels of such a weight, or those up to its last output.
Format checked_sparse(const std::string& name, int64_t num_outputs, int64_t num_inputs, const HalfRows& rows,
                      int64_t begin) {
  const Format format = checked_format(name, num_outputs, num_inputs);
  if (!has_offsets(format)) throw nb::value_error((name + " is no format of sparse weights").c_str());
  const auto count = static_cast<int64_t>(rows.shape(0));
  if (static_cast<int64_t>(rows.shape(1)) != num_inputs || begin < 0 || begin % kPanelOutputs != 0 ||
      begin > num_outputs - count || (count % kPanelOutputs != 0 && begin + count != num_outputs))
    throw nb::value_error("rows of num_inputs weights, whole panels of sixteen or up to the last output");
  return format;
}

int64_t sparse_size(const std::string& name, int64_t num_outputs, int64_t num_inputs, const HalfRows& rows,
                    int64_t begin) {
  const Format format = checked_sparse(name, num_outputs, num_inputs, rows, begin);
  nb::gil_scoped_release release;
  const auto panels_bytes = format == Format::kF16_LIST ? list_panels_bytes : sparse_panels_bytes;
  return (begin == 0 ? offsets_bytes(num_outputs) : 0) +
         panels_bytes(num_inputs, rows.data(), static_cast<int64_t>(rows.shape(0)));
}

// Outputs [begin, begin + rows) of a sparse weight; those before were packed. Returns where the next ones begin.
int64_t pack_sparse_into(const std::string& name, int64_t num_outputs, int64_t num_inputs, const HalfRows& rows,
                         int64_t begin, const Packed& packed) {
  const Format format = checked_sparse(name, num_outputs, num_inputs, rows, begin);
  const int64_t num_bytes = sparse_size(name, num_outputs, num_inputs, rows, begin);
  const int64_t size = static_cast<int64_t>(packed.shape(0)), header = offsets_bytes(num_outputs);
  if (size < header) throw nb::value_error("the packed buffer is smaller than sparse_size says");
  const auto start = begin == 0 ? int64_t{0} : static_cast<int64_t>(offset_at(packed.data(), begin / kPanelOutputs));
  if (start < (begin == 0 ? 0 : header) || num_bytes > size - start)
    throw nb::value_error("the packed buffer is smaller than sparse_size says, or holds not the outputs before");
  nb::gil_scoped_release release;
  const int64_t end = begin + static_cast<int64_t>(rows.shape(0));
  const auto pack = format == Format::kF16_LIST ? pack_list : pack_sparse;
  pack(num_outputs, num_inputs, rows.data(), begin, end, packed.data());
  return start + num_bytes;
}

nb::dict features() {
  const CpuFeatures& f = cpu_features();
  nb::dict d;
  d["avx2"] = f.avx2;
  d["avx_vnni"] = f.avx_vnni;
  d["avx512"] = f.avx512;
  d["avx512_vnni"] = f.avx512_vnni;
  d["avx512_fp16"] = f.avx512_fp16;
  d["amx"] = f.amx;
  return d;
}

std::vector<std::string> isas() {
  std::vector<std::string> names;
  for (const Kernels* kernels : available_kernels()) names.emplace_back(kernels->isa);
  return names;
}

nb::dict missing_features() {
  nb::dict d;
  for (const IsaSupport& support : isa_support()) d[support.isa] = nb::cast(support.missing);
  return d;
}

nb::list run_self_test(const std::string& isa) {
  const Kernels& kernels = checked_kernels(isa);
  std::vector<SelfTestResult> results;
  {
    nb::gil_scoped_release release;
    results = self_test(kernels);
  }
  nb::list list;
  for (const SelfTestResult& result : results)
    list.append(nb::make_tuple(result.kernel, result.error, result.tolerance, result.has_passed()));
  return list;
}

void check_threads(int num_threads) {
  if (num_threads < 1 || num_threads > 1024) throw nb::value_error("1 to 1024 threads");
}

std::vector<std::string> kv_types(const std::string& isa) {
  std::vector<std::string> names;
  for (const AttentionKernels& attention : checked_kernels(isa).attention)
    if (attention.kv_type) names.emplace_back(attention.kv_type);
  return names;
}

int64_t kv_head_bytes(const std::string& isa, const std::string& kv_type, int64_t head_dim) {
  return checked_attention(checked_kernels(isa), kv_type).head_bytes(head_dim);
}

std::vector<std::tuple<std::string, std::string, double>> peaks(int num_threads, double try_s) {
  check_threads(num_threads);
  if (!(try_s > 0.0 && try_s < 1.0)) throw nb::value_error("a try takes less than a second");
  nb::gil_scoped_release release;
  std::vector<std::tuple<std::string, std::string, double>> list;
  for (const Peak& peak : measure_peaks(num_threads, try_s))
    list.emplace_back(peak.isa, peak.instruction, peak.operations_s);
  return list;
}

std::vector<std::tuple<int, int64_t, double>> read_rates(int num_threads, const std::vector<int64_t>& thread_bytes,
                                                         double limit_s) {
  check_threads(num_threads);
  if (thread_bytes.empty() || !std::is_sorted(thread_bytes.begin(), thread_bytes.end()))
    throw nb::value_error("one working set at least, in ascending order");
  for (const int64_t num_bytes : thread_bytes)
    if (num_bytes < kReadBytes || num_bytes % kReadBytes != 0 || num_bytes > int64_t{1} << 36)
      throw nb::value_error("a working set is a multiple of 16 KiB and at most 64 GiB");
  nb::gil_scoped_release release;
  std::vector<std::tuple<int, int64_t, double>> list;
  for (const ReadRate& rate : measure_read_rates(num_threads, thread_bytes, limit_s))
    list.emplace_back(rate.num_threads, rate.thread_bytes, rate.bytes_s);
  return list;
}

std::tuple<double, double> pool_times(int num_threads) {
  check_threads(num_threads);
  nb::gil_scoped_release release;
  const PoolTimes times = measure_pool(num_threads);
  return {times.run_s, times.barrier_s};
}

double processor_share(int num_threads, double seconds) {
  check_threads(num_threads);
  if (!(seconds > 0.0 && seconds < 10.0)) throw nb::value_error("less than ten seconds");
  nb::gil_scoped_release release;
  return measure_processor_share(num_threads, seconds);
}

}  // namespace

const Kernels& checked_kernels(const std::string& isa) {
  const Kernels* kernels = find_kernels(isa);
  if (!kernels) throw nb::value_error(("instruction set " + isa + " cannot run here").c_str());
  return *kernels;
}

const AttentionKernels& checked_attention(const Kernels& kernels, const std::string& kv_type) {
  const AttentionKernels* attention = find_attention(kernels, kv_type);
  if (!attention)
    throw nb::value_error(("keys and values of " + std::string(kernels.isa) + " cannot be " + kv_type).c_str());
  return *attention;
}

Format checked_format(const std::string& name, int64_t num_outputs, int64_t num_inputs) {
  constexpr int64_t kLargest = int64_t{1} << 31;
  const Format format = format_by_name(name.c_str());
  if (format == Format::kCount) throw nb::value_error(("no packed form of tensor type " + name).c_str());
  if (num_outputs < 1 || num_inputs < 1 || num_outputs > kLargest || num_inputs > kLargest)
    throw nb::value_error("a weight has 1 to 2^31 outputs and inputs");
  if (num_outputs > (int64_t{1} << 46) / num_inputs) throw nb::value_error("so large a weight fits into no memory");
  if (is_channel(format)) {
    if (num_inputs > kMaxChannelInputs) throw nb::value_error("a weight of a channel format has at most 65536 inputs");
    return format;
  }
  if (has_offsets(format)) {
    if (num_inputs > (format == Format::kF16_LIST ? kMaxListInputs : kMaxSparseInputs))
      throw nb::value_error("a weight of F16_SPARSE has at most 2^24 inputs, one of F16_LIST 65536");
    return format;
  }
  if (num_inputs % format_info(format).block_elements != 0)
    throw nb::value_error("the number of inputs is not a multiple of the block size of the format");
  return format;
}

PackedWeight checked_weight(const std::string& name, int64_t num_outputs, int64_t num_inputs, const Bytes& packed) {
  const Format format = checked_format(name, num_outputs, num_inputs);
  const PackedWeight weight{format, num_outputs, num_inputs, packed.data()};
  const auto size = static_cast<int64_t>(packed.shape(0));
  if (has_offsets(format)) {
    if (!(format == Format::kF16_LIST ? is_sound_list : is_sound_sparse)(weight, size))
      throw nb::value_error("offsets and contents of the sparse weight do not fit each other");
  } else if (size != packed_bytes(format, num_outputs, num_inputs)) {
    throw nb::value_error("the packed weight has not the number of bytes that its shape asks for");
  }
  return weight;
}

NB_MODULE(_native, module) {
  // Threads that still run at exit keep models alive; that is no leak to warn of.
  nb::set_leak_warnings(false);
  module.doc() = "Kernels, executor and sampler of subsecond in C++.";
  module.def("cpu_features", &features, nb::sig("def cpu_features() -> dict[str, bool]"),
             "Instruction sets that processor and operating system allow.");
  module.def("available_isas", &isas, "Instruction sets with kernels that run here, best first.");
  module.def("missing_features", &missing_features, nb::sig("def missing_features() -> dict[str, list[str]]"),
             "What each instruction set of this build, best first, needs and does not find here.");
  module.def("self_test", &run_self_test, nb::arg("isa"),
             nb::sig("def self_test(isa: str) -> list[tuple[str, float, float, bool]]"),
             "Compare with the scalar kernels: list of (kernel, relative error, tolerance, has passed).");
  module.def("measure_peaks", &peaks, nb::arg("num_threads"), nb::arg("try_s") = 2e-3,
             "Multiply instructions of every set that runs here: list of (set, instruction, operations a second).");
  module.def(
      "measure_read_rates", &read_rates, nb::arg("num_threads"), nb::arg("thread_bytes"), nb::arg("limit_s") = 1.0,
      "Read rates of one thread and of all, for working sets of a thread, as many as `limit_s` seconds allow: list of "
      "(threads, bytes of a thread, bytes a second of all).");
  module.def("measure_pool", &pool_times, nb::arg("num_threads"),
             "Seconds of an empty run of the pool, and of a barrier within one.");
  module.def("measure_processor_share", &processor_share, nb::arg("num_threads"), nb::arg("seconds") = 0.1,
             "Share of the processors' time that threads get which ask for all of it.");
  module.def("packed_size", &packed_size, nb::arg("format"), nb::arg("num_outputs"), nb::arg("num_inputs"),
             "Bytes of a packed weight, of all formats but F16_SPARSE and F16_LIST.");
  module.def("pack_into", &pack_into, nb::arg("format"), nb::arg("num_outputs"), nb::arg("num_inputs"),
             nb::arg("stored").noconvert(), nb::arg("packed").noconvert(),
             "Reorder a stored tensor into its packed form.");
  module.def(
      "quantize_into", &quantize_into, nb::arg("format"), nb::arg("num_outputs"), nb::arg("num_inputs"),
      nb::arg("rows").noconvert(), nb::arg("begin"), nb::arg("packed").noconvert(),
      "Quantize outputs from `begin` on, float32 rows that are rotated in place, into a weight of a channel format.");
  module.def("sparse_size", &sparse_size, nb::arg("format"), nb::arg("num_outputs"), nb::arg("num_inputs"),
             nb::arg("rows").noconvert(), nb::arg("begin"),
             "Bytes that outputs from `begin` on, bits of float16, add to a weight of format F16_SPARSE or F16_LIST.");
  module.def("pack_sparse_into", &pack_sparse_into, nb::arg("format"), nb::arg("num_outputs"), nb::arg("num_inputs"),
             nb::arg("rows").noconvert(), nb::arg("begin"), nb::arg("packed").noconvert(),
             "Pack outputs from `begin` on, those before having been packed; returns where the next ones begin.");
  module.def(
      "allocate", [](size_t num_bytes) { return as_array(Buffer(num_bytes)); }, nb::arg("num_bytes"),
      nb::sig("def allocate(num_bytes: int) -> numpy.typing.NDArray[numpy.uint8]"),
      "Zeroed uint8 array in huge pages where the system grants them.");
  module.def(
      "arithmetic", [](const std::string& isa) { return checked_kernels(isa).arithmetic; }, nb::arg("isa"),
      "Arithmetic of the linears of an instruction set: i16 or bf16.");
  module.def("kv_types", &kv_types, nb::arg("isa"),
             "Types of keys and values of an instruction set, the default first: f16 and int8, bf16 with AMX.");
  module.def("kv_head_bytes", &kv_head_bytes, nb::arg("isa"), nb::arg("kv_type"), nb::arg("head_dim"),
             "Bytes of one key/value block of one head.");
  module.attr("BLOCK_TOKENS") = kBlockTokens;
  bind_executor(module);
  bind_kernels(module);
  bind_sampler(module);
}

}  // namespace subsecond
