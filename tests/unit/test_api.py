"""The Python API over a fake model: prompts, settings, both ways of reading, closing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from subsecond import api
from subsecond.core.errors import FormatError, InputError
from subsecond.engine.text import Completion
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.prompt import Message
from tests.unit.engine.fake_backend import FakeBackend

BOS_ID, END_ID = 128, 129


class AsciiTokenizer:
    """One token a byte, and two control tokens."""

    control_tokens: Mapping[str, int] = {"<s>": BOS_ID, "</s>": END_ID}
    eos_ids = (END_ID,)
    bos_id: int | None = BOS_ID
    add_bos = True

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        if allow_special:
            for literal, token_id in self.control_tokens.items():
                text = text.replace(literal, chr(token_id))
        return [ord(character) for character in text]

    def decode(self, token_ids: Iterable[int]) -> str:
        return "".join(chr(token_id) for token_id in token_ids if token_id < BOS_ID)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < BOS_ID else b""

    def is_special(self, token_id: int) -> bool:
        return token_id >= BOS_ID


def render(messages: Sequence[Message]) -> str:
    return "".join(f"<s>{message['role']}:{message['content']}</s>" for message in messages)


def make_model(*, has_template: bool = True) -> api.Model:
    checkpoint = SimpleNamespace(
        tokenizer=AsciiTokenizer(),
        chat_template=SimpleNamespace(render=render) if has_template else None,
        config=SimpleNamespace(context_length=200),
    )
    return api.Model(cast(Checkpoint, checkpoint), FakeBackend(vocab_size=130), load_ms=12.0)


@pytest.fixture
def model() -> Iterator[api.Model]:
    with make_model() as model:
        yield model


def test_a_text_becomes_a_message_of_the_user(model: api.Model) -> None:
    assert model.encode_prompt("hi") == [BOS_ID, *b"user:hi", END_ID]
    assert model.encode_prompt([{"role": "user", "content": "hi"}]) == model.encode_prompt("hi")


def test_a_message_cannot_act_as_a_control_token(model: api.Model) -> None:
    assert model.encode_prompt("hi</s>") == [BOS_ID, *b"user:hi</s>", END_ID]


def test_raw_text_goes_to_the_model_as_it_is(model: api.Model) -> None:
    assert model.encode_prompt("hi</s>", raw=True) == [BOS_ID, *b"hi", END_ID]
    assert model.encode_prompt("<s>hi", raw=True) == [BOS_ID, *b"hi"]


def test_a_model_without_template_continues_text() -> None:
    with make_model(has_template=False) as model:
        assert model.encode_prompt("hi</s>") == [BOS_ID, *b"hi</s>"]
        with pytest.raises(InputError, match="no chat template"):
            model.encode_prompt([{"role": "user", "content": "hi"}])


def test_raw_messages_are_refused(model: api.Model) -> None:
    with pytest.raises(InputError, match="raw=True takes a text"):
        model.generate([{"role": "user", "content": "hi"}], raw=True)


def test_all_ways_of_reading_agree(model: api.Model) -> None:
    settings: dict[str, Any] = {"max_tokens": 12, "temperature": 0.8, "seed": 3}
    completion = model.generate("hi", **settings)
    assert completion.token_ids
    assert completion.text == model.decode(completion.token_ids)
    assert completion.usage.prompt_tokens == len(model.encode_prompt("hi"))
    assert (completion.timing.load_ms, completion.seed, completion.variant) == (12.0, 3, "fake")

    async def read() -> tuple[list[str], Completion]:
        chunks = [chunk.text async for chunk in model.astream("hi", **settings)]
        return chunks, await model.agenerate("hi", **settings)

    chunks, answer = asyncio.run(read())
    assert "".join(chunks) == "".join(chunk.text for chunk in model.stream("hi", **settings)) == completion.text
    assert answer.token_ids == completion.token_ids


def test_the_next_turn_finds_the_conversation_in_the_cache(model: api.Model) -> None:
    first = model.generate("What?", max_tokens=8, ignore_eos=True, logit_bias={END_ID: -100, BOS_ID: -100})
    turns = [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "x"}]
    again = model.generate(turns, max_tokens=1)
    assert first.usage.cached_tokens == 0
    assert again.usage.cached_tokens == 12


def test_stop_texts_end_the_answer(model: api.Model) -> None:
    free = model.generate("hi", max_tokens=30, logit_bias={END_ID: -100, BOS_ID: -100})
    stop = free.text[10:13]
    stopped = model.generate("hi", max_tokens=30, stop=stop, logit_bias={END_ID: -100, BOS_ID: -100})
    assert stopped.finish_reason == "stop"
    assert stopped.text == free.text[: free.text.index(stop)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"temprature": 1}, "unknown setting temprature; there are temperature, top_k"),
        ({"temperature": -1}, "temperature=-1"),
        ({"max_tokens": 1000}, "context length of 200"),
    ],
)
def test_wrong_settings_are_named(model: api.Model, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.generate("hi", **settings)


@pytest.mark.parametrize("prompt", [None, b"hi", 3, {"role": "user", "content": "hi"}, iter("hi")])
@pytest.mark.parametrize("raw", [False, True])
def test_what_is_no_prompt_is_refused(model: api.Model, prompt: Any, raw: bool) -> None:
    with pytest.raises(InputError, match="give a text or a list of messages"):
        model.generate(prompt, raw=raw)


def test_a_huge_prompt_is_refused_before_it_is_encoded(model: api.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsciiTokenizer, "encode", None)
    text = "a" * (32 * 200 + 1)
    for prompt in (text, [{"role": "user", "content": text}]):
        with pytest.raises(InputError, match="6401 characters, far more than fit into the context length of 200"):
            model.generate(prompt)


def test_an_abandoned_stream_ends(model: api.Model) -> None:
    for _ in range(20):
        model.stream("hi", ignore_eos=True)
    model.generate("hi", max_tokens=1)  # once it is answered, the orders before it are taken
    assert model.engine.stats().num_running == 0


def test_the_time_to_the_first_token_holds_the_encoding(model: api.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    encoded_s: list[float] = []
    encode = AsciiTokenizer.encode

    def slow(self: AsciiTokenizer, text: str, *, allow_special: bool = False) -> list[int]:
        encoded_s.append(time.perf_counter())
        return encode(self, text, allow_special=allow_special)

    monkeypatch.setattr(AsciiTokenizer, "encode", slow)
    assert model.stream("hi").tokens.start_s <= encoded_s[0]


def test_what_prompts_need_is_loaded_with_the_model(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    backend, checkpoint = FakeBackend(vocab_size=130), make_model().checkpoint
    rendered: list[object] = []

    def render_and_note(messages: Sequence[Message]) -> str:
        rendered.append(messages)
        return str(render(messages))

    monkeypatch.setattr(checkpoint.chat_template, "render", render_and_note)
    monkeypatch.setattr(api, "resolve", lambda _: tmp_path)
    monkeypatch.setattr(api, "open_checkpoint", lambda _: checkpoint)
    monkeypatch.setattr(api, "_load_torch", lambda *_: backend)
    with api.load("m", backend="torch"):
        assert len(rendered) == 1

    class Damaged:
        chat_template = None

        @property
        def tokenizer(self) -> None:
            raise FormatError("no tokens")

    monkeypatch.setattr(api, "open_checkpoint", lambda _: Damaged())
    num_closed = backend.num_closed
    with pytest.raises(FormatError, match="no tokens"):
        api.load("m", backend="torch")
    assert backend.num_closed == num_closed + 1


def test_closing_twice_is_allowed(model: api.Model) -> None:
    model.close()
    model.close()
    assert cast(FakeBackend, model.backend).num_closed == 1


def test_load_names_what_is_missing(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.gguf"):
        api.load(tmp_path / "none.gguf")
    with pytest.raises(InputError, match="context_tokens=1"):
        api.load(tmp_path, context_tokens=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"model": None}, "model is NoneType"),
        ({"model": b"m"}, "model is bytes"),
        ({"model": "m", "num_threads": "2"}, "num_threads is str"),
        ({"model": "m", "num_threads": True}, "num_threads is bool"),
        ({"model": "m", "context_tokens": 9.5}, "context_tokens is float"),
    ],
)
def test_load_refuses_wrong_types(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        api.load(**arguments)
