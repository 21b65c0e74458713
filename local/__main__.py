"""The command `python -m local`, which `make start` runs; see `local.session`."""

import argparse
import asyncio
import sys
from collections.abc import Sequence

from local.functions_host import HostError, LocalSettings
from local.session import ROOT, Session

_MODEL_SERVICE_PORT = 7072


def main(arguments: Sequence[str] | None = None) -> int:
    """Read the command line and run; returns the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m local", description="The app and a simulated model service on this machine."
    )
    parser.add_argument(
        "--port", type=_port, help="the app's port (default: Host.LocalHttpPort of local.settings.json)"
    )
    parser.add_argument("--model-service-port", type=_port, default=_MODEL_SERVICE_PORT, help="default: %(default)s")
    options = parser.parse_args(arguments)
    try:
        settings = LocalSettings.read(ROOT / "local.settings.json")
        session = Session(options.port or settings.port, options.model_service_port, settings)
        return asyncio.run(session.run())
    except HostError as error:
        print(error, file=sys.stderr, flush=True)
        return 1


def _port(text: str) -> int:
    """A port's number, for argparse, which prints the error's text."""
    if not text.isdecimal() or not 1 <= int(text) <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1 to 65535, for example 8080")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
