"""Runs many inputs over many readers in several processes, which a crash or a hang of a reader cannot stop.

Run it with `python -m tests.fuzz.campaign --inputs 500000`. Every input follows from the reader's name and a number, so
a fault is found again with `--reader NAME --seed NUMBER`; its input is saved too.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from ctypes import c_double, c_int64
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from pathlib import Path
from random import Random
from typing import Any

TABLE = "tests.fuzz.harnesses"
CHUNK = 200
TRACED_EVERY = 4
"""One input in so many is read with allocations traced, which takes twice as long; see `oracle`."""
MAX_SILENCE_S = 60.0
"""Elapsed time on one input after which its process is ended: far above the limits, for a machine with other work."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One input on which a reader failed."""

    reader: str
    seed: int
    description: str
    saved: Path

    def __str__(self) -> str:
        return f"{self.reader} seed {self.seed}: {self.description} (input in {self.saved})"


@dataclass(slots=True)
class Report:
    """Outcomes counted by reader, and the faults."""

    outcomes: dict[str, Counter[str]] = field(default_factory=dict)
    faults: list[Fault] = field(default_factory=list)
    elapsed_s: float = 0.0

    @property
    def num_inputs(self) -> int:
        """Inputs that were read, faulty ones included."""
        return sum(counter.total() for counter in self.outcomes.values())

    def __str__(self) -> str:
        lines = [f"{self.num_inputs:,} inputs in {self.elapsed_s:.0f} s, {len(self.faults)} faults"]
        for reader, counter in self.outcomes.items():
            parts = ", ".join(f"{count:,} {outcome}" for outcome, count in counter.most_common())
            lines.append(f"  {reader}: {counter.total():,} ({parts})")
        return "\n".join(lines + [f"  {fault}" for fault in self.faults])


def load_table(table: str = TABLE) -> Mapping[str, Any]:
    """The readers of a module by name. Imported late: the extension must load in the process that reads."""
    readers: Mapping[str, Any] = importlib.import_module(table).HARNESSES
    return readers


def make_input(reader: str, seed: int, table: str = TABLE) -> bytes:
    """The input of that number."""
    data: bytes = load_table(table)[reader].mutate(Random(f"{reader} {seed}"))
    return data


