"""`subsecond rm`: deletes a model from disk."""

from __future__ import annotations

import argparse

from subsecond.cli.output import Subparsers, add_command, print_json, size_text


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(subparsers, "rm", "delete a pulled model and what was packed from it")
    parser.add_argument("name", metavar="NAME", help="name of a model on disk")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Delete the model."""
    from subsecond.models import store

    is_link = store.is_link(args.name)
    freed_bytes = store.remove(args.name)
    if args.json:
        print_json({"name": args.name, "freed_bytes": freed_bytes})
    elif is_link:
        print(f"{args.name} deleted: it was a link, and what it points to is still there")
    elif freed_bytes == 0:
        print(f"{args.name} deleted: its folder held nothing")
    else:
        print(f"{args.name} deleted, {size_text(freed_bytes)} freed")
    return 0
