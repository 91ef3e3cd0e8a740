"""Quality of several candidates against the fp32 torch reference, all over the same windows of a text.

Run from the repository: python -m bench.quality.compare --model MODEL.gguf --text TEXT --against native,llama.cpp
A table goes to standard error, one JSON object to standard output. The reference is computed once a window.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from bench.peers.llama_cpp.llama_cpp import iterate_logits
from subsecond.backends.batch import Float32, Int32
from subsecond.backends.torch import TorchBackend
from subsecond.measure.evaluation import LogitsSource, evaluate_all, forward_windows
from subsecond.measure.quality import Estimate, QualityReport
from subsecond.measure.windows import windows_of_text
from subsecond.models.checkpoint import Checkpoint, open_checkpoint

if TYPE_CHECKING:
    from subsecond.backends.native import Kv, Weights

FIGURES = ("perplexity", "perplexity_ratio", "mean_kl", "median_kl", "p99_kl", "top1_agreement")

# The logits of windows.
Candidate = Callable[[argparse.Namespace, Checkpoint, Int32], Iterable[Float32]]


def native(
    options: argparse.Namespace,
    checkpoint: Checkpoint,
    windows: Int32,
    isa: str | None = None,
    weights: Weights = "stored",
    kv: Kv | None = None,
) -> Iterable[Float32]:
    """Our native backend; `isa` None is the best instruction set of this processor."""
    # Needs the built extension, which the other candidates do not.
    from subsecond.backends.native import load

    backend = load(
        checkpoint, isa=isa, num_threads=options.threads, context_tokens=options.length, weights=weights, kv=kv
    )
    return forward_windows(backend, windows)


def llama_cpp(options: argparse.Namespace, _checkpoint: Checkpoint, windows: Int32) -> Iterable[Float32]:
    """llama.cpp as build.sh made it, with its defaults."""
    if options.llama_build is None:
        sys.exit("llama.cpp needs --llama-build, the work folder that was given to bench/peers/llama_cpp/build.sh")
    return iterate_logits(options.llama_build, options.model, windows, options.threads)


def torch_bf16(_options: argparse.Namespace, checkpoint: Checkpoint, windows: Int32) -> Iterable[Float32]:
    """The torch backend with weights and activations in bfloat16."""
    return forward_windows(torch_backend(checkpoint, windows, torch.bfloat16), windows)


CANDIDATES: Mapping[str, Candidate] = {"native": native, "llama.cpp": llama_cpp, "torch-bf16": torch_bf16}


def torch_backend(checkpoint: Checkpoint, windows: Int32, dtype: torch.dtype) -> TorchBackend:
    """A torch backend with just enough blocks for one window."""
    window_len = windows.shape[1]
    num_blocks = -(-window_len // 32)
    return TorchBackend(checkpoint.graph(), checkpoint.weights, num_blocks=num_blocks, max_rows=window_len, dtype=dtype)


def make_candidates(options: argparse.Namespace, checkpoint: Checkpoint, windows: Int32) -> dict[str, LogitsSource]:
    """The asked candidates by name; one of ours for every instruction set, kind of weights and of keys."""
    sources: dict[str, LogitsSource] = {}
    for name in options.against:
        if name == "native":
            for isa, weights, kv in product(options.isa or [None], options.weights, options.kv or [None]):
                parts = (name, isa, weights if weights != "stored" else None, f"kv-{kv}" if kv else None)
                sources["-".join(filter(None, parts))] = native(options, checkpoint, windows, isa, weights, kv)
        else:
            sources[name] = CANDIDATES[name](options, checkpoint, windows)
    return sources


def print_table(reports: Mapping[str, QualityReport]) -> None:
    """One line a figure and candidate, with its 95 % interval."""
    first = next(iter(reports.values()))
    print(f"{first.num_windows} windows, {first.num_tokens} scored tokens", file=sys.stderr)
    print(f"reference perplexity {first.perplexity_reference.value:.4f}", file=sys.stderr)
    width = max(len(name) for name in reports)
    for figure in FIGURES:
        for name, report in reports.items():
            estimate: Estimate = getattr(report, figure)
            interval = f"{estimate.low:.6g} to {estimate.high:.6g}"
            print(f"{figure:<18}{name:<{width + 2}}{estimate.value:<12.6g}{interval}", file=sys.stderr)


def names_of(text: str) -> list[str]:
    """The names in a list with commas."""
    return text.split(",")


def parse_options() -> argparse.Namespace:
    """Command line; --against and --isa take lists with commas."""
    parser = argparse.ArgumentParser(description="Quality of candidates against the fp32 reference.")
    parser.add_argument("--model", type=Path, required=True, help="GGUF file")
    parser.add_argument("--text", type=Path, required=True, help="text file in UTF-8")
    parser.add_argument("--windows", type=int, default=40)
    parser.add_argument("--length", type=int, default=512, help="tokens a window")
    parser.add_argument("--against", type=names_of, default=["native"], help=", ".join(CANDIDATES))
    parser.add_argument("--isa", type=names_of, default=[], help="instruction sets for native, one candidate each")
    parser.add_argument(
        "--weights", type=names_of, default=["stored"], help="stored, int8, int4 for native, one candidate each"
    )
    parser.add_argument("--kv", type=names_of, default=[], help="f16, int8 for native, one candidate each")
    parser.add_argument("--llama-build", type=Path, help="work folder of bench/peers/llama_cpp/build.sh")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    unknown = [name for name in options.against if name not in CANDIDATES]
    if unknown:
        parser.error(f"--against {','.join(unknown)}: candidates are {', '.join(CANDIDATES)}")
    return options


def main() -> None:
    """Evaluate and print."""
    options = parse_options()
    checkpoint = open_checkpoint(options.model)
    text = options.text.read_text(encoding="utf-8")
    windows = windows_of_text(text, checkpoint.tokenizer.encode, options.windows, options.length)
    started = time.monotonic()

    def show_progress(done: int, total: int) -> None:
        print(f"window {done}/{total}, {time.monotonic() - started:.0f} s", file=sys.stderr)

    candidates = make_candidates(options, checkpoint, windows)
    reports = evaluate_all(candidates, torch_backend(checkpoint, windows, torch.float32), windows, show_progress)
    print_table(reports)
    result = {"model": checkpoint.config.name, "file": options.model.name, "text": options.text.name}
    result |= {"window_len": options.length, "reports": {name: report.to_json() for name, report in reports.items()}}
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main()
