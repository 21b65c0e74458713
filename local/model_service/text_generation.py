"""The text of the simulated model: an answer that fits the prompt, the same for the same prompt, cut into tokens."""

import base64
import binascii
import hashlib
import json
import random
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

MAX_COUNT = 200_000  # the largest count ("N words", "count to N") that an answer follows

type Message = Mapping[str, Any]


def compose(messages: Sequence[Message], *, variant: int = 0) -> str:
    """The answer to a conversation; `variant` makes the choices of one request differ."""
    prompt = last_user_text(messages)
    rng = seeded_rng(messages, variant)
    exact = re.match(r"\s*(?:please\s+)?(?:(?:say|repeat|echo)\s*:|echo\b)[ ]?(.*)", prompt, re.DOTALL | re.IGNORECASE)
    if exact:
        return exact[1]
    prose = _Prose(rng, topics(prompt))
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


def sentence(messages: Sequence[Message], subject: str) -> str:
    """One sentence, the same for the same conversation and subject."""
    return _Prose(seeded_rng([messages, subject]), topics(last_user_text(messages))).sentence()


def answer_from_tools(messages: Sequence[Message]) -> str:
    """The answer to the results of tools: it quotes the last one, cut to 200 characters."""
    result = _text_of(messages[-1].get("content"))
    return f"The tool returned: {result[:200]}. " + _Prose(seeded_rng(messages), topics(result)).sentences(2)


def last_user_text(messages: Sequence[Message]) -> str:
    """The last message of the user, the text parts of a list joined by a newline."""
    for message in reversed(messages):
        if message.get("role") == "user":
            return _text_of(message.get("content"))
    return _text_of(messages[-1].get("content")) if messages else ""


def tokenize(text: str) -> list[str]:
    """Cut text as a model's tokenizer would: a leading space belongs to its word, long words come in pieces.

    The tokens joined again are the text, for any text.
    """
    tokens: list[str] = []
    for piece in _PIECES.findall(text):
        if len(piece) <= 8:
            tokens.append(piece)
        else:
            tokens.append(piece[:5])
            tokens.extend(piece[at : at + 4] for at in range(5, len(piece), 4))
    return tokens


# Every character is part of one of: a word with the space before it, digits by threes, signs, white space.
_PIECES = re.compile(r" ?[^\W\d_]+| ?\d{1,3}| ?[^\s\w]{1,4}|\s+?(?= ?\S)|\s+|_")


def count_prompt_tokens(messages: Sequence[Message]) -> int:
    """How many tokens the conversation costs: its text, and four for each message."""
    return 3 + sum(4 + len(tokenize(_text_of(message.get("content")))) for message in messages)


def seeded_rng(value: object, variant: int = 0) -> random.Random:
    """A random number generator with the same seed for the same value in every process (unlike `hash()`)."""
    digest = hashlib.sha256(json.dumps([value, variant], sort_keys=True, default=str).encode()).digest()
    return random.Random(digest)


def topics(prompt: str) -> list[str]:
    """The words of a prompt that an answer can repeat, each once, in their order, at most eight."""
    words = re.findall(r"[^\W\d_]{4,20}", prompt)
    return list(dict.fromkeys(word for word in words if word.lower() not in _STOP_WORDS))[:8]


# ── Prose ────────────────────────────────────────────────────────────────────────────────────────────────────────────


