"""`subsecond explain`: where a served model differs from its reference, why it answers as it does, where time goes."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from subsecond.cli import answering
from subsecond.cli.output import MODEL_HELP, Subparsers, add_command, print_json
from subsecond.core import settings
from subsecond.core.errors import InputError, ResourceError, UnsupportedError
from subsecond.measure.explain_settings import (
    DEFAULT_PROMPT,
    DEFAULT_PROMPTS,
    NEEDS_REFERENCE,
    PASSAGE,
    SECTIONS,
    ExplainSettings,
)

if TYPE_CHECKING:
    from subsecond.backends.batch import Int32
    from subsecond.backends.native import NativeBackend
    from subsecond.graph.graph import Graph
    from subsecond.measure.explanation import Explainer, Order, Reference
    from subsecond.models.checkpoint import Checkpoint

MAX_FILE_BYTES = 64 * 2**20
MAX_PROMPTS = 1000
STEP_ROWS = 512
BLOCK_TOKENS = 32  # of the reference


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(subparsers, "explain", "show where a model's answers differ from its reference, and why")
    parser.add_argument("model", metavar="MODEL", help=MODEL_HELP)
    parser.add_argument(
        "--reference", metavar="R", help="model whose original weights count as right; default MODEL's own file"
    )
    parser.add_argument("--text", metavar="FILE", help="text to compare tokens in; default a short passage")
    parser.add_argument(
        "--prompt", metavar="TEXT", default=DEFAULT_PROMPT, help="prompt of the attribution and of the time budget"
    )
    parser.add_argument(
        "--prompts",
        metavar="FILE",
        help='prompts that both answer, one a line or JSON lines with "prompt"; default three short ones',
    )
    parser.add_argument(
        "--only", metavar="SECTIONS", type=_sections, help=f"of {','.join(SECTIONS)} those that are wanted"
    )
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a report with plots")
    parser.add_argument("--fresh", action="store_true", help="forget what an interrupted run had done")
    settings.add_arguments(parser.add_argument_group("amount"), ExplainSettings)
    answering.add_engine_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Explain, or go on explaining what was interrupted; the report goes to standard output."""
    amount = settings.from_arguments(ExplainSettings, args)
    sections = args.only or SECTIONS
    if args.backend == "torch":
        raise InputError("explain compares the native kernels with torch; leave --backend torch out")
    if NEEDS_REFERENCE.intersection(sections):
        _check_torch()
    text = PASSAGE if args.text is None else _read_text(args.text)
    prompts = DEFAULT_PROMPTS if args.prompts is None else _read_prompts(args.prompts)
    report = _explain(args, amount, sections, text, prompts)
    if args.json:
        print_json(report)
    else:
        from subsecond.cli.explain_text import report_text

        print(report_text(report))
    return 0


def _explain(
    args: argparse.Namespace, amount: ExplainSettings, sections: tuple[str, ...], text: str, prompts: tuple[str, ...]
) -> dict[str, Any]:
    from subsecond.backends import native
    from subsecond.cli.progress import step_progress
    from subsecond.measure.explanation import Explainer
    from subsecond.measure.explanation_page import page_of
    from subsecond.measure.journal import resumed
    from subsecond.measure.machine import machine_json
    from subsecond.models.checkpoint import open_checkpoint
    from subsecond.models.store import resolve

    checkpoint = open_checkpoint(resolve(args.model))
    if checkpoint.config.pooling is not None:
        raise UnsupportedError(f"{checkpoint.config.name} is an embedding model, which gives no answers to explain")
    given = checkpoint if args.reference is None else open_checkpoint(resolve(args.reference))
    order = _order(args, checkpoint, amount, sections, text, prompts)
    if NEEDS_REFERENCE.intersection(sections):
        _check_reference(checkpoint, given, text)
    served = native.load(
        checkpoint,
        isa=args.isa,
        num_threads=args.num_threads,
        context_tokens=order.context_tokens,
        max_rows=STEP_ROWS,
        weights=args.weights,
        kv=args.kv,
    )
    try:
        explainer = Explainer(checkpoint, served, lambda: _torch_reference(given, order.context_tokens), order)
        inputs = _journal_inputs(args, checkpoint, given, served, order, (text, prompts))
        with resumed("explain", inputs, is_fresh=args.fresh) as journal:
            head = {
                "machine": machine_json(served.isa),
                "model": str(checkpoint.path),
                "reference": str(given.path),
                "variant": served.variant,
            }
            report = {**head, **_with_progress(explainer, journal, step_progress)}
            if args.html is not None:  # within the block: what was done is kept when the file cannot be written
                page_of(report).write(args.html)
        return report
    finally:
        served.close()


def _with_progress(explainer: Explainer, journal: Any, step_progress: Any) -> dict[str, Any]:
    with step_progress("explain", "steps", explainer.num_done(journal)) as progress:
        return explainer.run(journal, progress)


