"""The command lines of the servers that are compared, each with the settings that suit it; starts nothing."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from bench.engines import ENGINES, OURS, Row
from bench.models import PEERS
from bench.peers.llama_cpp.llama_cpp import program_path
from bench.serving.client import LOCAL_HOST
from bench.timing import PeerError

SERVED = (OURS, "llama.cpp", "openvino", "ctranslate2", "transformers")
READY_PATHS = {OURS: "/health/ready"}  # all others: /health

SLOT_GRANULE = 256  # llama.cpp rounds the context of a slot up to this
LLAMA_CACHE_MB = 4096  # half of its default: it holds every prompt of a round, and several servers share the memory
OPENVINO_STEP_TOKENS = 512


@dataclass(frozen=True, slots=True)
class Capacity:
    """What every server is started for.

    num_streams  most requests at once
    slot_tokens  most tokens of one request, prompt and answer
    pool_tokens  tokens of keys and values for engines that share them among requests; None for as much as those get
                 that set a slot aside for every stream
    """

    num_threads: int
    num_streams: int
    slot_tokens: int
    pool_tokens: int | None = None

    @property
    def all_slots_tokens(self) -> int:
        """Tokens of keys and values for a slot a stream, with room to spare."""
        return self.num_streams * -(-(self.slot_tokens + 1) // SLOT_GRANULE) * SLOT_GRANULE

    @property
    def shared_tokens(self) -> int:
        """Tokens of keys and values where requests share them."""
        return self.all_slots_tokens if self.pool_tokens is None else self.pool_tokens


def our_server(model: Path, weights: str | None, capacity: Capacity, port: int) -> list[str]:
    """`subsecond serve`."""
    command = [sys.executable, "-m", "subsecond", "serve", str(model), "--port", str(port)]
    return [*command, *_our_flags(weights, capacity)]


def our_engine(model: Path, weights: str | None, capacity: Capacity) -> list[str]:
    """The engine without HTTP."""
    command = [sys.executable, "-m", "bench.serving.engine_program", str(model)]
    return [*command, *_our_flags(weights, capacity)]


def llama_server(program: Path, model: Path, capacity: Capacity, port: int) -> list[str]:
    """llama.cpp's own server: a slot for every stream, the rest as it is by default.

    That is continuous batching, prompt caches in the slots and in memory, and flash attention where it helps.
    """
    flags = {
        "--host": LOCAL_HOST,
        "--port": port,
        "--threads": capacity.num_threads,
        "--threads-batch": capacity.num_threads,
        "--parallel": capacity.num_streams,
        "--ctx-size": capacity.all_slots_tokens,
        "--cache-ram": LLAMA_CACHE_MB,
    }
    return [str(program), "--model", str(model), *(str(part) for flag in flags.items() for part in flag), "--no-ui"]


def openvino_server(python: str, folder: Path, capacity: Capacity, port: int) -> list[str]:
    """Our adapter of OpenVINO GenAI's pipeline with continuous batching and its prefix cache."""
    flags = {
        "--port": port,
        "--threads": capacity.num_threads,
        "--context-tokens": capacity.shared_tokens,
        "--step-tokens": OPENVINO_STEP_TOKENS,
    }
    parts = (str(part) for flag in flags.items() for part in flag)
    return [python, "-m", "bench.peers.openvino.server", str(folder), *parts]


def transformers_server(python: str, folder: Path, dtype: str, capacity: Capacity, port: int) -> list[str]:
    """Our adapter of eager PyTorch."""
    flags = ("--port", str(port), "--threads", str(capacity.num_threads), "--dtype", dtype)
    return [python, "-m", "bench.peers.transformers.server", str(folder), *flags]


def ctranslate2_server(python: str, folder: Path, capacity: Capacity, port: int) -> list[str]:
    """Our adapter of CTranslate2, which has no continuous batching: one request after the other."""
    flags = ("--port", str(port), "--threads", str(capacity.num_threads))
    return [python, "-m", "bench.peers.ctranslate2.server", str(folder), *flags]


def server_command(row: Row, model: Path, capacity: Capacity, port: int) -> list[str]:
    """The command line of the server of that engine, `model` being what its engine made of a file.

    Raises:
        PeerError: the engine has no server here, or is not installed.
    """
    if row.engine == OURS:
        return our_server(model, row.weights, capacity, port)
    if row.engine == "llama.cpp":
        return llama_server(program_path(PEERS / "llama_cpp", "llama-server"), model, capacity, port)
    python = ENGINES[row.engine].command(row.weights, None).argv[0]
    if row.engine == "openvino":
        return openvino_server(python, model, capacity, port)
    if row.engine == "ctranslate2":
        return ctranslate2_server(python, model, capacity, port)
    if row.engine == "transformers":
        return transformers_server(python, model, str(row.weights), capacity, port)
    raise PeerError(f"{row.engine} is compared by bench.compare alone; servers are {', '.join(SERVED)}")


def _our_flags(weights: str | None, capacity: Capacity) -> list[str]:
    flags = ["--num-threads", str(capacity.num_threads), "--context-tokens", str(capacity.shared_tokens)]
    return flags if weights is None else [*flags, "--weights", weights]
