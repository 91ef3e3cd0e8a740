// Writes a GGUF file again with another type of weights, also from weights that are quantized already.
//
//   requantize model.gguf output.gguf q4_0|q4_k_m|q8_0|bf16 num_threads
//
// It is for speed: what is rounded twice has lost quality twice.

#include <map>

#include "session.hpp"

namespace {

const std::map<std::string, llama_ftype> types = {{"q4_0", LLAMA_FTYPE_MOSTLY_Q4_0},
                                                  {"q4_k_m", LLAMA_FTYPE_MOSTLY_Q4_K_M},
                                                  {"q8_0", LLAMA_FTYPE_MOSTLY_Q8_0},
                                                  {"bf16", LLAMA_FTYPE_MOSTLY_BF16}};

void requantize(const char* model_path, const char* output_path, const std::string& type, int32_t num_threads) {
  const auto found = types.find(type);
  if (found == types.end()) throw std::runtime_error(type + ": not one of q4_0, q4_k_m, q8_0, bf16");
  llama_backend_init();
  llama_model_quantize_params params = llama_model_quantize_default_params();
  params.ftype = found->second;
  params.nthread = num_threads;
  params.allow_requantize = true;
  if (llama_model_quantize(model_path, output_path, &params) != 0) {
    throw std::runtime_error(std::string(model_path) + ": llama.cpp could not requantize it");
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 5) {
    std::fprintf(stderr, "usage: requantize model.gguf output.gguf q4_0|q4_k_m|q8_0|bf16 num_threads\n");
    return 2;
  }
  try {
    requantize(argv[1], argv[2], argv[3], peer::parse_count("num_threads", argv[4], 1, 1024));
  } catch (const std::exception& error) {
    std::fprintf(stderr, "requantize: %s\n", error.what());
    return 1;
  }
  return 0;
}
