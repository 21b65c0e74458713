"""The patches of the worker's library against stand-ins for it: what each changes, and that it touches nothing where
the library has changed. `test_worker_patches` runs them in the library itself."""

import asyncio
import json
import sys
from collections.abc import Callable
from types import ModuleType
from typing import Any, Final

import pytest
import uvicorn
import uvicorn.config
from azure_functions_runtime import http_v2
from fastapi.applications import FastAPI
from starlette.requests import ClientDisconnect, Request

from relay import telemetry
from relay.worker_patches import invocations, web_server
from tests.relay.virtual_time import virtual_time
from tests.schedules.virtual_loop import VirtualLoop

WEB = "azurefunctions.extensions.http.fastapi.web"
COORDINATOR = "azure_functions_runtime.http_v2"
HANDLER = "azure_functions_runtime.handle_event"


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **members: Any) -> Any:
    """A module of this name with these members, for one test."""
    imported = ModuleType(module)
    vars(imported).update(members)
    monkeypatch.setitem(sys.modules, module, imported)
    return imported


@pytest.fixture(autouse=True)
def no_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (WEB, COORDINATOR, HANDLER):
        monkeypatch.delitem(sys.modules, module, raising=False)


class TestWebServer:
    def test_uvicorn_logs_no_request(self, monkeypatch: pytest.MonkeyPatch) -> None:
        loggers = {"uvicorn.access": {"level": "INFO", "propagate": False}, "uvicorn.error": {"level": "INFO"}}
        monkeypatch.setattr(uvicorn.config, "LOGGING_CONFIG", {"loggers": loggers})
        web_server.silence_access_log()
        assert loggers == {
            "uvicorn.access": {"level": "WARNING", "propagate": False},
            "uvicorn.error": {"level": "INFO"},
        }

    def test_a_uvicorn_without_that_logger(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(uvicorn.config, "LOGGING_CONFIG", {"loggers": {}})
        web_server.silence_access_log()

    def test_fastapi_is_the_plain_class_without_telemetry(self, monkeypatch: pytest.MonkeyPatch) -> None:
        web = stand_in(monkeypatch, WEB, FastAPI=object())
        web_server.disable_framework_telemetry()
        assert web.FastAPI.func is FastAPI
        assert web.FastAPI.keywords == {"telemetry": {"tracing": False, "metrics": False, "logs": False}}

    def test_another_web_framework(self, monkeypatch: pytest.MonkeyPatch) -> None:
        web = stand_in(monkeypatch, WEB)
        web_server.disable_framework_telemetry()
        assert not hasattr(web, "FastAPI")

    def test_a_fastapi_without_telemetry_of_its_own(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class Other:
            pass

        web = stand_in(monkeypatch, WEB, FastAPI=Other)
        monkeypatch.setattr(web_server, "FastAPI", Other)
        web_server.disable_framework_telemetry()
        assert web.FastAPI is Other

    def test_idle_connections_are_kept_longer_than_the_host_keeps_them(self, monkeypatch: pytest.MonkeyPatch) -> None:
        web = stand_in(monkeypatch, WEB, uvicorn=uvicorn)
        web_server.outlive_the_hosts_idle_connections()
        assert web.uvicorn.Config(app=None).timeout_keep_alive == 120
        assert web.uvicorn.Server is uvicorn.Server

    @pytest.mark.parametrize(("seconds", "replaced"), [(5, True), (119, True), (120, False), (300, False)])
    def test_a_uvicorn_that_keeps_them_longer(
        self, monkeypatch: pytest.MonkeyPatch, seconds: int, replaced: bool
    ) -> None:
        def config(app: Any, timeout_keep_alive: int = seconds) -> None: ...

        web = stand_in(monkeypatch, WEB, uvicorn=uvicorn)
        monkeypatch.setattr(uvicorn, "Config", config)
        web_server.outlive_the_hosts_idle_connections()
        assert (web.uvicorn is not uvicorn) == replaced

    def test_another_web_server(self, monkeypatch: pytest.MonkeyPatch) -> None:
        other = object()
        web = stand_in(monkeypatch, WEB, uvicorn=other)
        web_server.outlive_the_hosts_idle_connections()
        assert web.uvicorn is other

    def test_without_the_library(self) -> None:
        web_server.disable_framework_telemetry()
        web_server.outlive_the_hosts_idle_connections()
        assert WEB not in sys.modules


METHODS: Final = ("get_http_request_async", "await_http_response_async", "set_http_request", "set_http_response")


async def execute_async(function: Any, args: Any) -> None: ...


class TestInvocations:
    def library(self, monkeypatch: pytest.MonkeyPatch, without: str = "") -> tuple[Any, Any]:
        """Stand-ins for the coordinator's class and the handler's module, as the patches expect them."""

        class HttpCoordinator:
            def __init__(self) -> None:
                if without != "_context_references":
                    self._context_references: dict[str, Any] = {}

        for name in METHODS:
            if name != without:
                setattr(HttpCoordinator, name, name)
        members = {"HttpCoordinator": HttpCoordinator, "AsyncContextReference": object}
        stand_in(monkeypatch, COORDINATOR, **{name: it for name, it in members.items() if name != without})
        executes = {} if without == "execute_async" else {"execute_async": execute_async}
        return HttpCoordinator, stand_in(monkeypatch, HANDLER, **executes)

    def test_the_waits_are_bounded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        coordinator, handler = self.library(monkeypatch)
        invocations.bound_the_waits()
        assert [name for name in METHODS if getattr(coordinator, name) == name] == []
        assert handler.execute_async is not execute_async

    def test_they_are_bounded_once(self, monkeypatch: pytest.MonkeyPatch) -> None:
        coordinator, handler = self.library(monkeypatch)
        invocations.bound_the_waits()
        patched = [getattr(coordinator, name) for name in METHODS]
        execute = handler.execute_async
        invocations.bound_the_waits()
        assert [getattr(coordinator, name) for name in METHODS] == patched
        assert handler.execute_async is execute

    @pytest.mark.parametrize(
        "without", [*METHODS, "HttpCoordinator", "AsyncContextReference", "execute_async", "_context_references"]
    )
    def test_a_library_without_one_of_its_parts_is_left_alone(
        self, monkeypatch: pytest.MonkeyPatch, without: str
    ) -> None:
        coordinator, handler = self.library(monkeypatch, without)
        before = dict(vars(coordinator)), dict(vars(handler))
        invocations.bound_the_waits()
        assert (dict(vars(coordinator)), dict(vars(handler))) == before

    def test_a_handler_that_is_no_coroutine_function_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        coordinator, handler = self.library(monkeypatch)
        handler.execute_async = lambda function, args: None
        before = dict(vars(coordinator)), dict(vars(handler))
        invocations.bound_the_waits()
        assert (dict(vars(coordinator)), dict(vars(handler))) == before

    def test_without_the_library(self) -> None:
        invocations.bound_the_waits()
        invocations.forget_finished_requests()
        invocations.skip_trigger_metadata()
        assert COORDINATOR not in sys.modules

    @pytest.mark.parametrize("raises", [False, True])
    def test_a_finished_request_is_forgotten(self, monkeypatch: pytest.MonkeyPatch, raises: bool) -> None:
        class HttpCoordinator:
            def __init__(self) -> None:
                self._context_references = {"i": "entry", "other": "entry"}

            def _pop_http_response(self, invoc_id: str) -> str:
                assert self._context_references[invoc_id] == "entry"
                if raises:
                    raise LookupError
                return f"the response to {invoc_id}"

        stand_in(monkeypatch, COORDINATOR, HttpCoordinator=HttpCoordinator)
        invocations.forget_finished_requests()
        invocations.forget_finished_requests()
        coordinator = HttpCoordinator()
        if raises:
            with pytest.raises(LookupError):
                coordinator._pop_http_response("i")
        else:
            assert coordinator._pop_http_response("i") == "the response to i"
        assert coordinator._context_references == {"other": "entry"}

    def test_a_coordinator_that_keeps_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class HttpCoordinator:
            def _pop_http_response(self, invoc_id: str) -> str:
                return "the response"

        stand_in(monkeypatch, COORDINATOR, HttpCoordinator=HttpCoordinator)
        invocations.forget_finished_requests()
        assert HttpCoordinator()._pop_http_response("i") == "the response"

    def test_metadata_of_an_http_trigger_is_not_converted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        calls: list[Any] = []

        def convert(binding: str, pb: Any, *, pytype: Any = None, trigger_metadata: Any) -> str:
            calls.append((binding, pb, pytype, trigger_metadata))
            return "converted"

        handler = stand_in(monkeypatch, HANDLER, from_incoming_proto=convert)
        invocations.skip_trigger_metadata()
        patched = handler.from_incoming_proto
        invocations.skip_trigger_metadata()
        assert handler.from_incoming_proto is patched
        for binding in ("httpTrigger", "timerTrigger"):
            converted = handler.from_incoming_proto(binding, "data", trigger_metadata={"x": 1}, pytype=str)
            assert converted == "converted"
        assert calls == [("httpTrigger", "data", str, None), ("timerTrigger", "data", str, {"x": 1})]

    def test_a_library_that_converts_without_metadata_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def convert(binding: str, pb: Any) -> None: ...

        handler = stand_in(monkeypatch, HANDLER, from_incoming_proto=convert)
        invocations.skip_trigger_metadata()
        assert handler.from_incoming_proto is convert


class Worker:
    """The library's coordinator, patched, and the functions that its handler has called.

    The patches are of a class derived from the library's, so that this process keeps the library as it is.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        class HttpCoordinator(http_v2.HttpCoordinator):  # type: ignore[misc]
            pass

        self.calls: list[tuple[Any, Any]] = []
        self.missing: list[tuple[str, str]] = []

        async def execute_async(function: Any, args: Any) -> str:
            self.calls.append((function, args))
            return "what the function returns"

        stand_in(
            monkeypatch,
            COORDINATOR,
            HttpCoordinator=HttpCoordinator,
            AsyncContextReference=http_v2.AsyncContextReference,
        )
        self.handler = stand_in(monkeypatch, HANDLER, execute_async=execute_async)
        monkeypatch.setattr(
            telemetry, "log_missing_half", lambda half, invocation: self.missing.append((half, invocation))
        )
        invocations.bound_the_waits()
        invocations.forget_finished_requests()
        self.coordinator: Any = HttpCoordinator()

    async def invoke(self, invocation: str) -> Any:
        """The invocation, as the library handles it; returns the request that the function is called with."""
        request = await self.coordinator.get_http_request_async(invocation)
        response = await self.handler.execute_async("the function", {"req": request})
        self.coordinator.set_http_response(invocation, response)
        return request

    async def receive(self, invocation: str, request: Any) -> Any:
        """The HTTP request, as the library handles it; returns its response."""
        self.coordinator.set_http_request(invocation, request)
        return await self.coordinator.await_http_response_async(invocation)

    @property
    def entries(self) -> list[str]:
        return list(self.coordinator._context_references)


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Worker:
    return Worker(monkeypatch)


def http_request(path: str) -> Request:
    scope = {"type": "http", "method": "POST", "path": path, "headers": [(b"host", b"h")], "query_string": b""}
    return Request(scope)


def now() -> float:
    return asyncio.get_running_loop().time()


class TestTheTwoHalves:
    @pytest.mark.parametrize("first", ["invocation", "request", "together"])
    @virtual_time
    async def test_both_arrive(self, worker: Worker, first: str) -> None:
        wait = {"invocation": (0.0, 4.9), "request": (4.9, 0.0), "together": (0.0, 0.0)}[first]

        async def after(seconds: float, half: Callable[[], Any]) -> Any:
            await asyncio.sleep(seconds)
            return await half()

        request, response = await asyncio.gather(
            after(wait[0], lambda: worker.invoke("i")), after(wait[1], lambda: worker.receive("i", "the request"))
        )
        assert (request, response) == ("the request", "what the function returns")
        assert worker.calls == [("the function", {"req": "the request"})]
        assert (worker.entries, worker.missing) == ([], [])

    @virtual_time
    async def test_a_function_may_take_any_time(self, worker: Worker) -> None:
        receiving = asyncio.create_task(worker.receive("i", "the request"))
        assert await worker.coordinator.get_http_request_async("i") == "the request"
        await asyncio.sleep(200)
        worker.coordinator.set_http_response("i", "the response")
        assert await receiving == "the response"
        assert worker.missing == []

    @virtual_time
    async def test_the_request_never_arrives(self, worker: Worker) -> None:
        began = now()
        request = await worker.coordinator.get_http_request_async("i")
        assert now() - began == 5
        assert worker.missing == [("http_request", "i")]
        response = await worker.handler.execute_async("the function", {"context": 1, "req": request})
        assert (response.status_code, worker.calls) == (499, [])
        worker.coordinator.set_http_response("i", response)
        assert worker.entries == []

    @virtual_time
    async def test_what_stands_for_the_missing_request(self, worker: Worker) -> None:
        request = await worker.coordinator.get_http_request_async("i")
        assert (request.method, request.url.path, dict(request.headers)) == ("GET", "/", {})
        assert (dict(request.query_params), request.path_params, request.scope["type"]) == ({}, {}, "http")
        assert await request.receive() == {"type": "http.disconnect"}
        with pytest.raises(ClientDisconnect):
            await request.body()

    @virtual_time
    async def test_the_library_s_error_path_finds_its_entry(self, worker: Worker) -> None:
        """It sets a response as well where something fails between the two."""
        await worker.coordinator.get_http_request_async("i")
        assert worker.entries == ["i"]
        worker.coordinator.set_http_response("i", ValueError())
        assert worker.entries == []

    @virtual_time
    async def test_the_request_arrives_when_the_invocation_has_ended(self, worker: Worker) -> None:
        await worker.invoke("i")
        began = now()
        response = await worker.receive("i", http_request("/stream"))
        assert (now() - began, response.status_code) == (0, 503)
        assert worker.entries == []
        assert worker.missing == [("http_request", "i"), ("invocation", "i")]
        worker.missing.clear()
        await worker.receive("i", http_request("/stream"))
        assert now() - began == 5, "it is known once"

    @virtual_time
    async def test_the_request_arrives_before_the_ended_invocation_has_its_response(self, worker: Worker) -> None:
        await worker.coordinator.get_http_request_async("i")
        response = await worker.receive("i", http_request("/stream"))
        assert (response.status_code, worker.entries) == (503, [])

    @virtual_time
    async def test_the_ended_invocations_that_are_known_are_bounded(
        self, worker: Worker, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(invocations, "_REMEMBERED", 2)
        for invocation in ("i-1", "i-2", "i-3"):
            await worker.invoke(invocation)
        for invocation, waited in (("i-1", 5), ("i-2", 0), ("i-3", 0)):
            began = now()
            assert (await worker.receive(invocation, http_request("/stream"))).status_code == 503
            assert now() - began == waited

    @pytest.mark.parametrize(
        ("path", "media_type"),
        [
            ("/stream", "application/problem+json"),
            ("/v1/chat/completions", "application/json"),
            ("/v1/models", "application/json"),
            ("/openai/v1/models", "application/json"),
            ("/other/v1/models", "application/problem+json"),
        ],
    )
    @virtual_time
    async def test_the_invocation_never_arrives(self, worker: Worker, path: str, media_type: str) -> None:
        began = now()
        response = await worker.receive("invocation-7", http_request(path))
        assert now() - began == 5
        assert response.status_code == 503
        assert (response.headers["content-type"], response.headers["cache-control"]) == (media_type, "no-store")
        document = json.loads(response.body)
        if media_type == "application/json":
            assert document["error"]["code"] == "not_dispatched"
        else:
            assert (document["code"], document["request_id"]) == ("not_dispatched", "invocation-7")
        assert b"invocation-7" in response.body
        assert (worker.entries, worker.missing) == ([], [("invocation", "invocation-7")])

    @virtual_time
    async def test_a_request_of_another_class(self, worker: Worker) -> None:
        response = await worker.receive("i", object())
        assert response.headers["content-type"] == "application/problem+json"

    @pytest.mark.parametrize("half", ["request", "invocation"])
    @virtual_time
    async def test_time_in_which_the_event_loop_was_blocked_counts_as_one_slice(
        self, worker: Worker, half: str
    ) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)

        def block() -> None:
            loop._virtual.now += 60
            loop.call_soon(lambda: loop.create_task(other()))

        async def other() -> None:
            if half == "request":
                await worker.receive("i", "the request")
            else:
                await worker.invoke("i")

        loop.call_later(1, block)
        if half == "request":
            assert await worker.invoke("i") == "the request"
        else:
            assert await worker.receive("i", "the request") == "what the function returns"
        await loop.rest()
        assert worker.missing == []

    @virtual_time
    async def test_a_half_that_arrives_in_the_last_slice(self) -> None:
        event = asyncio.Event()
        asyncio.get_running_loop().call_later(4.99, event.set)
        assert await invocations._happens(event)
        assert not await invocations._happens(asyncio.Event())
