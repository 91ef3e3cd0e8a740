"""The Python API over a fake model: prompts, settings, both ways of reading, closing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal, cast

import pytest

from subsecond import api, embedder
from subsecond.core.errors import FormatError, InputError, UnsupportedError
from subsecond.engine.text import Completion
from subsecond.models.chat_template import ChatTemplate
from subsecond.models.checkpoint import Checkpoint
from subsecond.models.prompt import Message
from tests.fuzz.gguf_inputs import valid_model
from tests.unit.engine.fake_backend import FakeBackend

BOS_ID, END_ID = 128, 129


class AsciiTokenizer:
    """One token a byte, and two control tokens."""

    control_tokens: Mapping[str, int] = {"<s>": BOS_ID, "</s>": END_ID}
    eos_ids = (END_ID,)
    bos_id: int | None = BOS_ID
    add_bos = True

    def encode(self, text: str, *, allow_special: bool = False, is_continuation: bool = False) -> list[int]:
        assert not (allow_special and is_continuation)
        if allow_special:
            for literal, token_id in self.control_tokens.items():
                text = text.replace(literal, chr(token_id))
        return [ord(character) for character in text]

    def decode(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        names = {token_id: text for text, token_id in self.control_tokens.items() if not skip_special}
        return "".join(chr(each) if each < BOS_ID else names.get(each, "") for each in token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id]) if token_id < BOS_ID else b""

    def is_special(self, token_id: int) -> bool:
        return token_id >= BOS_ID


def render(messages: Sequence[Message]) -> str:
    return "".join(f"<s>{message['role']}:{message['content']}</s>" for message in messages)


def make_model(*, has_template: bool = True, template: ChatTemplate | None = None) -> api.Model:
    plain = SimpleNamespace(render=render, source="") if has_template else None
    checkpoint = SimpleNamespace(
        tokenizer=AsciiTokenizer(),
        chat_template=template or plain,
        config=SimpleNamespace(context_length=200, pooling=None),
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


THINKING = (
    "{% for m in messages %}<s>{{ m.role }}:{% if m.reasoning_content %}({{ m.reasoning_content }}){% endif %}"
    "{{ m.content.split('</think>')[-1] }}</s>{% endfor %}{{ note }}"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% else %}<think>\n{% endif %}"
)


@pytest.fixture
def thinker() -> Iterator[api.Model]:
    with make_model(template=ChatTemplate(THINKING, "<s>", "</s>")) as model:
        yield model


def answer_with(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """Let every token of an answer mean the next character of `text`, and all after it nothing."""

    class Spelling:
        def __init__(self, _: object) -> None:
            self._characters = iter(text)

        def push(self, _: int) -> str:
            return next(self._characters, "")

        def finish(self) -> str:
            return ""

    monkeypatch.setattr(api, "StreamingDetokenizer", Spelling)


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({}, ("hm. so", "yes. no")),
        ({"stop": "."}, ("hm. so", "yes")),
        ({"enable_thinking": False}, ("", "hm. so</think>\nyes. no")),
        ({"template_kwargs": {"enable_thinking": False}}, ("", "hm. so</think>\nyes. no")),
        ({"enable_thinking": True, "template_kwargs": {"note": "x"}}, ("hm. so", "yes. no")),
    ],
)
def test_reasoning_is_told_apart(
    thinker: api.Model, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], parts: tuple[str, str]
) -> None:
    answer_with(monkeypatch, "hm. so</think>\nyes. no")
    settings = {"max_tokens": 30, "ignore_eos": True, **options}
    completion = thinker.generate("hi", **settings)
    assert (completion.reasoning, completion.text) == parts
    chunks = list(thinker.stream("hi", **settings))
    assert ("".join(chunk.reasoning for chunk in chunks), "".join(chunk.text for chunk in chunks)) == parts


def test_max_tokens_counts_reasoning(thinker: api.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "hm. so</think>\nyes")
    completion = thinker.generate("hi", max_tokens=4, ignore_eos=True)
    assert (completion.reasoning, completion.text, completion.finish_reason) == ("hm.", "", "length")
    assert completion.usage.completion_tokens == 4


def test_a_raw_answer_comes_as_it_is(thinker: api.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    answer_with(monkeypatch, "<think>a</think>b")
    completion = thinker.generate("hi<think>\n", raw=True, max_tokens=20, ignore_eos=True)
    assert (completion.reasoning, completion.text) == ("", "<think>a</think>b")


def test_variables_of_the_template_are_no_control_tokens(thinker: api.Model) -> None:
    token_ids = thinker.encode_prompt("hi", template_kwargs={"note": "</s>"}, enable_thinking=True)
    assert token_ids == [BOS_ID, *b"user:hi", END_ID, *b"</s><think>\n"]


@pytest.mark.parametrize("field", ["content", "reasoning_content"])
def test_reasoning_in_the_history_goes_where_templates_look_for_it(thinker: api.Model, field: str) -> None:
    said = {"content": "<think>\nhm</s>\n</think>\n\nyes"}
    if field == "reasoning_content":
        said = {"content": "yes", "reasoning_content": "hm</s>"}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", **said}]
    history = [BOS_ID, *b"user:a", END_ID, BOS_ID, *b"assistant:(hm</s>)yes", END_ID]
    assert thinker.encode_prompt(messages) == [*history, *b"<think>\n"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"enable_thinking": "yes"}, "enable_thinking is str"),
        ({"template_kwargs": {"effort": 1}}, "does not use 'effort'; it uses enable_thinking, note"),
        ({"template_kwargs": [1]}, "template_kwargs is list"),
        ({"raw": True, "enable_thinking": True}, "raw=True goes without the chat template"),
        ({"raw": True, "template_kwargs": {"note": 1}}, "raw=True goes without the chat template"),
    ],
)
def test_wrong_variables_are_named(thinker: api.Model, options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        thinker.generate("hi", **options)


def test_a_model_without_template_has_no_thinking_to_switch() -> None:
    with make_model(has_template=False) as model, pytest.raises(InputError, match="no chat template"):
        model.generate("hi", enable_thinking=False)


def test_a_template_without_switch_says_so() -> None:
    message = "the chat template of this model has no switch for thinking"
    with make_model(template=ChatTemplate("{{ messages }}", "", "")) as model, pytest.raises(InputError, match=message):
        model.generate("hi", enable_thinking=False)


def test_a_model_whose_template_cannot_be_used_still_loads(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    checkpoint = make_model(template=ChatTemplate("{% include 'x' %}", "", "")).checkpoint
    monkeypatch.setattr(api, "resolve", lambda _: tmp_path)
    monkeypatch.setattr(api, "open_checkpoint", lambda _: checkpoint)
    monkeypatch.setattr(api, "_load_torch", lambda *_: FakeBackend(vocab_size=130))
    with api.load("m", backend="torch") as model:
        assert model.generate("hi", raw=True, max_tokens=1).token_ids
        with pytest.raises(UnsupportedError, match="Include"):
            model.generate("hi")


def test_a_huge_prompt_is_refused_before_it_is_encoded(model: api.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AsciiTokenizer, "encode", None)
    text = "a" * (32 * 200 + 1)
    parts = [{"type": "text", "text": text}]
    reasoned = {"role": "assistant", "content": "", "reasoning_content": text}
    for prompt in (text, [{"role": "user", "content": text}], [{"role": "user", "content": parts}], [reasoned]):
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
        config = SimpleNamespace(pooling=None)

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
        ({"kv": "f32"}, "kv='f32' is not allowed; give one of f16, int8"),
        ({"backend": "torch", "kv": "int8"}, "kv is a setting of the native backend"),
        ({"backend": "torch", "weights": "int8"}, "weights is a setting of the native backend"),
    ],
)
def test_load_refuses_settings_of_the_native_backend(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    (tmp_path / "m.gguf").write_bytes(valid_model(0))
    with pytest.raises(InputError, match=message):
        api.load(tmp_path / "m.gguf", **arguments)


@pytest.mark.parametrize("kv", [None, "f16", "int8"])
def test_load_keeps_keys_and_values_as_asked(tmp_path: Path, kv: Literal["f16", "int8"] | None) -> None:
    (tmp_path / "m.gguf").write_bytes(valid_model(0))
    with api.load(tmp_path / "m.gguf", kv=kv) as model:
        kept = model.backend.variant.rpartition("/kv-")[2]
    assert kept in ("f16", "bf16") if kv is None else kept == kv


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"model": 3}, "model is int"), ({"model": "m", "num_threads": "x"}, "num_threads is str")],
)
def test_load_embedder_refuses_wrong_types(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        embedder.load_embedder(**arguments)


@pytest.mark.parametrize("texts", [None, 3, "a", b"a", ["a", 3], iter(["a"]), {"a"}])
def test_only_lists_of_texts_are_embedded(texts: Any) -> None:
    loaded = embedder.Embedder(make_model().checkpoint, FakeBackend(vocab_size=130))
    with pytest.raises(InputError, match="give a list of texts"):
        loaded.embed(texts)


def test_a_closed_embedder_says_so() -> None:
    config = SimpleNamespace(pooling="mean", context_length=9, vocab_size=130)
    checkpoint = SimpleNamespace(config=config, tokenizer=SimpleNamespace(encode_text=lambda _: [1]))
    backend = FakeBackend(vocab_size=130)
    with embedder.Embedder(cast(Checkpoint, checkpoint), backend) as loaded:
        loaded.close()
    assert backend.num_closed == 1
    with pytest.raises(InputError, match="is closed"):
        loaded.embed(["a"])


def test_an_embedding_model_gives_no_answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    config = SimpleNamespace(pooling="mean", name="bert")
    monkeypatch.setattr(api, "resolve", lambda _: tmp_path)
    monkeypatch.setattr(api, "open_checkpoint", lambda _: SimpleNamespace(config=config))
    with pytest.raises(
        InputError, match=r"serves it at /v1/embeddings; in Python: subsecond\.load_embedder\('m'\)\.embed"
    ):
        api.load("m")
