"""Tools of the responses API: functions and namespaces are offered, some hosted ones left out, others refused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import msgspec

from subsecond.models.tool_calls import Tool, ToolChoice
from subsecond.serve.fields import check_count, decode_part, kind_of_part, refuse
from subsecond.serve.responses_types import FunctionTool, NamespaceTool, ToolChoiceBody

HOSTED_LEFT_OUT = ("image_generation", "tool_search", "web_search", "web_search_preview")
"""Tools that agents offer unasked and that only their vendor's servers run; answers say which were left out."""

MAX_TOOLS = 512
_SEPARATOR = "__"
_CHOICES = {"auto": ToolChoice("auto"), "none": ToolChoice("none"), "required": ToolChoice("required")}


@dataclass(frozen=True, slots=True)
class OfferedTools:
    """What the model may call, and what answers say of it.

    places    namespace and name of the functions that belong to one, by the name that the model knows
    left_out  kinds of hosted tools that were left out
    """

    tools: tuple[Tool, ...] = ()
    choice: ToolChoice | None = None
    places: dict[str, tuple[str, str]] = field(default_factory=dict)
    left_out: tuple[str, ...] = ()


def offered_tools(tools: Sequence[msgspec.Raw] | None, choice: str | ToolChoiceBody | None) -> OfferedTools:
    """Return the tools of a request and the choice among them.

    Raises:
        FieldError: a kind of tool that cannot be offered, or a choice of what there is not.
    """
    check_count("tools", tools, MAX_TOOLS)
    functions: list[Tool] = []
    places: dict[str, tuple[str, str]] = {}
    left_out: list[str] = []
    for number, raw in enumerate(tools or ()):
        where = f"tools[{number}]"
        kind = kind_of_part(raw, where)
        if kind == "function":
            functions.append(_function(decode_part(raw, FunctionTool, where), where))
        elif kind == "namespace":
            for each, place in _members(decode_part(raw, NamespaceTool, where), where):
                functions.append(each)
                places[each.name] = place
        elif kind in HOSTED_LEFT_OUT:
            left_out.append(kind)
        else:
            refuse(f"{where}.type", f"{str(kind)[:50]!r} is not run here; give tools of type function or namespace")
    offered = OfferedTools(tuple(functions), None, places, tuple(dict.fromkeys(left_out)))
    return _chosen(offered, choice)


def name_for_model(name: str, namespace: str | None) -> str:
    """Return the one name by which the model knows a function."""
    if not namespace:
        return name
    return namespace + name if namespace.endswith(_SEPARATOR) else namespace + _SEPARATOR + name


def _function(body: FunctionTool, where: str) -> Tool:
    if body.defer_loading:
        refuse(f"{where}.defer_loading", "tools are not searched for here; offer the tool at once")
    if body.allowed_callers is not None and body.allowed_callers != ["direct"]:
        refuse(f"{where}.allowed_callers", "programs are not run here; only ['direct'] is allowed")
    return Tool(body.name, body.description or "", body.parameters or {}, is_strict=bool(body.strict))


def _members(body: NamespaceTool, where: str) -> list[tuple[Tool, tuple[str, str]]]:
    """The functions of a namespace under the names of both, and where each belongs."""
    check_count(f"{where}.tools", body.tools, MAX_TOOLS)
    members: list[tuple[Tool, tuple[str, str]]] = []
    for number, raw in enumerate(body.tools):
        place = f"{where}.tools[{number}]"
        kind = kind_of_part(raw, place)
        if kind != "function":
            refuse(f"{place}.type", f"{str(kind)[:50]!r} is not run here; give tools of type function")
        tool = _function(decode_part(raw, FunctionTool, place), place)
        # what is said of all of them is said once, before the first
        description = tool.description if members else f"{body.description}\n{tool.description}".strip()
        named = replace(tool, name=name_for_model(tool.name, body.name), description=description)
        members.append((named, (body.name, tool.name)))
    return members


def _chosen(offered: OfferedTools, choice: str | ToolChoiceBody | None) -> OfferedTools:
    """The offer with the request's choice; tools that may not be called are not offered."""
    if choice is None:
        return offered
    if isinstance(choice, str):
        if choice not in _CHOICES:
            refuse("tool_choice", f"{choice[:50]!r} is not allowed; give auto, none, required or an object")
        return replace(offered, choice=_CHOICES[choice])
    if choice.type == "function" and choice.name is not None:
        return replace(offered, choice=ToolChoice("named", name_for_model(choice.name, choice.namespace)))
    if choice.type == "allowed_tools":
        return _allowed(offered, choice)
    refuse("tool_choice.type", f"{choice.type[:50]!r} cannot be chosen; give function with a name, or allowed_tools")


def _allowed(offered: OfferedTools, choice: ToolChoiceBody) -> OfferedTools:
    names = set()
    check_count("tool_choice.tools", choice.tools, MAX_TOOLS)
    for each in choice.tools or ():
        name, namespace = each.get("name"), each.get("namespace")
        if not isinstance(name, str) or not isinstance(namespace, str | None):
            refuse("tool_choice.tools", f"{str(each)[:100]} has no name; give {{'type': 'function', 'name': ...}}")
        names.add(name_for_model(name, namespace))
    unknown = sorted(names - {tool.name for tool in offered.tools})
    if unknown or not names:
        refuse("tool_choice.tools", f"{unknown[:5]} are not among the tools; name at least one of those")
    tools = tuple(tool for tool in offered.tools if tool.name in names)
    return replace(offered, tools=tools, choice=_CHOICES[choice.mode or "auto"])
