"""`subsecond serve`: models over HTTP, for the clients of several APIs."""

from __future__ import annotations

import argparse
import logging
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from subsecond.cli import answering
from subsecond.cli.output import MODEL_HELP, Subparsers, add_command, print_json
from subsecond.core import settings
from subsecond.core.errors import InputError
from subsecond.serve.settings import ServeSettings

if TYPE_CHECKING:
    from subsecond.models.checkpoint import Checkpoint
    from subsecond.models.config import ModelConfig
    from subsecond.serve.registry import Loaded, ModelSpec

EXIT_FORCED = 130  # a second signal, as main.py has it for an interrupted command
KEYS_VARIABLE = "SUBSECOND_API_KEYS"
KV_MEMORY_SHARE = 0.25
SHARED_CONTEXT_TOKENS = 32768
MIN_CONTEXT_TOKENS = 512
_NAMED = re.compile(r"(?P<name>[A-Za-z0-9][A-Za-z0-9._:/@-]{0,127})=(?P<model>.+)", re.DOTALL)


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(subparsers, "serve", "serve models over HTTP; with --json one line tells the address")
    parser.add_argument(
        "models",
        metavar="MODEL",
        nargs="+",
        help=f"{MODEL_HELP}; NAME=MODEL serves it under another name. The first is loaded at once, the others when "
        "they are asked for",
    )
    answering.add_engine_arguments(parser)
    settings.add_arguments(parser.add_argument_group("server"), ServeSettings)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve until a signal to stop; then answers that run are finished, and a second signal ends them too."""
    given = settings.from_arguments(ServeSettings, args)
    specs = model_specs(args.models)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(message)s")
    logging.getLogger("subsecond.serve").setLevel(logging.INFO if given.access_log else logging.WARNING)
    from subsecond.serve.app import make_app
    from subsecond.serve.auth import read_keys
    from subsecond.serve.registry import ModelRegistry
    from subsecond.serve.server import HttpServer

    keys = read_keys(given.api_key_file, os.environ.get(KEYS_VARIABLE))
    registry = ModelRegistry(
        specs, _Loader(args, specs), budget_bytes=given.memory_budget_bytes, wait_s=given.load_timeout_s
    )
    server = HttpServer(make_app(registry, given, keys), on_forced=lambda: os._exit(EXIT_FORCED))

    def tell(address: str) -> None:
        if args.json:
            print_json({"address": address, "models": list(registry.names)})
        else:
            print(f"{', '.join(registry.names)} at {address}; Ctrl-C stops", flush=True)

    server.run(specs[0].name, tell)
    return 0


def model_specs(texts: list[str]) -> list[ModelSpec]:
    """Return what each MODEL of the command line means: its name is that given, or the file's or folder's own."""
    from subsecond.serve.registry import ModelSpec

    specs = []
    for text in texts:
        named = _NAMED.fullmatch(text)
        if named and not Path(text).exists():
            specs.append(ModelSpec(named["name"], named["model"]))
            continue
        path = Path(text).expanduser()
        name = path.name.removesuffix(".gguf") if path.exists() else text
        if not name or len(name) > 200:
            raise InputError(f"{text[:100]!r} gives no name to serve it under; write NAME=MODEL")
        specs.append(ModelSpec(name, text))
    return specs


@runtime_checkable
class _Counted(Protocol):
    """A backend that tells what it holds."""

    weight_bytes: int

    @property
    def kv_bytes(self) -> int:
        """Bytes of keys and values."""


class _Loader:
    """Loads what the registry asks for, with the flags of the command. All models have to be there from the start."""

    def __init__(self, args: argparse.Namespace, specs: Sequence[ModelSpec]) -> None:
        from subsecond.models.store import resolve

        self._args = args
        for spec in specs:
            resolve(spec.source)

    def estimate_bytes(self, spec: ModelSpec) -> int:
        """Weights as large as the files, and all key/value blocks, as if every one were in use."""
        checkpoint = self._opened(spec)
        return _weight_bytes(checkpoint) + self._context_tokens(checkpoint.config) * self._token_bytes(
            checkpoint.config
        )

    def load(self, spec: ModelSpec) -> Loaded:
        """Load the model as what it is, a language or an embedding model."""
        from subsecond import api, embedder
        from subsecond.serve.registry import Loaded

        args = self._args
        checkpoint = self._opened(spec)
        if checkpoint.config.pooling is not None:
            vectors = embedder.load_embedder(spec.source, isa=args.isa, num_threads=args.num_threads)
            return Loaded(self._held_bytes(spec, vectors.backend), embedder=vectors)
        given = answering.engine_options(args)
        model = api.load(spec.source, **{**given, "context_tokens": self._context_tokens(checkpoint.config)})
        return Loaded(self._held_bytes(spec, model.backend), model=model)

    def _context_tokens(self, config: ModelConfig) -> int:
        """Tokens of key/value memory: enough for many users at once where a share of the memory allows."""
        from subsecond.core.hardware import probe

        given: int | None = self._args.context_tokens
        if given is not None:
            return given
        affordable = int(probe().available_bytes * KV_MEMORY_SHARE) // self._token_bytes(config)
        return min(max(config.context_length, SHARED_CONTEXT_TOKENS), max(affordable, MIN_CONTEXT_TOKENS))

    def _token_bytes(self, config: ModelConfig) -> int:
        """Bytes of the keys and values of one token."""
        from subsecond.backends.native import choose_isa, kv_position_bytes

        return kv_position_bytes(config, choose_isa(self._args.isa), self._args.kv)

    def _held_bytes(self, spec: ModelSpec, backend: object) -> int:
        """Weights and key/value blocks of a backend where it tells, else the estimate."""
        if isinstance(backend, _Counted):
            return backend.weight_bytes + backend.kv_bytes
        return self.estimate_bytes(spec)

    def _opened(self, spec: ModelSpec) -> Checkpoint:
        from subsecond.models.checkpoint import open_checkpoint
        from subsecond.models.store import resolve

        return open_checkpoint(resolve(spec.source))


def _weight_bytes(checkpoint: Checkpoint) -> int:
    """The size of what is read for the weights: the packed ones where there are some, else the files."""
    if checkpoint.artifact is not None:
        return sum(tensor.num_bytes for tensor in checkpoint.artifact.manifest.tensors.values())
    weights = checkpoint.weights
    return sum(int(weights.raw(name).nbytes) for name in weights.shapes)
