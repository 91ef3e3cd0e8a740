"""The `subsecond` command: its parser, and how errors become messages and exit codes; each command has a file."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from subsecond.cli import bench, chat, compress, doctor, explain, export, list_models, pull, rm, run, serve, show
from subsecond.cli import eval as evaluate
from subsecond.cli.output import MODEL_HELP, error_json, print_json
from subsecond.core.errors import SubsecondError

EXIT_ERROR = 1
EXIT_INTERRUPTED = 130  # 128 + SIGINT, as shells report it
EXIT_PIPE_CLOSED = 141  # 128 + SIGPIPE


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of every command; imports nothing heavy, so that --help is instant."""
    parser = _Parser(
        prog="subsecond",
        description="Language models that answer in under a second on the machine you have, with the quality measured.",
        epilog=f"MODEL is a {MODEL_HELP}. Exit codes: 0 done, 1 error, 2 wrong usage, 130 interrupted.",
    )
    parser.add_argument("--version", action=_Version, help="print the version and exit")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for command in (run, chat, serve, pull, list_models, show, rm, bench, evaluate, explain, compress, export, doctor):
        command.add_parser(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code; wrong usage leaves by SystemExit(2) as argparse has it."""
    given = sys.argv[1:] if argv is None else list(argv)
    # numpy's matrix library starts threads when it is loaded, and they spin for a tenth of a second, beside those that
    # read weights; nothing here multiplies matrices with it
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        args = build_parser().parse_args(given)
    except _UsageError as wrong:
        if "--json" in given:
            print_json(error_json("UsageError", str(wrong)))
        wrong.leave()
    try:
        code: int = args.run(args)
        sys.stdout.flush()
        return code
    except BrokenPipeError:
        # The reader has gone, as in `| head`; nothing more can be said, also not by the flush at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_PIPE_CLOSED
    except (SubsecondError, OSError, MemoryError) as error:
        message = "the memory does not suffice; close other programs or take a smaller model"
        message = message if isinstance(error, MemoryError) else str(error)
        if args.json:
            print_json(error_json(type(error).__name__, message))
        else:
            print(f"subsecond: {message}", file=sys.stderr)
        return EXIT_ERROR
    except KeyboardInterrupt:
        if args.json:
            print_json(error_json("Interrupted", "interrupted before the end"))
        else:
            print(file=sys.stderr)
        return EXIT_INTERRUPTED


class _Parser(argparse.ArgumentParser):
    """Raises wrong usage, so that it can be printed as JSON too; those of the commands are of this class as well."""

    def error(self, message: str) -> NoReturn:
        raise _UsageError(self, message)


class _UsageError(Exception):
    def __init__(self, parser: _Parser, message: str) -> None:
        super().__init__(message)
        self._parser = parser

    def leave(self) -> NoReturn:
        """Print usage and message to standard error and exit with 2, as argparse has it."""
        argparse.ArgumentParser.error(self._parser, str(self))


class _Version(argparse.Action):
    """Look the version up only when it is asked for: reading package metadata takes time."""

    def __init__(self, option_strings: Sequence[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, dest, nargs=0, default=argparse.SUPPRESS, **options)

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        import subsecond

        print(f"subsecond {subsecond.__version__}")
        parser.exit()


if __name__ == "__main__":
    sys.exit(main())
