"""A probe is read back as it was written; what is damaged or another machine's is refused, never used."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest

from subsecond.backends.probe import Fingerprint
from subsecond.backends.probe_store import load_probe, parse_probe, probe_json, probe_path, save_probe
from subsecond.core.errors import FormatError
from tests.unit.backends.made_up_probe import OWNER, PROBE, changed


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("SUBSECOND_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


def test_round_trip(home: Path) -> None:
    assert load_probe(OWNER) is None
    path = save_probe(PROBE)
    assert path.is_relative_to(home)
    assert load_probe(OWNER) == PROBE
    faster = replace(PROBE, processor_share=0.5)
    assert save_probe(faster) == path
    assert load_probe(OWNER) == faster
    assert [each.name for each in path.parent.iterdir()] == [path.name]


def test_what_is_read_is_what_the_file_says() -> None:
    assert parse_probe(json.loads(json.dumps(probe_json(PROBE))), "test") == PROBE


@pytest.mark.parametrize("field", [field.name for field in fields(Fingerprint)])
def test_another_machine_has_another_file_and_cannot_use_this_one(field: str) -> None:
    values: dict[type, Any] = {str: "other", int: 7, tuple: ("avx2",)}
    other = replace(OWNER, **{field: values[type(getattr(OWNER, field))]})
    save_probe(PROBE)
    assert load_probe(other) is None
    probe_path(other).write_bytes(probe_path(OWNER).read_bytes())
    with pytest.raises(FormatError, match=f"measured elsewhere: {field} differ; .*doctor --measure"):
        load_probe(other)


def test_an_interrupted_write_leaves_the_old_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_probe(PROBE)

    def interrupted(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        save_probe(replace(PROBE, processor_share=0.5))
    assert load_probe(OWNER) == PROBE
    assert list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"\xff\xfe", b'{"probe_version": 1, "probe_version": 1}', b"1" * (3 << 20)]
)
def test_a_file_that_is_no_probe_is_refused(content: bytes) -> None:
    path = probe_path(OWNER)
    path.parent.mkdir(parents=True)
    path.write_bytes(content)
    with pytest.raises(FormatError, match="doctor --measure"):
        load_probe(OWNER)


def test_a_folder_in_its_place_is_refused() -> None:
    probe_path(OWNER).mkdir(parents=True)
    with pytest.raises(FormatError, match="doctor --measure"):
        load_probe(OWNER)


def places(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Paths of everything inside a JSON tree."""
    if not isinstance(content, dict | list):
        return [path]
    items = content.items() if isinstance(content, dict) else enumerate(content)
    inner = [place for key, value in items for place in places(value, (*path, key))]
    return [path, *inner] if path else inner


@pytest.mark.parametrize("value", [None, -1, float("nan"), float("inf"), 10**30, 10**400, True])
def test_a_value_of_another_kind_is_refused(value: object) -> None:
    content = probe_json(PROBE)
    for path in places(content):
        with pytest.raises(FormatError):
            parse_probe(changed(content, path, lambda _: value), f"test with another {path}")


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("probe_version",), 1, "version 1; this program reads version 2"),
        (("read_rates",), [], "read_rates must ascend"),
        (("read_rates", 0, "bytes_s"), 0, "bytes_s is 0"),
        (("read_rates", 1, "thread_bytes"), 1, "read_rates must ascend"),
        (("read_rates", 0, "thread_bytes"), 0, "read_rates must ascend"),
        (("read_rates",), probe_json(PROBE)["read_rates"][:2], "of one thread and of 2"),
        (("linears",), {}, "must have entries"),
        (("linears", "Q8_0", "stream", "shares", 1), 0, "stream_share is 0"),
        (("linears", "Q8_0", "stream", "num_bytes"), [5, 5], "must ascend"),
        (("linears", "Q8_0", "overlap"), 2, "overlap is 2"),
        (("linears", "Q8_0", "weight_bytes"), 0, "weight_bytes is 0"),
        (("linears", "Q8_0", "weight_s", "rows"), [8, 1], "must ascend"),
        (("linears", "Q8_0", "weight_s", "rows"), [0, 1], "must ascend"),
        (("activation_s", "rows"), [1], "with a value for each"),
        (("activation_s",), {"rows": [], "seconds": []}, "must ascend"),
        (("attention", "speeds"), [], "must have entries"),
        (("attention", "overlap"), 1.5, "overlap is 1.5; it must be at most 1"),
        (("attention", "rest_share"), 1.5, "rest_share is 1.5; it must be at most 1"),
        (("attention", "head_share"), 1.5, "head_share is 1.5; it must be at most 1"),
        (("attention", "speeds", 0, "head_dim"), 0, "head_dim is 0"),
        (("attention", "speeds", 0, "group"), 0, "group is 0"),
        (("values",), {"Embed": 1.0}, "they must be of"),
        (("fingerprint", "num_threads"), 0, "of one thread and of 0"),
        (("fingerprint", "color"), "red", "it must be an object with"),
    ],
)
def test_what_a_prediction_cannot_use_is_refused(path: tuple[Any, ...], value: object, message: str) -> None:
    content = probe_json(PROBE)
    if path[-1] == "color":
        content["fingerprint"]["color"] = value
    else:
        content = changed(content, path, lambda _: value)
    with pytest.raises(FormatError, match=message) as refusal:
        parse_probe(content, "test")
    assert "doctor --measure" in str(refusal.value)
