"""What a killed run left is taken up by the same order alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from subsecond.compress.recipe import read_recipe
from subsecond.compress.work import Order, Work
from subsecond.core.errors import InputError
from tests.unit.tiny_gguf import SMALL, mixed, tensors_of, write_gguf

RECIPE = 'version = 1\n[[stage]]\nkind = "trim-vocabulary"\ntexts = ["{}"]\n'


def test_other_text_of_a_stage_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = write_gguf(tmp_path / "small.gguf", SMALL, tensors_of(SMALL, mixed))
    monkeypatch.setenv("HOME", str(tmp_path))
    text = tmp_path / "domain.txt"
    recipe = read_recipe(RECIPE.format("~/domain.txt"), "trim", "trim.toml")
    order = Order(model, recipe, (), tmp_path / "out", 0)
    with pytest.raises(InputError, match=r"there is no file .*domain\.txt; give the path of a text"):
        Work(order)
    text.write_text("hello", encoding="utf-8")
    first = Work(order)
    first.folder.mkdir()
    first._known.write_text(first._text, encoding="utf-8")
    assert Work(order).is_resumed
    assert not Work(order, is_fresh=True).is_resumed
    text.write_text("hello the world", encoding="utf-8")
    assert not Work(order).is_resumed
