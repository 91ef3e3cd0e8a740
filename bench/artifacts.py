"""Two artifacts of one model side by side: milliseconds of a decoded token in turn, and divergence, window by window.

    python -m bench.artifacts REFERENCE FIRST SECOND --text FILE [--text FILE] [--windows 8] [--rounds 9] [--json]

Divergence is from the fp32 graph of REFERENCE's original weights, on the same windows for both; the interval of the
difference comes from resampling windows, so that what both find hard does not blur it.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.rounds import Figure
from subsecond.backends import native
from subsecond.backends.batch import Int32
from subsecond.backends.protocol import Backend
from subsecond.compress.speed import PROMPT_TOKENS, ask
from subsecond.compress.work import weight_bytes
from subsecond.measure.evaluation import forward_windows
from subsecond.measure.quality import Estimate, RowQuality, bootstrap, compare_logits, summarize
from subsecond.measure.reference_model import open_reference
from subsecond.measure.text_files import read_texts
from subsecond.models.checkpoint import Checkpoint, open_checkpoint


def main() -> int:
    """Measure and print."""
    args = _arguments()
    reference = open_checkpoint(args.reference)
    windows = _windows(reference, args.text, args.windows, args.window_tokens)
    with ExitStack() as stack:
        backends = []
        for path in (args.first, args.second):
            backends.append(native.load(open_checkpoint(path), context_tokens=4 * args.window_tokens))
            stack.callback(backends[-1].close)
        times = _times(backends, tuple(windows[0][:PROMPT_TOKENS].tolist()), args.rounds)
        plain = open_reference(reference, None, 2 * args.window_tokens)
        stack.callback(plain.close)
        rows = _rows(plain, backends, windows)
    result: dict[str, Any] = {
        name: {
            "megabytes": weight_bytes(open_checkpoint(path)) / 1e6,
            "tpot_ms": asdict(Figure.of(list(found))),
            "kl_mean": summarize(scores).mean_kl.to_json(),
            "perplexity": summarize(scores).perplexity.to_json(),
        }
        for name, path, found, scores in zip(("first", "second"), (args.first, args.second), times, rows, strict=True)
    }
    result["second / first, ms a token"] = asdict(Figure.of([b / a for a, b in zip(*times, strict=True)]))
    result["second - first, mean KL"] = paired_difference(*rows).to_json()
    print(json.dumps(result) if args.json else json.dumps(result, indent=2))
    return 0


def paired_difference(first: Sequence[RowQuality], second: Sequence[RowQuality]) -> Estimate:
    """Mean KL of the second less that of the first, over the same rows of the same windows."""
    sums = np.array([(b.kl - a.kl).sum() for a, b in zip(first, second, strict=True)])
    counts = np.array([len(each.kl) for each in first])

    def figures(chosen: NDArray[np.intp]) -> tuple[float]:
        return (float(sums[chosen].sum() / counts[chosen].sum()),)

    return bootstrap(len(first), figures)[0]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("reference", "first", "second"):
        parser.add_argument(name, type=Path)
    parser.add_argument("--text", type=Path, action="append", required=True)
    parser.add_argument("--windows", type=int, default=8, help="of each text")
    parser.add_argument("--window-tokens", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=9, help="of which the first, one more, does not count")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    if min(args.rounds, args.windows) < 1 or args.window_tokens < 2:
        parser.error("--rounds and --windows need at least 1, --window-tokens at least 2")
    return args


def _windows(checkpoint: Checkpoint, paths: Sequence[Path], count: int, num_tokens: int) -> Int32:
    """Windows from the beginning of each text, int32 [windows, tokens]."""
    found = []
    for text in (each for path in paths for each in read_texts(path)):
        ids = np.array(checkpoint.tokenizer.encode(text.text), np.int32)
        whole = min(len(ids) // num_tokens, count)
        if not whole:
            raise SystemExit(f"{text.name} has {len(ids)} tokens, fewer than a window of {num_tokens}")
        found.append(ids[: whole * num_tokens].reshape(whole, num_tokens))
    return np.concatenate(found)


def _times(backends: Sequence[Backend], prompt: tuple[int, ...], rounds: int) -> list[list[float]]:
    """Milliseconds of a decoded token of each, one after the other in each round; the first round warms up."""
    times: list[list[float]] = [[] for _ in backends]
    for number in range(rounds + 1):
        print(f"round {number} of {rounds}", file=sys.stderr)
        for backend, found in zip(backends, times, strict=True):
            found.append(ask(backend, prompt)[1])
    return [found[1:] for found in times]


def _rows(plain: Backend, backends: Sequence[Backend], windows: Int32) -> list[list[RowQuality]]:
    rows: list[list[RowQuality]] = [[] for _ in backends]
    logits: Any = zip(*(forward_windows(each, windows) for each in (plain, *backends)), strict=True)
    for number, (window, (expected, *others)) in enumerate(zip(windows, logits, strict=True)):
        print(f"window {number + 1} of {len(windows)}", file=sys.stderr)
        for found, each in zip(rows, others, strict=True):
            found.append(compare_logits(expected[:-1], each[:-1], window[1:]))
    return rows


if __name__ == "__main__":
    sys.exit(main())
