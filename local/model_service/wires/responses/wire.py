"""The routes of the Responses API, and the generation in the background."""

import asyncio
import functools
import time
from collections.abc import Callable, Iterator, Sequence

from aiohttp import web

from local.model_service import text_generation
from local.model_service.answers import SCHEMA_ERRORS
from local.model_service.deployments import DEFAULT_DEPLOYMENT, is_paced_manually
from local.model_service.encoding import Document, as_json
from local.model_service.errors import (
    ErrorResponse,
    context_length_exceeded,
    error_response,
    invalid_request,
    previous_response_not_found,
)
from local.model_service.faults import Injection
from local.model_service.records import Record
from local.model_service.reply import Reply
from local.model_service.sealing import Seal
from local.model_service.state import ServiceState
from local.model_service.steps import Token
from local.model_service.stored_responses import RUNNING, StoredResponse
from local.model_service.wires.base import DATED, DEPLOYMENT, V1, Handler, Wire, dated
from local.model_service.wires.responses import items, output
from local.model_service.wires.responses import request as requests
from local.model_service.wires.responses.reply import DocumentReply, FollowingReply, ResponseReply
from local.model_service.wires.responses.request import RequestError

CONTEXT_TOKENS = 272_000
_MIN_CACHED, _CACHE_STEP = 1024, 128  # tokens: a prompt is cached from this length on, in steps


