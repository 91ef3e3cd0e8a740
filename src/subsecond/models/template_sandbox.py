"""A Jinja environment in which a hostile chat template can neither reach Python nor run long nor take much memory.

Jinja's own sandbox closes the way to Python's internals. This one adds costs: the template's syntax tree is rewritten
so that every loop round, comparison, concatenation, slice and piece of output passes a meter, and only filters, methods
and functions whose cost is known beforehand can be called. One meter belongs to one rendering.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Template, nodes, pass_context
from jinja2.ext import Extension, loopcontrols
from jinja2.filters import FILTERS
from jinja2.meta import find_undeclared_variables
from jinja2.parser import Parser
from jinja2.runtime import Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.utils import Namespace
from jinja2.visitor import NodeTransformer

from subsecond.core.errors import InputError, UnsupportedError
from subsecond.models.template_meter import ITEM_WORK, LimitError, Meter, TemplateLimits, added, multiplied, raised

MAX_TREE_NODES = 12_000
MAX_TAGS = 4_000  # of the source: counted before it is parsed, which takes a kilobyte for each
MAX_TIME_FORMAT_CHARS = 256
MAX_INDENT = 64
MAX_ROUND_DIGITS = 64
SPLIT_WORK = 64
"""Work of a piece that `split` makes: a text object of its own."""

# Filters by what they cost: the argument's surface, or everything inside it because they compare or convert it.
_SURFACE_FILTERS = ("count", "d", "default", "first", "items", "last", "length", "list", "map", "reverse", "safe")
_DEEP_FILTERS = ("dictsort", "groupby", "max", "min", "reject", "rejectattr", "select", "selectattr", "sort", "unique")
_TEXT_FILTERS = ("capitalize", "e", "escape", "lower", "string", "title", "trim", "upper")
_NUMBER_FILTERS = ("abs", "float", "int")

_METHODS: Mapping[type, frozenset[str]] = {
    str: frozenset(
        [
            "capitalize",
            "casefold",
            "count",
            "endswith",
            "find",
            "index",
            "isalnum",
            "isalpha",
            "isascii",
            "isdecimal",
            "isdigit",
            "isidentifier",
            "islower",
            "isnumeric",
            "isprintable",
            "isspace",
            "istitle",
            "isupper",
            "join",
            "lower",
            "lstrip",
            "partition",
            "removeprefix",
            "removesuffix",
            "replace",
            "rfind",
            "rindex",
            "rpartition",
            "rsplit",
            "rstrip",
            "split",
            "splitlines",
            "startswith",
            "strip",
            "swapcase",
            "title",
            "upper",
        ]
    ),
    dict: frozenset(("copy", "get", "items", "keys", "values")),
    list: frozenset(("copy", "count", "index")),
    tuple: frozenset(("count", "index")),
}
_LOOP_METHODS = frozenset(("cycle", "changed"))


class MeteredContext(Context):
    """The variables of one rendering, and its meter."""

    def __init__(self, environment: TemplateEnvironment, *args: Any, **kwargs: Any) -> None:
        super().__init__(environment, *args, **kwargs)
        self.meter = Meter(environment.limits)


class TemplateEnvironment(ImmutableSandboxedEnvironment):
    """Compiles and runs chat templates within limits."""

    intercepted_binops = frozenset(("+", "*", "**", "%"))

    def __init__(self, limits: TemplateLimits) -> None:
        # constant folding would run filters at compile time, where no meter runs
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            optimized=False,
            finalize=_written,
            cache_size=0,
            extensions=[loopcontrols, _GenerationBlocks],
        )
        self.limits = limits
        self.context_class = MeteredContext
        self.filters = _filters()
        self.globals = {
            "range": _limited_range,
            "dict": dict,
            "namespace": Namespace,
            "raise_exception": _raise_exception,
            "strftime_now": _strftime_now,
        }
        self._callables = frozenset(map(id, self.globals.values()))

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        if source.count("{{") + source.count("{%") > MAX_TAGS:
            raise UnsupportedError(f"the chat template has more than {MAX_TAGS} tags, the most that are allowed")
        tree = super()._parse(source, name, filename)
        # compiling costs far more than parsing, so large trees stop here
        num_nodes = sum(1 for _ in tree.find_all(nodes.Node))
        if num_nodes > MAX_TREE_NODES:
            raise UnsupportedError(
                f"the chat template has {num_nodes} syntax nodes; at most {MAX_TREE_NODES} are allowed"
            )
        for node in tree.find_all(_REFUSED):
            raise UnsupportedError(
                f"the chat template uses {type(node).__name__!r} in line {node.lineno}, which is not allowed"
            )
        return _Rewriter().visit(tree)  # type: ignore[no-any-return]

    def call(__self, __context: Context, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Call something from a template, if its cost is known."""
        meter = _meter(__context)
        meter.step()
        if isinstance(__obj, Undefined):
            return super().call(__context, __obj, *args, **kwargs)
        owner = getattr(__obj, "__self__", None)
        if id(__obj) in __self._callables or isinstance(__obj, Macro):
            if __obj is dict:
                meter.work(ITEM_WORK * sum(_length(each) for each in args))
        elif isinstance(owner, (LoopContext, *_METHODS)):
            __self._check_method(meter, owner, __obj.__name__, args, kwargs)
            if isinstance(owner, str) and __obj.__name__ == "join" and len(args) == 1:
                return _joined(meter, args[0], owner)
        else:
            raise UnsupportedError(f"the chat template calls a {type(__obj).__name__}, which is not allowed")
        return super().call(__context, __obj, *args, **kwargs)

    def _check_method(
        self, meter: Meter, owner: object, name: str, args: Sequence[object], kwargs: Mapping[str, object]
    ) -> None:
        if isinstance(owner, LoopContext):
            allowed = name in _LOOP_METHODS
        else:
            allowed = any(isinstance(owner, kind) and name in names for kind, names in _METHODS.items())
        if not allowed:
            raise UnsupportedError(f"the chat template calls the method {name!r}, which is not allowed")
        if isinstance(owner, str):
            _check_text_method(meter, owner, name, [*args, *kwargs.values()])
            return
        if isinstance(owner, (dict, list, tuple)):
            meter.work(ITEM_WORK * len(owner) if name in ("copy", "count", "index") else 1)
        if name in ("count", "index"):
            meter.visit(owner)
        meter.visit([*args, *kwargs.values()])

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Compute `left operator right` if the result is small enough."""
        meter = _meter(context)
        meter.step()
        if operator == "+":
            added(meter, left, right)
        elif operator == "*":
            multiplied(meter, left, right)
        elif operator == "**":
            raised(left, right)
        elif isinstance(left, (str, bytes)):
            raise UnsupportedError("the chat template formats text with %, which is not allowed; joining with ~ is")
        return super().call_binop(context, operator, left, right)


def compile_template(source: str, limits: TemplateLimits) -> Template:
    """Compile a template; raises whatever Jinja raises, or UnsupportedError for what the sandbox refuses."""
    return TemplateEnvironment(limits).from_string(source)


def variables_of(source: str, limits: TemplateLimits) -> frozenset[str]:
    """Names that a template takes from outside; raises as `compile_template`."""
    environment = TemplateEnvironment(limits)
    return frozenset(find_undeclared_variables(environment.parse(source)) - environment.globals.keys())


class _GenerationBlocks(Extension):
    """`{% generation %}` marks for trainers what the assistant wrote; for rendering the block is just its body."""

    tags = {"generation"}  # noqa: RUF012 - the type of Jinja's own declaration

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_REFUSED = (
    nodes.Include,
    nodes.Import,
    nodes.FromImport,
    nodes.Extends,
    nodes.Block,
    nodes.ScopedEvalContextModifier,
    nodes.EvalContextModifier,
)


class _Rewriter(NodeTransformer):
    """Routes what costs time or memory through filters that meter it."""

    def visit_For(self, node: nodes.For) -> nodes.Node:  # noqa: N802
        if node.recursive:
            raise UnsupportedError(
                f"the chat template has a recursive loop in line {node.lineno}, which is not allowed"
            )
        self.generic_visit(node)
        node.iter = _through("_rounds", node.iter)
        return node

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        return _through("_concatenated", nodes.List(node.nodes, lineno=node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.expr = _through("_visited", node.expr)
        for operand in node.ops:
            operand.expr = _through("_visited", operand.expr)
        return node

    def visit_Test(self, node: nodes.Test) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if node.name not in ("defined", "undefined"):
            node.node = _through("_visited", node.node)
            node.args = [_through("_visited", argument) for argument in node.args or []]
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        node.key = node.key if isinstance(node.key, nodes.Const) else _through("_visited", node.key)
        return node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        if not isinstance(node.arg, nodes.Slice):
            node.arg = node.arg if isinstance(node.arg, nodes.Const) else _through("_visited", node.arg)
            return node
        parts = (node.arg.start, node.arg.stop, node.arg.step)
        return _through("_sliced", node.node, [part or nodes.Const(None, lineno=node.lineno) for part in parts])

    def visit_Output(self, node: nodes.Output) -> nodes.Node:  # noqa: N802
        self.generic_visit(node)
        # as constants, pieces of literal text pass `finalize` and are counted every time they are written
        node.nodes = [
            nodes.Const(child.data, lineno=child.lineno) if isinstance(child, nodes.TemplateData) else child
            for child in node.nodes
        ]
        return node


def _through(name: str, node: nodes.Node, args: Sequence[nodes.Expr] = ()) -> nodes.Filter:
    assert isinstance(node, nodes.Expr)
    return nodes.Filter(node, name, list(args), [], None, None, lineno=node.lineno)


def _meter(context: Context) -> Meter:
    assert isinstance(context, MeteredContext)
    return context.meter


def _length(value: object) -> int:
    return len(value) if isinstance(value, (str, bytes, list, tuple, dict, range)) else 1


@pass_context
def _written(context: Context, value: Any) -> Any:
    """Count a piece of output, and refuse what would print the inside of Python objects."""
    if not isinstance(value, Undefined):
        _meter(context).write(value, "the chat template's output")
    return value


@pass_context
def _rounds(context: Context, iterable: Any) -> Iterator[Any]:
    meter = _meter(context)
    for item in iterable:
        meter.step()
        yield item


@pass_context
def _concatenated(context: Context, pieces: Sequence[Any]) -> str:
    return _joined(_meter(context), pieces, "")


@pass_context
def _visited(context: Context, value: Any) -> Any:
    if not isinstance(value, (str, int, type(None))):
        meter = _meter(context)
        meter.step()
        meter.visit(value)
    return value


@pass_context
def _sliced(context: Context, value: Any, start: Any, stop: Any, step: Any) -> Any:
    meter = _meter(context)
    meter.step()
    meter.work(_length(value) * (1 if isinstance(value, str) else ITEM_WORK))
    return value[start:stop:step]


def _joined(meter: Meter, pieces: Iterable[Any], separator: str) -> str:
    texts, length = [], 0
    for piece in pieces:
        meter.step()
        if not isinstance(piece, (str, Undefined)):
            meter.write(piece, "a joined list")
        texts.append(str(piece))
        length += len(texts[-1]) + len(separator)
        meter.work(SPLIT_WORK)
        if length > meter.limits.max_value_length:
            break
    meter.new_value(length)
    return separator.join(texts)


@pass_context
def _join(context: Context, value: Any, d: str = "", attribute: str | int | None = None) -> str:
    """Join a list, or one attribute of each item, with `d` between."""
    if attribute is not None:
        value = FILTERS["map"](context, value, attribute=attribute)
    return _joined(_meter(context), value, str(d))


@pass_context
def _replace(context: Context, value: Any, old: str, new: str, count: int | None = None) -> str:
    meter = _meter(context)
    meter.step()
    meter.write(value, "a replaced text")
    text, old, new = str(value), str(old), str(new)
    _check_text_method(meter, text, "replace", [old, new, count])
    return text.replace(old, new, -1 if count is None else count)


@pass_context
def _indent(context: Context, value: Any, width: int | str = 4, first: bool = False, blank: bool = False) -> Any:
    meter = _meter(context)
    meter.step()
    size = len(width) if isinstance(width, str) else width
    if size > MAX_INDENT:
        raise UnsupportedError(f"the chat template indents by {size}; at most {MAX_INDENT} is allowed")
    text = str(value)
    meter.new_value(len(text) + (text.count("\n") + 2) * max(size, 0) + SPLIT_WORK * text.count("\n"))
    return FILTERS["indent"](text, width, first, blank)


@pass_context
def _round(context: Context, value: float, precision: int = 0, method: str = "common") -> Any:
    _meter(context).step()
    if abs(precision) > MAX_ROUND_DIGITS:
        raise UnsupportedError(
            f"the chat template rounds to {precision} digits; at most {MAX_ROUND_DIGITS} are allowed"
        )
    return FILTERS["round"](value, precision, method)


@pass_context
def _tojson(
    context: Context,
    value: Any,
    ensure_ascii: bool = False,
    indent: int | str | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON without HTML escapes, as chat templates expect it."""
    meter = _meter(context)
    meter.step()
    size = len(indent) if isinstance(indent, str) else indent or 0
    if size > MAX_INDENT or (separators and max(map(len, separators)) > MAX_INDENT):
        raise UnsupportedError(f"the chat template indents JSON by {size}; at most {MAX_INDENT} is allowed")
    meter.write(value, "a value for tojson")
    text = json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)
    meter.new_value(len(text))
    return text


