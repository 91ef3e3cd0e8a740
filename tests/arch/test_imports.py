"""`import subsecond` and `subsecond --help` load next to nothing, so that commands start fast."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

PRINT_LOADED = "import json, sys; print(json.dumps(sorted(sys.modules)))"
HEAVY = frozenset(
    {"numpy", "torch", "tokenizers", "jinja2", "tqdm", "huggingface_hub", "transformers", "ray", "subsecond._native"}
)
WEB = frozenset({"asyncio", "http", "ssl", "urllib.request", "socketserver"})


def loaded_by(statement: str) -> set[str]:
    """Return the modules a fresh interpreter holds after the statement, without those it starts with."""
    outputs = []
    for code in ("pass", statement):
        command = [sys.executable, "-c", f"{code}\n{PRINT_LOADED}"]
        result = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        outputs.append(result.stdout)
    empty, after = (set(json.loads(output.splitlines()[-1])) for output in outputs)
    return after - empty


def test_import_loads_no_third_party() -> None:
    loaded = loaded_by("import subsecond")
    assert {name for name in loaded if name.startswith("subsecond")} == {"subsecond"}
    assert not loaded & (HEAVY | WEB), "import subsecond must load neither third parties nor network modules"


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"], ["list", "--help"], ["bench", "--help"]])
def test_help_loads_no_third_party(arguments: list[str]) -> None:
    statement = f"""
import contextlib, io, sys
from subsecond.cli.main import main
sys.argv = ["subsecond", *{arguments!r}]
with contextlib.redirect_stdout(io.StringIO()) as page, contextlib.suppress(SystemExit):
    main()
assert "usage:" in page.getvalue(), page.getvalue()
"""
    loaded = loaded_by(statement)
    assert not loaded & (HEAVY | WEB), f"subsecond {' '.join(arguments)} must load neither of these"


def test_numpy_starts_no_threads_in_a_command() -> None:
    statement = """
import contextlib, io, os
from subsecond.cli.main import main
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    main(["--version"])
import numpy
print(len(os.listdir("/proc/self/task")))
"""
    environment = {name: value for name, value in os.environ.items() if name != "OPENBLAS_NUM_THREADS"}
    command = [sys.executable, "-c", statement]
    result = subprocess.run(command, check=True, capture_output=True, text=True, timeout=60, env=environment)
    assert result.stdout.split() == ["1"]


def test_every_public_name_exists() -> None:
    import subsecond

    assert set(subsecond.__all__) <= set(dir(subsecond))
    missing = [name for name in subsecond.__all__ if not hasattr(subsecond, name)]
    assert not missing, f"src/subsecond/__init__.py lists names that their modules do not have: {missing}"


def test_every_error_is_public() -> None:
    import subsecond
    from subsecond.core import errors

    classes = {name for name, value in vars(errors).items() if isinstance(value, type)}
    assert classes <= set(subsecond.__all__), "src/subsecond/__init__.py exports every class of subsecond.core.errors"


def test_unknown_name_is_an_attribute_error() -> None:
    import subsecond

    with pytest.raises(AttributeError, match="has no attribute 'lod'"):
        getattr(subsecond, "lod")  # noqa: B009 (a plain access would be a type error)
