"""The JSON of the simulated model: a value for a JSON schema, the same for the same schema and prompt."""

from collections.abc import Mapping
from typing import Any

from local.model_service.text_generation import seeded_rng, topics


def value_for_schema(schema: Mapping[str, Any], prompt: str) -> Any:
    """A JSON value that is valid by a JSON schema, its strings taken from the prompt."""
    return _Generator(schema, prompt).value(schema, depth=0)


class _Generator:
    def __init__(self, root: Mapping[str, Any], prompt: str) -> None:
        self.root = root
        self.rng = seeded_rng(prompt)
        self.topics = topics(prompt) or ["river", "garden", "lantern"]
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
                return self.value((scalars or schema[word])[0] if depth > 4 else schema[word][0], depth + 1)
        if "allOf" in schema:
            merged: dict[str, Any] = {}
            for one in schema["allOf"]:
                merged.update(self.resolve(one["$ref"]) if "$ref" in one else one)
            return self.value(merged, depth + 1)
        kind = schema.get("type", "object" if "properties" in schema else "string")
        if isinstance(kind, list):
            kind = next((one for one in kind if one != "null"), "null")
        match kind:
            case "object":
                return {name: self.value(one, depth + 1) for name, one in schema.get("properties", {}).items()}
            case "array":
                least = int(schema.get("minItems", 0 if depth > 6 else min(2, int(schema.get("maxItems", 2)))))
                return [self.value(schema.get("items", {}), depth + 1) for _ in range(least)]
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

    def number(self, schema: Mapping[str, Any], *, whole: bool) -> float:
        least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        most = max(least, schema.get("maximum", schema.get("exclusiveMaximum", least + 41) - 1))
        if whole:
            step = int(schema.get("multipleOf", 1))
            return -(-self.rng.randint(int(least), int(most)) // step) * step
        return round(self.rng.uniform(least, most), 2)

    def string(self, schema: Mapping[str, Any]) -> str:
        fixed = _FORMATS.get(str(schema.get("format")))
        if fixed:
            return fixed
        text = self.topics[self.strings % len(self.topics)]
        self.strings += 1
        least = int(schema.get("minLength", 0))
        while len(text) < least:
            text += " " + text
        return text[: max(least, int(schema.get("maxLength", 200)))]


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
