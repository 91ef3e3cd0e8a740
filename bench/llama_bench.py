"""Checks `subsecond bench --against llama.cpp` with llama.cpp's own benchmark: the same model, tokens and threads.

    python -m bench.llama_bench --model FILE [--rounds 5] [--prompt-tokens 512] [--output-tokens 64] [--threads N]

Both sides are run in turn. llama-bench times the library alone; ours times the server of the same build, over HTTP.
Needs `bench/peers/llama_cpp/build.sh --llama-bench --server`. A table goes to standard error, one JSON object to
standard output.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from bench.models import PEERS, find_model
from subsecond.core.hardware import probe

PROGRAM = PEERS / "llama_cpp" / "build" / "bin" / "llama-bench"
FIGURES = ("prefill_tokens_per_s", "decode_tokens_per_s")


def main() -> int:
    """Measure in turn and print."""
    options = _arguments()
    if not PROGRAM.is_file():
        sys.exit(f"{PROGRAM} is missing; run: bench/peers/llama_cpp/build.sh --llama-bench --server")
    found: dict[str, list[Mapping[str, float]]] = {"llama-bench": [], "bench --against": []}
    for number in range(options.rounds):
        found["llama-bench"].append(by_llama_bench(options))
        found["bench --against"].append(by_ours(options))
        print(f"round {number + 1}/{options.rounds}: {[rows[-1] for rows in found.values()]}", file=sys.stderr)
    result = summary(found)
    for figure in FIGURES:
        sides = ", ".join(f"{name} {result[figure][name]:.5g}" for name in found)
        print(f"{figure}: {sides}; ratio {result[figure]['ratio']:.3f}", file=sys.stderr)
    settings = {name: str(value) for name, value in vars(options).items()}
    print(json.dumps({"processor": probe().processor_name, "settings": settings, **result, "rounds": found}))
    return 0


def summary(found: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, dict[str, float]]:
    """By figure the median of each side, and the median over the rounds of ours by llama-bench's."""
    theirs, ours = found["llama-bench"], found["bench --against"]
    return {
        figure: {
            **{name: median(row[figure] for row in rows) for name, rows in found.items()},
            "ratio": median(b[figure] / a[figure] for a, b in zip(theirs, ours, strict=True)),
        }
        for figure in FIGURES
    }


def by_llama_bench(options: argparse.Namespace) -> dict[str, float]:
    """Tokens a second of a prompt, and of an answer after it."""
    prompt = _llama_bench(options, ["-p", str(options.prompt_tokens), "-n", "0"])
    answer = _llama_bench(options, ["-p", "0", "-n", str(options.output_tokens), "-d", str(options.prompt_tokens)])
    return dict(zip(FIGURES, (prompt, answer), strict=True))


def _llama_bench(options: argparse.Namespace, test: Sequence[str]) -> float:
    command = [str(PROGRAM), "-m", str(options.model), "-t", str(options.threads), "-r", "1", "-o", "json", *test]
    (row,) = json.loads(_output_of(command))
    return float(row["avg_ts"])


def _output_of(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-2000:]}")
    return done.stdout


def by_ours(options: argparse.Namespace) -> dict[str, float]:
    """The same figures of llama.cpp's server, as `subsecond bench` measures them."""
    command = [
        *(
            sys.executable,
            "-m",
            "subsecond",
            "bench",
            str(options.model),
            "--against",
            "llama.cpp",
            "--json",
            "--fresh",
        ),
        *("--workload", "short-chat", "--prompt-tokens", str(options.prompt_tokens)),
        *("--output-tokens", str(options.output_tokens), "--requests", "2", "--repeat", "1", "--warmup", "1"),
        *("--num-threads", str(options.threads)),
    ]
    rows: list[dict[str, Any]] = json.loads(_output_of(command))["rows"]
    (row,) = (row for row in rows if row["target"] == "llama.cpp")
    return {figure: float(row[figure]) for figure in FIGURES}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=find_model, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=512)
    parser.add_argument("--output-tokens", type=int, default=64)
    parser.add_argument("--threads", type=int, default=probe().num_usable_cores)
    options = parser.parse_args()
    options.model = Path(options.model)
    if options.rounds < 1:
        parser.error("--rounds needs at least 1")
    return options


if __name__ == "__main__":
    raise SystemExit(main())
