"""Judges one reader on one input: which errors come out, how much processor time it takes, how much it allocates.

Allocations are seen twice: tracemalloc counts what Python and numpy ask for, used or not; the peak of the resident set
counts what any code (Rust, C++) really touches, for which Linux lets a process reset its own record.
"""

from __future__ import annotations

import shutil
import time
import traceback
import tracemalloc
import warnings
from dataclasses import dataclass
from pathlib import Path

from subsecond.core.errors import SubsecondError
from tests.fuzz import file_bundle
from tests.fuzz.harnesses import Harness

MAX_MESSAGE_CHARS = 4000
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


@dataclass(frozen=True, slots=True)
class Verdict:
    """What happened: `outcome` is "accepted" or the name of the error, `fault` what is wrong with that, if anything."""

    outcome: str
    fault: str = ""


class Oracle:
    """Runs inputs one after the other in `folder`, which is its own and emptied when another reader comes.

    What one reader's inputs leave behind must not decide what the next one finds: a config.json makes a folder that
    holds an artifact one of Hugging Face.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._harness: Harness | None = None
        self._can_reset_peak = _can_reset_peak()

    def judge(self, harness: Harness, data: bytes, *, is_traced: bool = True) -> Verdict:
        """Open the input and compare what happens with the harness's limits.

        Tracing doubles the time; without it, memory that is asked for and never touched goes unseen.
        """
        if harness is not self._harness:
            _empty(self._folder)
            self._harness = harness
        file_bundle.write(data, harness.files, self._folder)
        resident, num_bytes = self._reset_peak(), 0
        if is_traced:
            tracemalloc.start(1)
        verdict, cpu_s = self._timed_open(harness)
        if is_traced:
            num_bytes = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        if self._can_reset_peak:
            num_bytes = max(num_bytes, _status_bytes("VmHWM") - resident)
        if not verdict.fault and num_bytes > harness.max_bytes + len(data):
            return Verdict(verdict.outcome, f"allocates {num_bytes:,} bytes; {harness.max_bytes:,} are allowed")
        if cpu_s > harness.max_cpu_s and is_traced:  # only a time without tracing counts
            cpu_s = self._timed_open(harness)[1]
        if not verdict.fault and cpu_s > harness.max_cpu_s:
            return Verdict(verdict.outcome, f"takes {cpu_s:.2f} s of processor time; {harness.max_cpu_s} s are allowed")
        return verdict

    def _timed_open(self, harness: Harness) -> tuple[Verdict, float]:
        start_s = time.process_time()
        verdict = self._open(harness)
        return verdict, time.process_time() - start_s

    def _open(self, harness: Harness) -> Verdict:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error")
                harness.open(self._folder)
        except SubsecondError as error:
            text = str(error)
            fault = f"an error of {len(text)} characters" if len(text) > MAX_MESSAGE_CHARS else ""
            return Verdict(type(error).__name__, fault)
        except harness.errors as error:
            return Verdict(type(error).__name__)
        except Exception as error:
            return Verdict(type(error).__name__, _origin(error))
        return Verdict("accepted")

    def _reset_peak(self) -> int:
        if not self._can_reset_peak:
            return 0
        _CLEAR.write_text("5")
        return _status_bytes("VmRSS")


def _empty(folder: Path) -> None:
    for place in folder.iterdir():
        if place.is_dir() and not place.is_symlink():
            shutil.rmtree(place)
        else:
            place.unlink()


def _origin(error: Exception) -> str:
    """The error and the last places it came through."""
    frames = traceback.extract_tb(error.__traceback__)[-4:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__}: {str(error)[:200]!r} at {places}"


def _status_bytes(field: str) -> int:
    text = _STATUS.read_text()
    return int(text.partition(f"{field}:")[2].split(maxsplit=1)[0]) * 1024


def _can_reset_peak() -> bool:
    try:
        _CLEAR.write_text("5")
    except OSError:
        return False
    return "VmHWM" in _STATUS.read_text()
