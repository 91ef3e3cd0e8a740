"""Runs the llama.cpp programs that build.sh made: the logits of token windows; generation.py times it.

It does not build them, and it knows nothing of the engine it is compared with.
"""

from __future__ import annotations

import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

from bench.timing import PeerError

NATIVE = "native"
ISAS = (NATIVE, "avx2", "avxvnni", "avx512", "avx512vnni", "amx")
"""What build.sh takes as --isa."""

_HEADER = struct.Struct("<3i")
_MAX_MESSAGE_CHARS = 2000


def program_path(build_dir: Path, name: str, isa: str = NATIVE) -> Path:
    """Path of a built program under `build_dir`, the work folder given to build.sh. Raises PeerError if absent."""
    path = build_dir / ("build" if isa == NATIVE else f"build-{isa}") / "bin" / name
    if not path.is_file():
        raise PeerError(f"{path} does not exist: run build.sh --isa {isa} with the work folder {build_dir}")
    return path


def iterate_logits(
    build_dir: Path, model_path: Path, windows: npt.NDArray[np.int32], threads: int = 2
) -> Iterator[npt.NDArray[np.float32]]:
    """Yield the logits, float32 [window_len, vocab], of each row of `windows`, int32 [num_windows, window_len].

    Each window is evaluated from an empty KV cache with llama.cpp's defaults (f16 KV, flash attention, batches of 512);
    no id is added, so a window that shall start with BOS must contain it. One window at a time is held in memory.
    Raises PeerError when the program fails or ends early.
    """
    if windows.ndim != 2 or windows.size == 0:
        raise PeerError(f"windows has shape {windows.shape}; it must be [num_windows, window_len], both at least 1")
    program = program_path(build_dir, "dump_logits")
    num_windows, window_len = windows.shape
    with tempfile.TemporaryDirectory() as folder, tempfile.TemporaryFile() as log:
        tokens_path = Path(folder) / "tokens.bin"
        tokens_path.write_bytes(struct.pack("<2i", num_windows, window_len) + _to_little_endian(windows))
        command = [str(program), str(model_path), str(tokens_path), "-", str(threads)]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log)
        assert process.stdout is not None
        try:
            header_bytes = bytearray(_HEADER.size)
            _fill(memoryview(header_bytes), process.stdout, process, log)
            header = _HEADER.unpack(header_bytes)
            if header[:2] != windows.shape or header[2] < 1:
                raise PeerError(f"{program.name} announced the shape {header} for windows of shape {windows.shape}")
            for _ in range(num_windows):
                logits = np.empty((window_len, header[2]), dtype="<f4")
                _fill(logits.reshape(-1).view(np.uint8).data, process.stdout, process, log)
                yield logits.astype(np.float32, copy=False)
            if process.wait() != 0:
                raise _failure(process, log)
        finally:
            process.kill()
            process.stdout.close()
            process.wait()


def _to_little_endian(ids: npt.NDArray[np.int32]) -> bytes:
    return np.ascontiguousarray(ids, dtype="<i4").tobytes()


def _fill(view: memoryview, stream: IO[bytes], process: subprocess.Popen[bytes], log: IO[bytes]) -> None:
    """Fill `view` from the program's output; raises PeerError with the end of its log when it stops before that."""
    filled = 0
    while filled < len(view):
        num_bytes = stream.readinto(view[filled:])  # type: ignore[attr-defined]
        if not num_bytes:
            process.wait()
            raise _failure(process, log)
        filled += num_bytes


def _failure(process: subprocess.Popen[bytes], log: IO[bytes]) -> PeerError:
    log.seek(0)
    message = log.read().decode(errors="replace")[-_MAX_MESSAGE_CHARS:].strip()
    return PeerError(f"llama.cpp ended with {process.returncode} before all its output had come: {message}")
