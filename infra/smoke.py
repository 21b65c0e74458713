"""Smoke test of a deployed app: requests a paragraph and fails unless it is streamed.

RELAY_FUNCTION_KEY=... smoke.py https://HOST        (with Entra sign-in: RELAY_TOKEN=...)
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

# An answer in fewer reads, or within a shorter time, was buffered somewhere between the model and this machine. A
# paragraph of 100 words is about 130 tokens; even at 300 tokens a second these take 0.4 s.
MIN_READS = 5
MIN_SECONDS = 0.2


class SmokeTestError(Exception):
    """The app did not stream. `transient`: a recent role assignment or a cold start may be the cause, so retry."""

    def __init__(self, message: str, *, transient: bool = False) -> None:
        super().__init__(message)
        self.transient = transient


def check(url: str, credential: Mapping[str, str], *, timeout: float = 120.0) -> str:
    """Stream one answer from `url` and return a one-line summary.

    `timeout`: the seconds to wait for each read. Raises `SmokeTestError` when the request is rejected, or the answer is
    cut off or not streamed; where the app takes no function key, since its callers have keys of their own, the summary
    says so.
    """
    parts = urlsplit(url)
    if parts.scheme not in ("https", "http") or not parts.hostname:
        raise SmokeTestError(f"{url} is not an http or https URL.")
    connection_class = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
    connection = connection_class(parts.hostname, parts.port, timeout=timeout)
    try:
        headers = {"Content-Type": "application/json", "Accept": "text/event-stream", **credential}
        started = time.monotonic()
        # Behind a gateway the app is below a path of its own.
        connection.request("POST", f"{parts.path.rstrip('/')}/stream", json.dumps({"input": PROMPT}), headers)
        response = connection.getresponse()
        if response.status != http.client.OK:
            body = response.read(500).decode(errors="replace")
            if "x-functions-key" in credential and '"code":"invalid_api_key"' in body:
                # A pipeline has the function key, which an app with named callers does not take. Their keys are stored
                # nowhere; that the app itself refuses this one shows that it is up.
                return "not tested: the app takes its callers' keys only; to test it, set RELAY_FUNCTION_KEY to one"
            raise SmokeTestError(
                f"status {response.status}: {body}", transient=response.status in (401, 404, 429, 502, 503, 504)
            )
        if not (response.getheader("Content-Type") or "").startswith("text/event-stream"):
            raise SmokeTestError(f"the content type is {response.getheader('Content-Type')}, not text/event-stream.")
        return _summarize(_read_events(response, started))
    except (OSError, http.client.HTTPException) as error:
        raise SmokeTestError(f"{type(error).__name__}: {error}", transient=True) from error
    finally:
        connection.close()


def _read_events(response: http.client.HTTPResponse, started: float) -> Iterator[tuple[float, str, dict[str, object]]]:
    """Each event's arrival time in seconds since `started`, type and data; events of one read have the same time."""
    unparsed = b""
    while chunk := response.read1(65536):
        elapsed = time.monotonic() - started
        *events, unparsed = (unparsed + chunk).split(b"\n\n")
        for event in events:
            fields = [line.partition(": ") for line in event.decode().splitlines() if not line.startswith(":")]
            event_type = next((value for name, _, value in fields if name == "event"), "message")
            data = "".join(value for name, _, value in fields if name == "data")
            if data:
                yield elapsed, event_type, json.loads(data)


def _summarize(events: Iterator[tuple[float, str, dict[str, object]]]) -> str:
    """One line about the answer; raises `SmokeTestError` when it is incomplete or was not streamed."""
    times: list[float] = []
    text, final_events = "", []
    for elapsed, event_type, data in events:
        if event_type == "message":
            times.append(elapsed)
            text += str(data.get("text", ""))
        else:
            final_events.append((event_type, data))
    final_types = [event_type for event_type, _ in final_events]
    if final_types != ["done"]:
        # A role assignment that is not effective yet can also be reported as an error event.
        raise SmokeTestError(f"the stream ended with {final_events or 'nothing'}.", transient="error" in final_types)
    reads = len(set(times))
    if reads < MIN_READS or times[-1] - times[0] < MIN_SECONDS:
        raise SmokeTestError(
            f"the answer was not streamed: {len(times)} events in {reads} reads over "
            f"{times[-1] - times[0] if times else 0:.2f} s. Something between the app and this machine buffers it."
        )
    return f"{len(text.split())} words in {reads} reads, from {times[0]:.2f} s to {times[-1]:.2f} s"


def main(arguments: list[str] | None = None) -> int:
    """Return 0 when the answer was streamed, otherwise 1 with the reason on stderr."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("url")
    parser.add_argument("--attempts", type=int, default=6, help="attempts while the failure may be transient")
    parser.add_argument("--pause", type=float, default=30.0, help="seconds between attempts")
    options = parser.parse_args(arguments)
    # From the environment, so that they appear neither in the process list nor in a pipeline's log.
    credential = {}
    if key := os.environ.get("RELAY_FUNCTION_KEY"):
        credential["x-functions-key"] = key
    if token := os.environ.get("RELAY_TOKEN"):
        credential["Authorization"] = f"Bearer {token}"
    for attempt in range(1, options.attempts + 1):
        try:
            sys.stdout.write(f"{check(options.url, credential)}\n")
        except SmokeTestError as error:
            sys.stderr.write(f"attempt {attempt}: {error}\n")
            if not error.transient or attempt == options.attempts:
                return 1
            time.sleep(options.pause)
        else:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
