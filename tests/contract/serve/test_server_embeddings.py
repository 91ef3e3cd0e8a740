"""Vectors over HTTP: every form of input and output, shared steps, and what is refused."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from subsecond.serve.embedding_batches import MAX_BATCH_TOKENS, EmbeddingBatches
from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.scripted_model import ScriptedEmbedder

PATH = "/v1/embeddings"


@pytest.fixture
def embedder(server: LiveServer, client: httpx.Client) -> Iterator[ScriptedEmbedder]:
    client.post(PATH, json={"model": "embedding", "input": "load it"})
    found = server.loader.embedders["embedding"]
    assert isinstance(found, ScriptedEmbedder)
    found.calls.clear()
    yield found
    found.hold.set()
    found.failure = None


def vectors_of(client: httpx.Client, given: Any, **more: Any) -> tuple[list[Any], dict[str, Any]]:
    response = client.post(PATH, json={"model": "embedding", "input": given, **more})
    assert response.status_code == 200, response.text
    body: dict[str, Any] = response.json()
    assert [item["index"] for item in body["data"]] == list(range(len(body["data"])))
    assert {item["object"] for item in body["data"]} == {"embedding"} and body["object"] == "list"
    return [item["embedding"] for item in body["data"]], body


def test_texts_and_token_ids_give_the_same_vectors(client: httpx.Client, embedder: ScriptedEmbedder) -> None:
    ids = embedder.checkpoint.tokenizer.encode_text("hello")
    ((one,), body) = vectors_of(client, "hello")
    assert body["model"] == "embedding" and body["usage"] == {"prompt_tokens": len(ids), "total_tokens": len(ids)}
    assert body["subsecond"].keys() == {"artifact", "variant", "kernels", "total_ms"}
    assert np.linalg.norm(one) == pytest.approx(1, abs=1e-6)
    expected = embedder.embed_tokens([ids])[0]
    assert np.array_equal(np.array(one, np.float32), expected)
    for given in (["hello"], ids, [ids]):
        assert vectors_of(client, given)[0] == [one]
    both, body = vectors_of(client, ["hello", "other"])
    assert both[0] == one != both[1]
    assert vectors_of(client, ["hello", ids])[0] == [one, one]


def test_base64_holds_the_same_numbers(client: httpx.Client, embedder: ScriptedEmbedder) -> None:
    numbers, _ = vectors_of(client, ["a", "b", "c"])
    texts, _ = vectors_of(client, ["a", "b", "c"], encoding_format="base64")
    for number, text in zip(numbers, texts, strict=True):
        assert np.array_equal(np.frombuffer(base64.b64decode(text), "<f4"), np.array(number, np.float32))


def test_many_vectors_come_in_their_order(client: httpx.Client, embedder: ScriptedEmbedder) -> None:
    texts = [f"text {number}" for number in range(100)]
    vectors, _ = vectors_of(client, texts)
    assert vectors[37] == vectors_of(client, "text 37")[0][0]
    assert len({tuple(vector) for vector in vectors}) == 100


@pytest.mark.parametrize(
    ("body", "message", "param"),
    [
        ({"input": []}, "input has 0 entries; give 1 to 2048", "input"),
        ({"input": ""}, "input[0] is empty", "input[0]"),
        ({"input": ["a", ""]}, "input[1] is empty", "input[1]"),
        ({"input": [[]]}, "input[0] is empty", "input[0]"),
        ({"input": [1, "a"]}, "input mixes token ids with texts", "input"),
        ({"input": [[1, -1]]}, "input[0] has ids that are not from 0 to ", "input[0]"),
        ({"input": [1, 10**9]}, "input[0] has ids that are not from 0 to ", "input[0]"),
        ({"input": [1, 10**30]}, "input[0] has ids that are not from 0 to ", "input[0]"),
        ({"input": ["a", "b" * 65]}, "input[1] has 65 tokens; this model takes at most 64. Split it", "input[1]"),
        ({"input": "b" * 2049}, "input[0] is 2049 long, far more than fits into the 64 tokens", "input[0]"),
        ({"input": ["a"] * 2049}, "input has 2049 entries", "input"),
        ({"input": "a", "dimensions": 4}, "dimensions=4 is not allowed: this model's vectors have 8", "dimensions"),
        ({"input": "a", "dimensions": 0}, "dimensions=0 is not allowed", "dimensions"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format: ", "encoding_format"),
        ({"input": "a", "truncate": True}, "'truncate' is not a field that is known here", "truncate"),
        ({"input": None}, "input: expected", "input"),
    ],
)
def test_what_cannot_be_embedded_is_refused_by_name(
    client: httpx.Client, embedder: ScriptedEmbedder, body: dict[str, Any], message: str, param: str
) -> None:
    response = client.post(PATH, json={"model": "embedding", **body})
    assert response.status_code == 400
    error = response.json()["error"]
    assert message in error["message"] and error["param"] == param
    assert embedder.calls == []


def test_the_length_of_the_model_is_no_refusal(client: httpx.Client, embedder: ScriptedEmbedder) -> None:
    assert vectors_of(client, "a", dimensions=8, user="somebody")[0] == vectors_of(client, "a")[0]


def test_calls_that_come_at_once_share_a_step(
    server: LiveServer, client: httpx.Client, embedder: ScriptedEmbedder
) -> None:
    alone = {text: vectors_of(client, text)[0][0] for text in "abcdef"}
    embedder.calls.clear()
    embedder.hold.clear()

    def ask(text: str) -> Any:
        with server.client() as other:
            return vectors_of(other, text)[0][0]

    served = server.app.context.registry.states()[1].served
    assert served is not None
    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(ask, "a")
        while not served.embeddings._calls:
            pass
        others = [pool.submit(ask, text) for text in "bcdef"]
        while len(served.embeddings._calls) < 6:
            pass
        embedder.hold.set()
        assert first.result() == alone["a"]
        assert [other.result() for other in others] == [alone[text] for text in "bcdef"]
    assert [len(call) for call in embedder.calls] == [1, 5]


def test_a_step_that_fails_ends_its_calls_alone(client: httpx.Client, embedder: ScriptedEmbedder) -> None:
    embedder.failure = RuntimeError("the kernel failed")
    response = client.post(PATH, json={"model": "embedding", "input": "a"})
    assert response.status_code == 500
    assert "the step that computed these vectors failed" in response.json()["error"]["message"]
    assert len(vectors_of(client, "a")[0]) == 1


def test_a_large_call_leaves_room_for_small_ones() -> None:
    async def test() -> None:
        embedder = ScriptedEmbedder()
        batches = EmbeddingBatches(embedder)
        embedder.hold.clear()
        large = asyncio.create_task(batches.embed([[1] * 64] * (4 * MAX_BATCH_TOKENS // 64)))
        await asyncio.sleep(0)
        small = asyncio.create_task(batches.embed([[2, 3]]))
        await asyncio.sleep(0)
        embedder.hold.set()
        assert (await small).shape == (1, 8)
        assert not large.done()
        assert (await large).shape == (4 * MAX_BATCH_TOKENS // 64, 8)
        assert all(sum(map(len, call)) <= MAX_BATCH_TOKENS for call in embedder.calls)
        assert [2, 3] in embedder.calls[1]
        batches.close()

    asyncio.run(test())


def test_a_call_that_is_given_up_is_not_computed_further() -> None:
    async def test() -> None:
        embedder = ScriptedEmbedder()
        batches = EmbeddingBatches(embedder)
        embedder.hold.clear()
        large = asyncio.create_task(batches.embed([[1] * 64] * (4 * MAX_BATCH_TOKENS // 64)))
        await asyncio.sleep(0)
        large.cancel()
        embedder.hold.set()
        with pytest.raises(asyncio.CancelledError):
            await large
        assert (await batches.embed([[5]])).shape == (1, 8)
        assert len(embedder.calls) == 2 and embedder.calls[1] == [[5]]
        batches.close()

    asyncio.run(test())
