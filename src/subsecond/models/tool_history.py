"""Tool calls and results in a conversation: checked, and brought into the forms that chat templates take."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from itertools import product
from typing import TYPE_CHECKING, Any

from subsecond.core.errors import InputError, UnsupportedError
from subsecond.models.plain_data import use_room
from subsecond.models.tool_calls import Tool, ToolChoice

if TYPE_CHECKING:
    from subsecond.models.prompt import Message

MAX_CALLS = 256  # in one message
MAX_ARGUMENT_CHARS = 2**20  # of one message's calls
MAX_ARGUMENT_DEPTH = 64
SHORT_ID_CHARS = 9

_FUNCTION_FIELDS = {"name", "arguments"}


def check_calls(message: Message, number: int) -> None:
    """Raise InputError or UnsupportedError unless the calls of message `number` have the form of OpenAI's API."""
    calls = message["tool_calls"]
    if not isinstance(calls, list | tuple) or not 1 <= len(calls) <= MAX_CALLS:
        raise InputError(f"message {number} has tool_calls that are no list of 1 to {MAX_CALLS} calls")
    room = MAX_ARGUMENT_CHARS
    for index, call in enumerate(calls):
        where = f"call {index + 1} of message {number}"
        form = '{"id": ..., "type": "function", "function": {"name": ..., "arguments": ...}}'
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(call, Mapping) and call.get("type", "function") != "function":
            raise UnsupportedError(f"{where} is of another type; only calls of functions are read: {form}")
        if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
            raise InputError(f"{where} has no function with a name; its form is {form}")
        unknown = sorted(
            map(str, (set(call) - {"id", "type", "function", "index"}) | (set(function) - _FUNCTION_FIELDS))
        )
        if unknown:
            raise UnsupportedError(f"{where} has {str(unknown)[:100]}; its form is {form}")
        if not isinstance(call.get("id", ""), str):
            raise InputError(f"{where} has an id that is no text")
        arguments = function.get("arguments", "")
        if not isinstance(arguments, str | Mapping):
            raise InputError(f"{where} has arguments of type {type(arguments).__name__}; give JSON text or a mapping")
        room = use_room(arguments, f"the arguments of {where}", room, MAX_ARGUMENT_DEPTH)


def call_texts(message: Message) -> Iterator[str]:
    """Yield the texts of a message's calls, however wrong they are."""
    calls = message.get("tool_calls")
    for call in calls if isinstance(calls, list | tuple) else ():
        function = call.get("function") if isinstance(call, Mapping) else None
        arguments = function.get("arguments") if isinstance(function, Mapping) else None
        if isinstance(arguments, str):
            yield arguments


def has_calls(messages: Sequence[Message]) -> bool:
    """Whether a conversation has calls or results of tools."""
    return any(message["role"] == "tool" or message.get("tool_calls") for message in messages)


def forms_of(messages: Sequence[Message]) -> Iterator[list[Message]]:
    """Yield a conversation in the forms that one template or another asks for, the most common form first.

    Arguments are objects, as most templates expect them, or the text that the caller gave. Without content a message
    that calls has null, or empty text. Ids are the caller's, or have nine letters and digits.
    """
    if not has_calls(messages):
        yield list(messages)
        return
    for is_text, has_short_ids, is_empty in product((False, True), repeat=3):
        yield [_formed(message, index, is_text, has_short_ids, is_empty) for index, message in enumerate(messages)]


def _formed(message: Message, index: int, is_text: bool, has_short_ids: bool, is_empty: bool) -> Message:
    formed = dict(message)
    if has_short_ids and "tool_call_id" in formed:
        formed["tool_call_id"] = short_id(formed["tool_call_id"])
    if not message.get("tool_calls"):
        formed.pop("tool_calls", None)
        return formed
    formed["content"] = formed.get("content") or ("" if is_empty else formed.get("content"))
    formed["tool_calls"] = [
        _formed_call(call, f"{index}.{place}", is_text, has_short_ids)
        for place, call in enumerate(message["tool_calls"])
    ]
    return formed


