"""Energy that a stretch of work took: counters of the processor and of graphics cards, or an estimate that says so."""

from __future__ import annotations

import subprocess
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from shutil import which

POWERCAP = Path("/sys/class/powercap")
GPU_PERIOD_S = 1.0
GPU_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Energy:
    """Joules, and how they were found; None with the reason where they were not."""

    joules: float | None
    method: str


@dataclass(frozen=True, slots=True)
class Counter:
    """One counter of the processor, in microjoules; begins at 0 again beyond `range_uj`."""

    path: Path
    range_uj: int

    def read(self) -> int:
        """Its value."""
        return int(self.path.read_text(encoding="ascii"))

    def joules(self, start_uj: int, end_uj: int) -> float:
        """What was counted between two readings, at most one round of the counter apart."""
        return (end_uj - start_uj if end_uj >= start_uj else end_uj + self.range_uj - start_uj) / 1e6


def processor_counters(root: Path = POWERCAP) -> tuple[Counter, ...]:
    """Readable RAPL counters of packages and of memory; parts of a package and the whole platform would count twice."""
    found = []
    for folder in sorted(root.glob("intel-rapl*:*")):
        with suppress(OSError, ValueError):
            name = (folder / "name").read_text(encoding="ascii").strip()
            if name.startswith("package") or name == "dram":
                counter = Counter(folder / "energy_uj", int((folder / "max_energy_range_uj").read_text()))
                counter.read()
                found.append(counter)
    return tuple(found)


class GpuPower:
    """Watts of all graphics cards that nvidia-smi knows, read once a second on a thread of its own."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._readings: list[tuple[float, float]] = []
        self._is_over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="subsecond-power", daemon=True)

    def start(self) -> None:
        """Begin to read."""
        self._read()
        self._thread.start()

    def joules(self) -> float | None:
        """Stop, and return the area under the readings; None where the cards do not tell."""
        self._is_over.set()
        self._thread.join()
        self._read()
        if len(self._readings) < 2:
            return None
        return sum((after - before) * (a + b) / 2 for (before, a), (after, b) in pairwise(self._readings))

    def _run(self) -> None:
        while not self._is_over.wait(GPU_PERIOD_S):
            self._read()

    def _read(self) -> None:
        command = [self._program, "--query-gpu=power.draw", "--format=csv,noheader,nounits"]
        with suppress(OSError, ValueError, subprocess.SubprocessError):
            answer = subprocess.run(command, capture_output=True, text=True, timeout=GPU_TIMEOUT_S, check=True)
            watts = sum(float(line) for line in answer.stdout.split())
            self._readings.append((time.perf_counter(), watts))


class EnergyMeter:
    """Measures from `start` to `stop`, one stretch at a time.

    watts_per_core  power that one busy core is assumed to take where nothing can be measured
    """

    def __init__(self, watts_per_core: float, *, powercap: Path = POWERCAP, gpu_program: str = "nvidia-smi") -> None:
        self._watts_per_core = watts_per_core
        self._counters = processor_counters(powercap)
        self._gpu_program = which(gpu_program)
        self._start_uj: list[int] = []
        self._gpu: GpuPower | None = None

    def start(self) -> None:
        """Begin."""
        self._start_uj = [counter.read() for counter in self._counters]
        if self._gpu_program is not None:
            self._gpu = GpuPower(self._gpu_program)
            self._gpu.start()

    def stop(self, cpu_s: float | None, *, is_local: bool = True) -> Energy:
        """End, and return the energy of the whole machine where it has counters, else an estimate.

        cpu_s     processor time that the measured program took meanwhile; None where it is not known
        is_local  whether the program runs on this machine; the energy of another cannot be known
        """
        ends = [counter.read() for counter in self._counters]
        gpu_joules, self._gpu = (None if self._gpu is None else self._gpu.joules()), None
        if not is_local:
            return Energy(None, "none: the server runs on another machine")
        gpu_text = "" if gpu_joules is None else " + graphics cards by nvidia-smi"
        if self._counters:
            triples = zip(self._counters, self._start_uj, ends, strict=True)
            joules = sum(counter.joules(start, end) for counter, start, end in triples)
            return Energy(joules + (gpu_joules or 0.0), f"RAPL of the whole machine{gpu_text}")
        if cpu_s is None:
            return Energy(None, "none: no counter can be read, and which process answers is not known")
        method = (
            f"estimate: processor time of the program x {self._watts_per_core:g} W for each busy core, which is "
            f"assumed (--watts-per-core){gpu_text}"
        )
        return Energy(cpu_s * self._watts_per_core + (gpu_joules or 0.0), method)
