"""Independent parsers of Server-Sent Events, which all parse the same stream into the same events."""

import asyncio
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import httpx
import pytest
from httpx_sse import aconnect_sse

from local.model_service import ModelService
from tests.end_to_end.hosting import HostedApp

TEXT = 'Text,\nlines\r\nand "data: x"\n\nevent: done\n\u2028 \u4e2d\u6587 \U0001f33f\x00 \ufeffend'

# https://github.com/rexxars/eventsource, an implementation of the browsers' EventSource, uses this parser.
NODE = """
import {createParser} from 'eventsource-parser'
const answer = await fetch(process.argv[2], {
  method: 'POST', headers: {'content-type': 'application/json'}, body: '{"input": "x"}',
})
const events = []
const parser = createParser({
  onEvent: (event) => events.push([event.event ?? 'message', JSON.parse(event.data)]),
  onError: (error) => { console.error(error); process.exit(1) },
})
const decoder = new TextDecoder()
for await (const chunk of answer.body) parser.feed(decoder.decode(chunk, {stream: true}))
console.log(JSON.stringify(events))
"""


@pytest.fixture(autouse=True)
def paced_answer(model_service: ModelService) -> None:
    """Short tokens at a pace that makes many events."""
    model_service.answer([TEXT[start : start + 3] for start in range(0, len(TEXT), 3)])
    model_service.tokens_per_second = 100


def check(events: list[tuple[str, Any]]) -> None:
    *texts, (last, done) = events
    assert {name for name, _ in texts} == {"message"}
    assert len(texts) > 2
    assert "".join(members["text"] for _, members in texts) == TEXT
    assert last == "done"
    assert done["finish_reason"] == "stop"


async def test_httpx_sse(client: httpx.AsyncClient) -> None:
    async with aconnect_sse(client, "POST", "/stream", json={"input": "x"}) as source:
        check([(event.event, event.json()) async for event in source.aiter_sse()])


@pytest.fixture(scope="module")
def node_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder where node finds the npm package eventsource-parser."""
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("node and npm are not installed")
    folder = tmp_path_factory.mktemp("node")
    command = [npm, "install", "--no-audit", "--no-fund", "--ignore-scripts", "eventsource-parser@3"]
    try:
        installed = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=60, check=False)
    except subprocess.TimeoutExpired:
        pytest.skip("the npm registry does not answer")
    if installed.returncode:
        pytest.skip("the npm registry does not have eventsource-parser, or can't be reached")
    (folder / "read.mjs").write_text(NODE)
    return folder


async def run(*command: str | Path, folder: Path | None = None) -> str:
    done = await asyncio.to_thread(subprocess.run, command, cwd=folder, capture_output=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout.decode()


async def test_the_npm_package_eventsource_parser(
    app: HostedApp, model_service: ModelService, node_folder: Path
) -> None:
    output = await run("node", "read.mjs", f"{app.url}/stream", folder=node_folder)
    check([(name, members) for name, members in json.loads(output)])


async def test_curl(app: HostedApp, model_service: ModelService) -> None:
    output = await run(
        "curl", "-sN", f"{app.url}/stream", "-H", "Content-Type: application/json", "-d", '{"input": "x"}'
    )
    events = []
    for block in output.removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        events.append((fields.get("event", "message"), json.loads(fields["data"])))
    check(events)
