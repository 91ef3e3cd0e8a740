"""Measures what the README states: cold start and speed, beside llama.cpp, with the quality of the same file.

Run from the repository: python -m bench.run [--model NAME_OR_PATH] [--rounds 7] [--llama-build FOLDER]
Every sample is a process of its own; ours and the peer's alternate, so that both see the same machine. A table goes to
standard error, one JSON object to standard output. Without --llama-build (see bench/peers/llama_cpp/build.sh) the peer
is left out, and the table says so. More peers and columns: bench.compare.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from bench.compare import Case, Column, origin_json, sampler
from bench.engines import LlamaCpp, Row, Subsecond
from bench.models import ROOT
from bench.rounds import measure
from bench.timing import PeerError, Workload
from subsecond.backends import native
from subsecond.core.hardware import probe
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.store import resolve

COLUMNS = {
    "decode tokens/s": Column(Workload(128, 128)),
    "prompt 512 tokens/s": Column(Workload(512, 2), is_prompt=True),
}
QUESTION = "What is the capital of France?"
QUALITY_TEXT = ROOT / "tests" / "data" / "moby_dick.txt"


def sample_cold_start(model: str, threads: int) -> float:
    """Seconds from the start of the process to the first byte of the answer of `subsecond run`."""
    command = [sys.executable, "-m", "subsecond", "run", model, QUESTION, "--num-threads", str(threads)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        elapsed = time.perf_counter() - start
        process.stdout.read()
    if process.returncode != 0 or not first:
        raise PeerError(f"`subsecond run {model}` ended with {process.returncode}")
    return elapsed


def quality(checkpoint: Checkpoint) -> dict[str, float]:
    """Mean KL and top-1 agreement with the fp32 reference on four windows of 256 tokens; needs torch."""
    from subsecond.backends.torch import TorchBackend
    from subsecond.measure.evaluation import evaluate
    from subsecond.measure.windows import windows_of_text

    windows = windows_of_text(QUALITY_TEXT.read_text(encoding="utf-8"), checkpoint.tokenizer.encode, 4, 256)
    reference = TorchBackend(checkpoint.graph(), checkpoint.weights, num_blocks=8, max_rows=256)
    report = evaluate(native.load(checkpoint, context_tokens=256), reference, windows)
    return {"mean KL": report.mean_kl.value, "top-1 agreement": report.top1_agreement.value}


def samplers_of(options: argparse.Namespace, path: Path) -> dict[tuple[str, str], Callable[[], float]]:
    """By engine and figure."""
    cases = [Case(Row("subsecond", None), path, Subsecond().command(None, None))]
    if options.llama_build:
        cases.append(Case(Row("llama.cpp", None), path, LlamaCpp(options.llama_build).command(None, None)))
    samplers = {
        (str(case.row), name): sampler(case, column, options.threads)
        for name, column in COLUMNS.items()
        for case in cases
    }
    samplers["subsecond run", "cold start to first token, s"] = lambda: sample_cold_start(
        options.model, options.threads
    )
    return samplers


def main() -> None:
    """Measure and print."""
    options = _parse_options()
    checkpoint = open_checkpoint(resolve(options.model))
    figures, failures = measure(samplers_of(options, checkpoint.path), options.rounds)
    if failures:
        sys.exit("\n".join(f"{' '.join(key)}: {reason}" for key, reason in failures.items()))
    found_quality = quality(checkpoint)
    isa = native.choose_isa()
    print(
        f"{checkpoint.config.name}, {isa} kernels, {options.threads} threads, {probe().processor_name}", file=sys.stderr
    )
    for (engine, name), f in figures.items():
        spread = f"({f.lowest:.4g} to {f.highest:.4g}, {f.num_samples} runs)"
        print(f"{engine:<14}{name:<30}{f.median:<8.4g}{spread}", file=sys.stderr)
    print(", ".join(f"{k} {v:.3g}" for k, v in found_quality.items()), file=sys.stderr)
    if not options.llama_build:
        print("llama.cpp: not measured; build it and give --llama-build", file=sys.stderr)
    by_engine: dict[str, dict[str, object]] = {}
    for (engine, name), figure in figures.items():
        by_engine.setdefault(engine, {})[name] = asdict(figure)
    result = origin_json(options.threads) | {
        "isa": isa,
        "source_sha256": checkpoint.source_sha256,
        "figures": by_engine,
        "quality": found_quality,
    }
    print(json.dumps(result))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure speed and quality on this machine.")
    parser.add_argument("--model", default="smollm2-135m", help="name of a pulled model, or path of a GGUF file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=probe().num_usable_cores)
    parser.add_argument("--llama-build", type=Path, help="work folder of bench/peers/llama_cpp/build.sh")
    return parser.parse_args()


if __name__ == "__main__":
    main()