def shares(num_inputs: int) -> dict[str, int]:
    """How many of the inputs each reader gets."""
    readers = load_table()
    total = sum(harness.share for harness in readers.values())
    return {name: -(-num_inputs * harness.share // total) for name, harness in readers.items()}


def run(
    counts: Mapping[str, int],
    *,
    save_to: Path,
    num_processes: int | None = None,
    first_seed: int = 0,
    tell: Callable[[str], None] | None = None,
    table: str = TABLE,
    max_silence_s: float = MAX_SILENCE_S,
) -> Report:
    """Read `counts[reader]` inputs of each reader, numbered from `first_seed`; `tell` gets lines of progress."""
    chunks = _chunks(counts, first_seed)
    report = Report({reader: Counter() for reader in counts})
    total, start_s, told_s = sum(counts.values()), time.monotonic(), time.monotonic()
    started = [_Worker(save_to, table) for _ in range(num_processes or num_cores())]
    workers = {worker.connection: worker for worker in started}
    for worker in started:
        worker.give(next(chunks, None))
    while busy := [connection for connection, worker in workers.items() if worker.chunk is not None]:
        for connection in wait(busy, timeout=1.0):
            assert isinstance(connection, Connection)
            worker = workers[connection]
            if not worker.collect(report):
                del workers[connection]
                worker = _Worker(save_to, table, worker.rest())
                workers[worker.connection] = worker
            if worker.chunk is None:
                worker.give(next(chunks, None))
        for worker in workers.values():
            worker.end_if_silent(max_silence_s)
        if tell and time.monotonic() - told_s > 10.0 and report.num_inputs:
            told_s = time.monotonic()
            left_s = (told_s - start_s) * (total / report.num_inputs - 1)
            tell(f"{report.num_inputs:,} of {total:,} inputs, {len(report.faults)} faults, {left_s:.0f} s left")
    for worker in workers.values():
        worker.stop()
    report.elapsed_s = time.monotonic() - start_s
    return report


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Inputs [start, end) of one reader."""

    reader: str
    start: int
    end: int


def _chunks(counts: Mapping[str, int], first_seed: int) -> Iterator[_Chunk]:
    """All readers in turn, so that the time left is known early."""
    longest = max(counts.values())
    size = max(1, min(CHUNK, longest // 50))
    num_rounds = -(-longest // size)
    for index in range(num_rounds):
        for reader, count in counts.items():
            start, end = count * index // num_rounds, count * (index + 1) // num_rounds
            if end > start:
                yield _Chunk(reader, first_seed + start, first_seed + end)


class _Worker:
    """A process that reads chunks, seen from outside."""

    def __init__(self, save_to: Path, table: str, chunk: _Chunk | None = None) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, inner = context.Pipe()
        self._save_to, self._table = save_to, table
        self._seed = context.RawValue(c_int64, -1)
        self._since_s = context.RawValue(c_double, 0.0)
        self.chunk: _Chunk | None = None
        arguments = (inner, self._seed, self._since_s, save_to, table)
        self._process = context.Process(target=_read_chunks, args=arguments, daemon=True)
        self._process.start()
        inner.close()
        if chunk is not None and chunk.start < chunk.end:
            self.give(chunk)

    def give(self, chunk: _Chunk | None) -> None:
        """Let it read a chunk."""
        self.chunk = chunk
        if chunk is not None:
            self.connection.send(chunk)

    def collect(self, report: Report) -> bool:
        """Add what it read; False when the process died over it."""
        assert self.chunk is not None
        reader = self.chunk.reader
        try:
            outcomes, faults = self.connection.recv()
        except (EOFError, ConnectionError):
            self._process.join()
            seed = int(self._seed.value)
            description = f"the process ended with code {self._process.exitcode}"
            report.outcomes[reader]["crash"] += 1
            report.faults.append(Fault(reader, seed, description, _save(self._save_to, reader, seed, self._table)))
            return False
        report.outcomes[reader].update(outcomes)
        report.faults += faults
        self.chunk = None
        return True

    def rest(self) -> _Chunk | None:
        """What is left of the chunk behind the input that ended the process."""
        assert self.chunk is not None
        return _Chunk(self.chunk.reader, int(self._seed.value) + 1, self.chunk.end)

    def end_if_silent(self, max_silence_s: float) -> None:
        """End the process when one input takes too long; `collect` then finds it dead."""
        since_s = self._since_s.value
        if self.chunk is not None and since_s and time.monotonic() - since_s > max_silence_s:
            self._process.kill()

    def stop(self) -> None:
        """End the process after its work."""
        self.connection.close()
        self._process.join()


def _read_chunks(connection: Connection, seed_now: Any, since_s: Any, save_to: Path, table: str) -> None:
    """The life of a worker process."""
    from tests.fuzz.oracle import Oracle

    readers = load_table(table)

    logging.disable()  # warnings about hostile files are expected by the thousand
    with tempfile.TemporaryDirectory(dir=_memory_folder()) as name:
        oracle = Oracle(Path(name))
        while True:
            try:
                chunk = connection.recv()
            except (EOFError, ConnectionError):
                return
            outcomes: Counter[str] = Counter()
            faults = []
            for seed in range(chunk.start, chunk.end):
                seed_now.value, since_s.value = seed, time.monotonic()
                data, is_traced = make_input(chunk.reader, seed, table), seed % TRACED_EVERY == 0
                verdict = oracle.judge(readers[chunk.reader], data, is_traced=is_traced)
                outcomes[verdict.outcome] += 1
                if verdict.fault:
                    saved = _save(save_to, chunk.reader, seed, table)
                    faults.append(Fault(chunk.reader, seed, verdict.fault, saved))
            since_s.value = 0.0
            connection.send((outcomes, faults))


def _save(save_to: Path, reader: str, seed: int, table: str) -> Path:
    """Keep the input of a fault."""
    place = save_to / reader / f"seed_{seed}.bin"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_bytes(make_input(reader, seed, table))
    return place


def _memory_folder() -> str | None:
    """Where files live in memory, where there is such a place."""
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def num_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0))


def main() -> int:
    """The command line; the exit code is 1 when there were faults."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--inputs", type=int, default=20_000, help="number of inputs over all readers")
    parser.add_argument("--reader", help="only this reader")
    parser.add_argument("--seed", type=int, default=0, help="number of the first input")
    parser.add_argument("--processes", type=int, help="default: one a core")
    parser.add_argument("--save-to", type=Path, help="folder for the inputs of faults; default: a new one")
    options = parser.parse_args()
    save_to = options.save_to or Path(tempfile.mkdtemp(prefix="subsecond-fuzz-"))
    counts = {options.reader: options.inputs} if options.reader else shares(options.inputs)
    report = run(
        counts,
        save_to=save_to,
        num_processes=options.processes,
        first_seed=options.seed,
        tell=lambda line: print(line, file=sys.stderr, flush=True),  # noqa: T201
    )
    print(report)  # noqa: T201
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
