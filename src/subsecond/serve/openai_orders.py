"""From the bodies of the chat and completions API to orders: every field has an effect here or is refused by name."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, cast

import msgspec

from subsecond.engine.grammar.output_format import OutputFormat
from subsecond.engine.local import NUM_SEED_BITS
from subsecond.engine.request import SamplingParams
from subsecond.models.prompt import Message
from subsecond.models.tool_calls import Tool, ToolChoice
from subsecond.serve import openai_types as wire
from subsecond.serve.fields import (
    checked_deadline_ms,
    checked_priority,
    refuse,
    refuse_given,
    sampling_params,
    stop_texts,
)
from subsecond.serve.order import Order
from subsecond.serve.thinking import ThinkingWish

DEFAULT_TEMPERATURE = 1.0
DEFAULT_COMPLETION_TOKENS = 16
MAX_LOGPROBS = 20
MAX_LOGIT_BIASES = 1024
MAX_STOP_IDS = 256
MAX_TOOLS = 128
MAX_CHOICES = 1024
MAX_LOGPROB_ENTRIES = 2**22

_TOKEN_ID = re.compile(r"[0-9]{1,10}")
_REGEX_SYNTAX = re.compile(r"[\\.+*?()|\[\]{}^$#&\-~]")


def chat_order(body: wire.ChatBody) -> Order:
    """Return the order that a chat body comes to, its wish for reasoning aside."""
    _refuse_chat_fields(body)
    tools, choice = _tools(body)
    return Order(
        model=body.model,
        params=_chat_params(body),
        messages=tuple(_message(message, f"messages[{place}]") for place, message in enumerate(body.messages)),
        num_samples=_num_samples(body),
        has_logprobs=bool(body.logprobs),
        tools=tools,
        tool_choice=choice,
        is_parallel=body.parallel_tool_calls is not False,
        output=_chat_output(body),
        is_continuation=_is_continuation(body),
        template_kwargs=body.chat_template_kwargs or {},
        priority=checked_priority(body.priority),
        deadline_ms=checked_deadline_ms(body.deadline_ms),
    )


def thinking_wish(body: wire.ChatBody) -> ThinkingWish | None:
    """Return what reasoning_effort says.

    Models that only know whether to reason do so at any effort but none; those that never reason keep within any.
    """
    effort = body.reasoning_effort
    if effort is None:
        return None
    if effort == "none":
        return ThinkingWish("off", "reasoning_effort")
    return ThinkingWish("able", "reasoning_effort", effort)


def completion_orders(body: wire.CompletionBody) -> tuple[Order, ...]:
    """Return one order for each prompt of a completion body."""
    if body.suffix:
        refuse("suffix", "text before which the answer ends is not supported; leave it out")
    num_samples = _num_samples(body)
    if body.best_of is not None and body.best_of != num_samples:
        refuse("best_of", f"{_short(body.best_of)} differs from n={num_samples}; choosing among more is not supported")
    params = _completion_params(body)
    prompts = _prompts(body.prompt)
    if len(prompts) > 1 and params.seed is None:
        params = replace(params, seed=secrets.randbits(NUM_SEED_BITS))  # one for all, so that it can be told
    output = _structured_output(body.structured_outputs)
    priority, deadline_ms = checked_priority(body.priority), checked_deadline_ms(body.deadline_ms)
    return tuple(
        Order(
            model=body.model,
            params=params,
            prompt=prompt,
            num_samples=num_samples,
            has_logprobs=body.logprobs is not None,
            output=output,
            priority=priority,
            deadline_ms=deadline_ms,
        )
        for prompt in prompts
    )


def includes_usage(body: wire.GenerationBody) -> bool:
    """Whether a stream shall end with its usage; stream_options without a stream are refused."""
    options = body.stream_options
    if options is None:
        return False
    if not body.stream:
        refuse("stream_options", "only a stream has options; give stream: true or leave them out")
    return bool(options.include_usage)


def check_logprob_entries(field: str, num_tokens: int, num_top: int) -> None:
    """Refuse what would fill the memory: so many tokens with the log-probabilities of so many at each place."""
    num_entries = num_tokens * (num_top + 1)
    if num_entries > MAX_LOGPROB_ENTRIES:
        refuse(
            field,
            f"up to {num_tokens} tokens with {num_top} others each are {num_entries} log-probabilities; at most "
            f"{MAX_LOGPROB_ENTRIES} are allowed. Give a smaller max_tokens, fewer prompts or fewer log-probabilities",
        )


def _refuse_chat_fields(body: wire.ChatBody) -> None:
    refuse_given({"audio": body.audio, "modalities": [each for each in body.modalities or () if each != "text"]}, TEXT)
    refuse_given({"functions": body.functions, "function_call": body.function_call}, "give tools and tool_choice")
    refuse_given({"store": body.store}, "nothing is stored here; leave it out or give false")
    refuse_given(
        {
            "moderation": body.moderation,
            "prediction": body.prediction,
            "web_search_options": body.web_search_options,
        },
        "not supported; leave it out",
    )
    if body.service_tier not in (None, "auto", "default"):
        refuse("service_tier", f"{body.service_tier[:50]!r} is not offered; leave it out, or give auto or default")
    if body.verbosity not in (None, "medium"):
        refuse("verbosity", f"{body.verbosity[:50]!r} cannot be asked of this model; leave it out, or give medium")


TEXT = "only text is read and written here; leave it out"


def _num_samples(body: wire.GenerationBody) -> int:
    n = 1 if body.n is None else body.n
    if n < 1:
        refuse("n", f"{_short(n)} is not allowed; give at least 1")
    return n


def _fields(body: wire.GenerationBody) -> dict[str, Any]:
    """The settings that chat and completions share, by the names of their fields."""
    if body.stop_token_ids is not None and len(body.stop_token_ids) > MAX_STOP_IDS:
        refuse("stop_token_ids", f"{len(body.stop_token_ids)} ids are given; at most {MAX_STOP_IDS} are allowed")
    return {
        "max_tokens": body.max_tokens,
        "temperature": DEFAULT_TEMPERATURE if body.temperature is None else body.temperature,
        "top_p": body.top_p,
        "top_k": 0 if body.top_k == -1 else body.top_k,  # clients of vLLM say so that all are meant
        "min_p": body.min_p,
        # a negative seed is as good as any, by the bits of its two's complement
        "seed": body.seed % 2**64 if body.seed is not None and -(2**63) <= body.seed < 0 else body.seed,
        "stop": stop_texts("stop", body.stop),
        "stop_token_ids": body.stop_token_ids,
        "presence_penalty": body.presence_penalty,
        "frequency_penalty": body.frequency_penalty,
        "repetition_penalty": body.repetition_penalty,
        "logit_bias": _logit_bias(body.logit_bias),
        "ignore_eos": body.ignore_eos,
    }


def _chat_params(body: wire.ChatBody) -> SamplingParams:
    fields, names = _fields(body), {"max_completion_tokens": "max_tokens", "top_logprobs": "num_logprobs"}
    if body.max_completion_tokens is not None:
        if body.max_tokens not in (None, body.max_completion_tokens):
            refuse("max_tokens", "differs from max_completion_tokens, which means the same; give one of them")
        del fields["max_tokens"]
        fields["max_completion_tokens"] = body.max_completion_tokens
    if body.top_logprobs is not None and not body.logprobs:
        if body.top_logprobs != 0:
            refuse("top_logprobs", "needs logprobs: true")
    else:
        fields["top_logprobs"] = body.top_logprobs
    if (body.max_tokens if body.max_completion_tokens is None else body.max_completion_tokens) == 0:
        field = "max_tokens" if body.max_completion_tokens is None else "max_completion_tokens"
        refuse(field, "0 is not allowed; give at least 1")
    return sampling_params(fields, names)


def _completion_params(body: wire.CompletionBody) -> SamplingParams:
    fields = _fields(body)
    if body.max_tokens is None:
        fields["max_tokens"] = DEFAULT_COMPLETION_TOKENS
    fields["logprobs"] = body.logprobs
    names = {"logprobs": "num_logprobs"}
    if body.echo and body.logprobs is not None and 0 <= body.logprobs <= MAX_LOGPROBS:
        fields["num_prompt_logprobs"] = body.logprobs
    return sampling_params(fields, names)


def _logit_bias(given: Mapping[str, float] | None) -> dict[int, float] | None:
    if given is None:
        return None
    if len(given) > MAX_LOGIT_BIASES:
        refuse("logit_bias", f"{len(given)} tokens are given; at most {MAX_LOGIT_BIASES} are allowed")
    wrong = next((name for name in given if not _TOKEN_ID.fullmatch(name)), None)
    if wrong is not None:
        refuse("logit_bias", f"{wrong[:50]!r} is no token id; give whole numbers as names")
    return {int(name): value for name, value in given.items()}


def _message(message: wire.AnyMessage, place: str) -> Message:
    if isinstance(message, wire.FunctionMessage):
        refuse(f"{place}.role", "'function' is an older form; give role 'tool' with tool_call_id")
    if isinstance(message, wire.AssistantMessage):
        return _assistant_message(message, place)
    content = _content(message.content, f"{place}.content")
    if isinstance(message, wire.ToolMessage):
        return {"role": "tool", "content": content, "tool_call_id": message.tool_call_id}
    return {"role": "user" if isinstance(message, wire.UserMessage) else "system", "content": content}


def _assistant_message(message: wire.AssistantMessage, place: str) -> Message:
    refuse_given({f"{place}.function_call": message.function_call}, "an older form; give tool_calls")
    refuse_given({f"{place}.audio": message.audio}, TEXT)
    said: dict[str, Any] = {"role": "assistant"}
    content = message.refusal if message.content is None else _content(message.content, f"{place}.content")
    if message.content is not None and message.refusal:
        refuse(f"{place}.refusal", "given beside content; give one of them")
    if content is None and not message.tool_calls:
        refuse(f"{place}.content", "a message without tool_calls needs a content")
    said["content"] = content
    if message.tool_calls:
        calls = enumerate(message.tool_calls)
        said["tool_calls"] = [_tool_call(call, f"{place}.tool_calls[{number}]") for number, call in calls]
    if message.reasoning_content:
        said["reasoning_content"] = message.reasoning_content
    return said


def _tool_call(call: wire.MessageToolCall, place: str) -> dict[str, Any]:
    if call.type != "function" or call.function is None or call.custom is not None:
        refuse(f"{place}.type", "only calls of functions are supported")
    function = {"name": call.function.name, "arguments": call.function.arguments}
    return {"id": call.id, "type": "function", "function": function}


def _content(content: wire.Content, place: str) -> str:
    """Return the text of a content; parts become lines, since many templates take nothing but one text."""
    if isinstance(content, str):
        return content
    texts = []
    for number, part in enumerate(content):
        if isinstance(part, wire.ImagePart | wire.AudioPart | wire.FilePart):
            kind = {wire.ImagePart: "pictures", wire.AudioPart: "sound", wire.FilePart: "files"}[type(part)]
            refuse(f"{place}[{number}].type", f"{kind} are not read by this model; give text")
        texts.append(part.text if isinstance(part, wire.TextPart) else part.refusal)
    return "\n".join(texts)


def _tools(body: wire.ChatBody) -> tuple[tuple[Tool, ...], ToolChoice | None]:
    """Return the tools and the choice among them, those left out that the choice does not allow."""
    given, choice = body.tools or [], body.tool_choice
    if len(given) > MAX_TOOLS:
        refuse("tools", f"{len(given)} tools are given; at most {MAX_TOOLS} are allowed")
    tools = tuple(_tool(tool, f"tools[{number}]") for number, tool in enumerate(given))
    if not tools and choice not in (None, "none", "auto"):
        refuse("tool_choice", "there are no tools; give some or leave the choice out")
    if isinstance(choice, wire.CustomToolChoice):
        refuse("tool_choice.type", "custom tools are not supported; give functions")
    if choice is None or isinstance(choice, str):
        return tools, None if choice is None else ToolChoice(choice) if tools else None
    names = [tool.name for tool in tools]
    if isinstance(choice, wire.NamedToolChoice):
        _known(choice.function.name, names, "tool_choice.function.name")
        return tools, ToolChoice("named", choice.function.name)
    allowed = choice.allowed_tools
    for number, tool in enumerate(allowed.tools):
        place = f"tool_choice.allowed_tools.tools[{number}]"
        if tool.type != "function":
            refuse(f"{place}.type", "only functions are supported")
        _known(tool.function.name, names, f"{place}.function.name")
    kept = {tool.function.name for tool in allowed.tools}
    if not kept:
        refuse("tool_choice.allowed_tools.tools", "is empty; name a tool, or give tool_choice: 'none'")
    return tuple(tool for tool in tools if tool.name in kept), ToolChoice(allowed.mode)


def _tool(tool: wire.ToolDefinition, place: str) -> Tool:
    if tool.type != "function" or tool.custom is not None:
        refuse(f"{place}.type", f"{tool.type[:50]!r} is not supported; give 'function'")
    if tool.function is None:
        refuse(f"{place}.function", "is missing")
    function = tool.function
    return Tool(function.name, function.description or "", function.parameters or {}, bool(function.strict))


def _known(name: str, names: Sequence[str], place: str) -> None:
    if name not in names:
        refuse(place, f"{name[:80]!r} is none of the tools; there are {', '.join(names)[:300]}")


def _chat_output(body: wire.ChatBody) -> OutputFormat | None:
    given = body.response_format
    structured = _structured_output(body.structured_outputs)
    if given is None or isinstance(given, wire.TextFormat):
        return structured
    if structured is not None:
        refuse("structured_outputs", "given beside response_format; give one of them")
    if isinstance(given, wire.JsonObjectFormat):
        return OutputFormat("json_object")
    schema = given.json_schema
    return OutputFormat("json_schema", bytes(schema.schema).decode(), is_strict=bool(schema.strict))


def _structured_output(given: wire.StructuredOutputs | None) -> OutputFormat | None:
    if given is None:
        return None
    asked = {name: value for name, value in msgspec.structs.asdict(given).items() if value not in (None, False)}
    if len(asked) != 1:
        refuse("structured_outputs", "give exactly one of json, regex, choice, grammar and json_object")
    name, value = next(iter(asked.items()))
    if name == "json":
        return OutputFormat("json_schema", value if isinstance(value, str) else msgspec.json.encode(value).decode())
    if name == "json_object":
        return OutputFormat("json_object")
    if name == "choice":
        if not value or "" in value:
            refuse("structured_outputs.choice", "give at least one text, and none that is empty")
        return OutputFormat("regex", "|".join(f"({_literal(text)})" for text in value))
    return OutputFormat("regex" if name == "regex" else "grammar", value)


def _literal(text: str) -> str:
    """The regular expression that matches a text alone."""
    return _REGEX_SYNTAX.sub(lambda found: "\\" + found[0], text).replace("\n", "\\n").replace("\r", "\\r")


def _is_continuation(body: wire.ChatBody) -> bool:
    is_continuation = bool(body.continue_final_message)
    if is_continuation and body.add_generation_prompt:
        refuse("add_generation_prompt", "contradicts continue_final_message; give one of them")
    if not is_continuation and body.add_generation_prompt is False:
        refuse("add_generation_prompt", "false is supported with continue_final_message: true only")
    if is_continuation and not (body.messages and isinstance(body.messages[-1], wire.AssistantMessage)):
        refuse("continue_final_message", "the last message has to be the assistant's")
    return is_continuation


def _prompts(given: str | Sequence[str | int | Sequence[int]]) -> tuple[str | tuple[int, ...], ...]:
    """Return the prompts of a body, each a text or token ids."""
    if isinstance(given, str):
        return (_checked_prompt(given, "prompt"),)
    if not given:
        refuse("prompt", "is empty; give a text, token ids, or a list of either")
    if all(isinstance(each, int) for each in given):
        return (_checked_prompt(cast(Sequence[int], given), "prompt"),)
    if any(isinstance(each, int) for each in given):
        refuse("prompt", "mixes token ids with other prompts; give ids, or a list of texts and lists of ids")
    prompts = cast("Sequence[str | Sequence[int]]", given)
    return tuple(_checked_prompt(prompt, f"prompt[{number}]") for number, prompt in enumerate(prompts))


def _checked_prompt(prompt: str | Sequence[int], place: str) -> str | tuple[int, ...]:
    if not prompt:
        refuse(place, "is empty; give at least one token")
    if isinstance(prompt, str):
        return prompt
    wrong = next((token_id for token_id in prompt if not 0 <= token_id < 2**31), None)
    if wrong is not None:
        refuse(place, f"{_short(wrong)} is no token id")
    return tuple(prompt)


def _short(value: object) -> str:
    return str(value)[:50]
