"""instructor against a running server: objects by tools, by JSON and by schema, whole, partial and several."""

from __future__ import annotations

from typing import Any, Literal

import instructor
import openai
import pytest
from pydantic import BaseModel

from tests.contract.serve.live_server import LiveServer
from tests.e2e.client_cases import QUESTION
from tests.e2e.conftest import SMALL_MODEL

pytestmark = pytest.mark.real_model


class City(BaseModel):
    """A city."""

    city: Literal["Paris", "Rome"]
    rank: Literal[1, 2, 3]


def client(server: LiveServer, mode: instructor.Mode) -> Any:
    plain = openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0, timeout=300)
    return instructor.from_openai(plain, mode=mode)


@pytest.mark.parametrize("mode", [instructor.Mode.TOOLS, instructor.Mode.JSON_SCHEMA])
def test_an_object(smollm2_server: LiveServer, mode: instructor.Mode) -> None:
    with client(smollm2_server, mode).client as _:
        found, reply = client(smollm2_server, mode).chat.completions.create_with_completion(
            model=SMALL_MODEL,
            messages=[{"role": "user", "content": QUESTION}],
            response_model=City,
            temperature=0,
            max_tokens=100,
            max_retries=0,
        )
    assert isinstance(found, City)
    assert found.city in ("Paris", "Rome")
    assert reply.usage.completion_tokens > 0


def test_a_partial_object_grows(smollm2_server: LiveServer) -> None:
    stages = list(
        client(smollm2_server, instructor.Mode.TOOLS).chat.completions.create_partial(
            model=SMALL_MODEL,
            messages=[{"role": "user", "content": QUESTION}],
            response_model=City,
            temperature=0,
            max_tokens=100,
            max_retries=0,
        )
    )
    assert len(stages) > 1
    assert stages[-1].city in ("Paris", "Rome")
    assert stages[-1].rank in (1, 2, 3)
