"""No pair of sampling options, at the edges of what is allowed or beyond, is answered by a fault of the server."""

from __future__ import annotations

import itertools
import random
from typing import Any

import httpx
import pytest

from tests.contract.serve.scripted_model import ScriptedModel

# As JSON text, which has numbers that Python writes otherwise. None leaves the field out.
ALLOWED: dict[str, tuple[str | None, ...]] = {
    "temperature": (None, "0", "-0.0", "5e-324", "1e-7", "100", "1"),
    "top_p": (None, "1", "5e-324", "0.5"),
    "top_k": (None, "-1", "0", "1", "2147483647"),
    "min_p": (None, "0", "-0", "1", "1e-300"),
    "repetition_penalty": (None, "0.01", "1", "100"),
    "presence_penalty": (None, "-2", "2", "-0.0"),
    "frequency_penalty": (None, "-2", "2"),
    "logit_bias": (None, "{}", '{"0":100,"1":-100}', '{"70":1e-300,"71":-0.0}'),
    "seed": (None, "0", "18446744073709551615", "-9223372036854775808"),
    "n": (None, "1", "3"),
    "max_tokens": (None, "1", "4"),
    "stop": (None, '"a"', '["e","\\u0000","e b"]', "[]"),
    "stop_token_ids": (None, "[]", "[0,70,71,72]"),
    "ignore_eos": (None, "true"),
    "stream": (None, "true"),
    "priority": (None, "-2147483648", "2147483647"),
    "deadline_ms": (None, "1e308", "60000", "5e-324"),
    "structured_outputs": (None, '{"json_object":true}', '{"regex":"[a-z]{1,3}"}'),
}
CHAT_ONLY: dict[str, tuple[str | None, ...]] = {
    "logprobs": (None, 'true,"top_logprobs":20', "true"),
    "tools": (None, '[{"type":"function","function":{"name":"f","strict":true}}]'),
    "parallel_tool_calls": (None, "false"),
}
COMPLETIONS_ONLY: dict[str, tuple[str | None, ...]] = {
    "logprobs": (None, "0", "20"),
    "echo": (None, "true"),
}
NUMBERS = ("NaN", "Infinity", "-Infinity", "1e999", "-1e999", "9" * 400, "-" + "9" * 400, "9" * 5000)
WRONG_TYPES = ('"1"', "true", "[]", "{}")
BEYOND: dict[str, tuple[str, ...]] = {
    "temperature": (*NUMBERS, *WRONG_TYPES, "-5e-324", "100.1"),
    "top_p": (*NUMBERS, *WRONG_TYPES, "0", "-0.0", "1.0000001"),
    "top_k": (*NUMBERS, *WRONG_TYPES, "-2", "2147483648", "1.5"),
    "min_p": (*NUMBERS, *WRONG_TYPES, "-1e-9", "1.1"),
    "repetition_penalty": (*NUMBERS, *WRONG_TYPES, "0", "-1", "101", "5e-324", "0.0099"),
    "presence_penalty": (*NUMBERS, *WRONG_TYPES, "2.01"),
    "frequency_penalty": (*NUMBERS, *WRONG_TYPES, "-2.01"),
    "logit_bias": (*NUMBERS, '{"1":NaN}', '{"1":1e999}', '{"-1":1}', '{"1.0":1}', '{"4294967296":1}', '{"":1}', "[]"),
    "seed": (*NUMBERS, *WRONG_TYPES, "18446744073709551616", "-9223372036854775809", "0.5"),
    "n": (*NUMBERS, *WRONG_TYPES, "0", "-1", "65"),
    "max_tokens": (*NUMBERS, *WRONG_TYPES, "-1", "2147483648"),
    "stop": ("1", "[1]", '""', '[""]', "{}", "true"),
    "stop_token_ids": ("[-1]", "[2147483648]", "[1.5]", '["a"]', "1", "[" + "9" * 400 + "]"),
    "priority": (*NUMBERS, *WRONG_TYPES, "2147483648"),
    "deadline_ms": (*NUMBERS, *WRONG_TYPES, "0", "-1"),
    "ignore_eos": ("1", '"true"'),
    "stream": ("1", '"true"'),
}
CHAT, COMPLETIONS = "/v1/chat/completions", "/v1/completions"


