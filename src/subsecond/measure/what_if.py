"""What a request would take under other conditions, predicted by the cost model from the stored probe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass

from subsecond.backends.cost import CostModel
from subsecond.backends.native import Weights, measuring
from subsecond.backends.native.backend import NativeBackend
from subsecond.backends.native.prediction import cost_model
from subsecond.backends.probe import Probe
from subsecond.backends.probe_store import load_probe
from subsecond.core.errors import SubsecondError
from subsecond.models.checkpoint import Checkpoint

HOW_TO_MEASURE = (
    "this machine was not measured with these kernels; `subsecond doctor --measure` does it in some seconds"
)
PROMPT_FACTORS = (2, 4)
CONTEXT_FACTORS = (4, 16)
THREAD_FACTORS = (2, 4)  # beyond those measured
GUESSED_WEIGHTS: tuple[Weights, ...] = ("stored", "int8", "int4")


@dataclass(frozen=True, slots=True)
class Guess:
    """Predicted milliseconds of the request under one changed condition; the first of a list changes nothing.

    `is_scaled` marks an estimate beyond what was measured. `note` says why there is no figure (which are None then), or
    which measured one stands for another.
    """

    change: str
    ttft_ms: float | None
    tpot_ms: float | None
    total_ms: float | None
    is_scaled: bool = False
    note: str = ""

    def to_json(self) -> dict[str, object]:
        """The fields by name, as JSON holds them."""
        return asdict(self)


@dataclass(frozen=True, slots=True)
class ServedRequest:
    """A request and how it is served."""

    checkpoint: Checkpoint
    backend: NativeBackend
    weights: Weights | None
    context_tokens: int
    num_prompt: int
    num_new: int


def stored_probe(isa: str, num_threads: int) -> Probe | None:
    """The stored figures of these kernels, with `num_threads` threads or with all; None where there are none.

    Figures of all threads say what fewer take. FormatError for a damaged file.
    """
    for threads in (None, num_threads):
        probe = load_probe(measuring.fingerprint(isa, threads))
        if probe is not None and probe.fingerprint.num_threads >= num_threads:
            return probe
    return None


def what_if(request: ServedRequest, probe: Probe) -> list[Guess]:
    """The request as it is, then with other threads, weights, lengths of prompt and of context."""
    return [*_threads(request, probe), *_weights(request, probe), *_lengths(request, probe)]


def _threads(request: ServedRequest, probe: Probe) -> Iterator[Guess]:
    now, measured = request.backend.config.num_threads, probe.fingerprint.num_threads
    model = _model(request, probe, now)
    yield _guess("as it is", request, model)
    for threads in dict.fromkeys(count for count in (1, measured // 2, measured) if 0 < count <= measured):
        if threads != now:
            yield _guess(_thread_text(threads), request, _model(request, probe, threads))
    whole = _model(request, probe, measured)
    for factor in THREAD_FACTORS:
        yield _guess(_thread_text(measured * factor), request, whole, speedup=factor)


def _weights(request: ServedRequest, probe: Probe) -> Iterator[Guess]:
    for weights in GUESSED_WEIGHTS:
        try:
            model = cost_model(
                request.checkpoint, probe, request.context_tokens, weights, request.backend.config.num_threads
            )
        except SubsecondError as error:
            yield Guess(f"{weights} weights", None, None, None, note=str(error))
        else:
            yield _guess(f"{weights} weights", request, model)


def _lengths(request: ServedRequest, probe: Probe) -> Iterator[Guess]:
    model, limit = _model(request, probe, request.backend.config.num_threads), request.checkpoint.config.context_length
    for factor in PROMPT_FACTORS:
        num_prompt = request.num_prompt * factor
        if num_prompt + request.num_new <= limit:
            yield _guess(f"a prompt of {num_prompt} tokens (x{factor})", request, model, num_prompt)
    for factor in CONTEXT_FACTORS:
        context = (request.num_prompt + request.num_new) * factor
        if context + request.num_prompt + request.num_new <= limit:
            text = f"after a conversation of {context} tokens, kept in the prefix cache"
            yield _guess(text, request, model, past=context)


def _model(request: ServedRequest, probe: Probe, num_threads: int) -> CostModel:
    return cost_model(request.checkpoint, probe, request.context_tokens, request.weights, num_threads)


def _guess(
    change: str,
    request: ServedRequest,
    model: CostModel,
    num_prompt: int | None = None,
    *,
    past: int = 0,
    speedup: float = 1.0,
) -> Guess:
    num_prompt = num_prompt or request.num_prompt
    ttft_s = model.ttft_s(num_prompt, request.backend.max_rows, speedup, past)
    tpot_s = model.tpot_s(past + num_prompt + request.num_new // 2, speedup=speedup)
    total_s = ttft_s + tpot_s * (request.num_new - 1)
    note = "; ".join(model.assumptions)
    return Guess(change, ttft_s * 1e3, tpot_s * 1e3, total_s * 1e3, is_scaled=speedup != 1.0, note=note)


def _thread_text(count: int) -> str:
    return f"{count} thread{'s' if count > 1 else ''}"
