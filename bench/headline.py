"""The claims that the field makes, each as a load that anyone can run again: before, the best peer, ours, quality.

Run from the repository, after `make peers`: python -m bench.headline [--model NAME_OR_PATH] [--repeat 5] [--requests N]
                                             [--peers llama.cpp,openvino] [--only NAME,...] [--markdown FILE]
Before is eager PyTorch; a peer that is not installed is named and left out. Every claim is one `subsecond bench` over
HTTP with all engines in turn, so an interrupted run goes on where it stopped. A table goes to standard error (and to
FILE), one JSON object to standard output. Ratios are before / after of each repeat, their median and range; quality is
`subsecond eval` of the same file and weights.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.compare import names_of
from subsecond.core.errors import SubsecondError
from subsecond.measure.peers import find_peer

OURS = "server"


@dataclass(frozen=True, slots=True)
class Claim:
    """What is claimed, the load that it is tried on, and which engine it is tried against.

    before   engines, of which the fastest counts
    load     arguments of `subsecond bench`
    weights  of ours
    figure   of a row, in milliseconds, whose median (or mean) is compared
    """

    name: str
    claim: str
    before: tuple[str, ...]
    load: tuple[str, ...]
    weights: str = "stored"
    figure: str = "e2e_ms"
    statistic: str = "median"


EAGER = ("transformers:bfloat16", "transformers:float32")  # the faster of the two is what ours is compared with
CLAIMS = (
    Claim(
        "customer service",
        "mean response of 1,000 requests 1.8 s before, 0.5 s after",
        EAGER,
        ("--workload", "shared-prefix", "--prompt-tokens", "400", "--shared-tokens", "320", "--output-tokens", "48"),
        statistic="mean",
    ),
    Claim(
        "half the time",
        "half the response time after optimization",
        EAGER,
        ("--workload", "short-chat"),
    ),
    Claim("mixed precision", "twice as fast as in fp32", ("transformers:float32",), ("--workload", "short-chat")),
    Claim(
        "quantization",
        "several times as fast",
        EAGER,
        ("--workload", "short-chat"),
        weights="int8",
        figure="tpot_ms",
    ),
    Claim(
        "seconds for a long prompt",
        "answers within 1 to 10 s",
        EAGER,
        ("--workload", "long-prompt", "--prompt-tokens", "1024", "--output-tokens", "64"),
    ),
)


def command_of(claim: Claim, options: argparse.Namespace, peers: Sequence[str]) -> list[str]:
    """The `subsecond bench` that tries a claim."""
    engines = [*known(claim.before), *peers]
    against = [part for name in engines for part in ("--against", name)]
    sizes = ["--requests", str(options.requests), "--repeat", str(options.repeat), "--warmup", "1"]
    flags = ["--http", "--no-in-process", "--no-cold-start", "--weights", claim.weights, "--json"]
    return [sys.executable, "-m", "subsecond", "bench", options.model, *claim.load, *sizes, *flags, *against]


def run_json(command: Sequence[str]) -> Mapping[str, Any]:
    """What a command of ours prints; SystemExit with its message if it fails."""
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    try:
        found: Mapping[str, Any] = json.loads(done.stdout)
    except ValueError:
        sys.exit(f"{shlex.join(command)} ended with {done.returncode} and printed no JSON")
    if "error" in found:
        sys.exit(f"{shlex.join(command)}: {found['error']['message']}")
    return found


def ratio(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, float]:
    """Before / after of each repeat: median, least and largest."""
    each = [b / a for b, a in zip(before["repeat_medians"], after["repeat_medians"], strict=True)]
    return {"value": median(each), "low": min(each), "high": max(each)}


def outcome_of(claim: Claim, report: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of a claim by engine, and how ours stands to before and to the best peer."""
    rows = {row["target"]: row for row in report["rows"] if row[claim.figure] is not None and not row["num_failed"]}
    ours = rows.get(OURS)
    if ours is None:
        return {"claim": claim.claim, "error": "ours did not answer"}
    before = fastest(rows, claim.before, claim.figure)
    best = fastest(rows, [name for name in rows if name not in (OURS, *claim.before)], claim.figure)
    found: dict[str, Any] = {
        "claim": claim.claim,
        "figure": f"{claim.statistic} {claim.figure}",
        "weights": claim.weights,
        "ms": {name: row[claim.figure][claim.statistic] for name, row in rows.items()},
        "before": before,
        "best_peer": best,
        "warnings": report["warnings"],
        "targets": report["targets"],
    }
    if before is not None:
        found["ratio_before"] = ratio(rows[before][claim.figure], ours[claim.figure])
    if best is not None:
        found["ratio_best_peer"] = ratio(rows[best][claim.figure], ours[claim.figure])
    return found


