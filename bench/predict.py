"""Compares predicted with measured times, on small models that no figure of the probe was fitted on.

Run from the repository: python -m bench.predict [--rounds 3] [--formats Q4_0,Q8_0] [--shapes NAME,...] [--folder KEEP]
The models have random weights in the shapes of public ones, with fewer layers and tokens. Every round measures the
machine anew and then each model through the engine, so that both see the same machine. A table goes to standard error,
one JSON object to standard output. With other programs running the measured times say little; their share is printed.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import subsecond
from bench.random_model import SHAPES, Shape, write
from subsecond.api import MAX_STEP_ROWS
from subsecond.backends.cost import CostModel
from subsecond.backends.native import measuring
from subsecond.backends.native.prediction import cost_model
from subsecond.backends.probe import Probe
from subsecond.core.hardware import probe as describe_machine
from subsecond.engine.request import Request, SamplingParams

ROOT = Path(__file__).parents[1]
SMALL: Mapping[str, Shape] = {
    "llama-3.2-1b": replace(SHAPES["llama-3.2-1b"], num_layers=3, vocab_size=32000),
    "qwen2.5-0.5b": replace(SHAPES["qwen2.5-0.5b"], num_layers=8, vocab_size=32000),
    "smollm2-135m": replace(SHAPES["smollm2-135m"], vocab_size=16384),
    "tinyllama-1.1b": replace(SHAPES["tinyllama-1.1b"], num_layers=4, vocab_size=16000),
}
CONTEXT_TOKENS = 2048
PROMPTS = {128: 4, 512: 2, 1024: 2}  # tokens, and times in a round
CONTEXTS = (128, 1024)
NEW_TOKENS = 24


@dataclass(frozen=True, slots=True)
class Comparison:
    """One figure of one model in milliseconds, medians over the rounds; `error` is relative to what was measured."""

    model: str
    figure: str
    measured_ms: float
    predicted_ms: float

    @property
    def error(self) -> float:
        """Predicted over measured, less one."""
        return self.predicted_ms / self.measured_ms - 1.0


class PromptCounter:
    """Prompts that differ from the first token on, so that no prefix is found in the cache."""

    def __init__(self) -> None:
        self._count = 0

    def next(self, num_tokens: int, vocab_size: int) -> list[int]:
        """Token ids without meaning."""
        self._count += 1
        return [(7919 * self._count + 37 * index) % (vocab_size // 2) for index in range(num_tokens)]


def time_generation(model: subsecond.Model, prompt_ids: list[int], num_tokens: int) -> dict[str, object]:
    """Milliseconds of the prompt (to the first token) and of every later token, through the engine."""
    params = SamplingParams(max_tokens=num_tokens, ignore_eos=True)
    stamps = [time.perf_counter()]
    ids = []
    for event in model.engine.submit(Request(tuple(prompt_ids), params, f"predict-{len(prompt_ids)}-{num_tokens}")):
        stamps.append(time.perf_counter())
        ids.append(event.token_id)
    steps = [(after - before) * 1e3 for before, after in pairwise(stamps)]
    return {"prefill_ms": steps[0], "step_ms": steps[1:], "token_ids": ids}


def measured(model: subsecond.Model, prompts: PromptCounter) -> Iterator[tuple[str, float]]:
    """(figure, milliseconds) of each figure, through the engine."""

    def generate(num_prompt: int, num_new: int) -> Mapping[str, object]:
        return time_generation(model, prompts.next(num_prompt, model.backend.vocab_size), num_new)

    generate(8, 8)
    for num_prompt, times in PROMPTS.items():
        samples = [float(str(generate(num_prompt, 1)["prefill_ms"])) for _ in range(times)]
        yield f"TTFT {num_prompt}", statistics.median(samples)
    for context in CONTEXTS:
        steps = generate(context, NEW_TOKENS)["step_ms"]
        assert isinstance(steps, list)
        yield f"TPOT {context}", statistics.median(steps)


def predicted(cost: CostModel) -> Iterator[tuple[str, float]]:
    """The same figures as `measured`, from the cost model."""
    for num_prompt in PROMPTS:
        yield f"TTFT {num_prompt}", cost.ttft_s(num_prompt, MAX_STEP_ROWS) * 1e3
    for context in CONTEXTS:
        yield f"TPOT {context}", cost.tpot_s(context + NEW_TOKENS // 2) * 1e3


def compare(paths: Mapping[str, Path], num_rounds: int, num_threads: int) -> tuple[list[Comparison], list[Probe]]:
    """Every figure of every model, and the probe of each round."""
    prompts, probes = PromptCounter(), []
    samples: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for index in range(num_rounds):
        probe = measuring.measure(num_threads=num_threads)
        probes.append(probe)
        for name, path in paths.items():
            with subsecond.load(path, num_threads=num_threads, context_tokens=CONTEXT_TOKENS) as model:
                expected = dict(predicted(cost_model(model.checkpoint, probe, CONTEXT_TOKENS)))
                for figure, milliseconds in measured(model, prompts):
                    samples.setdefault((name, figure), []).append((milliseconds, expected[figure]))
        print(f"round {index + 1}/{num_rounds}: {probe.processor_share:.0%} of the processors", file=sys.stderr)
    found = []
    for (name, figure), pairs in samples.items():
        ours, theirs = (statistics.median(values) for values in zip(*pairs, strict=True))
        found.append(Comparison(name, figure, ours, theirs))
    return found, probes


def write_models(names: Iterable[tuple[str, str]], folder: Path) -> dict[str, Path]:
    """Files of the named shapes and formats, some 1.5 GB in all; those that are there already are used again."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = {}
    for shape, kind in names:
        path = folder / f"{shape}-{kind}.gguf"
        if not path.exists():
            partial = path.with_suffix(".part")
            write(SMALL[shape], shape, kind, partial)
            partial.replace(path)
        paths[f"{shape} {kind}"] = path
    return paths


