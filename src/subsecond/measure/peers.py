"""Other engines on this machine that a benchmark may start beside ours: which are registered, and their servers.

An engine is known by an entry of a JSON file in the user's cache folder, which whoever installs engines writes
(`make peers` in the repository): a command that becomes its server when it is given a model and a port.
"""

from __future__ import annotations

import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from subsecond.core.errors import FormatError, InputError
from subsecond.formats.fields import read_field, read_mapping
from subsecond.formats.json_file import read_json_object
from subsecond.measure.own_programs import log_end, started
from subsecond.measure.target import TargetError
from subsecond.models.store import home

LOCAL_HOST = "127.0.0.1"
READY_PATH = "/health"
HOW_TO_INSTALL = "in a checkout of the repository, `make peers` installs engines to compare with and registers them"


@dataclass(frozen=True, slots=True)
class Peer:
    """A registered engine.

    command  becomes its server when `ENGINE[:WEIGHTS] MODEL --port N --threads N ...` follows; run in `folder`
    version  of the engine; build says how it was compiled
    weights  that it can be asked for, the first being what it takes otherwise
    """

    name: str
    command: tuple[str, ...]
    folder: Path
    version: str
    build: str
    weights: tuple[str, ...]


def registry_path() -> Path:
    """The file of all registered engines, which need not exist."""
    return home() / "peers.json"


def registered_peers() -> Mapping[str, Peer]:
    """The engines of the registry by name; none where there is no registry.

    Raises:
        FormatError: the file is damaged.
    """
    path = registry_path()
    if not path.exists():
        return {}
    entries = read_mapping(read_json_object(path), "peers", str(path))
    return {name: _peer(name, entry, f"{path}: peers.{name}") for name, entry in entries.items()}


def find_peer(name: str) -> Peer:
    """The engine that NAME or NAME:WEIGHTS means.

    Raises:
        InputError: none of that name is registered, or it does not take these weights.
        FormatError: the registry is damaged.
    """
    peers = registered_peers()
    engine, _, weights = name.partition(":")
    if engine not in peers:
        known = f"registered are {', '.join(peers)}" if peers else "none is registered"
        raise InputError(
            f"--against {name[:100]!r} is no address and no engine that is known here: {known}; {HOW_TO_INSTALL}"
        )
    peer = peers[engine]
    if weights and weights not in peer.weights:
        raise InputError(f"--against {name[:100]!r}: weights of {engine} are {', '.join(peer.weights) or 'not chosen'}")
    return peer


@contextmanager
def peer_server(
    name: str, model: Path, *, num_threads: int, num_streams: int, context_tokens: int, timeout_s: float
) -> Iterator[tuple[str, int]]:
    """A peer's server with the model on a free port, as (address, process id) once it can answer; ended with the block.

    name            NAME or NAME:WEIGHTS
    num_streams     most requests at once; context_tokens: most tokens of one of them

    Raises:
        InputError: the engine is not known here.
        TargetError: its server does not start.
    """
    peer = find_peer(name)
    port = free_port()
    flags = {
        "--port": port,
        "--threads": num_threads,
        "--streams": num_streams,
        "--context-tokens": context_tokens,
    }
    words = [str(word) for flag in flags.items() for word in flag]
    with started([*peer.command, name, str(model), *words], peer.folder) as (process, log):
        address = f"http://{LOCAL_HOST}:{port}"
        deadline_s = time.monotonic() + timeout_s
        while not _is_ready(address):
            if process.poll() is not None:
                raise TargetError(f"the server of {name} ended with {process.returncode}: {log_end(log)}")
            if time.monotonic() > deadline_s:
                raise TargetError(f"the server of {name} was not ready after {timeout_s:.0f} s: {log_end(log)}")
            time.sleep(0.2)
        yield address, process.pid


def _peer(name: str, entry: object, where: str) -> Peer:
    if not isinstance(entry, dict):
        raise FormatError(f"{where} is no object; {HOW_TO_INSTALL}")
    command, weights = (
        _texts(read_field(entry, field, list, where), f"{where}.{field}") for field in ("command", "weights")
    )
    if not command:
        raise FormatError(f"{where}.command is empty; {HOW_TO_INSTALL}")
    folder, version, build = (read_field(entry, field, str, where) for field in ("folder", "version", "build"))
    return Peer(name, command, Path(folder), version, build, weights)


def _texts(values: Sequence[Any], where: str) -> tuple[str, ...]:
    if not all(isinstance(value, str) for value in values):
        raise FormatError(f"{where} holds something else than texts; {HOW_TO_INSTALL}")
    return tuple(values)


def free_port() -> int:
    """A port of this machine on which nobody listens."""
    with socket.socket() as listener:
        listener.bind((LOCAL_HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def _is_ready(address: str) -> bool:
    with suppress(OSError, urllib.error.URLError), urllib.request.urlopen(address + READY_PATH, timeout=5) as response:
        return bool(response.status == 200)
    return False
