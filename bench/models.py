"""The model files that are timed: found by name, written with random weights, or made from another and kept."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from bench.random_model import SHAPES
from bench.timing import PeerError
from subsecond.models.store import resolve

ROOT = Path(__file__).parents[1]
PEERS = ROOT / "build" / "peers"
RANDOM_TYPE = "Q4_0"


def find_model(name: str) -> Path:
    """A file or folder; a name of bench.random_model becomes a file of random weights in that shape."""
    if name not in SHAPES:
        return resolve(name)
    target = PEERS / "models" / f"{name}-{RANDOM_TYPE.lower()}.gguf"
    return make_once(target, None, [sys.executable, "-m", "bench.random_model", name, RANDOM_TYPE])


def label_of(name: str) -> str:
    """What a model that was given as `name` is called in a table."""
    return Path(name).stem if "/" in name or name.endswith(".gguf") else name


def hugging_face_folder(model: Path) -> Path:
    """The model as a Hugging Face folder, itself if it is one."""
    if model.is_dir():
        return model
    command = [sys.executable, "-m", "bench.peers.hugging_face", str(model)]
    return make_once(PEERS / "models" / model.stem, model, command)


def make_once(target: Path, source: Path | None, command: Sequence[str], last: Sequence[str] = ()) -> Path:
    """Run `command`, the target and `last` as one command line, unless that has been done with this very source.

    It works at low priority on a temporary name, so an interrupted one leaves no target. Raises PeerError if it fails.
    """
    stamp = target.with_name(f"{target.name}.made.json")
    # without the place of the repository, so that build/ may move with it
    parts = [part.replace(str(ROOT), ".") for part in (*command, *last)]
    origin = {"command": parts, "source": None if source is None else _identity(source)}
    if target.exists() and stamp.is_file() and json.loads(stamp.read_text(encoding="utf-8")) == origin:
        return target
    partial = target.with_name(f"partial-{target.name}")
    for path in (target, partial):
        _remove(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    print(f"making {target} ...", end=" ", file=sys.stderr, flush=True)
    start = time.monotonic()
    arguments = ["nice", "-n", "10", *command, str(partial), *last]
    done = subprocess.run(arguments, capture_output=True, text=True, errors="replace", check=False, cwd=ROOT)
    if done.returncode != 0 or not partial.exists():
        print("failed", file=sys.stderr)
        raise PeerError(f"{' '.join(arguments)} ended with {done.returncode}: {done.stderr[-2000:].strip()}")
    partial.rename(target)
    stamp.write_text(json.dumps(origin), encoding="utf-8")
    print(f"{time.monotonic() - start:.0f} s", file=sys.stderr)
    return target


def _identity(source: Path) -> dict[str, object]:
    stat = source.stat()
    return {"num_bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
