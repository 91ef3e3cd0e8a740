"""Whether the server says truly that it lives and that it can answer."""

from __future__ import annotations

import httpx
import pytest

from tests.contract.serve.live_server import LiveServer, ScriptedLoader


def test_ready_follows_the_first_model(client: httpx.Client) -> None:
    assert client.get("/health/live").json() == {"status": "live", "reason": None}
    assert client.get("/health/ready").json() == {"status": "ready", "reason": None}


def test_not_ready_while_the_first_model_is_loaded() -> None:
    loader = ScriptedLoader()
    loader.hold.clear()
    with LiveServer(loader=loader, is_ready=False) as live, live.client() as client:
        while True:
            try:
                response = client.get("/health/ready")
                break
            except httpx.ConnectError:
                continue
        assert response.status_code == 503
        assert response.json() == {"status": "not ready", "reason": "the first model is being loaded"}
        assert client.get("/health/live").status_code == 200
        loader.hold.set()
        live.wait_ready()
        assert client.get("/health/ready").status_code == 200


def test_an_engine_that_stands_still_is_not_ready() -> None:
    body = {"model": "scripted", "messages": [{"role": "user", "content": "say hi"}], "stream": True}
    with LiveServer(stall_timeout_s=0.1) as live, live.client() as client:
        live.model.backend.hold_after = 1
        with client.stream("POST", "/v1/chat/completions", json=body):
            while (ready := client.get("/health/ready")).status_code == 200:
                pass
            assert ready.json()["reason"] == "the engine of scripted computes one step for more than 0.1 s"
            assert client.get("/health/live").status_code == 200
            live.model.backend.hold.set()
        while client.get("/health/ready").status_code != 200:
            pass


def test_an_engine_that_stopped_is_told_and_loaded_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise ZeroDivisionError("a bug")

    body = {"model": "scripted", "messages": [{"role": "user", "content": "say hi"}]}
    with LiveServer() as live, live.client() as client:
        broken = live.model
        monkeypatch.setattr(broken.engine._loop, "step", fail)
        assert client.post("/v1/chat/completions", json=body).status_code == 500
        ready = client.get("/health/ready")
        assert ready.status_code == 503
        assert ready.json()["reason"] == "the engine of scripted stopped working and is loaded anew"
        while client.get("/health/ready").status_code != 200:
            pass
        assert broken.is_closed and live.model is not broken
        assert live.loader.loads == ["scripted", "scripted"]
        assert client.post("/v1/chat/completions", json=body).json()["choices"][0]["message"]["content"] == "hi"
