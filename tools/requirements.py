"""Prints the packages one step of the Makefile installs, read from pyproject.toml so that no list exists twice.

Usage: python tools/requirements.py build | backend | EXTRA
  build    what the build back end itself needs
  backend  what the installed back end asks for on this machine (cmake and ninja, where they are missing)
  EXTRA    one optional dependency group, for example dev
"""

from __future__ import annotations

import os
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def requirements(kind: str) -> list[str]:
    """Return pip requirement strings for `kind`; raises SystemExit when pyproject.toml has no such group."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    if kind == "build":
        return list(project["build-system"]["requires"])
    if kind == "backend":
        from scikit_build_core.build import get_requires_for_build_editable

        os.chdir(ROOT)
        return list(get_requires_for_build_editable({}))
    extras = project["project"]["optional-dependencies"]
    if kind not in extras:
        raise SystemExit(f"no group {kind!r} in pyproject.toml; choose build, backend or one of {', '.join(extras)}")
    return list(extras[kind])


def main() -> None:
    """Print one requirement a line."""
    if len(sys.argv) != 2:
        raise SystemExit(__doc__)
    print("\n".join(requirements(sys.argv[1])))


if __name__ == "__main__":
    main()
