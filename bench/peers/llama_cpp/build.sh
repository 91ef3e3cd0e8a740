#!/usr/bin/env bash
# Builds llama.cpp for this machine's own CPU, with the programs of this folder, from one pinned source archive.
#
#   build.sh [--isa NAME] [--llama-bench] [--server] [--quantize] [work_folder]
#
# work_folder   default build/peers/llama_cpp in this repository
# --isa         instruction set to hold the build to, by the names of SUBSECOND_ISA: avx2, avxvnni, avx512, avx512vnni, amx.
#               It gets a folder of its own (build-NAME) in the same work folder. Default: native, all this CPU has.
# --llama-bench also builds llama.cpp's own benchmark (several minutes more).
# --server      also builds llama.cpp's own server, without its web page (many minutes more).
# --quantize    also builds llama.cpp's own programs that quantize by importance (a minute more after --llama-bench).
# Needs: python3 with pip, cmake >= 3.18, make, gcc and g++. Environment: PYTHON (default python3), JOBS (default 2),
# PIP_NO_BUILD_ISOLATION=0 to let pip use an installed scikit-build-core instead of fetching one: pip asks the archive
# for its metadata even when it only downloads (the value 0 is pip's own way to switch isolation off).
# Run again, it reuses the archive and the patched source and only lets make check what has changed.
set -euo pipefail

readonly package=llama_cpp_python version=0.3.36
readonly archive_sha256=832db0699007f1be95a7e41ef12e88926b02ba836461e36a36372db2760c1a2e
readonly here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
readonly python=${PYTHON:-python3} jobs=${JOBS:-2}

isa=native llama_bench=OFF server=OFF quantize=OFF
if [[ ${1:-} == --isa ]]; then isa=${2:-}; shift $(($# < 2 ? $# : 2)); fi
if [[ ${1:-} == --llama-bench ]]; then llama_bench=ON; shift; fi
if [[ ${1:-} == --server ]]; then server=ON; shift; fi
if [[ ${1:-} == --quantize ]]; then quantize=ON; shift; fi
if [[ $# -gt 1 || ${1:-} == -* || ! $isa =~ ^(native|avx2|avxvnni|avx512|avx512vnni|amx)$ ]]; then
    echo "usage: build.sh [--isa native|avx2|avxvnni|avx512|avx512vnni|amx] [--llama-bench] [--server] [--quantize] [work_folder];" \
        "got: $isa $*" >&2
    exit 2
fi
work=${1:-$here/../../../build/peers/llama_cpp}
mkdir -p "$work"
work=$(cd "$work" && pwd)
readonly archive=$work/$package-$version.tar.gz source=$work/source-$version
build=$work/build
[[ $isa == native ]] || build+=-$isa

archive_is_good() { [[ -f $archive ]] && echo "$archive_sha256  $archive" | sha256sum --check --status; }

if ! archive_is_good; then
    "$python" -m pip download --no-deps --no-binary llama-cpp-python --dest "$work" "llama-cpp-python==$version"
    archive_is_good || { echo "$archive: its sha256 is not $archive_sha256; delete it and run again" >&2; exit 1; }
fi

if [[ ! -f $source/.patched ]]; then
    rm -rf "$source"
    mkdir -p "$source"
    tar -xzf "$archive" -C "$source" --strip-components=3 "$package-$version/vendor/llama.cpp"
    # The archive's .git is a pointer to a folder outside it: build systems that watch it never come to rest.
    rm -f "$source/.git"
    # gcc 12 declares only 8 bytes of the 64-byte operand of _tile_loadconfig as read, so it may drop the stores that
    # fill the rest, and the processor then faults on the half-written configuration. The barrier keeps the stores.
    mmq=$source/ggml/src/ggml-cpu/amx/mmq.cpp
    sed -i 's/^\( *\)_tile_loadconfig(&tc);/\1__asm__ volatile("" :: "r"(\&tc) : "memory");\n&/' "$mmq"
    [[ $(grep -c '__asm__ volatile("" :: "r"(&tc) : "memory");' "$mmq") == 1 ]] ||
        { echo "$mmq: expected exactly one call of _tile_loadconfig(&tc) to patch" >&2; exit 1; }
    touch "$source/.patched"
fi

targets=(dump_logits time_decode requantize)
[[ $llama_bench == OFF ]] || targets+=(llama-bench)
[[ $server == OFF ]] || targets+=(llama-server)
[[ $quantize == OFF ]] || targets+=(llama-quantize llama-imatrix)
cmake -S "$here" -B "$build" -G "Unix Makefiles" -DCMAKE_BUILD_TYPE=Release \
    -DLLAMA_CPP_SOURCE="$source" -DPEER_ISA=$isa -DWITH_LLAMA_BENCH=$llama_bench \
    -DWITH_SERVER=$server -DWITH_QUANTIZE=$quantize >"$work/configure-$isa.log" 2>&1 ||
    { tail -n 30 "$work/configure-$isa.log" >&2; exit 1; }
nice -n 10 make -C "$build" -j"$jobs" --no-print-directory "${targets[@]}" >"$work/make-$isa.log" 2>&1 ||
    { tail -n 30 "$work/make-$isa.log" >&2; exit 1; }
echo "$build/bin"
