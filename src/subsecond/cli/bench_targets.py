"""What `subsecond bench` measures: the model in this process, our server with it, servers at URLs; measures nothing."""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping
from contextlib import ExitStack, closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from subsecond.cli.answering import engine_options
from subsecond.core.errors import InputError

if TYPE_CHECKING:
    from subsecond.measure.target import Target
    from subsecond.models.checkpoint import Checkpoint

API_KEY_VARIABLE = "SUBSECOND_API_KEY"
ENGINE, SERVER = "engine", "server"  # names of our own targets
SERVER_TIMEOUT_S = 600.0


@dataclass(slots=True)
class Subject:
    """The model that is measured.

    checkpoint        its description and tokenizer
    facts             what it is, as JSON data
    vocab_size        token ids that prompts may have
    max_tokens        most tokens of a request; None where the model is not loaded here
    process_bytes     memory of this process before the model was loaded
    pool_tokens       tokens whose keys and values it can hold
    backend           what computes in this process; None where nothing does
    kernels_finding   why its kernels are not those that it should run with; None where they are
    """

    checkpoint: Checkpoint
    facts: dict[str, Any]
    vocab_size: int
    max_tokens: int | None = None
    process_bytes: int | None = None
    pool_tokens: int = 0
    max_rows: int = 0
    backend: Any = None
    kernels_finding: str | None = None
    targets: list[Target] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class PeerLoad:
    """What engines that are started here have to hold: most requests at once, and most tokens of one of them."""

    num_streams: int
    context_tokens: int


def open_subject(args: argparse.Namespace, load: PeerLoad, stack: ExitStack) -> Subject:
    """Load the model as far as it is measured here, and make all targets; `stack` ends what was begun."""
    from subsecond.measure.process_reading import memory_bytes

    names = [part.strip() for text in args.against for part in text.split(",")]
    _check_names(names)
    if not (args.in_process or args.http or names):
        raise InputError("nothing is left to be measured; leave --no-in-process out, or give --http or --against URL")
    import subsecond.backends.native  # noqa: F401 (counted with the process, not with the model)
    from subsecond import api

    process_bytes, _ = memory_bytes(os.getpid())
    if args.in_process:
        from subsecond.measure.engine_target import EngineTarget

        model = stack.enter_context(closing(api.load(args.model, **engine_options(args))))
        subject = _loaded(model)
        subject.process_bytes = process_bytes
        subject.targets.append(EngineTarget(model.engine, {"variant": model.backend.variant}, name=ENGINE))
    else:
        from subsecond.models.checkpoint import open_checkpoint
        from subsecond.models.store import resolve

        checkpoint = open_checkpoint(resolve(args.model))
        subject = Subject(checkpoint, _facts(checkpoint), checkpoint.config.vocab_size)
    if args.http:
        subject.targets.append(_own_server(args, stack))
    subject.targets += [_named(name) if is_url(name) else _peer(name, args, load, stack) for name in names]
    return subject


def engine_flags(args: argparse.Namespace) -> list[str]:
    """The engine's flags as they are written, for commands that are started with the same ones."""
    given = engine_options(args)
    if given["backend"] == "native":
        del given["backend"]
    pairs = [("--" + name.replace("_", "-"), str(value)) for name, value in given.items() if value is not None]
    return [word for pair in pairs for word in pair]


def is_url(name: str) -> bool:
    """Whether a target of --against is an address, not an engine's name."""
    return name.startswith(("http://", "https://"))


def _check_names(names: list[str]) -> None:
    from subsecond.measure.peers import find_peer

    for name in names:
        if not is_url(name):
            find_peer(name)
    if len(set(names)) < len(names):
        raise InputError("--against names a target twice; give each once")


def _peer(name: str, args: argparse.Namespace, load: PeerLoad, stack: ExitStack) -> Target:
    """A registered engine, started with the same model and as many threads."""
    from subsecond.core.hardware import probe
    from subsecond.measure.http_target import HttpTarget
    from subsecond.measure.peers import find_peer, peer_server
    from subsecond.models.store import resolve

    server = peer_server(
        name,
        resolve(args.model),
        num_threads=args.num_threads or probe().num_usable_cores,
        num_streams=load.num_streams,
        context_tokens=load.context_tokens,
        timeout_s=SERVER_TIMEOUT_S,
    )
    address, pid = stack.enter_context(server)
    peer = find_peer(name)
    return HttpTarget(address, name=name, pid=pid, facts={"version": peer.version, "build": peer.build})


def _named(url: str) -> Target:
    """The server at a URL, behind whose # the name of one of its models may stand."""
    from subsecond.measure.http_target import HttpTarget

    address, _, model = url.partition("#")
    return HttpTarget(address, name=url, model=model or None, api_key=os.environ.get(API_KEY_VARIABLE))


def _own_server(args: argparse.Namespace, stack: ExitStack) -> Target:
    from subsecond.measure.http_target import HttpTarget
    from subsecond.measure.own_programs import own_server

    address, pid = stack.enter_context(own_server(args.model, engine_flags(args), SERVER_TIMEOUT_S))
    return HttpTarget(address, name=SERVER, pid=pid)


def _loaded(model: Any) -> Subject:
    backend = model.backend
    isa = getattr(backend, "isa", None)
    config = getattr(backend, "config", None)
    facts = _facts(model.checkpoint) | {
        "variant": backend.variant,
        "isa": isa,
        "num_threads": getattr(config, "num_threads", None),
        "weight_bytes": getattr(backend, "weight_bytes", None),
        "kv_bytes": getattr(backend, "kv_bytes", None),
        "kv": getattr(backend, "kv", None),
        "context_tokens": backend.num_blocks * backend.block_tokens,
        "load_ms": round(model.load_ms, 2),
    }
    return Subject(
        model.checkpoint,
        facts,
        backend.vocab_size,
        max_tokens=model.engine.max_tokens,
        pool_tokens=backend.num_blocks * backend.block_tokens,
        max_rows=backend.max_rows,
        backend=backend,
        kernels_finding=_kernels_finding(isa),
    )


def _facts(checkpoint: Checkpoint) -> dict[str, Any]:
    path = checkpoint.path
    return {
        "name": checkpoint.config.name,
        "path": str(path),
        "file_bytes": path.stat().st_size if path.is_file() else None,
        "has_artifact": checkpoint.artifact is not None,
    }


def _kernels_finding(isa: str | None) -> str | None:
    from subsecond.backends import native

    report: Mapping[str, Any] = native.report()
    if isa is None:
        return "the torch reference ran, which is not meant to be fast"
    best = next(
        (entry["isa"] for entry in report["instruction_sets"] if entry["can_run"] and entry["self_test"] == "passed"),
        isa,
    )
    if isa == best:
        return None
    return f"the {isa} kernels ran, although those of {best} can run here; leave --isa and SUBSECOND_ISA out"