def fastest(rows: Mapping[str, Mapping[str, Any]], names: Sequence[str], figure: str) -> str | None:
    """Of the engines that answered, the one with the least median."""
    there = [name for name in names if name in rows]
    return min(there, key=lambda name: float(rows[name][figure]["median"]), default=None)


def quality_of(model: str, weights: str) -> Mapping[str, Any]:
    """Mean KL and top-1 agreement of that file with these weights."""
    flags = ["--weights", weights, "--reference", "self", "--windows", "2", "--window-tokens", "256", "--json"]
    found = run_json([sys.executable, "-m", "subsecond", "eval", model, *flags])
    return {name: found[name] for name in ("kl_mean", "top1_agreement", "perplexity_ratio")}


def table(outcomes: Mapping[str, Mapping[str, Any]], quality: Mapping[str, Mapping[str, Any]]) -> str:
    """The claims as a table in Markdown."""
    lines = [
        "| claim | before, ms | best peer, ms | subsecond, ms | before / ours | best peer / ours | mean KL |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, found in outcomes.items():
        if "error" in found:
            lines.append(f"| {name}: {found['claim']} | {found['error']} | | | | | |")
            continue
        before, best = found["before"], found["best_peer"]
        cells = (
            f"{name}: {found['claim']} ({found['figure']})",
            f"{before} {found['ms'][before]:.0f}" if before else "not measured",
            f"{best} {found['ms'][best]:.0f}" if best else "none was there",
            f"{found['weights']} {found['ms'][OURS]:.0f}",
            ratio_text(found.get("ratio_before")),
            ratio_text(found.get("ratio_best_peer")),
            f"{quality[found['weights']]['kl_mean']['value']:.2g}",
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def ratio_text(found: Mapping[str, float] | None) -> str:
    """Median and range."""
    return "not measured" if found is None else f"{found['value']:.2f} ({found['low']:.2f}-{found['high']:.2f})"


def known(names: Sequence[str]) -> list[str]:
    """The peers that are registered here; the others are named."""
    found = []
    for name in names:
        try:
            find_peer(name)
            found.append(name)
        except SubsecondError as error:
            print(f"left out: {error}", file=sys.stderr)
    return found


def main() -> None:
    """Measure and print."""
    options = parse_options()
    claims = [claim for claim in CLAIMS if not options.only or claim.name in options.only]
    peers = known(options.peers)
    outcomes, commands = {}, {}
    for claim in claims:
        command = command_of(claim, options, peers)
        commands[claim.name] = shlex.join(["subsecond", *command[3:]])
        print(f"{claim.name}: {commands[claim.name]}", file=sys.stderr)
        outcomes[claim.name] = outcome_of(claim, run_json(command))
    quality = {weights: quality_of(options.model, weights) for weights in {claim.weights for claim in claims}}
    text = table(outcomes, quality)
    print(text, file=sys.stderr)
    if options.markdown is not None:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    print(json.dumps({"model": options.model, "claims": outcomes, "commands": commands, "quality": quality}))


def parse_options() -> argparse.Namespace:
    """Command line; lists have commas."""
    parser = argparse.ArgumentParser(description="Try the claims of the field on this machine.")
    parser.add_argument("--model", default="smollm2-135m", help="name of a pulled model, or path of a GGUF file")
    parser.add_argument("--repeat", type=int, default=5)
    parser.add_argument("--requests", type=int, default=8, help="of a repeat")
    parser.add_argument("--peers", type=names_of, default=["llama.cpp", "openvino"])
    parser.add_argument("--only", type=names_of, help=", ".join(claim.name for claim in CLAIMS))
    parser.add_argument("--markdown", type=Path, help="write the table to this file too")
    return parser.parse_args()


if __name__ == "__main__":
    main()
