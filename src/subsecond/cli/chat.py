"""`subsecond chat`: a conversation; the engine keeps what earlier turns computed, so only new text costs time."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from typing import TYPE_CHECKING, Any

from subsecond.cli import answering
from subsecond.cli.output import Subparsers, add_command, error_json, print_json
from subsecond.core.errors import ContextLengthError, SubsecondError

if TYPE_CHECKING:
    from pathlib import Path

    from subsecond.api import Model
    from subsecond.engine.text import TextStream

MAX_HISTORY_LINES = 1000
HELP = "/reset forgets the conversation, /exit or Ctrl-D leaves, Ctrl-C stops an answer"


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(subparsers, "chat", "talk with a model; with --json each line of input is a turn")
    answering.add_arguments(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Read turns until the end of input; returns 1 when a turn failed in JSON mode."""
    options = answering.answer_options(args)
    is_terminal = sys.stdin.isatty() and not args.json
    with answering.load_model(args) as model, _history(is_terminal):
        conversation = _Conversation(model, options, args.system, is_json=args.json)
        if is_terminal:
            print(f"{args.model}, loaded in {model.load_ms:.0f} ms. {HELP}.")
        for line in _lines("> " if is_terminal else ""):
            try:
                is_last = conversation.take(line)
            except KeyboardInterrupt:
                if args.json:
                    raise
                print(f"\n{HELP}", file=sys.stderr)
                continue
            if is_last:
                break
    return 1 if args.json and conversation.has_failed else 0


class _Conversation:
    """The messages so far; a turn that fails leaves them as they were. In JSON mode each line gets one object."""

    def __init__(self, model: Model, options: dict[str, Any], system: str | None, *, is_json: bool) -> None:
        self._model = model
        self._options = options
        self._system = system
        self._is_json = is_json
        self.has_failed = False
        self.reset()

    def reset(self) -> None:
        self._messages = [] if self._system is None else [{"role": "system", "content": self._system}]

    def take(self, line: str) -> bool:
        """Answer a line or obey the command in it; return whether it was the last."""
        command = line.strip()
        if command in ("/reset", "/exit"):
            if command == "/reset":
                self.reset()
            if self._is_json:
                print_json({"command": command[1:]})
        elif command.startswith("/"):
            self._report("InputError", f"unknown command {command.split()[0]}; {HELP}")
        elif command:
            self._turn(line)
        elif self._is_json:
            self._report("InputError", "the line is empty; write the text of a turn")
        return command == "/exit"

    def _report(self, kind: str, message: str) -> None:
        self.has_failed = True
        if self._is_json:
            print_json(error_json(kind, message))
        else:
            print(f"subsecond: {message}", file=sys.stderr)

    def _turn(self, text: str) -> None:
        messages = [*self._messages, {"role": "user", "content": text}]
        try:
            answer = self._answer_json(messages) if self._is_json else self._answer_text(messages)
        except SubsecondError as error:
            is_full = isinstance(error, ContextLengthError)
            self._report(type(error).__name__, f"{error}; /reset forgets the conversation" if is_full else str(error))
            return
        if answer.get("content"):
            self._messages = [*messages, {"role": "assistant", **answer}]

    def _answer_json(self, messages: list[dict[str, str]]) -> dict[str, str]:
        """Print the whole answer; Ctrl-C ends it, and the object then says "cancelled"."""
        stream: TextStream | None = None
        try:
            stream = self._model.stream(messages, **self._options)
            completion = stream.collect()
        except KeyboardInterrupt:
            if stream is None:
                self._report("Interrupted", "interrupted before the answer began")
                return {}
            stream.cancel()
            completion = stream.collect()
        print_json(answering.completion_json(completion))
        return _parts(completion.text, completion.reasoning)

    def _answer_text(self, messages: list[dict[str, str]]) -> dict[str, str]:
        """Stream the answer; Ctrl-C ends it, and what was said until then stays part of the conversation."""
        texts: list[str] = []
        reasonings: list[str] = []
        stream: TextStream | None = None
        note = ""
        printer = answering.AnswerPrinter()
        try:
            stream = self._model.stream(messages, **self._options)
            # Closing the reader is what cancels the request, wherever the interrupt arrives.
            with closing(iter(stream)) as chunks:
                for chunk in chunks:
                    texts.append(chunk.text)
                    reasonings.append(chunk.reasoning)
                    printer.show(chunk)
        except KeyboardInterrupt:
            note = "stopped; "
        printer.end()
        speed = "no token" if stream is None else answering.speed_text(stream.tokens)
        print(f"[{note}{speed}]", file=sys.stderr)
        return _parts("".join(texts), "".join(reasonings))


def _parts(text: str, reasoning: str) -> dict[str, str]:
    """The answer as fields of a message; the chat template decides what becomes of old reasoning."""
    return {"content": text, "reasoning_content": reasoning} if reasoning else {"content": text}


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
    is_usable = True
    try:
        if path.exists():
            readline.read_history_file(path)
    except OSError as error:
        is_usable = False  # and is not overwritten at the end either
        _warn_of_history(path, error)
    try:
        yield
    finally:
        if is_usable:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.touch(mode=0o600)
                readline.set_history_length(MAX_HISTORY_LINES)
                readline.write_history_file(path)
            except OSError as error:
                _warn_of_history(path, error)


def _warn_of_history(path: Path, error: OSError) -> None:
    print(f"subsecond: no history of lines, {path}: {error.strerror or error}", file=sys.stderr)