def _formed_call(call: Mapping[str, Any], place: str, is_text: bool, has_short_ids: bool) -> dict[str, Any]:
    arguments = call["function"].get("arguments", {})
    found = arguments_object(arguments)
    if is_text:
        arguments = arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)
    elif found is not None:
        arguments = found
    formed: dict[str, Any] = {"id": call["id"]} if "id" in call else {}
    if has_short_ids:
        formed["id"] = short_id(call.get("id", place))
    return {**formed, "type": "function", "function": {"name": call["function"]["name"], "arguments": arguments}}


def arguments_object(arguments: str | Mapping[str, Any]) -> dict[str, Any] | None:
    """Arguments as an object, None for text that is not JSON of an object."""
    if not isinstance(arguments, str):
        return dict(arguments)
    if not arguments.strip():
        return {}
    try:
        found = json.loads(arguments, parse_constant=_refuse_constant)
        return (
            found if isinstance(found, dict) and use_room(found, "", len(arguments) + 1, MAX_ARGUMENT_DEPTH) else None
        )
    except (ValueError, RecursionError):
        return None


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def short_id(text: str) -> str:
    """Nine letters and digits that stand for an id, the id itself if it is such."""
    if len(text) == SHORT_ID_CHARS and text.isascii() and text.isalnum():
        return text
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:SHORT_ID_CHARS]


def explained(messages: Sequence[Message], tools: Sequence[Tool], choice: ToolChoice) -> Iterator[list[Message]]:
    """Yield a conversation for a template that knows no tools: what they are is said in a system message.

    The second form has it in the first message of the user, for templates without a system role.
    """
    turns = _as_turns(messages)
    if not tools:
        yield turns
        return
    text = _explanation(tools, choice)
    if turns and turns[0]["role"] == "system":
        yield [{**turns[0], "content": _joined(turns[0]["content"], text)}, *turns[1:]]
        return
    yield [{"role": "system", "content": text}, *turns]
    first = next((index for index, turn in enumerate(turns) if turn["role"] == "user"), None)
    if first is not None:
        said = {**turns[first], "content": _joined(text, turns[first]["content"])}
        yield [*turns[:first], said, *turns[first + 1 :]]


def _explanation(tools: Sequence[Tool], choice: ToolChoice) -> str:
    lines = [json.dumps(tool.as_function()["function"], ensure_ascii=False) for tool in tools]
    demand = {
        "required": "Call at least one function now.",
        "named": f"Call the function {choice.name} now.",
    }.get(choice.mode, "Where no function helps, answer as usual.")
    return "\n".join(
        [
            "You can call these functions, each described in a line of JSON:",
            *lines,
            "",
            "To call one, answer with its name and its arguments as JSON between these tags, and nothing else:",
            '<tool_call>\n{"name": "...", "arguments": {...}}\n</tool_call>',
            f"What it returns will follow between <tool_response> and </tool_response>. {demand}",
        ]
    )


def _as_turns(messages: Sequence[Message]) -> list[Message]:
    """The messages with calls as text of the assistant, and the results behind them as one message of the user."""
    turns: list[Message] = []
    is_behind_result = False
    for message in messages:
        if message["role"] == "tool":
            result = f"<tool_response>\n{_text_of(message['content'])}\n</tool_response>"
            if is_behind_result:
                turns[-1] = {"role": "user", "content": f"{turns[-1]['content']}\n{result}"}
            else:
                turns.append({"role": "user", "content": result})
        elif message.get("tool_calls"):
            written = [_written_call(call["function"]) for call in message["tool_calls"]]
            said = _text_of(message.get("content"))
            rest = {name: value for name, value in message.items() if name != "tool_calls"}
            turns.append({**rest, "content": "\n".join([said, *written] if said else written)})
        else:
            turns.append({name: value for name, value in message.items() if name != "tool_calls"})
        is_behind_result = message["role"] == "tool"
    return turns


def _written_call(function: Mapping[str, Any]) -> str:
    arguments = arguments_object(function.get("arguments", {}))
    call = {"name": function["name"], "arguments": function["arguments"] if arguments is None else arguments}
    return f"<tool_call>\n{json.dumps(call, ensure_ascii=False)}\n</tool_call>"


def _text_of(content: object) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    assert isinstance(content, list | tuple)
    return "".join(part["text"] for part in content)


def _joined(first: object, second: object) -> str:
    return "\n\n".join(text for text in (_text_of(first), _text_of(second)) if text)
