"""Paths and methods of HTTP functions, by the rules of ASP.NET's route templates."""

import re

from local.functions_host.worker import Function

# ASP.NET's inline constraints that are checked here; any other one counts as satisfied.
_CONSTRAINTS = {"int": r"-?\d+", "long": r"-?\d+", "alpha": r"[A-Za-z]+", "guid": r"[0-9A-Fa-f-]{32,36}"}
_PARAMETER = re.compile(r"\{(?P<catch_all>\*{0,2})(?P<name>\w+)(?::(?P<constraint>\w+)[^}?]*)?(?P<optional>\??)\}")


class Route:
    """Path and methods of one HTTP function."""

    def __init__(self, function: Function, prefix: str) -> None:
        trigger = function.trigger
        template = str(trigger.get("route") or function.name).strip("/")
        self.function = function
        self.path = "/" + "/".join(part for part in (prefix, template) if part)
        self.methods = tuple(str(method).upper() for method in trigger.get("methods") or ())
        self.anonymous = str(trigger.get("authLevel", "function")).lower() == "anonymous"
        pattern, rank = "", []
        for segment in self.path.strip("/").split("/"):
            parameter = _PARAMETER.fullmatch(segment)
            if parameter is None:
                pattern += "/" + re.escape(segment)
                rank.append(0)
            elif parameter["catch_all"]:
                pattern += f"(?:/(?P<{parameter['name']}>(?s:.*)))?"
                rank.append(2)
            else:
                value = f"/(?P<{parameter['name']}>{_CONSTRAINTS.get(parameter['constraint'] or '', '[^/]+')})"
                pattern += f"(?:{value})?" if parameter["optional"] else value
                rank.append(1)
        # Routes are tried in the order of their ranks: a literal segment before a parameter before a catch-all.
        self.rank = tuple(rank)
        self._pattern = re.compile(pattern, re.IGNORECASE)

    def match(self, method: str, path: str) -> dict[str, str] | None:
        """The route's parameters if the request is this function's, else None; `path` is decoded except for `%2F`."""
        if self.methods and method not in self.methods:
            return None
        match = self._pattern.fullmatch(path.rstrip("/") or "/")
        if match is None:
            return None
        return {name: value for name, value in match.groupdict().items() if value is not None}
