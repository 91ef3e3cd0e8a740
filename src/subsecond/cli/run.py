"""`subsecond run`: answers one prompt, streamed as text or whole as JSON."""

from __future__ import annotations

import argparse
import sys

from subsecond.cli import answering
from subsecond.cli.output import Subparsers, add_command, print_json
from subsecond.core.errors import InputError


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(subparsers, "run", "answer one prompt")
    answering.add_arguments(parser)
    parser.add_argument("prompt", metavar="PROMPT", help="the prompt; - reads it from standard input")
    parser.add_argument(
        "--raw", action="store_true", help="give the prompt to the model as it is, without its chat template"
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Answer; the text goes to standard output, reasoning and times to standard error."""
    options = answering.answer_options(args)
    if args.raw and args.system is not None:
        raise InputError("--raw and --system exclude each other: a raw prompt has no messages")
    if args.raw and (args.thinking is not None or args.template_kwargs is not None):
        raise InputError("--raw goes without the chat template, so --thinking and --template-kwargs cannot be given")
    text = _stdin_text(args.raw) if args.prompt == "-" else args.prompt
    prompt = text
    if args.system is not None:
        prompt = [{"role": "system", "content": args.system}, {"role": "user", "content": text}]
    with answering.load_model(args) as model:
        stream = model.stream(prompt, raw=args.raw, **options)
        if args.json:
            print_json(answering.completion_json(stream.collect()))
            return 0
        printer = answering.AnswerPrinter()
        for chunk in stream:
            printer.show(chunk)
        printer.end()
        print(f"{answering.speed_text(stream.tokens)}, loaded in {model.load_ms:.0f} ms", file=sys.stderr)
    return 0


def _stdin_text(is_raw: bool) -> str:
    """Standard input as UTF-8; its last line break belongs to the shell unless the prompt is raw."""
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"standard input is not UTF-8 text: {error}; convert it first") from error
    text = text if is_raw else text.removesuffix("\n")
    if not text:
        raise InputError("standard input is empty; write the prompt to it")
    return text
