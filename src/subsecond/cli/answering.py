"""What commands that answer share: flags of engine and sampling, loading the model, how an answer is reported."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from subsecond.cli.output import KV_TYPES, MODEL_HELP, WEIGHTS
from subsecond.core import settings
from subsecond.core.errors import InputError
from subsecond.engine.request import SamplingParams

if TYPE_CHECKING:
    from subsecond.api import Model
    from subsecond.engine.stream import TokenStream
    from subsecond.engine.text import Completion, TextChunk

DIM, UNDIM = "\x1b[2m", "\x1b[22m"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the model, the flags that `subsecond.load` takes and one flag for every field of SamplingParams."""
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument("--system", metavar="TEXT", help="system message that stands before the conversation")
    parser.add_argument(
        "--thinking",
        action=argparse.BooleanOptionalAction,
        help="let the model reason before it answers, or not; default as its chat template has it",
    )
    parser.add_argument(
        "--template-kwargs", type=_mapping, metavar="JSON", help="further variables of the chat template, as an object"
    )
    add_engine_arguments(parser)
    settings.add_arguments(parser.add_argument_group("sampling"), SamplingParams)


def add_engine_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the flags that `subsecond.load` takes."""
    engine = parser.add_argument_group("engine")
    engine.add_argument(
        "--backend",
        choices=("native", "torch"),
        default="native",
        help="native runs on the processor; torch is the slow reference; default native",
    )
    engine.add_argument("--isa", metavar="NAME", help="instruction set to hold the kernels to; doctor lists them")
    engine.add_argument("--num-threads", type=int, metavar="N", help="threads; default one for each physical core")
    engine.add_argument(
        "--context-tokens",
        type=int,
        metavar="N",
        help="tokens of key/value memory; default the model's context, to serve at least 32768 where memory allows",
    )
    engine.add_argument(
        "--weights",
        choices=WEIGHTS,
        help="stored computes with the blocks of the file; int8 and int4 are made from them when the model is loaded, "
        "lossy and faster for long prompts and many users; nested8 and nested4 are the same, read from one copy; "
        "sparse leaves the zeros of a pruned model out; default what `pull --weights` packed, else what the model's "
        "config.json says, else stored",
    )
    engine.add_argument(
        "--kv",
        choices=KV_TYPES,
        help="how keys and values are kept: int8 is lossy and takes about half of the memory of f16; default what the "
        "instruction set does best, bf16 with AMX and f16 without",
    )


def _mapping(text: str) -> dict[str, Any]:
    """The object that a flag's JSON text means."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f'expected a JSON object, for example {{"x": true}}; got {text[:100]!r}')
    return value


def answer_options(args: argparse.Namespace) -> dict[str, Any]:
    """The flags as keyword arguments of `Model.stream`; raises InputError for a value that is not allowed."""
    params = settings.from_arguments(SamplingParams, args)
    options = {item.name: getattr(params, item.name) for item in settings.settings_of(SamplingParams)}
    if args.thinking is not None:
        options["enable_thinking"] = args.thinking
    if args.template_kwargs is not None:
        options["template_kwargs"] = args.template_kwargs
    return options


def engine_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `add_engine_arguments` added, as arguments of `subsecond.load`."""
    names = ("backend", "isa", "num_threads", "context_tokens", "weights", "kv")
    return {name: getattr(args, name) for name in names}


def load_model(args: argparse.Namespace) -> Model:
    """Load the model with the engine's flags; InputError for flags of a chat template that it does not have."""
    from subsecond import api

    model = api.load(args.model, **engine_options(args))
    has_variables = args.thinking is not None or args.template_kwargs is not None
    if has_variables and not model.checkpoint.has_chat_template:
        model.close()
        raise InputError("this model has no chat template; leave --thinking and --template-kwargs out")
    return model


def completion_json(completion: Completion) -> dict[str, Any]:
    """The object that --json prints for one answer; `logprobs` is in it when it was asked for."""
    timing = {name: None if value is None else round(value, 3) for name, value in asdict(completion.timing).items()}
    answer = {
        "text": completion.text,
        "reasoning": completion.reasoning,
        "token_ids": list(completion.token_ids),
        "finish_reason": completion.finish_reason,
        "usage": asdict(completion.usage),
        "timing": timing,
        "seed": completion.seed,
        "variant": completion.variant,
    }
    if completion.logprobs:
        answer["logprobs"] = [asdict(token) for token in completion.logprobs]
    return answer


class AnswerPrinter:
    """Prints an answer as it comes: the text to standard output, the reasoning to standard error, dim on a terminal."""

    def __init__(self) -> None:
        self._is_dim = sys.stderr.isatty()
        self._has_reasoning = False
        self._has_text = False

    def show(self, chunk: TextChunk) -> None:
        """Print the next piece."""
        if chunk.reasoning:
            self._has_reasoning = True
            # undone with every piece, so that an interrupt leaves the terminal as it was
            piece = f"{DIM}{chunk.reasoning}{UNDIM}" if self._is_dim else chunk.reasoning
            print(piece, end="", file=sys.stderr, flush=True)
        if chunk.text:
            if self._has_reasoning and not self._has_text:
                print("\n", file=sys.stderr, flush=True)
            self._has_text = True
            print(chunk.text, end="", flush=True)

    def end(self) -> None:
        """End the line, and say so when the answer ended before its reasoning did."""
        if self._has_reasoning and not self._has_text:
            print("\n[ended while reasoning; there is no answer]", file=sys.stderr)
        else:
            print(flush=True)


def speed_text(tokens: TokenStream) -> str:
    """TTFT and tokens a second of an answer, whether it is whole or was stopped."""
    if tokens.ttft_ms is None:
        return "no token"
    text = f"TTFT {tokens.ttft_ms:.0f} ms"
    if tokens.tpot_ms:
        text += f", {1e3 / tokens.tpot_ms:.1f} tokens/s"
    return f"{text} ({tokens.num_prompt_tokens} prompt tokens, {tokens.cached_tokens} cached; {tokens.num_tokens} new)"
