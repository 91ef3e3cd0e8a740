"""The machine as told by small trees of /proc and /sys."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from subsecond.core import hardware

X86_CPUINFO = """processor\t: 0
model name\t: Example CPU @ 2.00GHz
flags\t\t: fpu avx2 amx_tile avx2

processor\t: 1
model name\t: Example CPU @ 2.00GHz
flags\t\t: fpu avx2 amx_tile
"""
ARM_CPUINFO = "processor\t: 0\nFeatures\t: fp asimd i8mm\n"
MEMINFO = "MemTotal:       2000 kB\nMemFree:         100 kB\nMemAvailable:   1500 kB\nHugePages_Total:   0\n"


def tree(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def test_an_empty_tree_is_no_error(tmp_path: Path) -> None:
    machine = hardware.probe(tmp_path)
    assert machine.flags == ()
    assert machine.processor_name
    assert (machine.cpu_limit, machine.memory_limit_bytes, machine.huge_pages) == (None, None, "unknown")
    assert machine.num_usable_cores == machine.num_allowed_cores == len(os.sched_getaffinity(0))
    assert machine.num_physical_cores == machine.num_allowed_cores


def test_an_x86_machine(tmp_path: Path) -> None:
    files = {
        "proc/cpuinfo": X86_CPUINFO,
        "proc/meminfo": MEMINFO,
        "sys/kernel/mm/transparent_hugepage/enabled": "always [madvise] never\n",
    }
    machine = hardware.probe(tree(tmp_path, files))
    assert machine.processor_name == "Example CPU @ 2.00GHz"
    assert machine.flags == ("amx_tile", "avx2", "fpu")
    assert (machine.memory_bytes, machine.available_bytes) == (2000 * 1024, 1500 * 1024)
    assert machine.huge_pages == "madvise"


def test_sibling_threads_are_one_core(tmp_path: Path) -> None:
    path = "sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"
    cores = os.sched_getaffinity(0)
    machine = hardware.probe(tree(tmp_path, {path.format(core): "0-1\n" for core in cores}))
    assert machine.num_physical_cores == 1


def test_an_arm_machine_has_features_and_no_name(tmp_path: Path) -> None:
    machine = hardware.probe(tree(tmp_path, {"proc/cpuinfo": ARM_CPUINFO}))
    assert machine.flags == ("asimd", "fp", "i8mm")
    assert machine.processor_name


V2 = {"proc/self/cgroup": "0::/outer/inner\n", "proc/meminfo": MEMINFO}
V1 = {"proc/self/cgroup": "3:cpu,cpuacct:/box\n2:memory:/box\n1:name=systemd:/\n", "proc/meminfo": MEMINFO}


@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({**V2, "sys/fs/cgroup/outer/inner/cpu.max": "max 100000\n"}, None),
        ({**V2, "sys/fs/cgroup/outer/inner/cpu.max": "50000 100000\n"}, 0.5),
        ({**V2, "sys/fs/cgroup/outer/cpu.max": "70000 100000", "sys/fs/cgroup/outer/inner/cpu.max": "max 100000"}, 0.7),
        ({**V2, "sys/fs/cgroup/cpu.max": "150000 100000\n"}, 1.5),
        ({**V1, "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "-1\n"}, None),
        (
            {
                **V1,
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "40000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            0.4,
        ),
        ({**V2, "sys/fs/cgroup/cpu.max": "garbage\n"}, None),
    ],
)
def test_the_control_group_limits_the_processor(tmp_path: Path, files: dict[str, str], limit: float | None) -> None:
    machine = hardware.probe(tree(tmp_path, files))
    assert machine.cpu_limit == limit
    if limit is not None and limit < 1:
        assert machine.num_usable_cores == 1


@pytest.mark.parametrize(
    ("files", "limit", "available"),
    [
        ({**V2, "sys/fs/cgroup/outer/memory.max": "max\n"}, None, 1500 * 1024),
        (
            {
                **V2,
                "sys/fs/cgroup/outer/memory.max": "900000\n",
                "sys/fs/cgroup/outer/inner/memory.current": "100000\n",
            },
            900_000,
            800_000,
        ),
        ({**V1, "sys/fs/cgroup/memory/box/memory.limit_in_bytes": "9223372036854771712\n"}, None, 1500 * 1024),
        ({**V1, "sys/fs/cgroup/memory/memory.limit_in_bytes": "5000000\n"}, 5_000_000, 1500 * 1024),
    ],
)
def test_the_control_group_limits_memory(
    tmp_path: Path, files: dict[str, str], limit: int | None, available: int
) -> None:
    machine = hardware.probe(tree(tmp_path, files))
    assert machine.memory_limit_bytes == limit
    assert machine.available_bytes == available


def test_this_machine_is_described() -> None:
    machine = hardware.probe()
    assert machine.processor_name
    assert 1 <= machine.num_usable_cores <= machine.num_cores
    assert machine.memory_bytes >= machine.available_bytes > 0
