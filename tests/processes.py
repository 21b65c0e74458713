"""A pytest plugin: `--processes N` runs test files in N processes, which are forked when all tests are collected.

Importing and collecting all tests takes as much CPU time as many a test, so it is done once. A process runs all tests
of a file and then asks for the next file, in the order of collection; fixtures of session scope are its own.
"""

import contextlib
import gc
import itertools
import multiprocessing
import os
import pickle
import signal
import threading
import traceback
import warnings
from collections import deque
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("processes").addoption(
        "--processes", type=int, default=0, metavar="N", help="run test files in so many processes"
    )


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    """Run the tests; None leaves it to pytest."""
    options = session.config.option
    if options.collectonly or options.usepdb or session.testsfailed or getattr(options, "numprocesses", None):
        return None
    files = [list(items) for _, items in itertools.groupby(session.items, key=lambda item: item.path)]
    count = min(options.processes, len(files))
    if count < 2:
        return None
    # A process is the wrong one to fork if another thread could hold a lock.
    assert threading.active_count() == 1, threading.enumerate()
    gc.collect()
    gc.freeze()  # a collection in a process need not touch, and so copy, what all have in common
    run = _Run(session, files)
    try:
        for number in range(count):
            run.fork(number)
        run.finish()
    finally:
        run.end()
    if session.shouldfail:
        raise session.Failed(session.shouldfail)
    return True


class _Process:
    """A forked process, from the side of its parent."""

    def __init__(self, number: int, pid: int) -> None:
        self.number = number
        self.pid = pid
        self.remaining: list[pytest.Item] = []  # of its file: those that have not ended


class _Run:
    """The parent's part: hands out files, and reports what the processes report."""

    def __init__(self, session: pytest.Session, files: list[list[pytest.Item]]) -> None:
        self.session = session
        self.hook = session.config.hook
        self.files = deque(files)
        self.numbers = {item.nodeid: number for number, item in enumerate(session.items)}
        self.processes: dict[Connection, _Process] = {}
        reporter: Any = session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.showfspath = False  # the tests of several files end in turns

    def fork(self, number: int) -> None:
        """Start a process."""
        own, other = multiprocessing.Pipe()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                for connection in (own, *self.processes):
                    connection.close()
                _run_tests(self.session, other, number)
                code = 0
            except BaseException:
                traceback.print_exc()
                raise
            finally:
                os._exit(code)
        other.close()
        self.processes[own] = _Process(number, pid)

    def finish(self) -> None:
        """Go on until the last process has ended."""
        while self.processes:
            for connection in wait(list(self.processes)):
                assert isinstance(connection, Connection)
                process = self.processes[connection]
                try:
                    kind, content = connection.recv()
                except (EOFError, ConnectionResetError):
                    self.ended(connection, process)
                else:
                    self.received(connection, process, kind, content)
            if self.session.shouldfail or self.session.shouldstop:
                return

    def received(self, connection: Connection, process: _Process, kind: str, content: Any) -> None:
        if kind == "next file":
            items = self.files.popleft() if self.files else []
            process.remaining += items
            connection.send([self.numbers[item.nodeid] for item in items])
        elif kind == "start":
            self.hook.pytest_runtest_logstart(**content)
        elif kind == "report":
            report = self.hook.pytest_report_from_serializable(config=self.session.config, data=content)
            self.hook.pytest_runtest_logreport(report=report)
        elif kind == "finish":
            process.remaining = [item for item in process.remaining if item.nodeid != content["nodeid"]]
            self.hook.pytest_runtest_logfinish(**content)
        else:
            message, category, filename, line = content.pop("warning")
            warning = warnings.WarningMessage(message, category, filename, line)
            self.hook.pytest_warning_recorded.call_historic(kwargs={"warning_message": warning, **content})

    def ended(self, connection: Connection, process: _Process) -> None:
        """A process that ends amid its file has failed the test that it ran; another one runs the rest."""
        del self.processes[connection]
        connection.close()
        _, status = os.waitpid(process.pid, 0)
        code = os.waitstatus_to_exitcode(status)
        if not process.remaining:
            if code != 0:
                raise RuntimeError(f"a process of the tests ended: {_how_ended(code)}; see its output above")
            return
        item, *rest = process.remaining
        report = pytest.TestReport(
            item.nodeid,
            item.location,
            keywords={},
            outcome="failed",
            longrepr=f"its process ended: {_how_ended(code)}",
            when="call",
        )
        self.hook.pytest_runtest_logreport(report=report)
        if rest:
            self.files.appendleft(rest)
        self.fork(process.number)

    def end(self) -> None:
        """End all processes as Ctrl-C does; it has reached them already where it came from a terminal."""
        for process in self.processes.values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGINT)
        for connection, process in self.processes.items():
            with contextlib.suppress(EOFError, ConnectionResetError):
                while True:
                    connection.recv()
            os.waitpid(process.pid, 0)


