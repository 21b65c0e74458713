"""Runs a test on an event loop whose clock is virtual: timers fire at once, and times are exact."""

import functools
from collections.abc import Callable, Coroutine
from typing import Any

from tests.schedules.virtual_loop import run


def virtual_time[**P](test: Callable[P, Coroutine[Any, Any, None]]) -> Callable[P, None]:
    """Decorates an asynchronous test that uses no socket, thread or asynchronous fixture."""

    @functools.wraps(test)
    def run_test(*args: P.args, **kwargs: P.kwargs) -> None:
        run(test(*args, **kwargs))

    return run_test
