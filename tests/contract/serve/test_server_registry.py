"""Several models in one server: loaded when asked for, once, within the budget, and never closed while in use."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from subsecond.core.errors import FormatError, InputError
from subsecond.serve.errors import UnavailableError, UnknownModelError
from subsecond.serve.registry import Loaded, ModelRegistry, ModelSpec
from tests.contract.serve.live_server import LiveServer, ScriptedLoader
from tests.contract.serve.scripted_model import ScriptedModel


def registry_of(*names: str, budget_bytes: int | None = None, wait_s: float = 60.0) -> tuple[ModelRegistry, Any]:
    loader = ScriptedLoader()
    specs = [ModelSpec(name, f"/models/{name}.gguf") for name in names]
    return ModelRegistry(specs, loader, budget_bytes=budget_bytes, wait_s=wait_s), loader


def in_loop(test: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(test())


async def use(registry: ModelRegistry, name: str) -> ScriptedModel:
    async with registry.lease(name) as served:
        model = served.model
        assert isinstance(model, ScriptedModel)
        return model


def loaded(registry: ModelRegistry) -> list[str]:
    return [state.spec.name for state in registry.states() if state.served is not None]


async def settle() -> None:
    """Let everything go on that can go on without a thread."""
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_model_is_loaded_when_it_is_asked_for_and_once_for_all_that_ask() -> None:
    async def test() -> None:
        registry, loader = registry_of("a", "b")
        assert loaded(registry) == []
        loader.hold.clear()
        waiting = [asyncio.create_task(use(registry, "a")) for _ in range(5)]
        await settle()
        state = registry.states()[0]
        assert state.is_loading and state.num_leases == 5
        loader.hold.set()
        models = await asyncio.gather(*waiting)
        assert loader.loads == ["a"] and len(set(map(id, models))) == 1
        assert loaded(registry) == ["a"]
        await registry.aclose()
        assert models[0].is_closed

    in_loop(test)


def test_a_waiter_that_leaves_does_not_stop_the_load_of_the_others() -> None:
    async def test() -> None:
        registry, loader = registry_of("a")
        loader.hold.clear()
        first, second = (asyncio.create_task(use(registry, "a")) for _ in range(2))
        await settle()
        first.cancel()
        await settle()
        loader.hold.set()
        assert (await second) is loader.models["a"]
        assert first.cancelled() and loader.loads == ["a"]
        await registry.aclose()

    in_loop(test)


def test_the_least_recently_used_idle_model_makes_room() -> None:
    async def test() -> None:
        registry, loader = registry_of("a", "b", "c", budget_bytes=250)
        a = await use(registry, "a")
        await use(registry, "b")
        await use(registry, "a")
        await use(registry, "c")
        assert loaded(registry) == ["a", "c"]
        assert [loader.models["b"].is_closed, a.is_closed] == [True, False]
        await use(registry, "b")
        assert loaded(registry) == ["b", "c"]
        assert a.is_closed
        await registry.aclose()

    in_loop(test)


def test_a_model_in_use_is_closed_only_when_its_requests_are_done_and_takes_no_new_ones_before() -> None:
    async def test() -> None:
        registry, loader = registry_of("a", "b", budget_bytes=100)
        async with AsyncExitStack() as held:
            await held.enter_async_context(registry.lease("a"))
            first = loader.models["a"]
            other = asyncio.create_task(use(registry, "b"))
            while loaded(registry) == ["a"]:
                await asyncio.sleep(0.001)
            late = asyncio.create_task(use(registry, "a"))
            await settle()
            assert (first.is_closed, other.done(), late.done()) == (False, False, False)
        await other
        assert loader.loads[:2] == ["a", "b"]
        again = await late
        assert loader.loads == ["a", "b", "a"] and again is not first and first.is_closed
        assert loader.models["b"].is_closed
        await registry.aclose()

    in_loop(test)


def test_a_model_beyond_the_budget_is_refused_with_what_to_do() -> None:
    async def test() -> None:
        registry, loader = registry_of("a", budget_bytes=100)
        loader.num_bytes["a"] = 10**9
        with pytest.raises(UnavailableError, match=r"a needs about 1000 MB, but the memory budget is 0 MB; start the"):
            await use(registry, "a")
        assert loader.loads == []

    in_loop(test)


def test_a_load_that_fails_is_told_to_all_that_wait_and_tried_again_by_the_next() -> None:
    async def test() -> None:
        registry, loader = registry_of("a")
        loader.failures["a"] = FormatError("a.gguf is damaged")
        results = await asyncio.gather(*(use(registry, "a") for _ in range(3)), return_exceptions=True)
        assert [str(result) for result in results] == ["a could not be loaded: a.gguf is damaged"] * 3
        assert loader.loads == ["a"] and registry.states()[0].last_error == "a.gguf is damaged"
        del loader.failures["a"]
        assert (await use(registry, "a")) is loader.models["a"]
        assert registry.states()[0].last_error is None
        await registry.aclose()

    in_loop(test)


def test_an_error_of_ours_while_loading_is_told_without_its_text() -> None:
    class Broken(ScriptedLoader):
        def load(self, spec: ModelSpec) -> Loaded:
            raise ZeroDivisionError(f"secret {spec.name}")

    async def test() -> None:
        registry = ModelRegistry([ModelSpec("a", "a")], Broken())
        with pytest.raises(UnavailableError, match="an error of ours, ZeroDivisionError; the log tells more") as caught:
            await use(registry, "a")
        assert "secret" not in str(caught.value)

    in_loop(test)


def test_waiting_for_a_load_has_an_end() -> None:
    async def test() -> None:
        registry, loader = registry_of("a", wait_s=0.01)
        loader.hold.clear()
        with pytest.raises(UnavailableError, match="a is still being loaded; ask again later") as caught:
            await use(registry, "a")
        assert caught.value.retry_after_s > 0
        loader.hold.set()
        await registry.aclose()

    in_loop(test)


def test_a_model_whose_engine_stopped_is_loaded_anew_by_the_next_request() -> None:
    async def test() -> None:
        registry, loader = registry_of("a")
        first = await use(registry, "a")
        first.engine.close()
        second = await use(registry, "a")
        assert second is not first and loader.loads == ["a", "a"]
        await registry.aclose()
        assert first.is_closed and second.is_closed

    in_loop(test)


def test_names_are_unique_and_there_is_one_at_least() -> None:
    with pytest.raises(InputError, match="two models have the name 'a'; give one another, as NAME=MODEL"):
        registry_of("a", "a")
    with pytest.raises(InputError, match="no model is given"):
        registry_of()


def test_an_unknown_model_is_told_with_those_that_there_are() -> None:
    async def test() -> None:
        registry, _ = registry_of(*(f"m{number}" for number in range(60)))
        with pytest.raises(
            UnknownModelError, match=r"there is no model 'x+' here; there are m0, m1, .*m49 and 10 more"
        ):
            await use(registry, "x" * 10_000)

    in_loop(test)


def test_requests_for_other_models_go_on_while_one_is_loaded() -> None:
    loader = ScriptedLoader()
    with LiveServer(("first", "second"), loader=loader) as live, live.client() as client:
        loader.hold.clear()
        body = {"messages": [{"role": "user", "content": "say hi"}]}

        async def test() -> None:
            async with httpx.AsyncClient(base_url=live.url, timeout=60) as other:
                slow = asyncio.create_task(other.post("/v1/chat/completions", json={"model": "second", **body}))
                while not client.get("/v1/models/second").json()["subsecond"]["is_loading"]:
                    await asyncio.sleep(0.001)
                quick = client.post("/v1/chat/completions", json={"model": "first", **body})
                assert quick.json()["choices"][0]["message"]["content"] == "hi"
                assert not slow.done()
                loader.hold.set()
                assert (await slow).json()["choices"][0]["message"]["content"] == "hi"

        in_loop(test)


def test_the_server_tells_a_failed_load_and_goes_on() -> None:
    loader = ScriptedLoader()
    loader.failures["second"] = FormatError("second.gguf is damaged")
    with LiveServer(("first", "second"), loader=loader) as live, live.client() as client:
        body = {"model": "second", "messages": [{"role": "user", "content": "say hi"}]}
        response = client.post("/v1/chat/completions", json=body)
        assert response.status_code == 503 and response.headers["retry-after"] == "5"
        error = response.json()["error"]
        assert error["code"] == "model_not_loaded" and "second.gguf is damaged" in error["message"]
        assert client.get("/v1/models/second").json()["subsecond"]["last_error"] == "second.gguf is damaged"
        assert client.get("/health/ready").status_code == 200


def test_a_server_whose_first_model_cannot_be_loaded_ends_with_the_reason() -> None:
    loader = ScriptedLoader()
    loader.failures["first"] = FormatError("first.gguf is damaged")
    with pytest.raises(UnavailableError, match=r"first could not be loaded: first\.gguf is damaged"):
        LiveServer(("first",), loader=loader)


def test_unknown_models_are_a_404_that_lists_names(client: httpx.Client) -> None:
    body = {"model": "gpt-9", "messages": [{"role": "user", "content": "hi"}]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 404
    assert response.json()["error"] == {
        "message": "there is no model 'gpt-9' here; there are scripted, embedding",
        "type": "invalid_request_error",
        "param": None,
        "code": "model_not_found",
    }


def test_chat_with_an_embedding_model_and_vectors_of_a_language_model_are_refused(client: httpx.Client) -> None:
    body: dict[str, Any] = {"model": "embedding", "messages": [{"role": "user", "content": "hi"}]}
    response = client.post("/v1/chat/completions", json=body)
    assert response.status_code == 400
    assert "embedding is an embedding model: it gives vectors, no answers" in response.json()["error"]["message"]
    response = client.post("/v1/embeddings", json={"model": "scripted", "input": "hi"})
    assert response.status_code == 400
    assert "scripted is a language model: it gives answers, no vectors" in response.json()["error"]["message"]
