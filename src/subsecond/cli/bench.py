"""`subsecond bench`: latency, throughput, memory and energy of a model, in this process, over HTTP, at any URL."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subsecond.cli import answering
from subsecond.cli.bench_targets import ENGINE, PeerLoad, Subject, engine_flags, open_subject
from subsecond.cli.output import MODEL_HELP, Subparsers, add_command, print_json
from subsecond.core import settings
from subsecond.measure.bench_settings import BenchSettings

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from subsecond.measure.journal import Journal
    from subsecond.measure.load import Sample
    from subsecond.measure.rounds import Cell, Rounds

COLD_TIMEOUT_S = 600.0
COLD_KEY = "cold start"


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        subparsers, "bench", "measure latency, throughput, memory and energy of a model, beside other servers if asked"
    )
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    settings.add_arguments(parser.add_argument_group("loads"), BenchSettings)
    targets = parser.add_argument_group("targets, measured in turn")
    targets.add_argument(
        "--in-process",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the engine in this process, or not",
    )
    targets.add_argument("--http", action="store_true", help="measure our server too, started with the same flags")
    targets.add_argument(
        "--against",
        metavar="TARGET",
        action="append",
        default=[],
        help="measure another engine too, started here with the same model (`make peers` in the repository installs "
        "llama.cpp, openvino and others; NAME:WEIGHTS chooses its weights), or a server of OpenAI's API at an address, "
        "by its first model or by that named behind #, with SUBSECOND_API_KEY as its key; may be given several times",
    )
    targets.add_argument(
        "--cold-start",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="time a fresh `subsecond run` to its first token too, or not",
    )
    report = parser.add_argument_group("report")
    report.add_argument(
        "--profile", action="store_true", help="tell where the time of a step goes, operator by operator"
    )
    report.add_argument("--html", metavar="FILE", type=Path, help="write the report as one HTML file")
    report.add_argument(
        "--vllm-json", metavar="FILE", type=Path, help="write each row with the keys of `vllm bench serve`, one a line"
    )
    report.add_argument("--fresh", action="store_true", help="forget what an interrupted run has measured already")
    answering.add_engine_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Measure and report; returns 1 when a request failed."""
    given = settings.from_arguments(BenchSettings, args)
    from subsecond.measure.journal import resumed

    with (
        _ended_in_order(),
        ExitStack() as stack,
        resumed("bench", _inputs(args, given), is_fresh=args.fresh) as journal,
    ):
        cold = _cold_start(args, journal)
        subject = open_subject(args, _peer_load(given), stack)
        _check_sizes(given, subject)
        try:
            report = _Bench(args, given, subject, journal).measure()
        except KeyboardInterrupt:
            print("\nstopped; the same command goes on where it stopped", file=sys.stderr)
            raise
        report["cold_start"] = cold
        report["profile"] = _profile(args, given, subject, report["rows"])
        if report["profile"] is not None:
            report["findings"] += [{"kind": "slow_operator", "text": text} for text in report["profile"]["findings"]]
        # before the journal is forgotten, so that a file that cannot be written costs no measurement
        _write(args, report)
        _print(args, report)
    return 1 if any(row["num_failed"] for row in report["rows"]) else 0


