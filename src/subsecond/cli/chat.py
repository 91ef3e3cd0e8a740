"""`subsecond chat`: a conversation; the engine keeps what earlier turns computed, so only new text costs time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from subsecond.cli import answering
from subsecond.cli.output import Subparsers, add_command, print_json
from subsecond.core.errors import SubsecondError

if TYPE_CHECKING:
    from subsecond.api import Model

MAX_HISTORY_LINES = 1000
HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(subparsers, "chat", "talk with a model; with --json each line of input is a turn")
    answering.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read turns until the end of input; returns 1 when a turn failed in JSON mode."""
    params = answering.sampling_settings(args)
    is_terminal = sys.stdin.isatty() and not args.json
    with answering.load_model(args) as model, _history(is_terminal):
        conversation = _Conversation(model, params, args.system)
        if is_terminal:
            print(f"{args.model}, loaded in {model.load_ms:.0f} ms. {HELP}.")
        for line in _lines("> " if is_terminal else ""):
            if line == "/exit":
                break
            if line == "/reset":
                conversation.reset()
            elif line.startswith("/"):
                print(f"subsecond: unknown command {line.split()[0]}; {HELP}", file=sys.stderr)
            elif line.strip():
                conversation.turn(line, is_json=args.json)
    return 1 if args.json and conversation.has_failed else 0


class _Conversation:
    """The messages so far; a turn that fails leaves them as they were."""

    def __init__(self, model: Model, params: dict[str, Any], system: str | None) -> None:
        self._model = model
        self._params = params
        self._system = system
        self.has_failed = False
        self.reset()

    def reset(self) -> None:
        self._messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def turn(self, text: str, *, is_json: bool) -> None:
        messages = [*self._messages, {"role": "user", "content": text}]
        try:
            answer = self._answer_json(messages) if is_json else self._answer_text(messages)
        except SubsecondError as error:
            self.has_failed = True
            if is_json:
                print_json({"error": {"type": type(error).__name__, "message": str(error)}})
            else:
                print(f"subsecond: {error}", file=sys.stderr)
            return
        if answer:
            self._messages = [*messages, {"role": "assistant", "content": answer}]

    def _answer_json(self, messages: list[dict[str, str]]) -> str:
        completion = self._model.generate(messages, **self._params)
        print_json(answering.completion_json(completion))
        return completion.text

    def _answer_text(self, messages: list[dict[str, str]]) -> str:
        """Stream the answer; Ctrl-C ends it, and what was said until then stays part of the conversation."""
        pieces: list[str] = []
        stream = self._model.stream(messages, **self._params)
        note = ""
        try:
            # Closing the reader is what cancels the request, wherever the interrupt arrives.
            with closing(iter(stream)) as chunks:
                for chunk in chunks:
                    pieces.append(chunk.text)
                    print(chunk.text, end="", flush=True)
        except KeyboardInterrupt:
            note = "stopped; "
        print(flush=True)
        print(f"[{note}{answering.speed_text(stream.tokens)}]", file=sys.stderr)
        return "".join(pieces)


def _lines(prompt: str) -> Iterator[str]:
    """Lines of standard input until its end; Ctrl-C while typing discards the line."""
    while True:
        try:
            yield input(prompt)
        except EOFError:
            if prompt:
                print()
            return
        except KeyboardInterrupt:
            if not prompt:
                raise
            print(f"\n{HELP}")


@contextmanager
def _history(is_terminal: bool) -> Iterator[None]:
    """Line editing with the lines of earlier conversations, kept readable for the user alone."""
    if not is_terminal:
        yield
        return
    try:
        import readline
    except ImportError:  # a Python built without it: input works, without editing
        yield
        return
    from subsecond.models import store

    path = store.home() / "chat_history"
    if path.is_file():
        readline.read_history_file(path)
    try:
        yield
    finally:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        readline.set_history_length(MAX_HISTORY_LINES)
        readline.write_history_file(path)
