"""Runs the coverage-guided fuzzer on every reader, each in a child process, several at a time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path

from tests.fuzz.campaign import Fault, Report, num_cores

ROOT = Path(__file__).resolve().parents[2]


def run(counts: Mapping[str, int], *, save_to: Path, tell: Callable[[str], None] | None = None) -> Report:
    """Read `counts[reader]` inputs of each reader; corpora and the inputs of faults stay in `save_to`."""
    report, start_s = Report({reader: Counter() for reader in counts}), time.monotonic()
    with ThreadPoolExecutor(num_cores()) as pool:
        children = {pool.submit(_run_child, reader, count, save_to): reader for reader, count in counts.items()}
        for child in as_completed(children):
            reader = children[child]
            outcomes, faults = child.result()
            report.outcomes[reader].update(outcomes)
            report.faults += faults
            if tell:
                left = len(counts) - sum(bool(counter) for counter in report.outcomes.values())
                tell(f"guided: {reader} done, {report.num_inputs:,} inputs, {left} readers left")
    report.elapsed_s = time.monotonic() - start_s
    return report


def _run_child(reader: str, count: int, save_to: Path) -> tuple[Counter[str], list[Fault]]:
    folder = save_to / reader
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "tests.fuzz.coverage_guided", reader, str(count), str(save_to)]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH", ""))))
    done = subprocess.run(
        command, cwd=ROOT, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True, errors="replace"
    )
    summary = folder / "summary.json"
    if done.returncode != 0 or not summary.is_file():
        description = f"the guided fuzzer ended with code {done.returncode}: {done.stderr[-1500:]}"
        return Counter(crash=1), [Fault(reader, -1, description, folder)]
    content = json.loads(summary.read_text())
    return Counter(content["outcomes"]), [Fault(reader, -1, fault, folder) for fault in content["faults"]]
