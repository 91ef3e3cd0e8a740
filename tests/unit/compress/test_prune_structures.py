"""Neurons, groups of heads and layers: what is left computes what the original does without them."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from subsecond.compress.prune_depth import (
    BlockInfluence,
    choose_layers,
    layer_of,
    renumbered,
    without_layers,
)
from subsecond.compress.prune_heads import (
    AttentionWeights,
    HeadShape,
    group_activity,
    group_sensitivity,
    keep_groups,
)
from subsecond.compress.prune_width import FeedForward, keep_neurons
from subsecond.compress.statistics import Floats
from subsecond.core.errors import InputError
from subsecond.models.families.registry import build_graph
from tests.unit.compress.correlated_inputs import (
    correlated_rows,
    mean_square_error,
    random_weight,
    statistics_of,
)
from tests.unit.tiny_decoder import TINY, tiny_shapes


def hidden_of(part: FeedForward, x: Floats) -> Floats:
    up = x @ part.up.T + (0 if part.up_bias is None else part.up_bias)
    hidden = np.maximum(up, 0)
    if part.gate is not None:
        gate = x @ part.gate.T + (0 if part.gate_bias is None else part.gate_bias)
        hidden = gate / (1 + np.exp(-gate.clip(-60))) * up
    found: Floats = hidden.astype(np.float32)
    return found


def output_of(part: FeedForward, x: Floats) -> Floats:
    found: Floats = hidden_of(part, x) @ part.down.T + (0 if part.down_bias is None else part.down_bias)
    return found


@pytest.mark.parametrize("has_gate", [True, False])
def test_fewer_neurons_compute_nearly_the_same_and_refitted_ones_more_so(has_gate: bool) -> None:
    x, ff = correlated_rows(24, 400), 56
    bias = None if has_gate else np.linspace(-1, 1, ff, dtype=np.float32)
    part = FeedForward(
        random_weight(ff, 24, seed=3) if has_gate else None,
        random_weight(ff, 24, seed=4),
        random_weight(24, ff, seed=5),
        up_bias=bias,
        down_bias=None if has_gate else np.ones(24, np.float32),
    )
    hidden, kept = hidden_of(part, x), np.arange(4, 44)
    errors = []
    for has_refit in (False, True):
        cut, refit = keep_neurons(part, kept, statistics_of(hidden), has_refit=has_refit)
        assert cut.num_neurons == 40 and cut.down.shape == (24, 40)
        np.testing.assert_allclose(hidden_of(cut, x), hidden[:, kept], rtol=1e-4, atol=1e-4)
        errors.append(float(np.square(output_of(part, x) - output_of(cut, x)).sum(axis=1).mean()))
    energy = mean_square_error(hidden, part.down, 0 * part.down)
    np.testing.assert_allclose(errors, [refit.error_cut * energy, refit.error * energy], rtol=0.02)
    assert errors[1] < 0.9 * errors[0]


def test_parts_that_do_not_fit_are_refused() -> None:
    with pytest.raises(InputError, match="not of one feed-forward part"):
        FeedForward(random_weight(8, 4), random_weight(8, 4), random_weight(4, 9))
    with pytest.raises(InputError, match="not of one feed-forward part"):
        FeedForward(random_weight(8, 4), random_weight(9, 4), random_weight(4, 9))


SHAPE = HeadShape(num_heads=6, num_kv_heads=3, head_dim=4)


def test_groups_are_ranked_by_what_they_send_out() -> None:
    rows = correlated_rows(24)
    energy = np.square(rows.astype(np.float64)).mean(axis=0).reshape(3, 8).sum(axis=1)
    np.testing.assert_allclose(group_activity(statistics_of(rows), SHAPE), np.sqrt(energy), rtol=1e-5)
    with pytest.raises(InputError, match="make 24"):
        group_activity(statistics_of(correlated_rows(23)), SHAPE)


def test_sensitivity_of_a_group_is_the_error_of_the_best_fit_without_it() -> None:
    rows, weight = correlated_rows(24, 300), random_weight(10, 24)
    x = rows.astype(np.float64)
    y = x @ weight.astype(np.float64).T
    for group, found in enumerate(group_sensitivity(weight, statistics_of(rows).gram, SHAPE, damping=1e-7)):
        others = np.delete(x, np.arange(8 * group, 8 * group + 8), axis=1)
        left = y - others @ np.linalg.lstsq(others, y, rcond=None)[0]
        np.testing.assert_allclose(found, np.square(left).sum(axis=1).mean(), rtol=2e-3)


def attend(part: AttentionWeights, shape: HeadShape, x: Floats) -> Floats:
    """Input of the output projection, from plain attention over all rows."""
    assert part.query_bias is not None and part.key_bias is not None and part.value_bias is not None
    q = (x @ part.query.T + part.query_bias).reshape(len(x), shape.num_heads, -1)
    k = (x @ part.key.T + part.key_bias).reshape(len(x), shape.num_kv_heads, -1)
    v = (x @ part.value.T + part.value_bias).reshape(len(x), shape.num_kv_heads, -1)
    mixed = []
    for head in range(shape.num_heads):
        group = head // (shape.num_heads // shape.num_kv_heads)
        scores = np.exp(q[:, head] @ k[:, group].T / 8)
        mixed.append(scores / scores.sum(axis=1, keepdims=True) @ v[:, group])
    return np.concatenate(mixed, axis=1).astype(np.float32)


def test_the_groups_that_stay_attend_as_before() -> None:
    x = (correlated_rows(10, 200) / 3).astype(np.float32)
    query, key, value = (random_weight(n, 10, seed=n) / np.float32(3) for n in (24, 12, 13))
    part = AttentionWeights(
        query, key, value[:12], random_weight(10, 24), *(np.full(n, 0.1, np.float32) for n in (24, 12, 12))
    )
    inputs, groups = attend(part, SHAPE, x), np.array([0, 2])
    smaller = SHAPE.with_groups(2)
    assert (smaller.num_heads, smaller.num_kv_heads, smaller.head_dim) == (4, 2, 4)
    for has_refit in (False, True):
        cut, refit = keep_groups(part, SHAPE, groups, statistics_of(inputs), has_refit=has_refit)
        kept = np.r_[0:8, 16:24]
        np.testing.assert_allclose(attend(cut, smaller, x), inputs[:, kept], rtol=1e-4, atol=1e-5)
        assert np.array_equal(cut.output, part.output[:, kept]) != has_refit
    assert refit.error < refit.error_cut


def test_impossible_groups_are_refused() -> None:
    with pytest.raises(InputError, match="allowed are 1 to 2"):
        SHAPE.with_groups(3)
    with pytest.raises(InputError, match="cannot share"):
        HeadShape(5, 2, 4)


def test_influence_is_one_minus_the_mean_cosine() -> None:
    h_in, h_out = correlated_rows(12, 50), correlated_rows(12, 50, seed=2)
    influence = BlockInfluence(2)
    for rows in (slice(0, 20), slice(20, 50)):
        influence.add(0, h_in[rows], 3 * h_in[rows])
        influence.add(1, h_in[rows], h_out[rows])
    a, b = h_in.astype(np.float64), h_out.astype(np.float64)
    cosines = [float(u @ v) / np.sqrt(float(u @ u) * float(v @ v)) for u, v in zip(a, b, strict=True)]
    np.testing.assert_allclose(influence.scores, [0, 1 - np.mean(cosines)], atol=1e-7)


def test_influence_of_zero_rows_and_of_bad_ones() -> None:
    influence = BlockInfluence(1)
    with pytest.raises(InputError, match="no rows"):
        _ = influence.scores
    influence.add(0, np.zeros((2, 4), np.float32), np.ones((2, 4), np.float32))
    assert influence.scores.tolist() == [1.0]
    with pytest.raises(InputError, match="NaN or infinity"):
        influence.add(0, np.full((2, 4), np.inf, np.float32), np.ones((2, 4), np.float32))
    with pytest.raises(InputError, match="cannot be compared"):
        influence.add(0, np.ones((2, 4), np.float32), np.ones((2, 5), np.float32))


def costs(removed: tuple[int, ...], candidates: tuple[int, ...]) -> list[float]:
    """Layers 3 and 4 are cheap to lose alone, but not together."""
    alone = {2: 0.5, 3: 0.1, 4: 0.2, 5: 0.3, 6: 0.9}
    sets = [{*removed, each} for each in candidates]
    return [sum(alone[each] for each in gone) + (5.0 if {3, 4} <= gone else 0.0) for gone in sets]


def test_layers_leave_by_what_is_left_after_them() -> None:
    removals = choose_layers(8, 3, costs)
    assert [each.layer for each in removals] == [3, 5, 2]
    assert [each.kl for each in removals] == pytest.approx([0.1, 0.4, 0.9])
    assert dict(removals[0].tried) == {2: 0.5, 3: 0.1, 4: 0.2, 5: 0.3, 6: 0.9}


def test_a_prior_limits_what_is_measured() -> None:
    asked = []

    def measure(removed: tuple[int, ...], candidates: tuple[int, ...]) -> list[float]:
        asked.append((removed, candidates))
        return costs(removed, candidates)

    prior = [0.0, 0.0, 0.2, 0.9, 0.8, 0.3, 0.4, 0.0]
    assert [each.layer for each in choose_layers(8, 2, measure, prior=prior, num_candidates=2)] == [5, 2]
    assert asked == [((), (2, 5)), ((5,), (2, 6))]


def test_impossible_removals_are_refused() -> None:
    with pytest.raises(InputError, match="allowed are 1 to 4"):
        choose_layers(8, 5, costs)
    with pytest.raises(InputError, match="allowed are 1 to 0"):
        choose_layers(3, 1, costs)
    with pytest.raises(InputError, match="3 influences"):
        choose_layers(8, 1, costs, prior=[1, 2, 3])
    with pytest.raises(InputError, match="NaN"):
        choose_layers(8, 1, lambda _, candidates: [float("nan")] * len(candidates))


def test_layers_are_renumbered_in_names_and_configuration() -> None:
    assert renumbered("blk.4.ffn_up.weight", (1, 3)) == "blk.2.ffn_up.weight"
    assert renumbered("blk.3.ffn_up.weight", (1, 3)) is None
    assert renumbered("blk.0.attn_q.bias", (1, 3)) == "blk.0.attn_q.bias"
    assert renumbered("token_embd.weight", (1,)) == "token_embd.weight"
    assert layer_of("blk.12.attn_q.weight") == 12 and layer_of("output.weight") is None
    config = replace(TINY, num_layers=6, window=8, window_layers=(0, 1, 3, 4), rope_free_layers=(5,))
    smaller = without_layers(config, (1, 2))
    assert (smaller.num_layers, smaller.window_layers, smaller.rope_free_layers) == (4, (0, 1, 2), (3,))
    for removed in ((1, 1), (6,)):
        with pytest.raises(InputError, match="cannot be removed"):
            without_layers(config, removed)


def test_a_model_without_layers_has_a_graph_that_reads_all_its_weights() -> None:
    config = replace(TINY, num_layers=4)
    shapes = tiny_shapes(config)
    names = {name: place for name in shapes if (place := renumbered(name, (1, 2))) is not None}
    graph = build_graph(without_layers(config, (1, 2)), {names[name]: shapes[name] for name in names})
    assert set(graph.weights) == set(names.values())
