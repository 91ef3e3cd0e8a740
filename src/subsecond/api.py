"""The package for Python programs: load a model, then generate or stream; wires layers together, computes nothing."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal

from subsecond.backends.protocol import Backend
from subsecond.core.arguments import check_load_arguments
from subsecond.core.errors import InputError, SubsecondError
from subsecond.core.settings import settings_of
from subsecond.engine.local import LocalEngine
from subsecond.engine.request import Request, SamplingParams
from subsecond.engine.text import Completion, TextStream
from subsecond.models.checkpoint import Checkpoint, open_checkpoint
from subsecond.models.detokenizer import StreamingDetokenizer
from subsecond.models.prompt import Message, encode_messages
from subsecond.models.prompt_encoder import PromptEncoder
from subsecond.models.reasoning import ReasoningSplitter
from subsecond.models.store import resolve

if TYPE_CHECKING:
    pass

MAX_STEP_ROWS = 512


def load(
    model: str | Path,
    *,
    backend: Literal["native", "torch"] = "native",
    isa: str | None = None,
    num_threads: int | None = None,
    context_tokens: int | None = None,
    weights: Literal["stored", "int8", "int4", "nested8", "nested4", "sparse"] | None = None,
    kv: Literal["f16", "int8"] | None = None,
) -> Model:
    """Load a model, ready to answer.

    model           path of a model file or folder, or the name of a model on disk
    backend         "native" runs on the processor; "torch" is the slow reference and needs torch
    isa             instruction set to hold the native kernels to; None takes the best this processor has
    num_threads     None takes one for each physical core
    context_tokens  tokens that the key/value memory holds, all live requests together; None takes the model's context
    weights         "stored" computes with the blocks of the file; "int8" and "int4" make lossy weights with activations
                    of eight bits, "nested8" and "nested4" the same that are read from one copy; "sparse" leaves the
                    zeros of a pruned model out; None takes what the artifact beside the model holds, without one what
                    the model's config.json says, else "stored"
    kv              how keys and values are kept: "f16", or "int8", which is lossy and takes about half of the memory;
                    None takes the best that the instruction set has, bf16 with AMX and f16 without

    Raises:
        InputError: no such model, or a value that is not allowed.
        FormatError, UnsupportedError: the file is damaged, or needs what this version does not have.
    """
    start_s = time.perf_counter()
    check_load_arguments(model, num_threads=num_threads, context_tokens=context_tokens)
    if context_tokens is not None and context_tokens < 2:
        raise InputError(f"context_tokens={context_tokens} holds no prompt and answer; give at least 2, or None")
    if backend not in ("native", "torch"):
        raise InputError(f"backend={backend!r} is not allowed; give 'native' or 'torch'")
    checkpoint = open_checkpoint(resolve(os.fspath(model)))
    if checkpoint.config.pooling is not None:
        raise InputError(
            f"{checkpoint.config.name} is an embedding model: it gives vectors, no answers. `subsecond serve` serves "
            "it at /v1/embeddings; in Python: "
            f"subsecond.load_embedder({os.fspath(model)!r}).embed(['a text', 'another'])"
        )
    # reading weights leaves the interpreter free, so what prompts need is made ready meanwhile
    with ThreadPoolExecutor(1, "subsecond-load") as pool:
        text_side = pool.submit(_load_text_side, checkpoint)
        load_backend = _load_native if backend == "native" else _load_torch
        settings = {"isa": isa, "num_threads": num_threads, "weights": weights, "kv": kv}
        runner = load_backend(checkpoint, context_tokens, settings)
        try:
            text_side.result()
        except BaseException:
            runner.close()
            raise
    return Model(checkpoint, runner, load_ms=(time.perf_counter() - start_s) * 1e3)


class Model:
    """A loaded model with its engine; to be closed, best by `with`. May be used from any thread and event loop.

    A prompt is a text, which becomes one message of the user, or a list of {"role": ..., "content": ...}; the chat
    template of the model is applied to both, and what a message says can never act as a control token. With
    `raw=True` a text goes to the model as it is, control tokens in it included, and the answer comes as it is. A model
    without a chat template continues a text.

    Models that reason before they answer give both parts, `reasoning` and `text`; max_tokens counts both, stop texts
    end the latter. `enable_thinking` turns reasoning on or off where the template has a switch for it, None leaves it
    as the model has it; `template_kwargs` are further variables of the template. The other arguments are the fields of
    `SamplingParams`.
    """

    def __init__(self, checkpoint: Checkpoint, backend: Backend, *, load_ms: float = 0.0) -> None:
        self.checkpoint = checkpoint
        self.backend = backend
        self.load_ms = load_ms
        self.prompts = PromptEncoder(checkpoint)
        self.engine = LocalEngine(backend, context_length=checkpoint.config.context_length)
        self._request_numbers = itertools.count(1)
        self._is_closed = False

    def generate(self, prompt: str | Sequence[Message], **options: Any) -> Completion:
        """Answer, and return the whole answer with its usage and times; takes what `stream` takes."""
        return self.stream(prompt, **options).collect()

    async def agenerate(self, prompt: str | Sequence[Message], **options: Any) -> Completion:
        """As `generate`, without blocking the event loop."""
        return await self.astream(prompt, **options).acollect()

    def stream(
        self,
        prompt: str | Sequence[Message],
        *,
        raw: bool = False,
        enable_thinking: bool | None = None,
        template_kwargs: Mapping[str, object] | None = None,
        **settings: Any,
    ) -> TextStream:
        """Answer piece by piece, to be read with `for`; leaving the loop or dropping the stream ends the answer.

        Raises:
            InputError: the prompt or a setting is not allowed, or both are too long for the context.
            FormatError, UnsupportedError: the chat template is damaged, or needs what this version does not have.
        """
        start_s = time.perf_counter()
        params = _sampling_params(settings)
        tokenizer = self.checkpoint.tokenizer
        prompt_ids = self.encode_prompt(
            prompt, raw=raw, enable_thinking=enable_thinking, template_kwargs=template_kwargs
        )
        request = Request(
            prompt_ids=tuple(prompt_ids),
            params=params,
            id=f"local-{next(self._request_numbers)}",
            eos_ids=tuple(tokenizer.eos_ids),
        )
        tokens = self.engine.submit(request)
        tokens.start_s = start_s  # the template and the tokenizer are part of what the caller waits for
        return TextStream(
            tokens,
            StreamingDetokenizer(tokenizer),
            splitter=None if raw else ReasoningSplitter(self.prompts.markers, tokenizer, prompt_ids),
            stop=params.stop,
            has_logprobs=params.num_logprobs > 0,
            load_ms=self.load_ms,
        )

    def astream(self, prompt: str | Sequence[Message], **options: Any) -> TextStream:
        """As `stream`, to be read with `async for`."""
        return self.stream(prompt, **options)

    def encode_prompt(
        self,
        prompt: str | Sequence[Message],
        *,
        raw: bool = False,
        enable_thinking: bool | None = None,
        template_kwargs: Mapping[str, object] | None = None,
    ) -> list[int]:
        """Return the token ids that a prompt comes to, chat template included."""
        return self.prompts.encode(prompt, raw=raw, enable_thinking=enable_thinking, template_kwargs=template_kwargs)

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Return the token ids of a text; `allow_special` lets the text of a control token mean that token."""
        return self.checkpoint.tokenizer.encode(text, allow_special=allow_special)

    def decode(self, token_ids: Sequence[int]) -> str:
        """Return the text of token ids."""
        return self.checkpoint.tokenizer.decode(token_ids)

    def close(self) -> None:
        """End what is live and free the memory; the model cannot be used afterwards. May be called again."""
        self.engine.close()
        if not self._is_closed:
            self._is_closed = True
            self.backend.close()

    def __enter__(self) -> Model:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def _load_text_side(checkpoint: Checkpoint) -> None:
    """Read the tokenizer and compile the chat template, which would otherwise happen at the first prompt."""
    tokenizer, template = checkpoint.tokenizer, checkpoint.chat_template
    if template is not None:
        # a template that refuses these messages may accept others, and raw prompts need none at all
        with suppress(SubsecondError):
            encode_messages(tokenizer, template.render, [{"role": "user", "content": "hi"}])


def _sampling_params(settings: dict[str, Any]) -> SamplingParams:
    known = [item.name for item in settings_of(SamplingParams)]
    unknown = sorted(set(settings) - set(known))
    if unknown:
        raise InputError(f"unknown setting {', '.join(unknown)}; there are {', '.join(known)}")
    return SamplingParams(**settings)


def _load_native(checkpoint: Checkpoint, context_tokens: int | None, settings: Mapping[str, Any]) -> Backend:
    from subsecond.backends import native

    return native.load(checkpoint, context_tokens=context_tokens, max_rows=MAX_STEP_ROWS, **settings)


def _load_torch(checkpoint: Checkpoint, context_tokens: int | None, settings: Mapping[str, Any]) -> Backend:
    for name, value in settings.items():
        if value is not None:
            raise InputError(f"{name} is a setting of the native backend; leave it out with backend='torch'")
    from subsecond.backends.torch import TorchBackend

    block_tokens = 32
    num_tokens = context_tokens or checkpoint.config.context_length
    return TorchBackend(
        checkpoint.graph(context_tokens),
        checkpoint.weights,
        num_blocks=-(-num_tokens // block_tokens),
        block_tokens=block_tokens,
        max_rows=MAX_STEP_ROWS,
    )
