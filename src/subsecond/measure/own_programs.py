"""Starts our own commands as programs of their own, to be measured from outside: a cold start, a server."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from threading import Timer
from typing import Any

from subsecond.measure.target import TargetError

COLD_PROMPT, COLD_TOKENS = "The capital of France is", 8
STOP_TIMEOUT_S = 20.0
MAX_LOG_CHARS = 2000
KEYS_VARIABLE = "SUBSECOND_API_KEYS"  # a server with keys would ask its own benchmark for one


def cold_start(model: str, flags: Sequence[str], timeout_s: float) -> dict[str, Any]:
    """Milliseconds of a fresh `subsecond run` from its start to its first text and to its end, with a short answer.

    Files are as the system has them, in memory if somebody has read them lately.
    """
    command = _command(
        "run", *flags, "--raw", "--ignore-eos", "--max-tokens", str(COLD_TOKENS), "--", model, COLD_PROMPT
    )
    start_s = time.perf_counter()
    with started(command) as (process, log), _limited(process, timeout_s):
        assert process.stdout is not None
        has_text = bool(process.stdout.read(1))
        first_s = time.perf_counter()
        process.stdout.read()
        code = process.wait()
        end_s = time.perf_counter()
        if code or not has_text:
            raise TargetError(f"`subsecond run` ended with {code}: {log_end(log)}")
    return {
        "first_token_ms": round((first_s - start_s) * 1e3, 2),
        "end_ms": round((end_s - start_s) * 1e3, 2),
        "output_tokens": COLD_TOKENS,
    }


@contextmanager
def own_server(model: str, flags: Sequence[str], timeout_s: float) -> Iterator[tuple[str, int]]:
    """A server with the model on a free port, as (address, process id) once it can answer; ended with the block."""
    command = _command("serve", "--json", "--port", "0", *flags, "--", model)
    with started(command) as (process, log):
        assert process.stdout is not None
        with _limited(process, timeout_s):
            line = process.stdout.readline()
        try:
            address = str(json.loads(line)["address"])
        except (ValueError, LookupError, TypeError):
            raise TargetError(f"`subsecond serve` did not start: {log_end(log) or line.decode()[:500]}") from None
        yield address, process.pid


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "subsecond", *arguments]


def _environment() -> Mapping[str, str]:
    return {name: value for name, value in os.environ.items() if name != KEYS_VARIABLE}


@contextmanager
def started(command: Sequence[str], folder: Path | None = None) -> Iterator[tuple[subprocess.Popen[bytes], Any]]:
    """A running program and the file of what it says; it is ended with the block, politely first.

    folder  it runs there; None for the current one
    """
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=log, env=_environment(), cwd=folder
        )
        try:
            yield process, log
        finally:
            assert process.stdout is not None
            if process.poll() is None:
                process.terminate()
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_TIMEOUT_S)
                if process.poll() is None:
                    process.kill()
                    process.wait()
            process.stdout.close()


@contextmanager
def _limited(process: subprocess.Popen[bytes], timeout_s: float) -> Iterator[None]:
    """End the program if the block takes longer, so that reading from it ends too."""
    timer = Timer(timeout_s, process.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def log_end(log: Any) -> str:
    """What a program said last."""
    log.seek(0)
    return str(log.read().decode(errors="replace"))[-MAX_LOG_CHARS:].strip()