def _order(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    amount: ExplainSettings,
    sections: tuple[str, ...],
    text: str,
    prompts: tuple[str, ...],
) -> Order:
    import numpy as np

    from subsecond.measure.explanation import Order
    from subsecond.measure.windows import windows_of_text
    from subsecond.models.prompt_encoder import PromptEncoder

    tokenizer = checkpoint.tokenizer
    windows: Int32 = np.zeros((0, 2), np.int32)
    if {"layers", "flips"}.intersection(sections):
        windows = windows_of_text(text, tokenizer.encode, amount.windows, amount.window_tokens)
    encoder = PromptEncoder(checkpoint)
    encoded = [(prompt, encoder.encode(prompt)) for prompt in prompts] if "flips" in sections else []
    lengths = [len(ids) for _, ids in encoded]
    if {"attribution", "time"}.intersection(sections):
        lengths.append(len(encoder.encode(args.prompt)))
    needed = max([windows.shape[1], *(length + amount.max_tokens for length in lengths)])
    limit = checkpoint.config.context_length if args.context_tokens is None else args.context_tokens
    if needed > limit:
        raise InputError(
            f"the longest window, or prompt with answer, has {needed} tokens; the context has {limit}. Give shorter "
            "ones by --window-tokens, --max-tokens or --prompt"
        )
    context = args.context_tokens or min(checkpoint.config.context_length, max(needed, 2048))
    return Order(
        sections=sections,
        windows=windows,
        prompts=encoded,
        prompt=args.prompt,
        encode=lambda: encoder.encode(args.prompt),
        max_tokens=amount.max_tokens,
        weights=args.weights,
        context_tokens=context,
    )


def _check_torch() -> None:
    from importlib.util import find_spec

    if find_spec("torch") is None:
        raise UnsupportedError(
            "the reference is computed by torch, which is not installed: pip install 'subsecond[compress]', or ask "
            "for what needs none by --only time"
        )


def _check_reference(checkpoint: Checkpoint, given: Checkpoint, text: str) -> None:
    """InputError unless both read text as the same tokens; ResourceError where the memory does not suffice."""
    from math import prod

    from subsecond.core.hardware import probe

    ids = [each.tokenizer.encode(text[:2000]) for each in dict.fromkeys((checkpoint, given))]
    if checkpoint.config.vocab_size != given.config.vocab_size or ids[0] != ids[-1]:
        raise InputError(
            f"{given.path} reads text as other tokens than {checkpoint.path}, so their answers cannot be compared "
            "token by token; give --reference the model that this one was made from"
        )
    num_bytes, available = 4 * sum(prod(shape) for shape in given.shapes.values()), probe().available_bytes
    if num_bytes > available:
        raise ResourceError(
            f"the reference takes {num_bytes / 1e9:.1f} GB of memory in float32; {available / 1e9:.1f} GB are "
            "available. Take a smaller model, or ask for what needs no reference by --only time"
        )


def _torch_reference(given: Checkpoint, context_tokens: int) -> tuple[Reference, Graph]:
    from subsecond.backends.torch import TorchBackend

    graph = given.graph(context_tokens)
    num_blocks = -(-context_tokens // BLOCK_TOKENS)
    backend = TorchBackend(
        graph, given.weights, num_blocks=num_blocks, block_tokens=BLOCK_TOKENS, max_rows=context_tokens
    )
    return backend, graph


def _journal_inputs(
    args: argparse.Namespace,
    checkpoint: Checkpoint,
    given: Checkpoint,
    served: NativeBackend,
    order: Order,
    texts: tuple[str, tuple[str, ...]],
) -> dict[str, Any]:
    return {
        "model": _identity(checkpoint.path),
        "reference": _identity(given.path),
        "variant": served.variant,
        "isa": served.isa,
        "num_threads": served.config.num_threads,
        "context_tokens": order.context_tokens,
        "windows": list(order.windows.shape),
        "texts": texts,
        "prompt": args.prompt,
        "max_tokens": order.max_tokens,
    }


def _identity(path: Path) -> list[Any]:
    """The files of a model with their sizes and times, so that another version of it is other work."""
    paths = sorted(path.iterdir()) if path.is_dir() else [path]
    stats = [(each, each.stat()) for each in paths if each.is_file()]
    return [str(path.absolute()), *([each.name, stat.st_size, stat.st_mtime_ns] for each, stat in stats)]


def _sections(text: str) -> tuple[str, ...]:
    names = tuple(name.strip() for name in text.split(","))
    if not set(names) <= set(SECTIONS):
        raise argparse.ArgumentTypeError(f"expected some of {','.join(SECTIONS)}; got {text[:100]!r}")
    return tuple(name for name in SECTIONS if name in names)


def _read_text(name: str) -> str:
    path = Path(name)
    if not path.is_file():
        raise InputError(f"there is no file {name}; give a file with UTF-8 text")
    if path.stat().st_size > MAX_FILE_BYTES:
        raise InputError(f"{name} has {path.stat().st_size} bytes; at most {MAX_FILE_BYTES} are read")
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"{name} is not UTF-8 text: {error}; convert it first") from error


def _read_prompts(name: str) -> tuple[str, ...]:
    """Prompts of a file, empty lines left out; a line that is a JSON object has to have a text "prompt"."""
    lines = [(number, line.strip()) for number, line in enumerate(_read_text(name).splitlines(), start=1)]
    prompts = tuple(_prompt_of(line, f"{name}:{number}") for number, line in lines if line)
    if not 1 <= len(prompts) <= MAX_PROMPTS:
        raise InputError(f"{name} has {len(prompts)} prompts; give 1 to {MAX_PROMPTS}, one a line")
    return prompts


def _prompt_of(line: str, place: str) -> str:
    if not line.startswith("{"):
        return line
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return line
    prompt = value.get("prompt") if isinstance(value, dict) else None
    if not isinstance(prompt, str) or not prompt:
        raise InputError(
            f'{place}: an object without a text "prompt"; give {{"prompt": "..."}} or a line of plain text'
        )
    return prompt
