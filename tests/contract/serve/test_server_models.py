"""What the server tells of itself: models, version, the OpenAPI document, tokens of a prompt."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest

import subsecond
from tests.contract.serve.live_server import LiveServer
from tests.contract.serve.scripted_model import ScriptedModel


def test_models_are_listed_as_both_apis_list_them(client: httpx.Client) -> None:
    body = client.get("/v1/models").json()
    assert body["object"] == "list" and body["has_more"] is False
    assert (body["first_id"], body["last_id"]) == ("scripted", "embedding")
    first = body["data"][0]
    assert first["id"] == first["display_name"] == "scripted"
    assert first["object"] == first["type"] == "model" and first["owned_by"] == "subsecond"
    assert first["max_model_len"] == 4096 and first["created"] > 1_700_000_000
    assert first["created_at"].endswith("Z") and len(first["created_at"]) == 20
    assert first["subsecond"] == {
        "is_loaded": True,
        "is_loading": False,
        "kind": "language",
        "artifact": "scripted.gguf",
        "variant": "scripted/fp32/kv-fp32",
        "kernels": "scalar",
        "num_bytes": 100,
    }
    assert client.get("/v1/models/scripted").json() == first


def test_the_list_comes_in_pages_where_that_is_asked_for(client: httpx.Client) -> None:
    def ids(query: str) -> tuple[list[str], bool]:
        body = client.get(f"/v1/models?{query}").json()
        return [item["id"] for item in body["data"]], body["has_more"]

    assert ids("limit=1") == (["scripted"], True)
    assert ids("limit=1&after_id=scripted") == (["embedding"], False)
    assert ids("after_id=embedding") == ([], False)
    assert ids("before_id=embedding&limit=1") == (["scripted"], False)
    for query in ("limit=0", "limit=many", "limit=1001", "limit=٣", "after_id=none", "page=2"):
        response = client.get(f"/v1/models?{query}")
        assert response.status_code == 400 and response.json()["error"]["param"] == query.split("=")[0]


def test_names_may_have_slashes() -> None:
    with LiveServer(("hub/owner/model:tag",)) as live, live.client() as client:
        assert client.get("/v1/models/hub/owner/model:tag").json()["id"] == "hub/owner/model:tag"
        assert client.get("/v1/models/hub%2Fowner%2Fmodel:tag").status_code == 200
        body = {"model": "hub/owner/model:tag", "messages": [{"role": "user", "content": "say hi"}]}
        assert client.post("/v1/chat/completions", json=body).json()["model"] == "hub/owner/model:tag"


def test_the_version_is_told(client: httpx.Client) -> None:
    assert client.get("/version").json() == {"version": subsecond.__version__}


def test_the_document_describes_every_route(server: LiveServer, client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    assert document["openapi"] == "3.1.0" and document["info"]["version"] == subsecond.__version__
    described = {(method.upper(), path) for path, methods in document["paths"].items() for method in methods}
    assert described == {(route.method, route.path.replace(":path}", "}")) for route in server.app.table.routes}
    operations = [each for methods in document["paths"].values() for each in methods.values()]
    assert len({each["operationId"] for each in operations}) == len(operations)
    assert all(each["summary"] and "200" in each["responses"] for each in operations)
    assert document["paths"]["/health/live"]["get"]["security"] == []
    assert "text/event-stream" in document["paths"]["/v1/chat/completions"]["post"]["responses"]["200"]["content"]


def test_every_reference_of_the_document_leads_somewhere(client: httpx.Client) -> None:
    document = client.get("/openapi.json").json()
    schemas = document["components"]["schemas"]
    found: list[str] = []

    def walk(value: Any) -> None:
        if isinstance(value, dict):
            if isinstance(value.get("$ref"), str):
                found.append(value["$ref"])
            for item in value.values():
                walk(item)
        elif isinstance(value, list):
            for item in value:
                walk(item)

    walk(document)
    assert len(found) > 50
    assert {reference.removeprefix("#/components/schemas/") for reference in found} <= set(schemas)
    body = document["paths"]["/v1/embeddings"]["post"]["requestBody"]["content"]["application/json"]["schema"]
    schema = schemas[body["$ref"].rpartition("/")[2]]
    assert schema["required"] == ["model", "input"] and schema["additionalProperties"] is False


def test_a_prompt_and_its_tokens_lead_to_each_other(client: httpx.Client, scripted: ScriptedModel) -> None:
    prompt = "hello <|start|>wörld"
    body = client.post("/tokenize", json={"model": "scripted", "prompt": prompt, "return_token_strs": True}).json()
    tokens = scripted.checkpoint.tokenizer.encode(prompt, allow_special=True)
    assert body["tokens"] == tokens and body["count"] == len(tokens) and body["max_model_len"] == 4096
    assert body["token_strs"][0] == "hello" and "<|start|>" in body["token_strs"]
    back = client.post("/detokenize", json={"model": "scripted", "tokens": tokens}).json()
    assert back == {"prompt": prompt}
    assert client.post("/tokenize", json={"model": "scripted", "prompt": prompt}).json()["token_strs"] is None


def test_messages_are_tokenized_as_the_chat_would(client: httpx.Client, scripted: ScriptedModel) -> None:
    tool = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
    chat: dict[str, Any] = {"model": "scripted", "messages": [{"role": "user", "content": "say hi"}]}
    for more in ({}, {"tools": [tool]}, {"chat_template_kwargs": {"enable_thinking": False}}):
        tokens = client.post("/tokenize", json={**chat, **more}).json()["tokens"]
        scripted.engine.requests.clear()
        assert client.post("/v1/chat/completions", json={**chat, **more}).status_code == 200
        assert [list(request.prompt_ids) for request in scripted.engine.requests] == [tokens]


def test_special_tokens_can_be_left_out(server: LiveServer, client: httpx.Client) -> None:
    def tokens(**more: Any) -> list[int]:
        found: list[int] = client.post("/tokenize", json={"model": "embedding", "prompt": "hi", **more}).json()[
            "tokens"
        ]
        return found

    client.post("/v1/embeddings", json={"model": "embedding", "input": "load it"})
    tokenizer = server.loader.embedders["embedding"].checkpoint.tokenizer
    assert tokens() == tokens(add_special_tokens=True) == tokenizer.encode_text("hi")
    assert tokens(add_special_tokens=False) == tokenizer.encode("hi")


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {"prompt": "hi"}, "model is missing; there are scripted, embedding"),
        ("/tokenize", {"model": "scripted"}, "give either prompt or messages"),
        ("/tokenize", {"model": "scripted", "prompt": "a", "messages": []}, "give either prompt or messages"),
        ("/tokenize", {"model": "scripted", "prompt": "a", "tools": []}, "tools belongs to messages"),
        ("/tokenize", {"model": "scripted", "prompt": "a", "add_generation_prompt": True}, "belongs to messages"),
        ("/tokenize", {"model": "scripted", "prompt": "a", "truncate": 1}, "'truncate' is not a field"),
        (
            "/tokenize",
            {"model": "scripted", "prompt": "a" * 140_000},
            "prompt has 140000 characters, far more than fit",
        ),
        (
            "/tokenize",
            {"model": "scripted", "messages": [{"role": "user", "content": "a"}], "add_special_tokens": True},
            "messages have theirs from the template",
        ),
        ("/detokenize", {"model": "scripted", "tokens": [0, -1]}, "tokens[1]=-1 is not allowed; give 0 to "),
        ("/detokenize", {"model": "scripted", "tokens": [10**40]}, "tokens[0]=1000"),
        ("/detokenize", {"model": "scripted", "tokens": [1.5]}, "tokens[0]: expected `int`, got `float`"),
        ("/detokenize", {"model": "scripted", "tokens": [1] * (2**20 + 1)}, "give at most 1048576"),
    ],
)
def test_what_cannot_be_tokenized_is_refused_by_name(
    client: httpx.Client, path: str, body: dict[str, Any], message: str
) -> None:
    response = client.post(path, json=body)
    assert response.status_code == 400
    assert message in response.json()["error"]["message"]


def test_the_one_model_need_not_be_named() -> None:
    with LiveServer(("only",)) as live, live.client() as client:
        assert client.post("/tokenize", json={"prompt": "hello"}).json()["count"] == 1
        assert client.post("/detokenize", json={"tokens": []}).json() == {"prompt": ""}


def test_a_unix_socket_serves_its_owner_and_is_gone_afterwards(tmp_path: Path) -> None:
    path = tmp_path / "server.sock"
    for _ in range(2):  # the second time over what a server that was killed left behind
        with LiveServer(uds=str(path)) as live:
            assert live.url == f"unix:{path}"
            assert path.stat().st_mode & 0o777 == 0o600
            transport = httpx.HTTPTransport(uds=str(path))
            with httpx.Client(transport=transport, base_url="http://any.name", timeout=60) as client:
                assert client.get("/v1/models").status_code == 200
                body = {"model": "scripted", "messages": [{"role": "user", "content": "say hi"}]}
                answer = json.loads(client.post("/v1/chat/completions", json=body).content)
                assert answer["choices"][0]["message"]["content"] == "hi"
            with pytest.raises(subsecond.InputError, match="another server listens on"):
                LiveServer(uds=str(path))
        assert not path.exists()
        leave_a_dead_socket(path)


def leave_a_dead_socket(path: Path) -> None:
    import socket

    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))


def test_a_port_in_use_is_told(server: LiveServer) -> None:
    port = server.server.socket.getsockname()[1]
    with pytest.raises(subsecond.InputError, match=rf"cannot listen on 127.0.0.1 port {port}: another program listens"):
        LiveServer(port=port)
    with pytest.raises(subsecond.InputError, match=r"cannot listen on 203.0.113.7|needs API keys"):
        LiveServer(host="203.0.113.7")
