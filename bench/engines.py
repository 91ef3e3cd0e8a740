"""The engines that can be compared: what each needs made of a model, and the program that times it.

A row of a comparison is written ENGINE or ENGINE:WEIGHTS, for example llama.cpp, llama.cpp:q8_0 or openvino:int4.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from bench.models import PEERS, ROOT, hugging_face_folder, make_once
from bench.peers.llama_cpp.llama_cpp import NATIVE, program_path
from bench.timing import PeerError, Timing, Workload
from subsecond.backends.native.loading import ISA_VARIABLE

OURS = "subsecond"


@dataclass(frozen=True, slots=True)
class Command:
    """A program without its arguments, the flags that go after them, and what it needs in its environment."""

    argv: tuple[str, ...]
    flags: tuple[str, ...] = ()
    environment: Mapping[str, str] | None = None

    def line(self, model: Path, workload: Workload, threads: int) -> list[str]:
        """The whole command line of one sample."""
        numbers = (workload.num_prompt_tokens, workload.num_new_tokens, threads, workload.num_sequences)
        return [*self.argv, str(model), *map(str, numbers), *self.flags]


class Engine(Protocol):
    """How one engine is run. `weights` are those it can be asked for; the first is what it takes when none are named.

    An engine without `has_isas` cannot be held to an instruction set. One for `is_for_prompts_only` loads too slowly to
    be worth its time where it is not the fastest.
    """

    weights: tuple[str | None, ...]
    has_isas: bool
    is_for_prompts_only: bool

    def prepare(self, model: Path, weights: str | None, /) -> Path:
        """Make what its program loads, once; raises PeerError with what to do if it cannot be had here."""

    def command(self, weights: str | None, isa: str | None, /) -> Command:
        """The program that times it."""


class Subsecond:
    """Ours; `weights` is the argument of subsecond.load, and is passed only when it is named."""

    weights: tuple[str | None, ...] = (None, "stored", "int8", "int4", "nested8", "nested4", "sparse")
    has_isas = True
    is_for_prompts_only = False

    def prepare(self, model: Path, _weights: str | None) -> Path:
        return model

    def command(self, weights: str | None, isa: str | None) -> Command:
        flags = () if weights is None else ("--weights", weights)
        environment = {} if isa is None else {ISA_VARIABLE: isa}
        return Command((sys.executable, "-m", "bench.generation"), flags, environment)


class LlamaCpp:
    """llama.cpp as build.sh made it; `weights` is a type to requantize the file to, None the file as it is."""

    weights: tuple[str | None, ...] = (None, "q4_0", "q4_k_m", "q8_0", "bf16")
    has_isas = True
    is_for_prompts_only = False

    def __init__(self, build: Path = PEERS / "llama_cpp") -> None:
        self._build = build

    def prepare(self, model: Path, weights: str | None) -> Path:
        if model.is_dir():
            raise PeerError(f"{model}: llama.cpp reads GGUF files only")
        if weights is None:
            return model
        program = program_path(self._build, "requantize")
        target = self._build / "models" / f"{model.stem}-{weights}.gguf"
        return make_once(target, model, [str(program), str(model)], [weights, "2"])

    def command(self, _weights: str | None, isa: str | None) -> Command:
        program_path(self._build, "time_decode", isa or NATIVE)
        argv = (sys.executable, "-m", "bench.peers.llama_cpp.generation")
        return Command(argv, ("--isa", isa or NATIVE, "--build", str(self._build)))


@dataclass(slots=True)
class PythonPeer:
    """An engine in a virtual environment of its own, which bench/peers/setup.sh makes.

    Its models come from a Hugging Face folder, by bench/peers/NAME/convert.py in the environment of the converters if
    there is such a file.
    """

    name: str
    weights: tuple[str | None, ...]
    is_for_prompts_only: bool = False
    has_isas: bool = False

    def prepare(self, model: Path, weights: str | None) -> Path:
        self._python(self.name)  # before anything is made for it
        folder = hugging_face_folder(model)
        if not (ROOT / "bench" / "peers" / self.name / "convert.py").is_file():
            return folder
        converter = self._python("converter")
        command = [str(converter), "-m", f"bench.peers.{self.name}.convert", str(folder)]
        return make_once(PEERS / self.name / "models" / f"{folder.name}-{weights}", folder, command, [str(weights)])

    def command(self, _weights: str | None, _isa: str | None) -> Command:
        return Command((str(self._python(self.name)), "-m", f"bench.peers.{self.name}.generation"))

    def python(self) -> Path:
        """The interpreter of its environment; PeerError if it is not installed."""
        return self._python(self.name)

    def _python(self, environment: str) -> Path:
        path = PEERS / environment / "venv" / "bin" / "python"
        if not path.exists() or not (PEERS / environment / "ready").is_file():
            raise PeerError(f"{self.name} is not installed here; run: make peers PEER={self.name}")
        return path


class Transformers(PythonPeer):
    """Eager PyTorch, in the type of numbers that is asked for."""

    def command(self, weights: str | None, isa: str | None) -> Command:
        return Command(PythonPeer.command(self, weights, isa).argv, ("--dtype", str(weights)))


ENGINES: Mapping[str, Engine] = {
    OURS: Subsecond(),
    "llama.cpp": LlamaCpp(),
    "openvino": PythonPeer("openvino", ("int4", "int8", "fp16")),
    "vllm": PythonPeer("vllm", ("bf16",), is_for_prompts_only=True),
    "ctranslate2": PythonPeer("ctranslate2", ("int8",)),
    "transformers": Transformers("transformers", ("bfloat16", "float32")),
}


@dataclass(frozen=True, slots=True)
class Row:
    """An engine with its weights."""

    engine: str
    weights: str | None

    @classmethod
    def parse(cls, text: str) -> Row:
        """Read ENGINE or ENGINE:WEIGHTS; ValueError says what is allowed."""
        name, _, weights = text.partition(":")
        if name not in ENGINES:
            raise ValueError(f"{text}: engines are {', '.join(ENGINES)}")
        allowed = ENGINES[name].weights
        if weights and weights not in allowed:
            raise ValueError(f"{text}: weights of {name} are {', '.join(each for each in allowed if each)}")
        return cls(name, weights or allowed[0])

    def __str__(self) -> str:
        return self.engine if self.weights is None else f"{self.engine}:{self.weights}"


def run_sample(command: Command, model: Path, workload: Workload, threads: int, timeout_s: float = 600) -> Timing:
    """Time one generation in a fresh process; PeerError if it fails, takes too long or prints something else."""
    line = command.line(model, workload, threads)
    environment = {**os.environ, **(command.environment or {})}
    try:
        done = subprocess.run(
            line,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            cwd=ROOT,
            env=environment,
            timeout=timeout_s,
        )
    except subprocess.TimeoutExpired:
        raise PeerError(f"{_shown(line)} took more than {timeout_s:.0f} s") from None
    if done.returncode != 0:
        raise PeerError(f"{_shown(line)} ended with {done.returncode}: {done.stderr[-2000:].strip()}")
    try:
        return Timing.from_json(done.stdout)
    except ValueError as error:
        raise PeerError(f"{_shown(line)} printed {error}") from None


def _shown(line: Sequence[str]) -> str:
    return " ".join(line)