def _check_text_method(meter: Meter, text: str, name: str, args: Sequence[object]) -> None:
    """Count what a method of str makes before it runs."""
    meter.work(len(text) + sum(_length(each) for each in args))
    if name == "replace" and len(args) >= 2 and isinstance(args[0], str) and isinstance(args[1], str):
        found = text.count(args[0]) if args[0] else len(text) + 1
        meter.new_value(len(text) + found * max(0, len(args[1]) - len(args[0])))
    elif name in ("split", "rsplit", "splitlines"):
        separator = args[0] if args and isinstance(args[0], str) and args[0] else None
        found = text.count(separator) if separator and name != "splitlines" else len(text) // 2
        meter.work(SPLIT_WORK * (found if separator else min(found, _count_gaps(text))))


def _count_gaps(text: str) -> int:
    return sum(1 for _ in re.finditer(r"\s+", text))


def _metered(name: str, count: Callable[[Meter, Any], None]) -> Callable[..., Any]:
    """Wrap one of Jinja's own filters so that its argument is counted first."""
    inner = FILTERS[name]
    pass_arg = getattr(getattr(inner, "jinja_pass_arg", None), "name", None)

    @pass_context
    def run(context: Context, value: Any, *args: Any, **kwargs: Any) -> Any:
        meter = _meter(context)
        meter.step()
        count(meter, value)
        meter.visit([*args, *kwargs.values()])
        if pass_arg == "context":
            return inner(context, value, *args, **kwargs)
        if pass_arg == "eval_context":
            return inner(context.eval_ctx, value, *args, **kwargs)
        if pass_arg == "environment":
            return inner(context.environment, value, *args, **kwargs)
        return inner(value, *args, **kwargs)

    return run


