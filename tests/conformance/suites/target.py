"""Where the app is, and what the suites ask it."""

import os
from typing import Any, Final

URL: Final = os.environ["RELAY_URL"]
MODEL: Final = "gpt-5.4-mini"
REASONING: Final = "o3-reasoning"
EMBEDDINGS: Final = "text-embedding-3-small"
TEXT: Final = "Grün 🌿 is\na colour, and \u2028 so on."
PROMPT: Final = f"say: {TEXT}"  # the simulated model answers with the text
PARAMETERS: Final[dict[str, Any]] = {
    "type": "object",
    "properties": {"city": {"type": "string"}},
    "required": ["city"],
    "additionalProperties": False,
}
