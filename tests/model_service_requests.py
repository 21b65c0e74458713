"""Requests to the simulated model service whose responses may break, and the names of its faults with arguments."""

from collections.abc import Mapping
from typing import Any

import aiohttp

from local.model_service import faults


def example_of(fault: faults.Fault) -> str:
    """A name that asks for the fault, with short arguments."""
    argument = "-0.02" if fault.name.startswith("stall") else "-2"
    return "fault-" + fault.name + argument * len(fault.defaults)


async def read_until_broken(
    http: aiohttp.ClientSession, url: str, body: Any, headers: Mapping[str, str] | None = None
) -> tuple[bytes, bool]:
    """The part of a response that arrives, and whether the connection ended before the response was complete."""
    arrived = b""
    try:
        async with http.post(url, json=body, headers=headers) as response:
            async for piece in response.content.iter_any():
                arrived += piece
    except (
        aiohttp.ClientPayloadError,
        aiohttp.ClientResponseError,
        aiohttp.ServerDisconnectedError,
        aiohttp.ClientOSError,
    ):
        return arrived, True
    return arrived, False
