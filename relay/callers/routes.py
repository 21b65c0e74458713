"""The paths of OpenAI's API, under OpenAI's own addresses and under Azure OpenAI's."""

import re
from collections.abc import Awaitable, Callable
from typing import Final, NamedTuple

from starlette.responses import Response

from relay.callers.request import CallerRequest
from relay.problems import METHOD_NOT_ALLOWED, NOT_FOUND, Problem

# With the name in the path (a model, a deployment), where it has one.
type Handler = Callable[[CallerRequest, str | None], Awaitable[Response]]

_MAX_PATH: Final = 200  # characters of a caller's path in an error


ADDRESSES: Final = ("/v1", "/openai/v1", "/openai")  # OpenAI's, Azure's of today, and Azure's with an `api-version`


class Route(NamedTuple):
    """One operation of the API.

    `path` is below the version, such as `/models/{model}`; the name of a model may hold slashes, other names may not.
    `by_deployment`: with an `api-version`, Azure has the operation under each deployment. `addresses`: those that have
    the route.
    """

    method: str
    path: str
    handler: Handler
    by_deployment: bool = False
    addresses: tuple[str, ...] = ADDRESSES

    def templates(self) -> dict[str, str]:
        """The path at each of the addresses."""
        below = dict.fromkeys(self.addresses, "")
        if self.by_deployment and "/openai" in below:
            below["/openai"] = "/deployments/{deployment}"
        return {address: f"{address}{deployment}{self.path}" for address, deployment in below.items()}


class Routes:
    """The operations of the API, by path and method. Paths match without regard to case, as the Functions host does."""

    def __init__(self, *routes: Route) -> None:
        self._routes = routes
        self._patterns = [(_pattern(template), route) for route in routes for template in route.templates().values()]

    def find(self, method: str, path: str) -> tuple[Handler, str | None] | Problem:
        """What answers the request, and the name in its path; or the problem that names the path and what exists.

        `path` is decoded.
        """
        # The host's proxy keeps a slash in a name, and encodes its percent sign once more.
        path = path.replace("%2F", "/").replace("%2f", "/")
        allowed: list[str] = []
        for pattern, route in self._patterns:
            match = pattern.fullmatch(path.rstrip("/"))
            if match is None:
                continue
            if method == route.method or (method, route.method) == ("HEAD", "GET"):
                return route.handler, match[1] if match.groups() else None
            allowed += ["GET", "HEAD"] if route.method == "GET" else [route.method]
        shown = path if len(path) <= _MAX_PATH else path[:_MAX_PATH] + "…"
        if allowed:
            methods = ", ".join(allowed)
            return METHOD_NOT_ALLOWED.with_allow(methods).with_detail(
                f"{shown} does not take {method}; it takes {methods}."
            )
        return NOT_FOUND.with_detail(f"The app has no {method} {shown}. It has {self._existing(path)}.")

    def _existing(self, path: str) -> str:
        """The operations at the address that the path is below."""
        address = next((it for it in ("/openai/v1", "/openai") if path.lower().startswith(it)), "/v1")
        existing = [(route.method, route.templates().get(address)) for route in self._routes]
        return ", ".join(f"{method} {template}" for method, template in existing if template)


def _pattern(template: str) -> re.Pattern[str]:
    """Matches a path; its group is the name in it."""
    pattern = re.sub(r"\{(\w+)\}", lambda name: _NAMES.get(name[1], "([^/]+)"), template)
    return re.compile(pattern, re.IGNORECASE | re.DOTALL)


# What stands in a path for a name, where that is not one segment of any text. OpenAI's API has operations where others
# have the id of a response; those that this app has not are paths that do not exist.
_NAMES: Final = {
    "model": "(.+)",
    "deployment": "(.+)",
    "response_id": "((?!(?:compact|input_tokens)$)[^/]+)",
}