def main() -> None:
    """Measure, predict, print."""
    options = _parse_options()
    names = [(shape, kind) for shape in options.shapes.split(",") for kind in options.formats.split(",")]
    with tempfile.TemporaryDirectory() as temporary:
        paths = write_models(names, options.folder or Path(temporary))
        found, probes = compare(paths, options.rounds, options.threads)
    for each in found:
        print(
            f"{each.model:<24}{each.figure:<12}{each.measured_ms:>10.2f} ms{each.predicted_ms:>10.2f} ms"
            f"{each.error:>+8.1%}",
            file=sys.stderr,
        )
    medians = {
        kind: statistics.median(abs(each.error) for each in found if each.figure.startswith(kind))
        for kind in ("TTFT", "TPOT", "T")
    }
    print(
        f"median error: TTFT {medians['TTFT']:.1%}, TPOT {medians['TPOT']:.1%}, all {medians['T']:.1%}", file=sys.stderr
    )
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False, cwd=ROOT
    )
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "processor": probes[0].fingerprint.processor_name,
        "isa": probes[0].fingerprint.isa,
        "threads": options.threads,
        "processor_shares": [probe.processor_share for probe in probes],
        "figures": [{**asdict(each), "error": each.error} for each in found],
        "median_error": {"TTFT": medians["TTFT"], "TPOT": medians["TPOT"], "all": medians["T"]},
    }
    print(json.dumps(result))


def _parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Compare predicted with measured times.")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--shapes", default=",".join(SMALL), help="of the models, separated by commas")
    parser.add_argument("--formats", default="Q4_0,Q8_0", help="of their weights, separated by commas")
    parser.add_argument("--threads", type=int, default=describe_machine().num_usable_cores)
    parser.add_argument("--folder", type=Path, help="where to keep the models for the next time")
    return parser.parse_args()


if __name__ == "__main__":
    main()
