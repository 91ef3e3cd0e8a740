"""`subsecond pull`: fetches a model of the catalogue and checks it."""

from __future__ import annotations

import argparse
from contextlib import nullcontext

from subsecond.cli.output import Subparsers, add_command, download_progress, print_json, size_text


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(subparsers, "pull", "fetch a model of the catalogue; an interrupted download goes on")
    parser.add_argument("name", metavar="NAME", help="name of the model; `subsecond list` shows what there is")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fetch the model unless it is on disk, and pack its weights so that every later start is quick."""
    from subsecond.backends import native
    from subsecond.models import catalogue, store
    from subsecond.models.checkpoint import open_checkpoint

    is_new = not store.model_path(args.name).is_file()
    with nullcontext() if args.json or not is_new else download_progress(args.name) as progress:
        path = catalogue.ensure(args.name, progress)
    checkpoint = open_checkpoint(path)
    if checkpoint.artifact is None:
        with nullcontext() if args.json else download_progress("packing for the kernels") as progress:
            native.write_artifact(checkpoint, path.parent, progress)
    file_bytes = path.stat().st_size
    if args.json:
        print_json({"name": args.name, "path": str(path), "file_bytes": file_bytes, "is_new": is_new})
    else:
        print(f"{args.name}: {size_text(file_bytes)} {'fetched to' if is_new else 'already in'} {path}")
    return 0
