"""Speed of our engine beside its peers on this machine, all in turn, the same number of tokens for all.

Run from the repository, after `make peers`:

    python -m bench.compare --models llama-3.2-1b,MODEL.gguf --engines subsecond,llama.cpp,openvino:int4 --rounds 5

Every sample is a process of its own that loads, warms up and times. A table goes to standard error, one JSON object to
standard output. A model is a path, the name of a pulled model, or a shape of bench.random_model. It is converted for
the peers that read other formats, once. Quality is the business of bench.quality.compare.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from bench.comparison_table import Ratio, ratios, render
from bench.engines import ENGINES, OURS, Command, Row, run_sample
from bench.models import ROOT, find_model, label_of
from bench.rounds import Figure, last_line, measure
from bench.timing import PeerError, Timing, Workload
from subsecond.backends.native.loading import ISA_VARIABLE
from subsecond.core.hardware import probe


@dataclass(frozen=True, slots=True)
class Column:
    """What a column times: reading a prompt, or decoding sequences together."""

    workload: Workload
    is_prompt: bool = False

    def value(self, timing: Timing) -> float:
        """Tokens a second."""
        return timing.prompt_tokens_per_s if self.is_prompt else timing.decode_tokens_per_s


COLUMNS: Mapping[str, Column] = {
    "prefill512": Column(Workload(512, 2), is_prompt=True),
    "prefill2048": Column(Workload(2048, 2), is_prompt=True),
    "decode1": Column(Workload(128, 65)),
    "decode8": Column(Workload(128, 33, 8)),
    "decode32": Column(Workload(128, 17, 32)),
}


@dataclass(slots=True)
class Case:
    """One row of one model: how it is run, what it reported, and why it is missing if it is."""

    row: Row
    path: Path | None = None
    command: Command | None = None
    timings: list[Timing] = field(default_factory=list)
    figures: dict[str, Figure] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)


def prepare(row: Row, model: Path, isa: str | None) -> Case:
    """Make what the row needs; a case without a command, and the reason, if it cannot be had."""
    engine = ENGINES[row.engine]
    if isa is not None and not engine.has_isas:
        return Case(row, failures={"": "cannot be held to an instruction set"})
    try:
        return Case(row, engine.prepare(model, row.weights), engine.command(row.weights, isa))
    except PeerError as error:
        return Case(row, failures={"": str(error)})


def samplers_of(
    cases: Mapping[str, Sequence[Case]], columns: Mapping[str, Column], threads: int
) -> dict[tuple[str, str, str], Callable[[], float]]:
    """One sampler for every model, column and row that can run, in the order in which a round runs them."""
    found = {}
    for model, rows in cases.items():
        for name, column in columns.items():
            for case in rows:
                if case.command is None or (ENGINES[case.row.engine].is_for_prompts_only and not column.is_prompt):
                    continue
                found[model, name, str(case.row)] = sampler(case, column, threads)
    return found


def sampler(case: Case, column: Column, threads: int) -> Callable[[], float]:
    """Times one generation of a case, and keeps what it reported."""
    command, path = case.command, case.path
    assert command is not None and path is not None, "only cases that can run are sampled"

    def sample() -> float:
        timing = run_sample(command, path, column.workload, threads)
        case.timings.append(timing)
        return column.value(timing)

    return sample


def compare(
    models: Mapping[str, Path],
    rows: Sequence[Row],
    columns: Mapping[str, Column],
    *,
    threads: int,
    rounds: int,
    isa: str | None = None,
) -> dict[str, list[Case]]:
    """Measure all rows of all models; cases by model."""
    cases = {name: [prepare(row, path, isa) for row in rows] for name, path in models.items()}
    figures, failures = measure(samplers_of(cases, columns, threads), rounds)
    by_key = {(model, str(case.row)): case for model, found in cases.items() for case in found}
    for (model, column, row), figure in figures.items():
        by_key[model, row].figures[column] = figure
    for (model, column, row), reason in failures.items():
        by_key[model, row].failures[column] = reason
    return cases


def ratios_of(cases: Sequence[Case]) -> dict[str, dict[str, Ratio]]:
    """Ours by the best peer, by row of ours and column."""
    peers = {str(case.row): case.figures for case in cases if case.row.engine != OURS}
    return {str(case.row): ratios(case.figures, peers) for case in cases if case.row.engine == OURS}


def table_of(cases: Sequence[Case], columns: Sequence[str]) -> str:
    """The table of one model, and below it why cells are empty."""
    rows = {str(case.row): case.figures for case in cases}
    memory = {str(case.row): max(t.peak_rss_bytes for t in case.timings) for case in cases if case.timings}
    return "\n".join([render(columns, rows, ratios_of(cases), memory), *notes_of(cases, columns)])


def notes_of(cases: Sequence[Case], columns: Sequence[str]) -> Iterator[str]:
    """Why cells are empty."""
    has_decode = not all(COLUMNS[name].is_prompt for name in columns)
    for case in cases:
        if ENGINES[case.row.engine].is_for_prompts_only and has_decode:
            yield f"{case.row}: prompts only; it takes too long to load for figures where it is not the fastest"
        for column, reason in case.failures.items():
            yield f"{case.row}{' ' * bool(column)}{column}: {last_line(reason)}"


def case_json(case: Case, columns: Mapping[str, Column], threads: int) -> dict[str, object]:
    """What one row came to, with how to repeat it."""
    commands = {}
    if case.command is not None and case.path is not None:
        prefix = [f"{name}={value}" for name, value in (case.command.environment or {}).items()]
        for name, column in columns.items():
            commands[name] = " ".join([*prefix, *case.command.line(case.path, column.workload, threads)])
    return {
        "row": str(case.row),
        "version": case.timings[0].version if case.timings else None,
        "system_info": case.timings[0].system_info if case.timings else None,
        "peak_rss_bytes": max((timing.peak_rss_bytes for timing in case.timings), default=None),
        "tokens_per_s": {name: asdict(figure) for name, figure in case.figures.items()},
        "failures": case.failures,
        "commands": commands,
    }


def origin_json(threads: int) -> dict[str, object]:
    """Where and from what figures come."""
    machine = probe()
    git = ["git", "rev-parse", "--short", "HEAD"]
    commit = subprocess.run(git, capture_output=True, text=True, check=False, cwd=ROOT)
    return {
        "date": datetime.now(UTC).date().isoformat(),
        "commit": commit.stdout.strip(),
        "command": " ".join(sys.orig_argv),
        "processor": machine.processor_name,
        "memory_bytes": machine.memory_bytes,
        "flags": [flag for flag in machine.flags if flag.startswith(("avx", "amx", "fma", "f16c"))],
        "threads": threads,
    }


def main() -> None:
    """Measure and print."""
    options = parse_options()
    models = {label_of(name): find_model(name) for name in options.models}
    columns = {name: COLUMNS[name] for name in options.columns}
    found = compare(models, options.engines, columns, threads=options.threads, rounds=options.rounds, isa=options.isa)
    by_model = {}
    for model, cases in found.items():
        print(f"\n{model}, {options.threads} threads, medians of {options.rounds} rounds (range)", file=sys.stderr)
        print(table_of(cases, options.columns), file=sys.stderr)
        by_model[model] = {
            "rows": [case_json(case, columns, options.threads) for case in cases],
            "ratios": {row: {c: asdict(ratio) for c, ratio in by.items()} for row, by in ratios_of(cases).items()},
        }
    settings = {"isa": options.isa, "rounds": options.rounds}
    print(json.dumps(origin_json(options.threads) | settings | {"models": by_model}))


def names_of(text: str) -> list[str]:
    """The names in a list with commas."""
    return text.split(",")


def parse_options() -> argparse.Namespace:
    """Command line; lists have commas."""
    parser = argparse.ArgumentParser(description="Compare the speed of engines on this machine.")
    parser.add_argument("--models", type=names_of, required=True, help="paths, pulled models, shapes of random weights")
    parser.add_argument("--engines", type=names_of, default=[OURS, "llama.cpp", "openvino:int4", "openvino:int8"])
    parser.add_argument("--columns", type=names_of, default=list(COLUMNS), help=", ".join(COLUMNS))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=probe().num_usable_cores)
    parser.add_argument("--isa", help=f"hold ours ({ISA_VARIABLE}) and llama.cpp (its build of that name) to it")
    options = parser.parse_args()
    try:
        options.engines = [Row.parse(text) for text in options.engines]
    except ValueError as error:
        parser.error(str(error))
    unknown = [name for name in options.columns if name not in COLUMNS]
    if unknown:
        parser.error(f"--columns {','.join(unknown)}: columns are {', '.join(COLUMNS)}")
    if options.rounds < 1:
        parser.error("--rounds needs at least 1")
    return options


if __name__ == "__main__":
    main()
