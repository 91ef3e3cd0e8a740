"""Promises about the package itself."""

from __future__ import annotations

import tomllib
from pathlib import Path

MAX_DEPENDENCIES = 15


def test_the_base_install_has_few_dependencies_and_no_torch() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    names = [line.split(">")[0].split("[")[0] for line in project["dependencies"]]
    assert len(names) <= MAX_DEPENDENCIES
    assert not {"torch", "transformers", "ray"} & set(names)
