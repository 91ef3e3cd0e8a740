"""Routes that say what they take and give, and finding the one for a request by its path and method."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import compile_path

from subsecond.serve.errors import MethodError, NotFoundError

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class ApiRoute:
    """One path with one method; `{name}` in the path is a parameter, `{name:path}` one that may contain slashes.

    request_type, response_type  msgspec structs of the JSON bodies; None for none, or for one that is not JSON
    is_streaming                 whether the answer may come as server-sent events or lines too
    is_open                      whether it is answered without a key and on any host name
    """

    method: str
    path: str
    handler: Handler
    summary: str
    request_type: type | None = None
    response_type: type | None = None
    is_streaming: bool = False
    is_open: bool = False


class RouteTable:
    """All routes of a server. Paths are compared as a whole and as they are; HEAD is answered where GET is."""

    def __init__(self, routes: Iterable[ApiRoute]) -> None:
        self.routes = tuple(routes)
        self._exact: dict[str, dict[str, ApiRoute]] = {}
        self._patterns: list[tuple[re.Pattern[str], dict[str, ApiRoute]]] = []
        for route in self.routes:
            methods = self._exact.setdefault(route.path, {})
            if not methods and "{" in route.path:
                self._patterns.append((compile_path(route.path)[0], methods))
            assert route.method not in methods, f"{route.method} {route.path} has two routes"
            methods[route.method] = route

    def find(self, method: str, path: str) -> tuple[ApiRoute, dict[str, Any]]:
        """Return the route of a request and the parameters in its path; NotFoundError or MethodError without one."""
        methods, params = self._exact.get(path), {}
        if methods is None:
            for pattern, candidates in self._patterns:
                found = pattern.match(path)
                if found:
                    methods, params = candidates, found.groupdict()
                    break
            else:
                raise NotFoundError(f"there is no path {path[:100]!r} here; /openapi.json lists those that there are")
        route = methods.get("GET" if method == "HEAD" else method)
        if route is None:
            allowed = tuple(sorted(methods))
            raise MethodError(f"{method[:20]} is not answered here; use {' or '.join(allowed)}", allowed=allowed)
        return route, params
