"""The patches of the worker's library against stand-ins for it: what each changes, and that it touches nothing where
the library has changed. `test_worker_patches` runs them in the library itself."""

import sys
from types import ModuleType
from typing import Any

import pytest
import uvicorn
import uvicorn.config
from fastapi.applications import FastAPI

from relay.worker_patches import invocations, web_server

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


METHODS = ("get_http_request_async", "await_http_response_async", "set_http_request", "set_http_response")


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
        invocations.skip_trigger_metadata()
        for binding in ("httpTrigger", "timerTrigger"):
            converted = handler.from_incoming_proto(binding, "data", trigger_metadata={"x": 1}, pytype=str)
            assert converted == "converted"
        assert calls == [("httpTrigger", "data", str, None), ("timerTrigger", "data", str, {"x": 1})]

    def test_a_library_that_converts_without_metadata_is_left_alone(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def convert(binding: str, pb: Any) -> None: ...

        handler = stand_in(monkeypatch, HANDLER, from_incoming_proto=convert)
        invocations.skip_trigger_metadata()
        assert handler.from_incoming_proto is convert
