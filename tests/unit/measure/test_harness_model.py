"""The model class for lm-evaluation-harness with stand-ins for its requests, over a real engine without weights."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from subsecond.backends.batch import Float32
from subsecond.core.errors import InputError
from subsecond.engine.local import LocalEngine
from subsecond.measure.evaluation import forward_windows
from subsecond.measure.harness_model import HarnessModel
from subsecond.measure.task_scores import encode_pair
from subsecond.models.tokenizer import Tokenizer
from tests import byte_vocabulary
from tests.unit.engine.fake_backend import FakeBackend

VOCAB_SIZE = len(byte_vocabulary.token_texts(byte_vocabulary.metadata()))
TOKENIZER = Tokenizer.from_gguf(byte_vocabulary.metadata())
TEXT = "hello the world, hello there and then"


class HarnessClass:
    """What the class of the harness does when it is made."""

    def __init__(self) -> None:
        self.rank = 0


class Subsecond(HarnessModel, HarnessClass):
    pass


@pytest.fixture
def engine() -> Iterator[LocalEngine]:
    made = LocalEngine(FakeBackend(vocab_size=VOCAB_SIZE), context_length=64)
    yield made
    made.close()


def model_of(engine: LocalEngine, template: object = None) -> Subsecond:
    config = SimpleNamespace(context_length=64)
    checkpoint = SimpleNamespace(tokenizer=TOKENIZER, config=config, chat_template=template, source_sha256="5a" * 32)
    loaded: Any = SimpleNamespace(checkpoint=checkpoint, engine=engine)
    return Subsecond(loaded)


def instances(*args: tuple[Any, ...]) -> list[Any]:
    return [SimpleNamespace(args=each) for each in args]


def logprobs_of(token_ids: list[int]) -> Float32:
    window = np.array([token_ids], np.int32)
    logits = next(forward_windows(FakeBackend(vocab_size=VOCAB_SIZE), window)).astype(np.float64)
    found: Float32 = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return found


def test_the_class_of_the_harness_is_set_up_too(engine: LocalEngine) -> None:
    assert model_of(engine).rank == 0


def test_log_likelihoods_are_those_of_a_plain_run_in_the_order_of_the_requests(engine: LocalEngine) -> None:
    pairs = [("hello ", "world"), ("", "the"), ("a b c", " hello"), ("hello ", "there")] * 12
    found = model_of(engine).loglikelihood(instances(*pairs))
    for (context, continuation), (given, is_greedy) in zip(pairs, found, strict=True):
        context_ids, ids = encode_pair(TOKENIZER, context, continuation)
        logprobs = logprobs_of([*context_ids, *ids])
        places = np.arange(len(context_ids) - 1, len(context_ids) + len(ids) - 1)
        assert given == pytest.approx(float(logprobs[places, ids].sum()), rel=1e-5)
        assert is_greedy == bool((logprobs[places].argmax(axis=1) == ids).all())


def test_what_greedy_decoding_gives_is_told(engine: LocalEngine) -> None:
    # the one-byte token that the model finds most likely after the context, if it stands for a letter
    for context in ("a", "b", "hello", "ab", "xy", "q"):
        best = int(logprobs_of(TOKENIZER.encode(context))[-1].argmax())
        text = TOKENIZER.token_bytes(best).decode("utf-8", "replace")
        if text.isascii() and TOKENIZER.encode(context + text) == [*TOKENIZER.encode(context), best]:
            assert model_of(engine).loglikelihood(instances((context, text)))[0][1] is True
            return
    raise AssertionError("no context has a most likely token that can be written")


def test_a_long_text_is_scored_with_every_token_once(engine: LocalEngine) -> None:
    text = TEXT * 8
    ids = TOKENIZER.encode(text)
    assert len(ids) > 2 * 63
    (found,) = model_of(engine).loglikelihood_rolling(instances((text,)))
    expected, most = 0.0, 63
    first = [TOKENIZER.bos_id or 0, *ids[:most]]
    expected += float(logprobs_of(first)[np.arange(most), ids[:most]].sum())
    for start in range(most, len(ids), most):
        end = min(start + most, len(ids))
        window = ids[end - most - 1 : end]
        places = np.arange(len(window) - 1 - (end - start), len(window) - 1)
        expected += float(logprobs_of(window)[places, window[len(window) - (end - start) :]].sum())
    assert found == pytest.approx(expected, rel=1e-5)
    assert model_of(engine).loglikelihood_rolling(instances(("",), ("a",)))[0] == 0


def test_a_context_that_is_too_long_loses_its_begin(engine: LocalEngine) -> None:
    context, continuation = TEXT * 6, " hello"
    ((given, _),) = model_of(engine).loglikelihood(instances((context, continuation)))
    context_ids, ids = encode_pair(TOKENIZER, context, continuation)
    kept = [*context_ids, *ids][-64:]
    places = np.arange(64 - len(ids) - 1, 63)
    assert given == pytest.approx(float(logprobs_of(kept)[places, ids].sum()), rel=1e-5)


def test_generation_ends_before_the_first_stop_text(engine: LocalEngine) -> None:
    harness = model_of(engine)
    free, *_ = harness.generate_until(instances(("hello", {"max_gen_toks": 12, "until": []})))
    assert len(free) >= 6
    stop = free[3:5]
    settings = {"until": ["never there", stop], "max_gen_toks": 12, "do_sample": False, "temperature": 0.7}
    stopped, again = harness.generate_until(instances(("hello", settings), ("hello", {**settings, "until": stop})))
    assert stopped == again == free[: free.index(stop)]
    assert settings["do_sample"] is False  # the harness uses its settings again


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"until": ["x"], "num_beams": 4}, "unknown setting num_beams; there are until, max_gen_toks"),
        ({"max_gen_toks": 64}, "max_gen_toks=64 leaves no room"),
    ],
)
def test_settings_that_cannot_be_kept_are_refused(engine: LocalEngine, settings: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model_of(engine).generate_until(instances(("hello", settings)))


def test_chat_templates_are_those_of_the_model(engine: LocalEngine) -> None:
    def render(messages: Any, *, add_generation_prompt: bool) -> str:
        return f"{messages[0]['content']}{'>' if add_generation_prompt else ''}"

    harness = model_of(engine, SimpleNamespace(render=render, source="{{ x }}"))
    assert harness.apply_chat_template([{"role": "user", "content": "hi"}]) == "hi>"
    assert harness.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=False) == "hi"
    assert (harness.chat_template(True), harness.chat_template(False)) == ("{{ x }}", "")
    assert harness.tokenizer_name == "5a" * 32
    with pytest.raises(InputError, match="no chat template"):
        model_of(engine).apply_chat_template([])
