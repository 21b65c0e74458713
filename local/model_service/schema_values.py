"""The JSON of the simulated model: a value for a JSON schema, the same for the same schema and prompt."""

import math
import re
from collections.abc import Mapping
from typing import Any

from local.model_service.encoding import as_json
from local.model_service.patterns import text_for_pattern
from local.model_service.text_generation import seeded_rng, topics

_TRIES = 50  # for another item where all must be different
_MAX_NUMBERS = 8  # of a prompt that are used
_NUMBER = re.compile(r"(?<![\w.-])-?\d{1,15}(?:\.\d{1,10})?(?![\w.]*\w)")
_QUOTED = re.compile(
    r"""(?<!\w)(?:'([^'\n]{1,80})'|"([^"\n]{1,80})"|`([^`\n]{1,80})`|“([^”\n]{1,80})”|«([^»\n]{1,80})»)(?!\w)"""
)


def value_for_schema(schema: Mapping[str, Any], prompt: str) -> Any:
    """A JSON value that is valid by a JSON schema, its strings and numbers taken from the prompt where they fit.

    A schema that nothing is valid by raises `ValueError` or another error.
    """
    return _Generator(schema, prompt).value(schema, depth=0)


class _Generator:
    def __init__(self, root: Mapping[str, Any], prompt: str) -> None:
        self.root = root
        self.rng = seeded_rng(prompt)
        self.topics = [*quoted(prompt), *topics(prompt)] or ["river", "garden", "lantern"]
        self.numbers = [float(number) for number in _NUMBER.findall(prompt)[:_MAX_NUMBERS]]
        self.strings = 0

    def value(self, schema: Mapping[str, Any] | bool, depth: int) -> Any:
        if isinstance(schema, bool):
            return None
        if "$ref" in schema:
            return self.value(self.resolve(str(schema["$ref"])), depth + 1)
        if "const" in schema:
            return schema["const"]
        if "enum" in schema:
            return self.rng.choice(list(schema["enum"]))
        for word in ("anyOf", "oneOf"):
            if word in schema:
                # A scalar alternative ends a schema that contains itself.
                scalars = [
                    one for one in schema[word] if one.get("type") not in ("object", "array") and "$ref" not in one
                ]
                chosen = (scalars or schema[word])[0] if depth > 4 else schema[word][0]
                return self.value(self.merged(_without(schema, word), chosen), depth + 1)
        if "allOf" in schema:
            return self.value(self.merged(_without(schema, "allOf"), *schema["allOf"]), depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        match kind:
            case "object":
                return self.object(schema, depth)
            case "array":
                return self.array(schema, depth)
            case "integer" | "number":
                return self.number(schema, whole=kind == "integer")
            case "boolean":
                return self.rng.random() < 0.5
            case "null":
                return None
            case _:
                return self.string(schema)

    def resolve(self, reference: str) -> Mapping[str, Any]:
        value: Any = self.root
        for step in reference.removeprefix("#").strip("/").split("/"):
            if step:
                value = value[step.replace("~1", "/").replace("~0", "~")]
        resolved: Mapping[str, Any] = value
        return resolved

    def merged(self, *schemas: Mapping[str, Any]) -> Mapping[str, Any]:
        """One schema in place of several that hold together; the definitions stay where they are."""
        if len([one for one in schemas if one]) == 1:
            return next(one for one in schemas if one)
        merged: dict[str, Any] = {}
        for schema in schemas:
            one = self.resolve(schema["$ref"]) if "$ref" in schema else schema
            properties = {**merged.get("properties", {}), **one.get("properties", {})}
            required = [*merged.get("required", ()), *one.get("required", ())]
            merged.update(one)
            merged |= {"properties": properties} if properties else {}
            merged |= {"required": required} if required else {}
        return merged

    def object(self, schema: Mapping[str, Any], depth: int) -> dict[str, Any]:
        made = {name: self.value(one, depth + 1) for name, one in schema.get("properties", {}).items()}
        others = schema.get("additionalProperties", True)
        missing = [name for name in schema.get("required", ()) if name not in made]
        for name in (*missing, *(f"member{number}" for number in range(1, int(schema.get("minProperties", 0)) + 1))):
            if name in missing or len(made) < int(schema.get("minProperties", 0)):
                made[name] = self.value(others if isinstance(others, Mapping) else {}, depth + 1)
        return made

    def array(self, schema: Mapping[str, Any], depth: int) -> list[Any]:
        first = schema.get("prefixItems", ())
        least = int(schema.get("minItems", 0 if depth > 6 else min(2, int(schema.get("maxItems", 2)))))
        items = [self.value(one, depth + 1) for one in first[: max(least, len(first))]]
        rest = schema.get("items", {})
        if rest is False:
            return items
        while len(items) < least:
            items.append(self.other(rest, items, depth) if schema.get("uniqueItems") else self.value(rest, depth + 1))
        return items

    def other(self, schema: Mapping[str, Any], items: list[Any], depth: int) -> Any:
        """An item that is not among the items yet."""
        known = {as_json(item) for item in items}
        for _ in range(_TRIES):
            item = self.value(schema, depth + 1)
            if as_json(item) not in known:
                return item
        raise ValueError("there are not enough different items")

    def number(self, schema: Mapping[str, Any], *, whole: bool) -> float:
        low, high = schema.get("minimum"), schema.get("maximum")
        above, below = schema.get("exclusiveMinimum", -math.inf), schema.get("exclusiveMaximum", math.inf)
        least = max(-math.inf if low is None else low, above)
        most = min(math.inf if high is None else high, below)
        step = schema.get("multipleOf", 1 if whole else None)
        for place, number in enumerate(self.numbers):
            if least <= number <= most and above < number < below and (step is None or not number % step):
                del self.numbers[place]
                return int(number) if number.is_integer() else number
        if least == -math.inf:
            least = 0 if most >= 0 else most - 40
        most = min(most, least + 40)
        if step is not None:
            places = range(math.ceil(least / step), math.floor(most / step) + 1)
            multiple: float = step * self.rng.choice([place for place in places if above < place * step < below])
            return multiple
        rounded = round(self.rng.uniform(least, most), 2)
        middle: float = (least + most) / 2
        return rounded if least <= rounded <= most and above < rounded < below else middle

    def string(self, schema: Mapping[str, Any]) -> str:
        if "pattern" in schema:
            return text_for_pattern(str(schema["pattern"]), self.rng)
        fixed = _FORMATS.get(str(schema.get("format")))
        if fixed:
            return fixed
        text = self.topics[self.strings % len(self.topics)]
        if self.strings >= len(self.topics):
            text += f" {self.strings // len(self.topics) + 1}"
        self.strings += 1
        least = int(schema.get("minLength", 0))
        while len(text) < least:
            text += " " + text
        return text[: max(least, int(schema.get("maxLength", 200)))]


def quoted(prompt: str) -> list[str]:
    """What stands in quotation marks in a prompt, in its order, at most eight."""
    found = ("".join(groups) for groups in _QUOTED.findall(prompt))
    return [text for text in found if text.strip()][:8]


def _without(schema: Mapping[str, Any], word: str) -> Mapping[str, Any]:
    """The schema without a keyword, and without what is no constraint."""
    return {name: one for name, one in schema.items() if name not in (word, "$defs", "definitions", "description")}


_FORMATS = {
    "date-time": "2026-03-17T09:30:00Z",
    "date": "2026-03-17",
    "time": "09:30:00Z",
    "duration": "PT45M",
    "email": "rosa@example.com",
    "hostname": "example.com",
    "ipv4": "192.0.2.7",
    "ipv6": "2001:db8::7",
    "uri": "https://example.com/",
    "uuid": "6f1f0c9e-7a0b-4c55-9d7e-0a4a4a2f9b11",
}
