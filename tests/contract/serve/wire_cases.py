"""Cases for the fields of request bodies: each has an effect, is refused by name, or is harmless."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import httpx
import msgspec

from subsecond.engine.request import Request
from tests.contract.serve.scripted_model import ScriptedModel


@dataclass(frozen=True)
class Outcome:
    """What came of a body: the answer's status and text, and the requests that the engine was given."""

    status: int
    text: str
    requests: tuple[Request, ...]

    @property
    def json(self) -> Any:
        return msgspec.json.decode(self.text)

    @property
    def asked(self) -> list[Any]:
        """What the engine was asked for, apart from what no two requests share."""
        return [
            (each.prompt_ids, each.params, each.priority, each.deadline_ms is None, each.constraint is None)
            for each in self.requests
        ]


Check = Callable[[Outcome, Outcome], bool]


@dataclass(frozen=True)
class Case:
    """A body with the field, one without it, and what has to be the difference.

    check    given the outcomes with and without; None where there must be none in what the engine is asked for
    refused  the place that a 400 has to name
    """

    given: Mapping[str, Any]
    plain: Mapping[str, Any]
    check: Check | None = None
    refused: str | None = None


def effect(check: Check, plain: Mapping[str, Any] | None = None, **given: Any) -> Case:
    return Case(given, plain or {}, check)


def refused(place: str, **given: Any) -> Case:
    return Case(given, {}, refused=place)


def harmless(plain: Mapping[str, Any] | None = None, **given: Any) -> Case:
    return Case(given, plain or {})


def param(name: str, value: Any, **given: Any) -> Case:
    """The engine is given the value as a setting of that name, and another one otherwise."""
    return effect(
        lambda with_it, without: (
            getattr(with_it.requests[0].params, name) == value != getattr(without.requests[0].params, name)
        ),
        **given,
    )


def prompt_differs(with_it: Outcome, without: Outcome) -> bool:
    return with_it.requests[0].prompt_ids != without.requests[0].prompt_ids


def is_constrained(with_it: Outcome, without: Outcome) -> bool:
    return with_it.requests[0].constraint is not None and without.requests[0].constraint is None


def has_priority(with_it: Outcome, without: Outcome) -> bool:
    return with_it.requests[0].priority == -3 and without.requests[0].priority == 0


def has_deadline(with_it: Outcome, without: Outcome) -> bool:
    return with_it.requests[0].deadline_ms is not None and without.requests[0].deadline_ms is None


def has_text(text: str) -> Check:
    return lambda with_it, without: text in with_it.text and text not in without.text


def check_case(client: httpx.Client, model: ScriptedModel, path: str, default: Mapping[str, Any], case: Case) -> None:
    """Post both bodies of a case and compare what came of them."""

    def post(body: Mapping[str, Any]) -> Outcome:
        before = len(model.engine.requests)
        response = client.post(path, json=body)
        return Outcome(response.status_code, response.text, tuple(model.engine.requests[before:]))

    given = post({**default, **case.given})
    if case.refused is not None:
        assert given.status == 400, given.text
        assert not given.requests
        assert case.refused in error_text(given.json), given.text
        return
    assert given.status == 200, given.text
    plain = post({**default, **case.plain})
    assert plain.status == 200, plain.text
    if case.check is not None:
        assert case.check(given, plain), (given.text, plain.text)
    else:
        assert given.asked == plain.asked


def error_text(body: Any) -> str:
    """What an error says, in the form of any API."""
    error = body["error"]
    text = error if isinstance(error, str) else error["message"]
    assert isinstance(text, str)
    return text


def own_fields(module: ModuleType) -> set[str]:
    """Every field of every body that a module declares, as "Struct.field", under the struct that declares it."""
    found: set[str] = set()
    for name, struct in inspect.getmembers(module, inspect.isclass):
        if issubclass(struct, msgspec.Struct) and struct.__module__ == module.__name__:
            bases = [base for base in struct.__mro__[1:] if issubclass(base, msgspec.Struct) and base != msgspec.Struct]
            inherited = {field for base in bases for field in base.__struct_fields__}
            found |= {f"{name}.{field}" for field in struct.__struct_fields__ if field not in inherited}
    return found


def until(condition: Callable[[], bool]) -> None:
    """Wait for what another thread brings about."""
    give_up_s = time.monotonic() + 120  # far more than it takes on a busy machine
    while not condition():
        assert time.monotonic() < give_up_s, "it did not come about"
        time.sleep(0.005)
