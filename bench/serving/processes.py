"""Processes that are measured from outside: their processor time, held while another is measured, ended at last."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from bench.models import ROOT
from bench.timing import PeerError

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
STOP_TIMEOUT_S = 20.0
MAX_LOG_CHARS = 2000
PR_SET_PDEATHSIG = 1


def ticks_of(stat: str) -> int:
    """Processor time of a process in ticks, its ended children's included, from the text of /proc/PID/stat."""
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return sum(map(int, fields[11:15]))


def family_of(pid: int, proc: Path = Path("/proc")) -> Iterator[int]:
    """The process and everything that it started and that still runs."""
    yield pid
    for children in (proc / str(pid) / "task").glob("*/children"):
        try:
            found = children.read_text(encoding="utf-8").split()
        except OSError:
            continue
        for child in found:
            yield from family_of(int(child), proc)


def cpu_seconds(pid: int, proc: Path = Path("/proc")) -> float:
    """Processor time of a process and everything it started; what has ended unseen counts for nothing."""
    ticks = 0
    for member in family_of(pid, proc):
        try:
            ticks += ticks_of((proc / str(member) / "stat").read_text(encoding="utf-8"))
        except OSError:
            continue
    return ticks / TICKS_PER_S


def peak_rss_bytes(pid: int, proc: Path = Path("/proc")) -> int:
    """Most memory that the process has held, without its children."""
    for line in (proc / str(pid) / "status").read_text(encoding="utf-8").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise PeerError(f"process {pid} does not say how much memory it has held")


def die_with_parent() -> None:
    """Have the kernel kill this process when the one that started it ends, however it does: it may be held then."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class MeasuredProcess:
    """A program in a session of its own whose output goes to a file, so that its end can be told with a reason."""

    def __init__(self, argv: Sequence[str], environment: Mapping[str, str] | None = None, *, has_pipes: bool = False):
        self.argv = list(argv)
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (it lives as long as the process)
        pipe = subprocess.PIPE if has_pipes else None
        self.process = subprocess.Popen(
            self.argv,
            stdin=pipe or subprocess.DEVNULL,
            stdout=pipe or self._log,
            stderr=self._log,
            cwd=ROOT,
            env={**os.environ, **(environment or {})},
            start_new_session=True,
            preexec_fn=die_with_parent,
        )

    def wait_until_ready(self, url: str, timeout_s: float) -> None:
        """Wait until the URL answers with 200; PeerError with the end of the log if the program ends before."""
        deadline_s = time.monotonic() + timeout_s
        while time.monotonic() < deadline_s:
            if self.process.poll() is not None:
                raise self.failure()
            with suppress(OSError), urllib.request.urlopen(url, timeout=5) as response:  # an error status is one too
                if response.status == 200:
                    return
            time.sleep(0.1)
        raise PeerError(f"{' '.join(self.argv)} was not ready in {timeout_s:.0f} s: {self.log_end()}")

    def cpu_seconds(self) -> float:
        """Processor time so far."""
        return cpu_seconds(self.process.pid)

    def peak_rss_bytes(self) -> int:
        """Most memory held so far."""
        return peak_rss_bytes(self.process.pid)

    def pause(self) -> None:
        """Hold it, so that nothing of it runs while another is measured."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """Let it run again."""
        self._signal(signal.SIGCONT)

    def stop(self) -> None:
        """End it and everything it started, politely first; may be called again."""
        self.resume()
        self._signal(signal.SIGTERM)
        try:
            self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._signal(signal.SIGKILL)
            self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()
        self._log.close()

    def failure(self) -> PeerError:
        """Why it ended."""
        return PeerError(f"{' '.join(self.argv)} ended with {self.process.wait()}: {self.log_end()}")

    def log_end(self) -> str:
        """What it printed last."""
        self._log.seek(0)
        return self._log.read().decode(errors="replace")[-MAX_LOG_CHARS:].strip()

    def _signal(self, number: signal.Signals) -> None:
        if self.process.returncode is None:
            with suppress(ProcessLookupError):
                os.killpg(self.process.pid, number)
