"""Which machine and which program a figure was measured on, as JSON data that goes beside every figure."""

from __future__ import annotations

import platform
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from subsecond.core.hardware import probe


def machine_json(isa: str | None = None) -> dict[str, Any]:
    """Processor, memory, versions and time; `isa` is the instruction set of the kernels that ran, where known."""
    hardware = probe()
    return {
        "processor": hardware.processor_name,
        "architecture": hardware.architecture,
        "num_usable_cores": hardware.num_usable_cores,
        "memory_bytes": hardware.memory_bytes,
        "isa": isa,
        "subsecond": version("subsecond"),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
    }
