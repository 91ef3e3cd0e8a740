"""Pages of mapped weights leave the memory of the process when asked to, and come back when read again."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest
from safetensors.numpy import save_file

from subsecond.formats.gguf import GgufFile
from subsecond.formats.safetensors import Safetensors

VALUES = np.arange(1 << 20, dtype=np.float32).reshape(1024, 1024)  # 4 MiB


def open_gguf(path: Path) -> GgufFile:
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("weight", VALUES)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return GgufFile.open(path)


def open_safetensors(path: Path) -> Safetensors:
    save_file({"weight": VALUES}, path)
    return Safetensors.open(path)


def resident_bytes(path: Path) -> int:
    """Bytes of the file's mappings that are in this process's memory."""
    total, is_wanted = 0, False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if re.match(r"[0-9a-f]+-[0-9a-f]+ ", line):
            is_wanted = line.endswith(str(path))
        elif is_wanted and line.startswith("Rss:"):
            total += 1024 * int(line.split()[1])
    return total


@pytest.mark.parametrize("open_file", [open_gguf, open_safetensors])
def test_released_pages_are_read_again(tmp_path: Path, open_file: Callable[[Path], GgufFile | Safetensors]) -> None:
    path = tmp_path / "weights"
    file = open_file(path)
    view = file.raw("weight")
    np.testing.assert_array_equal(view.view(np.float32), VALUES.reshape(-1))
    assert resident_bytes(path) >= VALUES.nbytes
    file.release()
    assert resident_bytes(path) == 0
    np.testing.assert_array_equal(view.view(np.float32), VALUES.reshape(-1))
