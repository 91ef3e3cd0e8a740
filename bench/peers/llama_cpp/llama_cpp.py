"""Runs the llama.cpp programs that build.sh made: logits of token windows and timed greedy generations, as a peer.

It does not build them, and it knows nothing of the engine it is compared with.
"""

from __future__ import annotations

import json
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
import numpy.typing as npt

_HEADER = struct.Struct("<3i")
_AMX_BUFFER = re.compile(r"AMX model buffer size\s*=\s*([0-9.]+) MiB")
_MAX_MESSAGE_CHARS = 2000


class PeerError(RuntimeError):
    """A llama.cpp program is missing, failed, or printed something that does not fit its request."""


@dataclass(frozen=True, slots=True)
class Generation:
    """One timed greedy generation in its own process.

    `load_ms` covers model and context, `prefill_ms` the prompt and the pick of the first token, and `step_ms` holds
    one value for each later token. `amx_mib` is how much of the weights llama.cpp repacked for AMX (0: AMX not used).
    """

    load_ms: float
    prefill_ms: float
    step_ms: tuple[float, ...]
    token_ids: tuple[int, ...]
    peak_rss_bytes: int
    amx_mib: float
    system_info: str

    @property
    def decode_tokens_per_s(self) -> float:
        """Decode steps per second over the whole generation; needs at least two tokens."""
        if not self.step_ms:
            raise PeerError("decode speed of a one-token generation: it has no decode step; ask for 2 tokens or more")
        return 1000.0 * len(self.step_ms) / sum(self.step_ms)


def program_path(build_dir: Path, name: str) -> Path:
    """Path of a built program under `build_dir`, the work folder given to build.sh. Raises PeerError if absent."""
    path = build_dir / "build" / "bin" / name
    if not path.is_file():
        raise PeerError(f"{path} does not exist: run build.sh with the work folder {build_dir}")
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


def time_generation(
    build_dir: Path,
    model_path: Path,
    prompt_ids: Sequence[int],
    num_tokens: int,
    threads: int = 2,
    num_warmups: int = 1,
) -> Generation:
    """Generate `num_tokens` ids greedily after `prompt_ids` in a fresh process, and return what each part took.

    End-of-sequence ids do not end it. With `num_warmups` 0 the first run of the process is the timed one.
    Raises PeerError when the program fails.
    """
    program = program_path(build_dir, "time_decode")
    with tempfile.TemporaryDirectory() as folder:
        prompt_path = Path(folder) / "prompt.bin"
        prompt_path.write_bytes(_to_little_endian(np.asarray(prompt_ids, dtype=np.int32)))
        arguments = [str(model_path), str(prompt_path), str(num_tokens), str(threads), str(num_warmups)]
        run = subprocess.run([str(program), *arguments], capture_output=True, text=True, errors="replace", check=False)
    if run.returncode != 0:
        raise PeerError(f"{program.name} ended with {run.returncode}: {run.stderr[-_MAX_MESSAGE_CHARS:].strip()}")
    fields = json.loads(run.stdout)
    return Generation(
        load_ms=float(fields["load_ms"]),
        prefill_ms=float(fields["prefill_ms"]),
        step_ms=tuple(float(value) for value in fields["step_ms"]),
        token_ids=tuple(int(value) for value in fields["token_ids"]),
        peak_rss_bytes=int(fields["peak_rss_bytes"]),
        amx_mib=sum(float(size) for size in _AMX_BUFFER.findall(run.stderr)),
        system_info=str(fields["system_info"]),
    )


def decode_speed(
    build_dir: Path, model_path: Path, num_prompt: int, num_tokens: int, repeats: int, threads: int = 2
) -> list[float]:
    """Decode speeds in tokens per second, one per repeat: `num_tokens` steps after a prompt of `num_prompt` ids.

    Every repeat is its own process, loaded and warmed up, with the same arbitrary prompt.
    """
    prompt_ids = [100 + index * 37 % 900 for index in range(num_prompt)]
    generations = (
        time_generation(build_dir, model_path, prompt_ids, num_tokens + 1, threads=threads) for _ in range(repeats)
    )
    return [generation.decode_tokens_per_s for generation in generations]


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
