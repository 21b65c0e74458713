"""The token counts of an answer."""

import pytest

from relay.usage import Usage


@pytest.mark.parametrize(
    ("usage", "members"),
    [
        (Usage(1, 2), {"input_tokens": 1, "output_tokens": 2}),
        (Usage(0, 0, 0, 0), {"input_tokens": 0, "output_tokens": 0, "reasoning_tokens": 0, "cached_tokens": 0}),
        (Usage(1, 2, 3), {"input_tokens": 1, "output_tokens": 2, "reasoning_tokens": 3}),
        (Usage(1, 2, None, None, 5), {"input_tokens": 1, "output_tokens": 2, "cache_write_tokens": 5}),
        (Usage(1, 2, None, 4), {"input_tokens": 1, "output_tokens": 2, "cached_tokens": 4}),
    ],
)
def test_unknown_counts_are_left_out(usage: Usage, members: dict[str, int]) -> None:
    assert usage.members() == members