class _Bench:
    """One run of the command, from cells to the report."""

    def __init__(self, args: argparse.Namespace, given: BenchSettings, subject: Subject, journal: Journal) -> None:
        from subsecond.measure.machine import machine_json

        self._args = args
        self._given = given
        self._subject = subject
        self._journal = journal
        self._goal = given.bounds()
        self._rows: list[dict[str, Any]] = []
        self._findings: list[dict[str, Any]] = []
        self._warnings: list[str] = []
        self._sweeps: list[dict[str, Any]] = []
        self._machine = machine_json(subject.facts.get("isa"))
        self._date = datetime.now(UTC)
        self._held_tokens = 0
        self._prediction_note: str | None = None
        self._cost = self._stored_cost()

    def measure(self) -> dict[str, Any]:
        """Measure all cells and return the report as JSON data."""
        from subsecond.cli.progress import step_progress
        from subsecond.measure.energy import EnergyMeter
        from subsecond.measure.rounds import Rounds

        given = self._given
        rounds = Rounds(
            self._subject.targets,
            self._journal,
            EnergyMeter(given.watts_per_core),
            num_repeats=given.repeat,
            num_warmup=given.warmup,
            timeout_s=given.timeout_s,
        )
        cells = self._cells()
        num_all = len(cells) * len(self._subject.targets) * given.repeat
        num_before = rounds.num_done(cells)
        with step_progress("bench", "repeats", num_before) as show:
            done = [num_before]

            def count() -> None:
                done[0] += 1
                show(done[0], num_all)

            rounds.on_sample = count
            show(num_before, num_all)
            self._measure(rounds)
        if self._subject.kernels_finding is not None:
            self._findings.append({"kind": "slow_kernels", "text": self._subject.kernels_finding})
        return self._report()

    def _cells(self) -> list[Cell]:
        given, size = self._given, self._subject.vocab_size
        if not given.sweep:
            return given.cells(size)
        return [cell for one in given.workloads() for _, cell in given.sweep_cells(one, size)]

    def _measure(self, rounds: Rounds) -> None:
        from subsecond.measure.rounds import sweep

        given, size = self._given, self._subject.vocab_size
        if not given.sweep:
            for cell in given.cells(size):
                self._take(cell, rounds.measure(cell))
            return
        for one in given.workloads():
            levels = sweep(rounds, given.sweep_cells(one, size), self._goal, given.goal_share, self._take)
            for target, steps in levels.items():
                held = [step.level for step in steps if step.is_held]
                broken = [step.level for step in steps if not step.is_held]
                self._sweeps.append(
                    {
                        "workload": one.name,
                        "target": target,
                        "raised": "concurrency" if given.rate is None else "request_rate",
                        "last_held": max(held, default=None),
                        "first_broken": min(broken, default=None),
                        "levels": [asdict(step) for step in steps],
                    }
                )

    def _take(self, cell: Cell, samples: Mapping[str, Sequence[Sample]]) -> None:
        """Make the rows of a cell."""
        from subsecond.measure import bench_rows

        for target, found in samples.items():
            row = bench_rows.row_of(cell, target, found, self._goal)
            self._predict(row, cell, found)
            row["vllm"] = bench_rows.vllm_result(row, found, self._args.model, self._date)
            self._rows.append(row)
            self._findings += bench_rows.findings_of(cell, target, found)
            where = f"{cell.workload.name}, {cell.arrivals.label}, {target}"
            self._warnings += [f"{where}: {text}" for text in bench_rows.warnings_of(row)]

    def _stored_cost(self) -> Any:
        from subsecond.measure.predicted import stored_cost

        facts = self._subject.facts
        if facts.get("isa") is None or facts["num_threads"] is None:
            self._prediction_note = "no prediction: the model does not run with native kernels in this process"
            return None
        cost, self._prediction_note = stored_cost(
            self._subject.checkpoint,
            facts["isa"],
            facts["num_threads"],
            self._args.weights,
            min(self._subject.pool_tokens, self._subject.checkpoint.config.context_length),
        )
        return cost

    def _predict(self, row: dict[str, Any], cell: Cell, samples: Sequence[Sample]) -> None:
        """Put beside a row of the engine in this process what the cost model says."""
        from subsecond.measure.predicted import predicted_row

        row["predicted"] = None
        if row["target"] != ENGINE:
            return
        traces = [trace for sample in samples for trace in sample.answered]
        self._held_tokens += sum(t.num_prompt_tokens - (t.num_cached_tokens or 0) + t.num_new_tokens for t in traces)
        if row["peak_memory_bytes"] is not None and self._subject.process_bytes is not None:
            row["model_memory_bytes"] = row["peak_memory_bytes"] - self._subject.process_bytes
        # a mixture has no one size that could be predicted
        if self._cost is not None and not cell.workload.parts:
            held = min(self._held_tokens, self._subject.pool_tokens)
            row["predicted"] = predicted_row(self._cost, row, self._subject.max_rows, held)

    def _report(self) -> dict[str, Any]:
        quality = ["subsecond", "eval", self._args.model, *engine_flags(self._args)]
        return {
            "machine": self._machine,
            "model": self._subject.facts,
            "rows": self._rows,
            "targets": {target.name: dict(target.description) for target in self._subject.targets},
            "sweeps": self._sweeps,
            "findings": self._findings,
            "warnings": self._warnings,
            "settings": asdict(self._given),
            "prediction": self._prediction_note or "beside each row of the engine in this process",
            "assumptions": list(self._cost.assumptions) if self._cost is not None else [],
            "quality_command": shlex.join(quality),
        }


