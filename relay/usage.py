"""The token counts of one answer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted by the model service; `reasoning_tokens` and `cached_tokens` are parts of the two others."""

    input_tokens: int
    output_tokens: int
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None

    def members(self) -> dict[str, int]:
        """The counts as JSON members, unknown ones left out."""
        counts = {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "cached_tokens": self.cached_tokens,
        }
        return {name: count for name, count in counts.items() if count is not None}