def _how_ended(code: int) -> str:
    return f"killed by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"


class _Reporter:
    """A plugin that sends to the parent what a process reports."""

    def __init__(self, config: pytest.Config, connection: Connection) -> None:
        self.config = config
        self.connection = connection
        self.registered = False

    def pytest_runtest_logstart(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self.connection.send(("start", {"nodeid": nodeid, "location": location}))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self.config.hook.pytest_report_to_serializable(config=self.config, report=report)
        self.connection.send(("report", data))

    def pytest_runtest_logfinish(self, nodeid: str, location: tuple[str, int | None, str]) -> None:
        self.connection.send(("finish", {"nodeid": nodeid, "location": location}))

    def pytest_warning_recorded(
        self,
        warning_message: warnings.WarningMessage,
        when: str,
        nodeid: str,
        location: tuple[str, int, str] | None,
    ) -> None:
        if not self.registered:
            return  # one of the parent's, which pytest repeats for a new plugin
        message: Warning | str = warning_message.message
        try:
            pickle.loads(pickle.dumps(message))
        except Exception:  # noqa: BLE001 (whatever a warning of anyone's has in it)
            message = Warning(str(message))
        warning = (message, type(message), warning_message.filename, warning_message.lineno)
        content = {"warning": warning, "when": when, "nodeid": nodeid, "location": location}
        self.connection.send(("warning", content))


def _run_tests(session: pytest.Session, connection: Connection, number: int) -> None:
    """A process's part."""
    config = session.config
    _become_independent(config, number)
    reporter = _Reporter(config, connection)
    config.pluginmanager.register(reporter)
    reporter.registered = True

    item = None
    try:
        while True:
            connection.send(("next file", None))
            if not (numbers := connection.recv()):
                break
            items = [session.items[each] for each in numbers]
            for item, following in zip(items, [*items[1:], _AnotherFile(session)], strict=True):
                item.ihook.pytest_runtest_protocol(item=item, nextitem=following)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
    finally:
        if item is not None:
            end = pytest.CallInfo.from_call(lambda: session._setupstate.teardown_exact(None), when="teardown")
            if end.excinfo is not None:
                report = pytest.TestReport.from_item_and_call(item, end)
                item.ihook.pytest_runtest_logreport(report=report)


class _AnotherFile:
    """In the place of the next test: it is not known yet, and needs nothing but the fixtures of session scope."""

    def __init__(self, session: pytest.Session) -> None:
        self.session = session

    def listchain(self) -> list[pytest.Session]:
        return [self.session]


def _become_independent(config: pytest.Config, number: int) -> None:
    """Take leave of what two processes can't share: the terminal, files of captured output, temporary folders."""
    plugins = config.pluginmanager
    plugins.unregister(name="terminalreporter")
    capture: Any = plugins.get_plugin("capturemanager")
    if capture is not None:
        capture.stop_global_capturing()
        capture.start_global_capturing()
        capture.suspend_global_capture()
    factory: Any = config._tmp_path_factory  # type: ignore[attr-defined]
    folder = Path(factory.getbasetemp()) / f"process-{number}"
    folder.mkdir(exist_ok=True)
    factory._basetemp = folder
