"""Measures what the README states: cold start and speed, beside llama.cpp, with the quality of the same file.

Run from the repository: python -m bench.run [--model NAME_OR_PATH] [--rounds 7] [--llama-build FOLDER]
Every sample is a process of its own; ours and the peer's alternate, so that both see the same machine. A table goes to
standard error, one JSON object to standard output. Without --llama-build (see bench/peers/llama_cpp/build.sh) the peer
is left out, and the table says so.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from bench.generation import prompt_of
from bench.peers.llama_cpp.llama_cpp import time_generation as time_llama_cpp
from subsecond.backends import native
from subsecond.core.hardware import probe
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.store import resolve

ROOT = Path(__file__).parents[1]
PROMPT_TOKENS = 128
NEW_TOKENS = 128
LONG_PROMPT_TOKENS = 512
QUESTION = "What is the capital of France?"
QUALITY_TEXT = ROOT / "tests" / "data" / "moby_dick.txt"

Sample = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Figure:
    """Median and range of one figure over the rounds."""

    median: float
    lowest: float
    highest: float
    num_samples: int

    @classmethod
    def of(cls, values: list[float]) -> Figure:
        return cls(statistics.median(values), min(values), max(values), len(values))


def sample_subsecond(model: str, threads: int) -> Sample:
    """One decode and one long prompt of ours, each in a fresh process."""
    short = _run_ours(model, PROMPT_TOKENS, NEW_TOKENS, threads)
    long = _run_ours(model, LONG_PROMPT_TOKENS, 2, threads)
    return {
        "decode tokens/s": 1e3 / statistics.fmean(short["step_ms"]),
        f"prompt {LONG_PROMPT_TOKENS} tokens/s": LONG_PROMPT_TOKENS / long["prefill_ms"] * 1e3,
    }


def sample_llama_cpp(build: Path, path: Path, vocab_size: int, threads: int) -> Sample:
    """The same of llama.cpp."""
    short = time_llama_cpp(build, path, prompt_of(PROMPT_TOKENS, vocab_size), NEW_TOKENS, threads)
    long = time_llama_cpp(build, path, prompt_of(LONG_PROMPT_TOKENS, vocab_size), 2, threads)
    return {
        "decode tokens/s": 1e3 / statistics.fmean(short.step_ms),
        f"prompt {LONG_PROMPT_TOKENS} tokens/s": LONG_PROMPT_TOKENS / long.prefill_ms * 1e3,
    }


def sample_cold_start(model: str, threads: int) -> Sample:
    """Seconds from the start of the process to the first byte of the answer of `subsecond run`."""
    command = [sys.executable, "-m", "subsecond", "run", model, QUESTION, "--num-threads", str(threads)]
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, bufsize=0) as process:
        assert process.stdout is not None
        first = process.stdout.read(1)
        elapsed = time.perf_counter() - start
        process.stdout.read()
    if process.returncode != 0 or not first:
        sys.exit(f"`subsecond run {model}` ended with {process.returncode}")
    return {"cold start to first token, s": elapsed}


def quality(checkpoint: Checkpoint) -> dict[str, float]:
    """Mean KL and top-1 agreement with the fp32 reference on four windows of 256 tokens; needs torch."""
    from subsecond.backends.torch import TorchBackend
    from subsecond.measure.evaluation import evaluate
    from subsecond.measure.windows import windows_of_text

    windows = windows_of_text(QUALITY_TEXT.read_text(encoding="utf-8"), checkpoint.tokenizer.encode, 4, 256)
    reference = TorchBackend(checkpoint.graph(), checkpoint.weights, num_blocks=8, max_rows=256)
    report = evaluate(native.load(checkpoint, context_tokens=256), reference, windows)
    return {"mean KL": report.mean_kl.value, "top-1 agreement": report.top1_agreement.value}


def measure(samplers: Mapping[str, Callable[[], Sample]], rounds: int) -> dict[str, dict[str, Figure]]:
    """Run all samplers in turn, `rounds` times; figures by sampler and name."""
    values: dict[str, dict[str, list[float]]] = {name: {} for name in samplers}
    for done in range(rounds):
        for name, sampler in samplers.items():
            for figure, value in sampler().items():
                values[name].setdefault(figure, []).append(value)
        print(f"round {done + 1}/{rounds}", file=sys.stderr)
    return {name: {figure: Figure.of(found) for figure, found in by.items()} for name, by in values.items()}


def main() -> None:
    """Measure and print."""
    options = _parse_options()
    path = resolve(options.model)
    checkpoint = open_checkpoint(path)
    samplers: dict[str, Callable[[], Sample]] = {
        "subsecond": lambda: sample_subsecond(options.model, options.threads),
        "subsecond run": lambda: sample_cold_start(options.model, options.threads),
    }
    if options.llama_build:
        vocab_size = checkpoint.config.vocab_size
        samplers["llama.cpp"] = lambda: sample_llama_cpp(options.llama_build, path, vocab_size, options.threads)
    figures = measure(samplers, options.rounds)
    found_quality = quality(checkpoint)
    machine, isa = probe(), native.choose_isa()
    print(
        f"{checkpoint.config.name}, {isa} kernels, {options.threads} threads, {machine.processor_name}", file=sys.stderr
    )
    for name, by in figures.items():
        for figure, f in by.items():
            spread = f"({f.lowest:.4g} to {f.highest:.4g}, {f.num_samples} runs)"
            print(f"{name:<14}{figure:<30}{f.median:<8.4g}{spread}", file=sys.stderr)
    print(", ".join(f"{k} {v:.3g}" for k, v in found_quality.items()), file=sys.stderr)
    if not options.llama_build:
        print("llama.cpp: not measured; build it and give --llama-build", file=sys.stderr)
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "processor": machine.processor_name,
        "threads": options.threads,
        "isa": isa,
        "source_sha256": checkpoint.source_sha256,
        "figures": {name: {key: asdict(f) for key, f in by.items()} for name, by in figures.items()},
        "quality": found_quality,
    }
    print(json.dumps(result))


def _run_ours(model: str, num_prompt: int, num_new: int, threads: int) -> dict[str, list[float]]:
    command = [sys.executable, "-m", "bench.generation", model, str(num_prompt), str(num_new), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    if done.returncode != 0:
        sys.exit(f"{' '.join(command)} failed: {done.stderr[-2000:]}")
    result: dict[str, list[float]] = json.loads(done.stdout)
    return result


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Measure speed and quality on this machine.")
    parser.add_argument("--model", default="smollm2-135m", help="name of a pulled model, or path of a GGUF file")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=probe().num_usable_cores)
    parser.add_argument("--llama-build", type=Path, help="work folder of bench/peers/llama_cpp/build.sh")
    return parser.parse_args()


if __name__ == "__main__":
    main()