def rows_with_all_pairs(values: dict[str, tuple[str | None, ...]], seed: int) -> list[dict[str, str | None]]:
    """Return bodies among which every two values of two fields occur together; a greedy choice, the same each time."""
    generator = random.Random(seed)
    names = sorted(values)
    missing = {
        (first, a, second, b)
        for first, second in itertools.combinations(names, 2)
        for a in values[first]
        for b in values[second]
    }
    rows = []
    while missing:
        first, a, second, b = min(missing, key=repr)
        row: dict[str, str | None] = {first: a, second: b}
        for name in generator.sample(names, len(names)):
            if name not in row:
                row[name] = max(values[name], key=lambda value: (gain(row, name, value, missing), generator.random()))
        missing -= {(x, row[x], y, row[y]) for x, y in itertools.combinations(names, 2)}
        rows.append(row)
    return rows


def gain(row: dict[str, str | None], name: str, value: str | None, missing: set[Any]) -> int:
    """How many missing pairs a value adds to a row."""
    pairs = ((min(name, other), max(name, other)) for other in row)
    full = {**row, name: value}
    return sum((first, full[first], second, full[second]) in missing for first, second in pairs)


def text_of(path: str, fields: dict[str, str | None]) -> str:
    given = {"model": '"scripted"', **{name: value for name, value in fields.items() if value is not None}}
    given |= {"messages": '[{"role":"user","content":"random"}]'} if path == CHAT else {"prompt": '"random"'}
    given.setdefault("max_tokens", "3")
    return "{" + ",".join(f'"{name}":{value}' for name, value in given.items()) + "}"


def post(client: httpx.Client, path: str, fields: dict[str, str | None]) -> httpx.Response:
    return client.post(path, content=text_of(path, fields), headers={"content-type": "application/json"})


@pytest.mark.parametrize(("path", "more"), [(CHAT, CHAT_ONLY), (COMPLETIONS, COMPLETIONS_ONLY)])
def test_all_pairs_of_allowed_values_are_answered(
    client: httpx.Client, scripted: ScriptedModel, path: str, more: dict[str, tuple[str | None, ...]]
) -> None:
    rows = rows_with_all_pairs({**ALLOWED, **more}, seed=7)
    num_failed = scripted.engine.stats().num_failed_steps
    for row in rows:
        response = post(client, path, row)
        is_late = row["deadline_ms"] == "5e-324"
        is_contradiction = row["ignore_eos"] is not None and (row["structured_outputs"] or row.get("tools")) is not None
        expected = 429 if is_late else 400 if is_contradiction else 200
        assert response.status_code == expected, (row, response.text)
        assert '"error"' not in response.text or response.status_code != 200, (row, response.text)
        if expected != 200:  # the other pairs of the row are to be answered nevertheless
            rest = {name: value for name, value in row.items() if name not in ("deadline_ms", "ignore_eos")}
            response = post(client, path, rest)
            assert response.status_code == 200, (rest, response.text)
    assert scripted.engine.stats().num_failed_steps == num_failed


@pytest.mark.parametrize("path", [CHAT, COMPLETIONS])
@pytest.mark.parametrize("field", BEYOND)
def test_what_is_beyond_is_refused_beside_anything(client: httpx.Client, path: str, field: str) -> None:
    generator = random.Random(field)
    for value in BEYOND[field]:
        other = generator.choice([name for name in ALLOWED if name != field])
        response = post(client, path, {field: value, other: generator.choice(ALLOWED[other])})
        assert response.status_code == 400, (field, value, response.text)
        error = response.json()["error"]
        assert error["param"] is None or error["param"].startswith(field), (field, value, error)


def test_all_pairs_are_there() -> None:
    values: dict[str, tuple[str | None, ...]] = {"a": ("1", "2", None), "b": ("3", "4"), "c": ("5", "6", "7")}
    rows = rows_with_all_pairs(values, seed=1)
    for first, second in itertools.combinations(values, 2):
        found = {(row[first], row[second]) for row in rows}
        assert found == set(itertools.product(values[first], values[second]))
    assert len(rows) < 18