class Responses(Wire):
    """`POST /responses`, and the routes of stored responses."""

    name = "responses"

    def __init__(self, state: ServiceState) -> None:
        super().__init__(state)
        self.seal = Seal()

    def routes(self) -> Iterator[web.RouteDef]:
        for base in V1:
            yield from self._routes(base, lambda handler: handler)
        yield from self._routes(DATED, dated)
        yield web.post(f"{DEPLOYMENT}/responses", dated(self._create))

    def _routes(self, base: str, wrap: Callable[[Handler], Handler]) -> Iterator[web.RouteDef]:
        one = f"{base}/responses/{{response_id}}"
        routes: tuple[tuple[str, str, Handler], ...] = (
            ("POST", f"{base}/responses", self._create),
            ("POST", f"{base}/responses/compact", self._compact),
            ("POST", f"{base}/responses/input_tokens", self._count),
            ("GET", one, self._retrieve),
            ("DELETE", one, self._delete),
            ("POST", f"{one}/cancel", self._cancel),
            ("GET", f"{one}/input_items", self._list_input_items),
        )
        for method, path, handler in routes:
            yield web.route(method, path, wrap(handler))

    # ── New responses ────────────────────────────────────────────────────────────────────────────────────────────────

    async def _create(self, request: web.Request) -> web.StreamResponse:
        body, record, error = await self.accept(request)

        def make(injections: Sequence[Injection]) -> Reply | ErrorResponse:
            return requests.operation_error(record.deployment) or self._reply(body, record, injections)

        return await self.respond(request, record, make, error=error, streams=body.get("stream") is True)

    def _reply(self, body: Document, record: Record, injections: Sequence[Injection]) -> ResponseReply | ErrorResponse:
        body = self._read(body)
        try:
            requests.check(body)
            previous = self._previous(body)
            context = self._context(body, previous)
            items.check_calls(context)
            messages = items.conversation(context, body.get("instructions"), self.seal)
            tokens = text_generation.count_prompt_tokens(messages)
            if tokens > CONTEXT_TOKENS and body.get("truncation") != "auto":
                return context_length_exceeded()
            fixed_answer = self.state.fixed_answer(record.deployment, injections)
            prompt = output.prompt(body, messages or [{"role": "user", "content": ""}])
        except RequestError as problem:
            return problem.response
        try:
            answer = output.answer(body, prompt, fixed_answer, self.seal)
        except SCHEMA_ERRORS:
            # All that can be wrong here is a JSON schema.
            param = "tools" if body.get("tools") else "text.format.schema"
            return invalid_request("invalid_json_schema", "Invalid schema.", param)
        cached = previous.reply.total_tokens if previous else 0
        reply = ResponseReply(
            body,
            answer,
            prompt_tokens=min(tokens, CONTEXT_TOKENS),
            cached_tokens=cached // _CACHE_STEP * _CACHE_STEP if cached >= _MIN_CACHED else 0,
            characters=sum(len(str(message.get("content"))) for message in messages),
        )
        unpaced = any(injection.fault.unpaced for injection in injections)
        reply.on_begin = functools.partial(self._begin, reply, record, context, previous, unpaced=unpaced)
        return reply

    def _read(self, body: Document) -> Document:
        """The request as this service takes it."""
        return requests.example(body) if self.state.lenient else body

    def _previous(self, body: Document) -> StoredResponse | None:
        response_id = body.get("previous_response_id")
        previous = self.state.responses.get(response_id) if response_id else None
        if response_id and (previous is None or previous.status in RUNNING):
            raise RequestError.of(previous_response_not_found(response_id))
        return previous

    def _context(self, body: Document, previous: StoredResponse | None) -> list[Document]:
        """All input items, those of the responses before it first."""
        new = items.normalized(body.get("input"), self.state.responses.item, self.seal)
        return [*(previous.items if previous else ()), *new]

    def _begin(
        self,
        reply: ResponseReply,
        record: Record,
        context: Sequence[Document],
        previous: StoredResponse | None,
        *,
        unpaced: bool,
    ) -> None:
        """Keep the response, and start its generation when that is not what writes it."""
        stored = reply.stored
        stored.reply, stored.input_items = reply, context
        stored.size = len(as_json(reply.body)) + 16 * reply.answer.count
        stored.size += previous.size if previous else 0
        if reply.body.get("store") is not False:
            self.state.responses.add(stored)
        if stored.background:
            stored.status = "queued"
            stored.task = asyncio.create_task(self._generate(reply, record, unpaced=unpaced))

    async def _generate(self, reply: ResponseReply, record: Record, *, unpaced: bool) -> None:
        """Generate a response in the background, at the pace of the service."""
        state, stored = self.state, reply.stored
        gate = state.gates[stored.deployment] if is_paced_manually(stored.deployment) else None
        pause = 1 / state.tokens_per_second if state.tokens_per_second and not unpaced else 0.0
        due = time.monotonic() + state.time_to_first_token
        tokens = 0
        for step in reply.events(finish=True):
            if isinstance(step, Token):
                stored.status = "in_progress"
                if gate:
                    await gate.acquire()
                elif (wait := due - time.monotonic()) > 0:
                    await asyncio.sleep(wait)
                due += pause
                tokens += 1
                if not stored.streamed:
                    record.token_times.append(time.monotonic())
            stored.progress.advance()
            if gate or pause:
                state.notify()
            elif tokens % state.tokens_per_write == 0:
                await asyncio.sleep(0)  # without a pause, other requests get their turn
        stored.progress.end()
        state.notify()

    # ── Stored responses ─────────────────────────────────────────────────────────────────────────────────────────────

    async def _retrieve(self, request: web.Request) -> web.StreamResponse:
        streams = request.query.get("stream") == "true"

        def make(stored: StoredResponse) -> Reply | ErrorResponse:
            if not streams:
                return DocumentReply(stored.deployment, stored.reply.document())
            if not (stored.background and stored.streamed):
                message = "Only a response that was created with 'background' and 'stream' can be streamed."
                return invalid_request("invalid_value", message, "stream")
            after = request.query.get("starting_after", "-1")
            if not after.removeprefix("-").isdecimal():
                message = "Invalid type for 'starting_after': expected an integer."
                return invalid_request("invalid_type", message, "starting_after")
            following = FollowingReply(stored.reply, int(after))
            following.obfuscate = request.query.get("include_obfuscation") != "false"
            return following

        return await self._respond_stored(request, make, streams=streams)

    async def _delete(self, request: web.Request) -> web.StreamResponse:
        def make(stored: StoredResponse) -> Reply:
            self.state.responses.delete(stored.id)
            return DocumentReply(stored.deployment, {"id": stored.id, "object": "response", "deleted": True})

        return await self._respond_stored(request, make)

    async def _cancel(self, request: web.Request) -> web.StreamResponse:
        """Cancelling again gives the cancelled response again."""

        def make(stored: StoredResponse) -> Reply | ErrorResponse:
            if not stored.background:
                return invalid_request(None, "Cannot cancel a synchronous response.")
            if stored.status not in (*RUNNING, "cancelled"):
                return invalid_request(None, f"Cannot cancel a {stored.status} response.")
            stored.cancel(int(time.time()))
            return DocumentReply(stored.deployment, stored.reply.document())

        return await self._respond_stored(request, make)

    async def _list_input_items(self, request: web.Request) -> web.StreamResponse:
        """`?limit=…&order=asc|desc&after=ITEM`; the latest item comes first unless the order is `asc`."""

        def make(stored: StoredResponse) -> Reply | ErrorResponse:
            limit, order, after = (request.query.get(name) for name in ("limit", "order", "after"))
            if self.state.lenient:
                limit = after = None
            if limit is not None and not (limit.isdecimal() and 1 <= int(limit) <= 100):
                return invalid_request("invalid_value", "Invalid 'limit': expected an integer from 1 to 100.", "limit")
            if order not in (None, "asc", "desc"):
                message = f"Invalid value: '{order}'. Supported values are: 'asc' and 'desc'."
                return invalid_request("invalid_value", message, "order")
            listed = list(stored.input_items) if order == "asc" else list(stored.input_items)[::-1]
            if after is not None:
                places = [place for place, item in enumerate(listed) if item["id"] == after]
                if not places:
                    return invalid_request("invalid_value", f"No item found with id '{after}'.", "after")
                listed = listed[places[0] + 1 :]
            page = listed[: int(limit or 20)]
            document: Document = {"object": "list", "data": page, "has_more": len(page) < len(listed)}
            ends = (page[0]["id"], page[-1]["id"]) if page else (None, None)
            return DocumentReply(stored.deployment, document | {"first_id": ends[0], "last_id": ends[1]})

        return await self._respond_stored(request, make)

    async def _respond_stored(
        self,
        request: web.Request,
        make: Callable[[StoredResponse], Reply | ErrorResponse],
        *,
        streams: bool = False,
    ) -> web.StreamResponse:
        """Respond with what `make` makes of the stored response with the id in the path."""
        response_id = request.match_info["response_id"]
        auth, error = self.state.authenticate(request)
        stored = self.state.responses.get(response_id)
        if stored is None and self.state.lenient:
            stored = self._example(response_id, cancelled=request.path.endswith("/cancel"))
        elif error is None and not response_id.startswith("resp_"):
            message = f"Invalid 'response_id': '{response_id}'. Expected an ID that begins with 'resp'."
            error = invalid_request("invalid_value", message, "response_id")
        if error is None and stored is None:
            message = f"Response with id '{response_id}' not found."
            error = error_response(404, None, message, kind="invalid_request_error")
        record = self.state.record(request, {}, auth, deployment=stored.deployment if stored else "")

        def reply(_: Sequence[Injection]) -> Reply | ErrorResponse:
            assert stored is not None  # else there is an error
            return make(stored)

        return await self.respond(request, record, reply, error=error, streams=streams, by_name=False)

    def _example(self, response_id: str, *, cancelled: bool) -> StoredResponse:
        """A response that was generated in the background: for an id that none has, if the service is lenient."""
        body = {"model": DEFAULT_DEPLOYMENT, "input": "Hello", "background": True, "stream": True}
        context = self._context(body, None)
        messages = items.conversation(context, None, self.seal)
        answer = output.answer(body, output.prompt(body, messages), None, self.seal)
        reply = ResponseReply(body, answer, prompt_tokens=1, cached_tokens=0, characters=5)
        stored = reply.stored
        reply.id = stored.id = response_id
        stored.reply, stored.input_items = reply, context
        for _ in reply.events(finish=True):
            stored.progress.advance()
        stored.progress.end()
        if cancelled:
            stored.status = "cancelled"
        return stored

    # ── Without a response ───────────────────────────────────────────────────────────────────────────────────────────

    async def _compact(self, request: web.Request) -> web.StreamResponse:
        """The user's messages, and one item that stands for all the others."""

        def make(body: Document) -> Document:
            body = self._read(body)
            requests.check_compaction(body)
            context = self._context(body, self._previous(body))
            messages = items.conversation(context, body.get("instructions"), self.seal)
            words = text_generation.topics(" ".join(str(message["content"]) for message in messages))
            summary = f"A summary of {len(messages)} messages about {', '.join(words) or 'nothing'}."
            kept = [item for item in context if item["type"] == "message" and item["role"] == "user"]
            if self.state.lenient:
                kept = []  # the description of the API has no type for them there
            spent, made = text_generation.count_prompt_tokens(messages), len(text_generation.tokenize(summary))
            return {
                "id": items.new_id("resp"),
                "object": "response.compaction",
                "created_at": int(time.time()),
                "output": [
                    *kept,
                    {"id": items.new_id("cmp"), "type": "compaction", "encrypted_content": self.seal.seal(summary)},
                ],
                "usage": {
                    "input_tokens": spent,
                    "input_tokens_details": {"cache_write_tokens": 0, "cached_tokens": 0},
                    "output_tokens": made,
                    "output_tokens_details": {"reasoning_tokens": 0},
                    "total_tokens": spent + made,
                },
            }

        return await self._respond_document(request, make)

    async def _count(self, request: web.Request) -> web.StreamResponse:
        def make(body: Document) -> Document:
            body = self._read(body)
            requests.check(body)
            context = self._context(body, self._previous(body))
            messages = items.conversation(context, body.get("instructions"), self.seal)
            return {
                "object": "response.input_tokens",
                "input_tokens": text_generation.count_prompt_tokens(messages),
            }

        return await self._respond_document(request, make)

    async def _respond_document(self, request: web.Request, make: Callable[[Document], Document]) -> web.StreamResponse:
        """Respond with what `make` makes of the body."""
        body, record, error = await self.accept(request)

        def reply(_: Sequence[Injection]) -> Reply | ErrorResponse:
            try:
                return requests.operation_error(record.deployment) or DocumentReply(record.deployment, make(body))
            except RequestError as problem:
                return problem.response

        return await self.respond(request, record, reply, error=error)
