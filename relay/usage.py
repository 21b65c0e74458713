"""The token counts of one answer."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens counted by the model service; `reasoning_tokens` are a part of the output.

    `cached_tokens`, read from the service's cache, and `cache_write_tokens`, written to it, are parts of the input.
    """

    input_tokens: int
    output_tokens: int
    reasoning_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None

    def members(self) -> dict[str, int]:
        """The counts as JSON members, unknown ones left out."""
        counts = {
            "input_tokens": self.input_tokens,
            "output_tokens": self.output_tokens,
            "reasoning_tokens": self.reasoning_tokens,
            "cached_tokens": self.cached_tokens,
            "cache_write_tokens": self.cache_write_tokens,
        }
        return {name: count for name, count in counts.items() if count is not None}
