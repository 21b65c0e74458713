"""The command line of `python -m local`."""

import argparse
import asyncio
import os
import sys
from collections.abc import Sequence

from local.functions_host import HostError, LocalSettings
from local.session import ROOT, Options, Session
from local.upstream import CHOICES, choose


def run(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m local", description="The app and a simulated model service on this machine."
    )
    parser.add_argument(
        "--port", type=_port, help="the app's port (default: Host.LocalHttpPort of local.settings.json)"
    )
    parser.add_argument(
        "--model-service-port", type=_port, help="default: by local.settings.json, or a free one if that is taken"
    )
    parser.add_argument("--model", help=f"writes a model service into local.settings.json: {', '.join(CHOICES)}")
    parser.add_argument("--endpoint", help="with --model: its address")
    parser.add_argument("--deployments", help="with --model: the models, separated by commas")
    parser.add_argument("--no-func", action="store_true", help="use the built-in host though Core Tools are installed")
    parser.add_argument("--no-open", action="store_true", help="do not open the chat page in a browser")
    parser.add_argument("--verbose", action="store_true", help="print what Core Tools print about each invocation")
    options = parser.parse_args(arguments)
    path = ROOT / "local.settings.json"
    try:
        if options.model:
            print(
                choose(path, options.model, os.environ, endpoint=options.endpoint, deployments=options.deployments),
                flush=True,
            )
        elif options.endpoint or options.deployments:
            raise HostError("ENDPOINT and DEPLOYMENTS belong to MODEL: make start MODEL=azure ENDPOINT=… DEPLOYMENTS=…")
        settings = LocalSettings.read(path)
        session = Session(
            Options(
                port=options.port or settings.port,
                model_service_port=options.model_service_port,
                core_tools=not options.no_func,
                verbose=options.verbose,
                open_page=not options.no_open,
            ),
            settings.values,
            os.environ,
        )
        return asyncio.run(session.run())
    except HostError as error:
        print(error, file=sys.stderr, flush=True)
        return 1


def _port(text: str) -> int:
    """A port's number, for argparse, which prints the error's text."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1 to 65535, for example 8080")
    return int(text)
