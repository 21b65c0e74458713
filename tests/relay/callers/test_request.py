"""The caller's side of one request: how long a body may take, and who may send one."""

import asyncio
import json
from collections.abc import Iterable

import pytest
from starlette.requests import Request
from starlette.types import Message

from relay import caller
from relay.caller import Call
from relay.problems import UNSUPPORTED_MEDIA_TYPE, Problem

BODY = b'{"input": "hi"}'


def request(*pieces: bytes, headers: Iterable[tuple[str, str]] = (), stalls: bool = False) -> Request:
    """A request whose body comes in these pieces; `stalls`: and whose last one never comes."""
    messages: list[Message] = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    if not stalls:
        messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> Message:
        if messages:
            return messages.pop(0)
        await asyncio.Event().wait()
        raise AssertionError

    raw = [(name.encode(), value.encode()) for name, value in headers]
    return Request({"type": "http", "method": "POST", "path": "/stream", "headers": raw}, receive)


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caller, "_BODY_TIME", 0.05)
    refused = await Call(request(b'{"inp', stalls=True)).body(1000)
    assert isinstance(refused, Problem)
    assert (refused.status, refused.code) == (400, "invalid_request")
    assert "did not arrive" in refused.detail


@pytest.mark.parametrize("site", ["cross-site", "same-site"])
async def test_another_sites_page_can_not_send_a_body_without_saying_that_it_is_json(site: str) -> None:
    assert await Call(request(BODY, headers=[("sec-fetch-site", site)])).body(1000) is UNSUPPORTED_MEDIA_TYPE


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("sec-fetch-site", "same-origin")],
        [("sec-fetch-site", "cross-site"), ("content-type", "application/json")],  # the browser has asked first
    ],
    ids=["no browser", "this app's page", "another site's page that was let in"],
)
async def test_everyone_else_can(headers: list[tuple[str, str]]) -> None:
    assert await Call(request(BODY[:5], BODY[5:], headers=headers)).body(1000) == BODY


def test_a_refusal_is_on_record(capsys: pytest.CaptureFixture[str]) -> None:
    call = Call(request(headers=[("x-request-id", "request-0001"), ("x-ms-invocation-id", "an-invocation")]))
    assert call.turn_away(UNSUPPORTED_MEDIA_TYPE).status_code == 415
    assert json.loads(capsys.readouterr().out) == {
        "event": "refused",
        "relay.code": "unsupported_media_type",
        "relay.request_id": "request-0001",
        "relay.invocation_id": "an-invocation",
    }
