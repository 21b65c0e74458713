"""The words of the simulated model: an answer that fits the prompt, the same for the same prompt, cut into tokens."""

import base64
import binascii
import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MOST = 200_000  # the largest count ("N words", "count to N") that is taken at its word

type Message = Mapping[str, Any]


def compose(messages: Sequence[Message], *, variant: int = 0) -> str:
    """The answer to a conversation; `variant` tells the choices of one request apart."""
    prompt = last_user_text(messages)
    dice = dice_for(messages, variant)
    exact = re.match(r"\s*(?:please\s+)?(?:(?:say|repeat|echo)\s*:|echo\b)[ ]?(.*)", prompt, re.DOTALL | re.IGNORECASE)
    if exact:
        return exact[1]
    prose = _Prose(dice, topics(prompt))
    if asked := _number(r"count\s+(?:up\s+)?to\s+{N}", prompt):
        return ", ".join(str(number) for number in range(1, asked + 1))
    if re.search(r"\bmarkdown\b", prompt, re.IGNORECASE):
        return "\n\n".join((prose.heading(), prose.sentences(2), prose.bullets(4), prose.table(3), prose.code()))
    if re.search(r"\btable\b", prompt, re.IGNORECASE):
        return prose.sentences(1) + "\n\n" + prose.table(_number(r"{N}\s+rows?\b", prompt) or 4)
    if re.search(r"\b(?:code|function|program|script)\b", prompt, re.IGNORECASE):
        return prose.sentences(1) + "\n\n" + prose.code() + "\n\n" + prose.sentences(1)
    if asked := _number(r"\blist\s+(?:of\s+)?{N}", prompt) or _number(r"{N}[- ](?:item|bullet|point)s?\b", prompt):
        return prose.numbered(asked)
    words = _number(r"{N}[- ]+words?\b", prompt)
    if asked := _number(r"{N}[- ]+paragraphs?\b", prompt):
        return "\n\n".join(prose.words(words) if words else prose.sentences(4) for _ in range(asked))
    if words:
        return prose.words(words)
    if asked := _number(r"{N}[- ]+sentences?\b", prompt):
        return prose.sentences(asked)
    return " ".join((*_remarks(messages, prompt, prose), prose.sentences(4), "Ask on, and there is more 🌿."))


def after_tools(messages: Sequence[Message]) -> str:
    """The answer once the tools have spoken: it quotes the last result, cut to 200 characters."""
    result = _text_of(messages[-1].get("content"))
    return f"The tool says: {result[:200]}. " + _Prose(dice_for(messages), topics(result)).sentences(2)


def last_user_text(messages: Sequence[Message]) -> str:
    """What the user said last, the text parts of a list joined by a newline."""
    for message in reversed(messages):
        if message.get("role") == "user":
            return _text_of(message.get("content"))
    return _text_of(messages[-1].get("content")) if messages else ""


def tokenize(text: str) -> list[str]:
    """Cut text as a model's vocabulary would: a leading space belongs to its word, long words come in pieces.

    Joined again, the tokens are the text, whatever the text.
    """
    tokens: list[str] = []
    for piece in _PIECES.findall(text):
        if len(piece) <= 8:
            tokens.append(piece)
        else:
            tokens.append(piece[:5])
            tokens.extend(piece[at : at + 4] for at in range(5, len(piece), 4))
    return tokens


# Every character falls into one of: a word with the space before it, digits by threes, signs, white space.
_PIECES = re.compile(r" ?[^\W\d_]+| ?\d{1,3}| ?[^\s\w]{1,4}|\s+?(?= ?\S)|\s+|_")


def prompt_tokens(messages: Sequence[Message]) -> int:
    """How many tokens the conversation costs: its text, and four for each message's frame."""
    return 3 + sum(4 + len(tokenize(_text_of(message.get("content")))) for message in messages)


def dice_for(value: object, variant: int = 0) -> random.Random:
    """A source of chance that is the same for the same value in every process (unlike `hash()`)."""
    digest = hashlib.sha256(json.dumps([value, variant], sort_keys=True, default=str).encode()).digest()
    return random.Random(digest)


def topics(prompt: str) -> list[str]:
    """The words of a prompt that an answer can pick up, each once, in their order, at most eight."""
    words = re.findall(r"[^\W\d_]{4,20}", prompt)
    return list(dict.fromkeys(word for word in words if word.lower() not in _EMPTY_WORDS))[:8]


# ── JSON that fits a schema ──────────────────────────────────────────────────────────────────────────────────────────


