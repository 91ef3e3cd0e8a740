"""What the machine is and what of it this process may use, read from /proc and /sys; it measures nothing."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

# cgroup v1 says "no limit" with a number near 2^63, rounded down to a page.
_UNLIMITED_BYTES = 1 << 60


@dataclass(frozen=True, slots=True)
class Machine:
    """One machine as this process sees it.

    processor_name     as the kernel names it, or the architecture where it names none
    flags              instruction-set flags of the processor, sorted; empty where the kernel lists none
    num_cores          logical processors of the machine
    num_allowed_cores  those that this process may be scheduled on
    num_physical_cores cores that these are threads of; as many as these where the kernel does not say
    cpu_limit          processors' worth of time that the control group allows; None for no limit
    memory_bytes       memory of the machine
    available_bytes    memory that can be had without swapping, within the control group's limit
    memory_limit_bytes limit of the control group; None for no limit
    huge_pages         the kernel's transparent huge pages: "always", "madvise", "never" or "unknown"
    """

    processor_name: str
    architecture: str
    flags: tuple[str, ...]
    num_cores: int
    num_allowed_cores: int
    num_physical_cores: int
    cpu_limit: float | None
    memory_bytes: int
    available_bytes: int
    memory_limit_bytes: int | None
    huge_pages: str

    @property
    def num_usable_cores(self) -> int:
        """Threads that can run at once: the allowed cores, and no more than the control group pays for."""
        if self.cpu_limit is None:
            return self.num_allowed_cores
        return max(1, min(self.num_allowed_cores, int(self.cpu_limit + 0.5)))


def probe(root: Path = Path("/")) -> Machine:
    """Describe the machine from the files below `root`; what cannot be read counts as absent or unlimited."""
    name, flags = _processor(_text(root / "proc/cpuinfo"))
    memory = _memory_info(_text(root / "proc/meminfo"))
    groups = _control_groups(root)
    limit_bytes = _memory_limit(groups)
    available_bytes = memory.get("MemAvailable", 0)
    if limit_bytes is not None:
        available_bytes = min(available_bytes or limit_bytes, max(0, limit_bytes - _memory_used(groups)))
    num_cores = os.cpu_count() or 1
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(num_cores))
    return Machine(
        processor_name=name or platform.processor() or platform.machine(),
        architecture=platform.machine(),
        flags=flags,
        num_cores=num_cores,
        num_allowed_cores=len(allowed),
        num_physical_cores=_num_physical_cores(root, allowed),
        cpu_limit=_cpu_limit(groups),
        memory_bytes=memory.get("MemTotal", 0),
        available_bytes=available_bytes,
        memory_limit_bytes=limit_bytes,
        huge_pages=_chosen(_text(root / "sys/kernel/mm/transparent_hugepage/enabled")),
    )


def _num_physical_cores(root: Path, cores: set[int]) -> int:
    """Count groups of sibling threads; a core without topology counts as one of its own."""
    folders = {core: root / f"sys/devices/system/cpu/cpu{core}/topology" for core in cores}
    siblings = (_text(folders[core] / "thread_siblings_list").strip() or str(core) for core in cores)
    return len(set(siblings))


@dataclass(frozen=True, slots=True)
class _Groups:
    """Folders of this process's control groups for one resource each, its own group first and the root last."""

    cpu: tuple[Path, ...]
    memory: tuple[Path, ...]


def _control_groups(root: Path) -> _Groups:
    mount = root / "sys/fs/cgroup"
    path_by_controller = {}
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = (*line.split(":", 2), "", "")[:3]
        for controller in controllers.split(","):
            path_by_controller[controller] = path
    found = {}
    for controller in ("cpu", "memory"):
        if controller in path_by_controller:
            found[controller] = tuple(_upwards(mount / controller, path_by_controller[controller]))
        else:
            found[controller] = tuple(_upwards(mount, path_by_controller.get("", "/")))
    return _Groups(found["cpu"], found["memory"])


def _upwards(mount: Path, group: str) -> Iterator[Path]:
    """The group's folder and those above it; inside a container only the mount itself may exist."""
    parts = [part for part in group.split("/") if part and part != ".."]
    for count in range(len(parts), -1, -1):
        yield mount.joinpath(*parts[:count])


def _cpu_limit(groups: _Groups) -> float | None:
    limits = []
    for folder in groups.cpu:
        quota, period = (*_text(folder / "cpu.max").split(), "", "")[:2]
        if not quota:
            quota = _text(folder / "cpu.cfs_quota_us").strip()
            period = _text(folder / "cpu.cfs_period_us").strip()
        if quota.isdigit() and period.isdigit() and int(period) > 0:
            limits.append(int(quota) / int(period))
    return min(limits, default=None)


def _memory_limit(groups: _Groups) -> int | None:
    texts = [_text(folder / name) for folder in groups.memory for name in ("memory.max", "memory.limit_in_bytes")]
    limits = [int(text) for text in texts if text.strip().isdigit()]
    return min((limit for limit in limits if limit < _UNLIMITED_BYTES), default=None)


def _memory_used(groups: _Groups) -> int:
    for folder in groups.memory:
        for name in ("memory.current", "memory.usage_in_bytes"):
            text = _text(folder / name).strip()
            if text.isdigit():
                return int(text)
    return 0


def _processor(cpuinfo: str) -> tuple[str, tuple[str, ...]]:
    """Name and flags of the first processor; ARM kernels call the flags Features and may give no name."""
    name = re.search(r"^model name\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    flags = re.search(r"^(?:flags|Features)\s*:\s*(.+)$", cpuinfo, re.MULTILINE)
    return name[1].strip() if name else "", tuple(sorted(set(flags[1].split()))) if flags else ()


def _memory_info(meminfo: str) -> dict[str, int]:
    """Bytes by name."""
    return {name: int(kib) * 1024 for name, kib in re.findall(r"^(\w+):\s+(\d+) kB$", meminfo, re.MULTILINE)}


def _chosen(text: str) -> str:
    """The word in brackets, as in `always [madvise] never`."""
    match = re.search(r"\[(\w+)\]", text)
    return match[1] if match else "unknown"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
