"""What completions answer: texts and token ids, echoes, log-probabilities of prompts, and what evaluations read."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from subsecond.engine.request import PromptLogprobs
from subsecond.serve.text_logprobs import TextLogprobs
from tests.contract.serve.scripted_model import ScriptedModel

PATH = "/v1/completions"


def body(prompt: Any = "say one two three", **fields: Any) -> dict[str, Any]:
    return {"model": "scripted", "prompt": prompt, "temperature": 0, **fields}


@pytest.fixture
def ask(client: httpx.Client) -> Callable[..., Any]:
    """Post a completion and return the reply, which has to be one."""

    def send(*args: Any, **fields: Any) -> Any:
        response = client.post(PATH, json=body(*args, **fields))
        assert response.status_code == 200, response.text
        return response.json()

    return send


@pytest.fixture
def ids(scripted: ScriptedModel) -> Callable[[str], list[int]]:
    return scripted.checkpoint.tokenizer.encode


def test_a_whole_answer(ask: Callable[..., Any]) -> None:
    reply = ask()
    assert reply["object"] == "text_completion"
    assert reply["id"].startswith("cmpl-")
    assert reply["choices"] == [{"index": 0, "text": "one two three", "logprobs": None, "finish_reason": "stop"}]
    assert reply["usage"]["total_tokens"] == reply["usage"]["prompt_tokens"] + reply["usage"]["completion_tokens"]
    assert reply["subsecond"]["num_prompt_tokens"] == reply["usage"]["prompt_tokens"]


def test_the_default_is_sixteen_random_tokens(client: httpx.Client, scripted: ScriptedModel) -> None:
    reply = client.post(PATH, json={"model": "scripted", "prompt": "random"}).json()
    assert reply["usage"]["completion_tokens"] == 16
    assert reply["choices"][0]["finish_reason"] == "length"
    assert scripted.engine.requests[-1].params.temperature == 1.0


def test_every_form_of_prompt(ask: Callable[..., Any], ids: Callable[[str], list[int]]) -> None:
    one, two = "say alpha", "say beta"
    expected = ["alpha", "beta"]
    for prompts in ([one, two], [ids(one), ids(two)], [one, ids(two)]):
        choices = ask(prompts)["choices"]
        assert [choice["text"] for choice in choices] == expected
        assert [choice["index"] for choice in choices] == [0, 1]
    assert ask(ids(one))["choices"][0]["text"] == ask([one])["choices"][0]["text"] == "alpha"


def test_samples_of_several_prompts_are_numbered_by_prompt(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    reply = ask(["random a", "random b"], n=3, temperature=1, max_tokens=6)
    assert [choice["index"] for choice in reply["choices"]] == list(range(6))
    assert len({choice["text"] for choice in reply["choices"]}) == 6
    assert reply["usage"]["completion_tokens"] == 36
    assert {request.params.seed for request in scripted.engine.requests[-6:]} == {reply["subsecond"]["seed"]}


def test_control_tokens_in_a_raw_prompt_are_meant(ask: Callable[..., Any], scripted: ScriptedModel) -> None:
    ask("<|start|>user")
    assert scripted.engine.requests[-1].prompt_ids[0] == scripted.checkpoint.tokenizer.control_tokens["<|start|>"]


def test_an_echo_stands_before_the_answer(ask: Callable[..., Any], ids: Callable[[str], list[int]]) -> None:
    assert ask(echo=True)["choices"][0]["text"] == "say one two threeone two three"
    assert ask(ids("say one"), echo=True)["choices"][0]["text"] == "say oneone"
    reply = ask(["say a", "say b"], echo=True, n=2)
    assert [choice["text"] for choice in reply["choices"]] == ["say aa", "say aa", "say bb", "say bb"]


def test_only_an_echo(ask: Callable[..., Any]) -> None:
    reply = ask(echo=True, max_tokens=0, logprobs=2)
    choice = reply["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == ("say one two three", "length")
    assert "".join(choice["logprobs"]["tokens"]) == choice["text"]
    assert reply["usage"]["completion_tokens"] == 0


def test_logprobs_of_prompt_and_answer_are_lists_side_by_side(ask: Callable[..., Any]) -> None:
    choice = ask(echo=True, logprobs=3)["choices"][0]
    logprobs = choice["logprobs"]
    lengths = {name: len(values) for name, values in logprobs.items()}
    assert len(set(lengths.values())) == 1, lengths
    assert logprobs["token_logprobs"][0] is None
    assert logprobs["top_logprobs"][0] is None
    assert "".join(logprobs["tokens"][:-1]) == choice["text"]  # the last one ends the answer
    for token, offset in zip(logprobs["tokens"][:-1], logprobs["text_offset"], strict=False):
        assert choice["text"][offset:].startswith(token)
    for value, top in zip(logprobs["token_logprobs"][1:], logprobs["top_logprobs"][1:], strict=True):
        assert value in top.values()
        assert 3 <= len(top) <= 4
        assert list(top.values())[:3] == sorted(top.values(), reverse=True)[:3]


def test_logprobs_of_a_prompt_are_those_of_an_answer(ask: Callable[..., Any], ids: Callable[[str], list[int]]) -> None:
    prompt = ids("random letters")
    first = ask(prompt, max_tokens=6, logprobs=1, ignore_eos=True)["choices"][0]
    again = ask(prompt + ids(first["text"]), echo=True, max_tokens=0, logprobs=1)["choices"][0]["logprobs"]
    assert again["tokens"][len(prompt) :] == first["logprobs"]["tokens"]
    assert again["token_logprobs"][len(prompt) :] == pytest.approx(first["logprobs"]["token_logprobs"])


def test_zero_logprobs_are_those_of_the_tokens_alone(ask: Callable[..., Any]) -> None:
    logprobs = ask(logprobs=0, echo=True)["choices"][0]["logprobs"]
    assert all(len(top) == 1 for top in logprobs["top_logprobs"][1:])


def test_tokens_that_a_deadline_left_unread_have_no_logprobs(scripted: ScriptedModel) -> None:
    tokenizer = scripted.checkpoint.tokenizer
    prompt_ids = tokenizer.encode("say one")
    read = [PromptLogprobs(-1.5, ((prompt_ids[1], -1.5),))]
    lists = TextLogprobs(tokenizer).prompt("say one", prompt_ids, read)
    assert "".join(lists["tokens"]) == "say one"
    assert lists["token_logprobs"] == [None, -1.5, *[None] * (len(prompt_ids) - 2)]


def test_tokens_that_are_no_characters_have_names_of_their_own(ask: Callable[..., Any]) -> None:
    logprobs = ask("say 日!", logprobs=1)["choices"][0]["logprobs"]
    assert logprobs["tokens"][:4] == ["bytes:\\xe6", "bytes:\\x97", "bytes:\\xa5", "!"]
    assert logprobs["text_offset"][:4] == [0, 0, 0, 1]


def test_what_an_evaluation_reads(ask: Callable[..., Any], ids: Callable[[str], list[int]]) -> None:
    """Sums of log-probabilities of continuations and whether they are the likeliest, as lm-eval takes them."""
    contexts, continuations = ["the cat ", "a dog and "], ["sat", "random"]
    prompts = [ids(context + text) for context, text in zip(contexts, continuations, strict=True)]
    reply = ask(prompts, max_tokens=1, logprobs=1, seed=1234, echo=True)
    for context, choice, prompt in zip(contexts, reply["choices"], prompts, strict=True):
        start = len(ids(context))
        values, tops = choice["logprobs"]["token_logprobs"], choice["logprobs"]["top_logprobs"]
        assert len(values) == len(prompt) + 1
        alone = ask(prompt, max_tokens=0, logprobs=1, echo=True)["choices"][0]["logprobs"]["token_logprobs"]
        assert sum(values[start:-1]) == pytest.approx(sum(alone[start:]))
        assert all(math.isfinite(value) for value in values[1:])
        is_greedy = all(value == max(top.values()) for value, top in zip(values[start:-1], tops[start:-1], strict=True))
        assert not is_greedy


def test_a_greedy_continuation_is_known_as_such(ask: Callable[..., Any], ids: Callable[[str], list[int]]) -> None:
    prompt = ids("random walk")
    text = ask(prompt, max_tokens=5, ignore_eos=True)["choices"][0]["text"]
    logprobs = ask(prompt + ids(text), max_tokens=1, logprobs=1, echo=True)["choices"][0]["logprobs"]
    start = len(prompt)
    for value, top in zip(logprobs["token_logprobs"][start:-1], logprobs["top_logprobs"][start:-1], strict=True):
        assert value == max(top.values())


def test_a_stream_is_the_whole_answer_in_pieces(client: httpx.Client, ask: Callable[..., Any]) -> None:
    fields = {"prompt": ["say alpha beta", "random"], "n": 2, "echo": True, "logprobs": 1, "seed": 4, "temperature": 1}
    whole = ask(**fields)
    options = {"stream": True, "stream_options": {"include_usage": True}}
    response = client.post(PATH, json=body(**fields, **options))
    assert response.status_code == 200
    *events, last = [event for event in response.text.split("\n\n") if event]
    assert last == "data: [DONE]"
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert {chunk["object"] for chunk in chunks} == {"text_completion"}
    for choice in whole["choices"]:
        pieces = [each for chunk in chunks for each in chunk["choices"] if each["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        assert [piece["finish_reason"] for piece in pieces][-1] == choice["finish_reason"]
        for name, values in choice["logprobs"].items():
            assert [value for piece in pieces for value in piece["logprobs"][name]] == values
    assert chunks[-1]["choices"] == []
    assert chunks[-1]["usage"]["completion_tokens"] == whole["usage"]["completion_tokens"]
    assert all(chunk["usage"] is None for chunk in chunks[:-1])


@pytest.mark.parametrize(
    ("fields", "place"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": ["a", ""]}, "prompt[1]"),
        ({"prompt": [[1], []]}, "prompt[1]"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [[2**31]]}, "prompt[0]"),
        ({"prompt": ["a"] * 2049}, "prompt"),
        ({"prompt": ["a"] * 40, "n": 64, "max_tokens": 1}, "prompt"),
        ({"prompt": ["a"] * 1000, "max_tokens": 4000}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"n": 65}, "n"),
        ({"n": 0}, "n"),
        ({"best_of": 3, "n": 2}, "best_of"),
        ({"suffix": "end"}, "suffix"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": 20, "echo": True, "prompt": ["a" * 4000] * 60}, "logprobs"),
        ({"logprobs": 20, "echo": True, "n": 60, "prompt": "a" * 4000}, "logprobs"),
        ({"logprobs": -1, "echo": True}, "logprobs"),
        ({"max_tokens": -1}, "max_tokens"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"messages": []}, "messages"),
    ],
)
def test_what_is_not_allowed_is_named(client: httpx.Client, fields: dict[str, Any], place: str) -> None:
    response = client.post(PATH, json=body(**fields))
    assert response.status_code == 400, response.text
    assert response.json()["error"]["param"] == place


def test_best_of_as_many_as_are_wanted_is_no_choice(ask: Callable[..., Any]) -> None:
    assert len(ask(best_of=2, n=2)["choices"]) == 2


@pytest.mark.parametrize("is_streamed", [False, True])
def test_one_prompt_that_does_not_fit_refuses_all(
    client: httpx.Client, scripted: ScriptedModel, is_streamed: bool
) -> None:
    response = client.post(PATH, json=body(["say a", "word " * 5000], stream=is_streamed))
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"
    response = client.post(PATH, json=body([[5], [99999]], stream=is_streamed))
    assert "vocabulary" in response.json()["error"]["message"]
    while (stats := scripted.engine.stats()).num_running or stats.num_waiting:
        time.sleep(0.01)
    assert stats.num_free_blocks == stats.num_blocks