class _Prose:
    """Sentences from templates. A slot is one word, so the length is known and any count of words can be reached."""

    def __init__(self, rng: random.Random, topic_words: Sequence[str]) -> None:
        self.rng = rng
        self.nouns = [*_NOUNS, *(word.lower() if word.istitle() else word for word in topic_words)]

    def sentence(self, length: int | None = None) -> str:
        templates = _TEMPLATES if length is None else _TEMPLATES_BY_LENGTH[length]
        template = self.rng.choice(templates)
        return re.sub(r"\b[ANVD]\b", self._fill, template)

    def _fill(self, slot: re.Match[str]) -> str:
        words = {"A": _ADJECTIVES, "N": self.nouns, "V": _VERBS, "D": _ADVERBS}[slot[0]]
        return self.rng.choice(words)

    def sentences(self, count: int) -> str:
        return " ".join(self.sentence() for _ in range(count))

    def words(self, count: int) -> str:
        """Exactly `count` words, as whole sentences."""
        if count < _SHORTEST:
            return _BRIEF[count]
        parts: list[str] = []
        while count:
            lengths = [one for one in _TEMPLATES_BY_LENGTH if one == count or one <= count - _SHORTEST]
            length = self.rng.choice(lengths)
            parts.append(self.sentence(length))
            count -= length
        return " ".join(parts)

    def heading(self) -> str:
        return f"# The {self.rng.choice(_ADJECTIVES)} {self.rng.choice(self.nouns)}"

    def bullets(self, count: int) -> str:
        lines = (f"- **{self.rng.choice(self.nouns)}**: {self.sentence()}" for _ in range(count))
        return "## What to notice\n\n" + "\n".join(lines)

    def numbered(self, count: int) -> str:
        return "\n".join(f"{position}. {self.sentence()}" for position in range(1, count + 1))

    def table(self, rows: int) -> str:
        lines = ["| name | kind | count |", "|---|---|---:|"]
        for _ in range(rows):
            lines.append(
                f"| {self.rng.choice(self.nouns)} | {self.rng.choice(_ADJECTIVES)} | {self.rng.randint(1, 99)} |"
            )
        return "\n".join(lines)

    def code(self) -> str:
        name = self.rng.choice(_NOUNS).translate(_PLAIN)
        lines = (
            "```python",
            f"def {name}(count: int) -> list[str]:",
            f'    """Name each {name}, from one to `count`."""',
            f'    return [f"{name} {{number}}" for number in range(1, count + 1)]',
            "```",
        )
        return "\n".join(lines)


def _remarks(messages: Sequence[Message], prompt: str, prose: _Prose) -> Iterable[str]:
    """What proves that the whole conversation arrived: its subject, its turns, its pictures and files."""
    subjects = topics(prompt)[:3]
    if subjects:
        yield f"You ask about {', '.join(subjects)}."
    earlier = [message for message in messages if message.get("role") == "user"][:-1]
    if earlier:
        recalled = topics(_text_of(earlier[0].get("content")))
        beginning = f", and that it began with {recalled[0]}" if recalled else ""
        yield f"I remember {len(earlier)} earlier turn{'s' if len(earlier) > 1 else ''}{beginning}."
    pictures = [
        part for message in messages for part in _parts(message.get("content")) if part.get("type") == "image_url"
    ]
    if pictures:
        yield f"I see {len(pictures)} picture{'s' if len(pictures) > 1 else ''} ({', '.join(map(_picture, pictures))})."
    files = [part for message in messages for part in _parts(message.get("content")) if part.get("type") == "file"]
    if files:
        yield f"I see {len(files)} file{'s' if len(files) > 1 else ''} ({', '.join(map(_file, files))})."
    if not subjects and not earlier and not pictures and not files:
        yield prose.sentence()


def _picture(part: Mapping[str, Any]) -> str:
    address = part.get("image_url")
    url = str(address.get("url", "") if isinstance(address, Mapping) else address)
    inline = re.match(r"data:([\w/+.-]+);base64,(.*)", url, re.DOTALL)
    if not inline:
        return "by its URL"
    try:
        return f"{inline[1]}, {len(base64.b64decode(inline[2], validate=True))} bytes"
    except binascii.Error:
        return f"{inline[1]}, unreadable"


def _file(part: Mapping[str, Any]) -> str:
    file = part.get("file")
    members = file if isinstance(file, Mapping) else {}
    return str(members.get("filename") or members.get("file_id") or "by its URL")


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
    return min(count, MAX_COUNT) or None


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_NUMBERS = dict(zip(_words("one two three four five six seven eight nine ten"), range(1, 11), strict=True))
_NUMBERS |= {"twelve": 12, "fifteen": 15, "twenty": 20, "thirty": 30, "fifty": 50, "hundred": 100, "thousand": 1000}

_STOP_WORDS = frozenset(
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
_TEMPLATES = (
    "Every N V the N.",
    "The A N V it D.",
    "Everyone here V the A N.",
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
_TEMPLATES_BY_LENGTH: dict[int, list[str]] = {}
for _template in _TEMPLATES:
    _TEMPLATES_BY_LENGTH.setdefault(len(_template.split()), []).append(_template)
_SHORTEST = 5  # every length from here on can be reached: the templates cover 5 to 16 words without a gap
_BRIEF = ("", "Gladly.", "Rivers remember.", "Rivers keep moving.", "Morning light comes slowly.")
