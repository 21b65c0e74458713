"""Asks a deployed app for a paragraph, and fails unless its words arrive one by one.

RELAY_FUNCTION_KEY=... smoke.py https://HOST        (or RELAY_TOKEN=..., with Entra sign-in)
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

PROMPT = "write a random 100 word paragraph"

# Fewer arrivals, or all of them at once, is a buffer somewhere on the way, not a stream. A paragraph of 100 words is
# some 130 tokens; even a model of 300 tokens a second takes 0.4 s for them.
LEAST_ARRIVALS = 5
LEAST_SECONDS = 0.2


class SmokeError(Exception):
    """The app did not stream; `passing` when a freshly assigned role or a cold start may be why."""

    def __init__(self, message: str, *, passing: bool = False) -> None:
        super().__init__(message)
        self.passing = passing


def check(url: str, credential: Mapping[str, str], *, timeout: float = 120.0) -> str:
    """Stream one answer from `url`, bearing `timeout` seconds of silence, and return one line of what was seen.

    Raise `SmokeError` when it is refused, cut off, or comes in one piece.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise SmokeError(f"{url} is not an address.")
    kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = kind(parts.hostname, parts.port, timeout=timeout)
    try:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **credential}
        started = time.monotonic()
        connection.request("POST", "/stream", json.dumps({"input": PROMPT}), headers)
        response = connection.getresponse()
        if response.status != http.client.OK:
            said = response.read(500).decode(errors="replace")
            raise SmokeError(
                f"status {response.status}: {said}", passing=response.status in (401, 404, 429, 502, 503, 504)
            )
        if not (response.getheader("Content-Type") or "").startswith("text/event-stream"):
            raise SmokeError(f"the answer is {response.getheader('Content-Type')}, not text/event-stream.")
        return _judge(_arrivals(response, started))
    except (OSError, http.client.HTTPException) as error:
        raise SmokeError(f"{type(error).__name__}: {error}", passing=True) from error
    finally:
        connection.close()


def _arrivals(response: http.client.HTTPResponse, started: float) -> Iterator[tuple[float, str, dict[str, object]]]:
    """Each event with the second in which it arrived; those that one read brought share it."""
    unread = b""
    while chunk := response.read1(65536):
        now = time.monotonic() - started
        *events, unread = (unread + chunk).split(b"\n\n")
        for event in events:
            fields = [line.partition(": ") for line in event.decode().splitlines() if not line.startswith(":")]
            kind = next((value for name, _, value in fields if name == "event"), "message")
            text = "".join(value for name, _, value in fields if name == "data")
            if text:
                yield now, kind, json.loads(text)


def _judge(events: Iterator[tuple[float, str, dict[str, object]]]) -> str:
    seconds: list[float] = []
    words, ends = "", []
    for second, kind, content in events:
        if kind == "message":
            seconds.append(second)
            words += str(content.get("text", ""))
        else:
            ends.append((kind, content))
    if [kind for kind, _ in ends] != ["done"]:
        failed = next((content for kind, content in ends if kind == "error"), None)
        # The deployment's role may be minutes from being effective, and then the stream says so as an event.
        raise SmokeError(f"the stream ended with {ends or 'nothing'}.", passing=failed is not None)
    arrivals = len(set(seconds))
    if arrivals < LEAST_ARRIVALS or seconds[-1] - seconds[0] < LEAST_SECONDS:
        raise SmokeError(
            f"the words did not arrive one by one: {len(seconds)} events in {arrivals} arrivals over "
            f"{seconds[-1] - seconds[0] if seconds else 0:.2f} s. Something on the way holds them back."
        )
    return f"{len(words.split())} words in {arrivals} arrivals, from {seconds[0]:.2f} s to {seconds[-1]:.2f} s"


def main(words: list[str] | None = None) -> int:
    """0 when words streamed; 1 when not, with the reason on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--attempts", type=int, default=6, help="tries while a role or a cold start may be the reason")
    parser.add_argument("--pause", type=float, default=30.0, help="seconds between them")
    asked = parser.parse_args(words)
    # From the environment, so that neither stands in the list of processes nor in a pipeline's log.
    credential = {}
    if key := os.environ.get("RELAY_FUNCTION_KEY"):
        credential["x-functions-key"] = key
    if token := os.environ.get("RELAY_TOKEN"):
        credential["Authorization"] = f"Bearer {token}"
    for attempt in range(1, asked.attempts + 1):
        try:
            sys.stdout.write(f"{check(asked.url, credential)}\n")
        except SmokeError as error:
            sys.stderr.write(f"attempt {attempt}: {error}\n")
            if not error.passing or attempt == asked.attempts:
                return 1
            time.sleep(asked.pause)
        else:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
