#!/usr/bin/env bash
# Installs engines to compare with, from the package registry into build/peers; what is there already stays.
#
#   setup.sh NAME...      llama_cpp, openvino, vllm, ctranslate2, transformers; converter comes along where it is needed;
#                         llama_server, which is llama_cpp with its server, for bench.serve_load
#
# Environment: PYTHON (default python3); for llama_cpp what build.sh takes, and ISA for its --isa.
set -euo pipefail

readonly here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly build=$here/../../build/peers
export PYTHON=${PYTHON:-python3}

install() {
    local folder=$build/$1 wanted=$here/$1/requirements.txt
    if cmp --quiet "$wanted" "$folder/ready"; then return; fi
    rm -rf "$folder/venv" "$folder/ready"
    "$PYTHON" -m venv "$folder/venv"
    nice -n 10 "$folder/venv/bin/python" -m pip install --quiet --requirement "$wanted"
    # Not needed for text, and the registry's are built against CUDA's torch, so that importing them fails.
    "$folder/venv/bin/python" -m pip uninstall --quiet --yes torchvision torchaudio torchcodec
    cp "$wanted" "$folder/ready"
}

for name in "$@"; do
    echo "$name ..." >&2
    case $name in
        llama_cpp) "$here/llama_cpp/build.sh" --isa "${ISA:-native}" ;;
        llama_server) "$here/llama_cpp/build.sh" --isa "${ISA:-native}" --server ;;
        openvino | ctranslate2)
            install converter
            install "$name" ;;
        vllm | transformers | converter) install "$name" ;;
        *)
            echo "setup.sh: $name is none of llama_cpp, llama_server, openvino, vllm, ctranslate2, transformers, converter" >&2
            exit 2 ;;
    esac
done
