"""Every built-in recipe can be planned, and what makes a stage run text more often makes its plan longer."""

from __future__ import annotations

from pathlib import Path

import pytest

from subsecond.compress.plan import Plan, make_plan
from subsecond.compress.recipe import built_in_recipes, find_recipe, read_recipe
from tests.unit.compress.small_model import small_job

RATE = 1e9


def plan_of(folder: Path, recipe_text: str) -> Plan:
    recipe = read_recipe(recipe_text, "own", "own.toml")
    return make_plan(small_job(folder).checkpoint, recipe, 0, has_text=True, rate=RATE)


@pytest.mark.parametrize("name", built_in_recipes())
def test_every_built_in_recipe_has_a_plan(tmp_path: Path, name: str) -> None:
    plan = make_plan(small_job(tmp_path).checkpoint, find_recipe(name), 1024, has_text=True, rate=RATE)
    assert len(plan.stages) == len(find_recipe(name).stages)
    assert all(stage.seconds > 0 and stage.peak_bytes > 0 for stage in plan.stages)


@pytest.mark.parametrize(
    ("kind", "less", "more"),
    [
        ("quantize", 'method = "search"', 'method = "autoround"'),
        ("quantize", "correction = 0.0", "correction = 0.5"),
        ("mixed", "measured_share = 0.25", "measured_share = 1.0"),
        ("mixed", 'types = ["Q4_0", "Q8_0"]', 'types = ["Q4_0", "Q5_0", "Q8_0"]'),
        ("sparsify", "refit = false", "refit = true"),
        ("prune-width", "refit = false", "refit = true"),
        ("prune-width", 'method = "activation"', 'method = "taylor"'),
        ("prune-depth", "keep = 0.9", "keep = 0.5"),
        ("prune-depth", "refit = false", "refit = true"),
    ],
)
def test_more_passes_take_more_time(tmp_path: Path, kind: str, less: str, more: str) -> None:
    parts = [f'version = 1\n[[stage]]\nkind = "{kind}"\n{setting}\n' for setting in (less, more)]
    short, long = (plan_of(tmp_path, each).stages[0].seconds for each in parts)
    assert short < long


def test_memory_of_the_comparison_counts_only_where_quality_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("subsecond.compress.plan.CHUNK_ROWS", 1)  # the model is small beside the rows of a chunk
    job, recipe = small_job(tmp_path), find_recipe("int8")
    without, with_it = (make_plan(job.checkpoint, recipe, num, has_text=True, rate=RATE).peak_bytes for num in (0, 1))
    assert without < with_it
