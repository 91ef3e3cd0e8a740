"""What the kernel says of a process: memory, most memory, processor time; and of all processes together."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROC = Path("/proc")
RESET_PEAK = "5"  # see clear_refs in proc(5)


def memory_bytes(pid: int, proc: Path = PROC) -> tuple[int | None, int | None]:
    """Memory that the process holds and the most that it has held (VmRSS, VmHWM); None where it does not say."""
    found: dict[str, int] = {}
    with suppress(OSError):
        for line in (proc / str(pid) / "status").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            if name in ("VmRSS", "VmHWM"):
                found[name] = int(value.split()[0]) * 1024
    return found.get("VmRSS"), found.get("VmHWM")


def reset_peak(pid: int, proc: Path = PROC) -> bool:
    """Begin to count the most memory of a process anew; False where the kernel does not allow it."""
    try:
        (proc / str(pid) / "clear_refs").write_text(RESET_PEAK, encoding="utf-8")
    except OSError:
        return False
    return True


def cpu_seconds(pid: int, proc: Path = PROC) -> float | None:
    """Processor time of a process and of everything that it started; None where that is not told."""
    ticks = [found for member in _family(pid, proc) if (found := _ticks(member, proc)) is not None]
    return sum(ticks) / os.sysconf("SC_CLK_TCK") if ticks else None


def machine_busy_seconds(proc: Path = PROC) -> float | None:
    """Processor time of all programs together, and what a host took away; None where the kernel does not say."""
    try:
        fields = [int(field) for field in (proc / "stat").read_text(encoding="utf-8").split("\n", 1)[0].split()[1:]]
    except (OSError, ValueError):
        return None
    if len(fields) < 8:
        return None
    user, nice, system, _, _, irq, soft_irq, stolen = fields[:8]
    return (user + nice + system + irq + soft_irq + stolen) / os.sysconf("SC_CLK_TCK")


def _family(pid: int, proc: Path) -> Iterator[int]:
    yield pid
    for children in (proc / str(pid) / "task").glob("*/children"):
        with suppress(OSError):
            for child in children.read_text(encoding="utf-8").split():
                yield from _family(int(child), proc)


def _ticks(pid: int, proc: Path) -> int | None:
    try:
        stat = (proc / str(pid) / "stat").read_text(encoding="utf-8")
    except OSError:
        return None
    fields = stat.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    return sum(map(int, fields[11:15]))  # its own and that of children that have ended