def fitting(schema: Mapping[str, Any], prompt: str) -> Any:
    """A JSON value that fits a JSON schema, its strings taken from the prompt."""
    return _Fitting(schema, prompt).value(schema, depth=0)


class _Fitting:
    def __init__(self, root: Mapping[str, Any], prompt: str) -> None:
        self.root = root
        self.dice = dice_for(prompt)
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
            return self.dice.choice(list(schema["enum"]))
        for word in ("anyOf", "oneOf"):
            if word in schema:
                # The plainest alternative ends a schema that contains itself.
                plain = [
                    one for one in schema[word] if one.get("type") not in ("object", "array") and "$ref" not in one
                ]
                return self.value((plain or schema[word])[0] if depth > 4 else schema[word][0], depth + 1)
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
                return self.dice.random() < 0.5
            case "null":
                return None
            case _:
                return self.string(schema)

    def resolve(self, reference: str) -> Mapping[str, Any]:
        found: Any = self.root
        for step in reference.removeprefix("#").strip("/").split("/"):
            if step:
                found = found[step.replace("~1", "/").replace("~0", "~")]
        resolved: Mapping[str, Any] = found
        return resolved

    def number(self, schema: Mapping[str, Any], *, whole: bool) -> float:
        least = schema.get("minimum", schema.get("exclusiveMinimum", -1) + 1)
        most = max(least, schema.get("maximum", schema.get("exclusiveMaximum", least + 41) - 1))
        if whole:
            step = int(schema.get("multipleOf", 1))
            return -(-self.dice.randint(int(least), int(most)) // step) * step
        return round(self.dice.uniform(least, most), 2)

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


# ── Prose ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Prose:
    """Sentences out of moulds. A slot is one word, so a mould's length is known and any count of words can be met."""

    def __init__(self, dice: random.Random, topic_words: Sequence[str]) -> None:
        self.dice = dice
        self.nouns = [*_NOUNS, *(word.lower() if word.istitle() else word for word in topic_words)]

    def sentence(self, length: int | None = None) -> str:
        moulds = _MOULDS if length is None else _MOULDS_BY_LENGTH[length]
        mould = self.dice.choice(moulds)
        return re.sub(r"\b[ANVD]\b", self._fill, mould)

    def _fill(self, slot: re.Match[str]) -> str:
        words = {"A": _ADJECTIVES, "N": self.nouns, "V": _VERBS, "D": _ADVERBS}[slot[0]]
        return self.dice.choice(words)

    def sentences(self, count: int) -> str:
        return " ".join(self.sentence() for _ in range(count))

    def words(self, count: int) -> str:
        """Exactly `count` words, as whole sentences."""
        if count < _SHORTEST:
            return _BRIEF[count]
        parts: list[str] = []
        while count:
            lengths = [one for one in _MOULDS_BY_LENGTH if one == count or one <= count - _SHORTEST]
            length = self.dice.choice(lengths)
            parts.append(self.sentence(length))
            count -= length
        return " ".join(parts)

    def heading(self) -> str:
        return f"# The {self.dice.choice(_ADJECTIVES)} {self.dice.choice(self.nouns)}"

    def bullets(self, count: int) -> str:
        lines = (f"- **{self.dice.choice(self.nouns)}**: {self.sentence()}" for _ in range(count))
        return "## What to notice\n\n" + "\n".join(lines)

    def numbered(self, count: int) -> str:
        return "\n".join(f"{position}. {self.sentence()}" for position in range(1, count + 1))

    def table(self, rows: int) -> str:
        lines = ["| name | kind | count |", "|---|---|---:|"]
        for _ in range(rows):
            lines.append(
                f"| {self.dice.choice(self.nouns)} | {self.dice.choice(_ADJECTIVES)} | {self.dice.randint(1, 99)} |"
            )
        return "\n".join(lines)

    def code(self) -> str:
        name = self.dice.choice(_NOUNS).translate(_PLAIN)
        lines = (
            "```python",
            f"def {name}(count: int) -> list[str]:",
            f'    """Name each {name}, from one to `count`."""',
            f'    return [f"{name} {{number}}" for number in range(1, count + 1)]',
            "```",
        )
        return "\n".join(lines)


def _remarks(messages: Sequence[Message], prompt: str, prose: _Prose) -> Iterable[str]:
    """What shows that the conversation was read: its subject, its turns, its pictures."""
    subjects = topics(prompt)[:3]
    if subjects:
        yield f"You ask about {', '.join(subjects)}."
    earlier = [message for message in messages if message.get("role") == "user"][:-1]
    if earlier:
        recalled = topics(_text_of(earlier[0].get("content")))
        told = f", and that it began with {recalled[0]}" if recalled else ""
        yield f"I remember {len(earlier)} earlier turn{'s' if len(earlier) > 1 else ''}{told}."
    pictures = [
        part for message in messages for part in _parts(message.get("content")) if part.get("type") == "image_url"
    ]
    if pictures:
        yield f"I see {len(pictures)} picture{'s' if len(pictures) > 1 else ''} ({', '.join(map(_picture, pictures))})."
    if not subjects and not earlier and not pictures:
        yield prose.sentence()


def _picture(part: Mapping[str, Any]) -> str:
    address = part.get("image_url")
    url = str(address.get("url", "") if isinstance(address, Mapping) else address)
    inline = re.match(r"data:([\w/+.-]+);base64,(.*)", url, re.DOTALL)
    if not inline:
        return "by its address"
    try:
        return f"{inline[1]}, {len(base64.b64decode(inline[2], validate=True))} bytes"
    except binascii.Error:
        return f"{inline[1]}, unreadable"


def _parts(content: object) -> Iterable[Mapping[str, Any]]:
    return (part for part in content if isinstance(part, Mapping)) if isinstance(content, list) else ()


def _text_of(content: object) -> str:
    if isinstance(content, str):
        return content
    return "\n".join(
        str(part.get("text", "")) for part in _parts(content) if part.get("type") in ("text", "input_text")
    )


def _number(pattern: str, prompt: str) -> int | None:
    """The count that `{N}` in the pattern stands for, in figures or as a word; none when it isn't asked for."""
    found = re.search(pattern.replace("{N}", rf"\b(\d{{1,9}}|{'|'.join(_NUMBERS)})"), prompt, re.IGNORECASE)
    if not found:
        return None
    count = int(found[1]) if found[1].isdecimal() else _NUMBERS[found[1].lower()]
    return min(count, MOST) or None


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NUMBERS = dict(zip(_words("one two three four five six seven eight nine ten"), range(1, 11), strict=True))
_NUMBERS |= {"twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30, "fifty": 50, "hundred": 100, "thousand": 1000}

_EMPTY_WORDS = frozenset(
    _words("""
    about above after again also answer anything been before below between both could describe does down each explain
    from give have here into just like list make many more most much must only other over paragraph please random same
    sentence sentences should show some such tell than that their them then there these they thing this those through
    very want were what when where which while will with word words would write your
    """)
)

_PLAIN = str.maketrans("éöåñ", "eoan")  # a name in code that any reader can type

_NOUNS = _words("""
    river lantern garden harbour café window orchard letter kettle mountain bridge smörgåsbord violin market shadow
    meadow engine library compass jalapeño island sparrow ladder theatre winter blanket carpenter mirror thunder
""")
_ADJECTIVES = _words("""
    quiet golden naïve narrow patient distant crooked generous silver curious weathered gentle hollow bright stubborn
""")
_VERBS = _words("""
    remembers follows carries answers crosses gathers watches shelters repairs surprises paints borrows
""")
_ADVERBS = _words("slowly quietly gladly twice again tonight together gently everywhere patiently")

# A is an adjective, N a noun, V a verb, D an adverb; the one-letter words "A" and "I" are therefore not used as such.
_MOULDS = (
    "Every N V the N.",
    "The A N V it D.",
    "Nobody here V the A N.",
    "The N V the A N D.",
    "Beyond the A N, the N V.",
    "When the N is A, it V the N.",
    "In spring the N V the A N.",
    "Some say that the N V the A N.",
    "The A N and the A N meet here D.",
    "On most mornings the N V the A N D.",
    "If the N is A enough, the whole N V it.",
    "The N near the A N V what the N left behind.",
    "It was the A N, not the A N, that came back D.",
    "Between the N and the N there is the A N that V everything.",
    "The N V the A N, and the N V the A N in return.",
    "After the rain the A N V the N, while the A N V nothing at all.",
    "People who know the N will tell you that the A N V it D, whatever the weather.",
)
_MOULDS_BY_LENGTH: dict[int, list[str]] = {}
for _mould in _MOULDS:
    _MOULDS_BY_LENGTH.setdefault(len(_mould.split()), []).append(_mould)
_SHORTEST = 5  # every length from here on can be met: the moulds cover 5 to 16 words without a gap
_BRIEF = ("", "Gladly.", "Rivers remember.", "Rivers keep moving.", "Morning light comes slowly.")