def _count_surface(meter: Meter, value: Any) -> None:
    meter.work(_length(value) * (SPLIT_WORK if isinstance(value, str) else ITEM_WORK))


def _count_text(meter: Meter, value: Any) -> None:
    if not isinstance(value, Undefined):
        meter.write(value, "a text filter's argument")


def _filters() -> dict[str, Callable[..., Any]]:
    filters: dict[str, Callable[..., Any]] = {
        "_rounds": _rounds,
        "_concatenated": _concatenated,
        "_visited": _visited,
        "_sliced": _sliced,
        "join": _join,
        "replace": _replace,
        "indent": _indent,
        "round": _round,
        "tojson": _tojson,
    }
    for names, count in (
        (_SURFACE_FILTERS, _count_surface),
        (_DEEP_FILTERS, Meter.visit),
        (_TEXT_FILTERS, _count_text),
        (_NUMBER_FILTERS, _count_text),
    ):
        filters.update({name: _metered(name, count) for name in names})
    return filters


@pass_context
def _limited_range(context: Context, *args: int) -> range:
    numbers = range(*args)
    limit = _meter(context).limits.max_range
    # compared by index: len() fails beyond the machine's word
    if numbers[limit:]:
        raise LimitError(f"the chat template asks for a range of more than {limit} numbers")
    return numbers


def _raise_exception(message: object) -> NoReturn:
    raise InputError(f"the chat template refuses the conversation: {str(message)[:500]}")


def _strftime_now(time_format: str) -> str:
    # widths such as %999999d would fill memory
    if len(time_format) > MAX_TIME_FORMAT_CHARS or re.search(r"%[^%A-Za-z]*\d", time_format):
        raise UnsupportedError(
            "the chat template formats the time with a width or a very long format, which is not allowed"
        )
    return datetime.now().strftime(time_format)
