"""`subsecond pull`: fetches a model of the catalogue and checks it, and packs it or a model of the user's own."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from subsecond.cli.output import WEIGHTS, Subparsers, add_command, download_progress, print_json, size_text
from subsecond.core.errors import FormatError, InputError

if TYPE_CHECKING:
    from subsecond.backends.native import Weights
    from subsecond.models.download import Progress


READ_WHERE_IT_LIES = (
    "subsecond reads it where it lies and writes nothing there: run it as it is; copy it into a folder of its own and "
    "pull that path for quick starts"
)


def add_parser(subparsers: Subparsers[argparse.ArgumentParser]) -> None:
    """Add the command."""
    parser = add_command(
        subparsers,
        "pull",
        "fetch a model of the catalogue and pack it, or pack a model of your own; goes on where it was interrupted, "
        "and repairs what is damaged",
    )
    parser.add_argument(
        "model",
        metavar="MODEL",
        help="name of a model, as `subsecond list` shows them, or path of a .gguf file or a Hugging Face folder, which "
        "is only packed: the folder subsecond/ beside it makes every later start quick",
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        help="what is packed: stored keeps the blocks of the model; int8 and int4 are lossy, smaller than unquantized "
        "weights and faster for long prompts and many users; nested8 and nested4 are two readings of one copy; sparse "
        "leaves the zeros of a pruned model out; default what the model's config.json says, else stored",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Fetch the model unless it is on disk, and pack its weights so that every later start is quick."""
    given = _given_path(args.model)
    path, is_new = (given, False) if given else _fetch(args.model, is_quiet=args.json)
    with nullcontext() if args.json else download_progress("packing for the kernels") as progress:
        pack(path, progress, args.weights)
    file_bytes = _num_bytes(path)
    if args.json:
        print_json({"name": args.model, "path": str(path), "file_bytes": file_bytes, "is_new": is_new})
    elif given:
        print(f"{args.model}: {size_text(file_bytes)} packed in {_folder(path) / 'subsecond'}")
    else:
        print(f"{args.model}: {size_text(file_bytes)} {'fetched to' if is_new else 'already in'} {path}")
    return 0


def _given_path(model: str) -> Path | None:
    """The file or folder of the user's own that `model` is; None for a name. InputError for what is not packed."""
    from subsecond.models import foreign_stores, store

    path = Path(model).expanduser()
    is_folder = (path / "config.json").is_file()
    if not is_folder and not model.endswith(".gguf") and (store.is_known(model) or not path.exists()):
        return None
    if not path.exists():
        raise InputError(f"there is no file {model}; give an existing .gguf file or a model name")
    if not is_folder and (path.is_dir() or path.suffix != ".gguf"):
        raise InputError(f"{_what_is(path)}; a path to pull is a .gguf file or a folder with config.json")
    owner = foreign_stores.owner_of_path(_folder(path))
    if owner is not None:
        raise InputError(f"{model} is in the store of another program ({owner}); {READ_WHERE_IT_LIES}")
    return path


def _what_is(path: Path) -> str:
    """What an existing path is that is not packed."""
    from subsecond.models.foreign_stores import some_names

    if path.is_dir():
        return f"{path} is a folder without config.json; in it: {some_names(sorted(p.name for p in path.iterdir()))}"
    if path.suffix == ".safetensors":
        return f"{path} is only a part of a model; give the folder that holds it: {path.parent}"
    return f"{path} is no .gguf file"


def pack(path: Path, progress: Progress | None, weights: Weights | None = None) -> None:
    """Write the artifact of a model file beside it, unless there is one with such weights that fits and is sound."""
    from subsecond.backends import native
    from subsecond.models.checkpoint import open_checkpoint

    _require_place(path)
    checkpoint = open_checkpoint(path)
    if checkpoint.artifact is not None:
        if native.is_packed(checkpoint, native.packed_weights(checkpoint, weights)):
            try:
                checkpoint.artifact.verify()
                return
            except FormatError:
                pass  # written anew below
        # Nothing of an artifact that is to be replaced goes into the new one.
        checkpoint = open_checkpoint(path, can_use_artifact=False)
    native.write_artifact(checkpoint, _folder(path), progress, weights)


def _folder(path: Path) -> Path:
    """The folder whose subsecond/ belongs to a model: that of its file, or the model's own."""
    return path if path.is_dir() else path.parent


def _num_bytes(path: Path) -> int:
    """Size of a model: of all parts of a file, or of the weights in a folder."""
    from subsecond.formats.gguf_parts import named_parts
    from subsecond.models.hf_folder import source_paths

    if path.is_dir():
        return sum(each.stat().st_size for each in source_paths(path) if each.suffix == ".safetensors")
    return sum(each.stat().st_size for each in named_parts(path))


def _fetch(name: str, *, is_quiet: bool) -> tuple[Path, bool]:
    """The file of the named model, and whether it is another one than before."""
    from subsecond.models import catalogue, store

    if not store.is_known(name):
        path = store.resolve(name)  # says what is wrong with a name that nobody has
        raise InputError(f"{name} is a model of another program, {path}; {READ_WHERE_IT_LIES}")
    place = store.model_path(name)
    inode = place.stat().st_ino if place.is_file() else None
    with nullcontext() if is_quiet else download_progress(name) as progress:
        path = catalogue.ensure(name, progress)
    return path, path.stat().st_ino != inode


def _require_place(path: Path) -> None:
    """InputError when the folder holds the artifact of another file that is still there: it has room for one."""
    from subsecond.formats.artifact import Artifact, is_artifact

    if path.is_dir() or not is_artifact(path.parent):
        return
    try:
        other = path.parent / Artifact.open(path.parent).manifest.source.name
    except FormatError:
        return
    if other.name != path.name and other.is_file():
        raise InputError(
            f"{path.parent / 'subsecond'} holds what was packed from {other.name}, and a folder has room for "
            f"one model; move {path.name} into a folder of its own"
        )
