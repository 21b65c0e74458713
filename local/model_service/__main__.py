"""The command `python -m local.model_service`: serves until SIGINT or SIGTERM."""

import argparse
import asyncio
import signal
import ssl

from local.model_service import IdentityEndpoint, ModelService


def main() -> None:
    """Read the command line and serve."""
    parser = argparse.ArgumentParser(prog="python -m local.model_service", description="A simulated model service.")
    parser.add_argument("--port", type=int, default=7072, help="0: any free one (default %(default)s)")
    parser.add_argument("--tokens-per-second", type=float, default=50.0, help="0: no pause (default %(default)s)")
    parser.add_argument("--time-to-first-token", type=float, default=0.2, help="seconds (default %(default)s)")
    parser.add_argument("--tokens-per-write", type=int, default=64, help="without a pause (default %(default)s)")
    parser.add_argument("--deployments", default="", help="listed beside the default one, separated by commas")
    parser.add_argument("--api-key", help="the key that is accepted (default: any)")
    parser.add_argument("--accept-token", help="the bearer token that is accepted (default: any)")
    parser.add_argument("--require-issued-token", action="store_true", help="accept only tokens of /msi/token")
    parser.add_argument("--identity-header", help="what /msi/token expects as X-IDENTITY-HEADER (default: random)")
    parser.add_argument("--tls", metavar="FILE", help="serve HTTPS with the certificate and key in this PEM file")
    parser.add_argument("--quiet", action="store_true", help="do not print the address")
    options = parser.parse_args()
    tls = None
    if options.tls:
        tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        tls.load_cert_chain(options.tls)
    service = ModelService(
        port=options.port,
        tls=tls,
        tokens_per_second=options.tokens_per_second,
        time_to_first_token=options.time_to_first_token,
        tokens_per_write=options.tokens_per_write,
        deployments=[name.strip() for name in options.deployments.split(",") if name.strip()],
        api_key=options.api_key,
        accept_token=options.accept_token,
        require_issued_token=options.require_issued_token,
        identity=IdentityEndpoint(header=options.identity_header) if options.identity_header else None,
    )
    asyncio.run(_serve(service, quiet=options.quiet))


async def _serve(service: ModelService, *, quiet: bool) -> None:
    stopped = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stopped.set)
    try:
        await service.start()
    except OSError as error:
        raise SystemExit(f"the model service can't listen on port {service.port}: {error.strerror}") from None
    if not quiet:
        print(f"model service on {service.url}", flush=True)
    try:
        await stopped.wait()
    finally:
        await service.stop()


if __name__ == "__main__":
    main()