def _peer_load(given: BenchSettings) -> PeerLoad:
    """What other engines are started for; a rate of requests may pile up as far as a sweep may go."""
    most = max(given.concurrency) if given.rate is None and given.arrivals is None else given.sweep_limit
    streams = given.sweep_limit if given.sweep else most
    return PeerLoad(streams, max(one.max_context_tokens for one in given.workloads()))


def _profile(
    args: argparse.Namespace, given: BenchSettings, subject: Subject, rows: Sequence[Mapping[str, Any]]
) -> dict[str, Any] | None:
    if not args.profile:
        return None
    from subsecond.cli.bench_profile import take_profile
    from subsecond.measure.bench_rows import OTHERS_SHARE

    is_quiet = all((row["other_cpu_share"] or 0) <= OTHERS_SHARE for row in rows)
    return take_profile(args, subject, sorted({1, *given.concurrency}), is_quiet=is_quiet)


@contextmanager
def _ended_in_order() -> Iterator[None]:
    """Have the signal by which programs are ended leave the block, so that a server that was started ends too."""

    def leave(number: int, _: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _inputs(args: argparse.Namespace, given: BenchSettings) -> dict[str, Any]:
    """All that the results depend on and that can be named beforehand; a changed file is another model."""
    from subsecond.measure.machine import machine_json
    from subsecond.models.store import resolve

    path = resolve(args.model)
    stat = path.stat() if path.exists() else None
    machine = {name: value for name, value in machine_json().items() if name != "measured_at"}
    return {
        "model": str(path),
        "file": None if stat is None else [stat.st_size, stat.st_mtime_ns],
        "settings": asdict(given),
        "flags": engine_flags(args),
        "targets": [args.in_process, args.http, *args.against],
        "machine": machine,
    }


def _cold_start(args: argparse.Namespace, journal: Journal) -> dict[str, Any] | None:
    from subsecond.measure.own_programs import cold_start

    if not args.cold_start:
        return None
    if COLD_KEY not in journal:
        journal.put(COLD_KEY, cold_start(args.model, engine_flags(args), COLD_TIMEOUT_S))
    found: dict[str, Any] = journal[COLD_KEY]
    return found


def _check_sizes(given: BenchSettings, subject: Subject) -> None:
    """InputError for requests that cannot fit, before anything is measured."""
    from subsecond.core.errors import InputError

    longest = {one.name: one.max_context_tokens for one in given.workloads()}
    if given.arrivals is not None:
        longest |= {cell.workload.name: cell.max_context_tokens() for cell in given.cells(subject.vocab_size)}
    for name, num_tokens in longest.items():
        if subject.max_tokens is not None and num_tokens > subject.max_tokens:
            raise InputError(
                f"a request of {name} has {num_tokens} tokens, prompt and answer, but {subject.max_tokens} fit; give "
                "fewer --prompt-tokens or --output-tokens, another --workload, or more --context-tokens"
            )


def _write(args: argparse.Namespace, report: Mapping[str, Any]) -> None:
    import json

    from subsecond.formats.whole_file import write_whole

    if args.html is not None:
        from subsecond.cli.bench_page import bench_page

        bench_page(report).write(args.html)
    if args.vllm_json is not None:
        lines = [json.dumps(row["vllm"]) for row in report["rows"]]
        write_whole(args.vllm_json, ("\n".join(lines) + "\n").encode())


def _print(args: argparse.Namespace, report: Mapping[str, Any]) -> None:
    if args.json:
        print_json(report)
    else:
        from subsecond.cli.bench_table import report_text

        print(report_text(report))
