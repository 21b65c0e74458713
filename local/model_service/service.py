"""The HTTP server of the model service."""

import ssl
from collections.abc import Iterator, Sequence
from types import TracebackType
from typing import Self

from aiohttp import web

from local.model_service.control import Control
from local.model_service.identity import IdentityEndpoint
from local.model_service.state import ServiceState
from local.model_service.wires import WIRES

MAX_BODY_BYTES = 64 * 1024 * 1024


class ModelService(ServiceState):
    """The service on a port of 127.0.0.1 (0: any free one), as an asynchronous context; see `ServiceState`.

    `tls`: with the certificate to show; None: plain HTTP.
    """

    def __init__(
        self,
        *,
        port: int = 0,
        tls: ssl.SSLContext | None = None,
        tokens_per_second: float = 50.0,
        time_to_first_token: float = 0.0,
        tokens_per_write: int = 64,
        deployments: Sequence[str] = (),
        api_key: str | None = None,
        accept_token: str | None = None,
        require_issued_token: bool = False,
        lenient: bool = False,
        identity: IdentityEndpoint | None = None,
    ) -> None:
        super().__init__(
            tokens_per_second=tokens_per_second,
            time_to_first_token=time_to_first_token,
            tokens_per_write=tokens_per_write,
            deployments=deployments,
            api_key=api_key,
            accept_token=accept_token,
            require_issued_token=require_issued_token,
            lenient=lenient,
            identity=identity,
        )
        self.port = port
        self.tls = tls
        self._runner: web.AppRunner | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Listen; raises `OSError` when the port is taken. After `stop()`, it is the same port again."""
        application = web.Application(client_max_size=MAX_BODY_BYTES)
        application.add_routes(self._routes())
        self._runner = web.AppRunner(
            application, handler_cancellation=True, access_log=None, shutdown_timeout=0.05, keepalive_timeout=300
        )
        await self._runner.setup()
        try:
            site = web.TCPSite(
                self._runner, "127.0.0.1", self.port, ssl_context=self.tls, reuse_address=True, backlog=1024
            )
            await site.start()
        except OSError:
            await self._runner.cleanup()
            raise
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        """Close every connection, cancel what runs in the background and stop listening."""
        self.responses.cancel_all()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    @property
    def origin(self) -> str:
        """`http://127.0.0.1:PORT`, or `https`."""
        return f"{'http' if self.tls is None else 'https'}://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        """The base URL of the v1 API, as an Azure account has it; ends in a slash."""
        return f"{self.origin}/openai/v1/"

    @property
    def identity_url(self) -> str:
        """The value for `IDENTITY_ENDPOINT`."""
        return f"{self.origin}/msi/token"

    def _routes(self) -> Iterator[web.RouteDef]:
        for wire in (make(self) for make in WIRES):
            yield from wire.routes()
        yield web.get("/msi/token", self._get_token)
        yield from Control(self).routes()

    async def _get_token(self, request: web.Request) -> web.StreamResponse:
        return await self.identity.handle(request)
