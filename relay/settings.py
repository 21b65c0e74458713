"""The app settings, read once into one frozen object; nothing else in the app reads the environment.

Every error names the setting and the remedy, and never quotes a value that could hold a secret.
"""

import ipaddress
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, Self, get_args
from urllib.parse import urlsplit

import msgspec

from relay.usage import Usage

AZURE_TOKEN_SCOPE = "https://cognitiveservices.azure.com/.default"  # noqa: S105 (a scope's name, not a secret)

# Servers that need no key still want the header to be there; clients of such servers send a placeholder like this.
NO_KEY: Final = "none"

# Azure's own hosts: only these are sent this app's Entra token unless a setting says otherwise.
AZURE_HOSTS: Final = (
    ".openai.azure.com",
    ".cognitiveservices.azure.com",
    ".services.ai.azure.com",
    ".openai.azure.us",
    ".cognitiveservices.azure.us",
    ".openai.azure.cn",
    ".cognitiveservices.azure.cn",
)


# The upstream API that a deployment is asked by, where the caller does not choose it (`POST /stream`).
Wire = Literal["chat", "responses", "embeddings"]
WIRES: Final[tuple[Wire, ...]] = get_args(Wire)
TEXT_WIRES: Final[tuple[Wire, ...]] = ("chat", "responses")


@dataclass(frozen=True, slots=True)
class SettingError:
    """What is wrong with one setting, and the remedy, in a sentence that an operator can act on."""

    setting: str
    message: str


class SettingsError(ValueError):
    """At least one setting is missing or wrong; `errors` names each."""

    def __init__(self, errors: tuple[SettingError, ...]) -> None:
        super().__init__("; ".join(f"{error.setting}: {error.message}" for error in errors))
        self.errors = errors


@dataclass(frozen=True, slots=True)
class BackendSettings:
    """One model deployment on one account.

    `endpoint` ends in a slash and is the base address of the OpenAI API (`…/openai/v1/`); `model` is the name that
    callers use; a lower `priority` is tried first. `wire` is the API that the deployment is stated to have.
    """

    name: str
    endpoint: str
    deployment: str
    model: str
    priority: int = 1
    wire: Wire = "chat"

    @property
    def server(self) -> tuple[str, int]:
        """The host name or IP address, and the port."""
        parts = urlsplit(self.endpoint)
        return parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)

    @property
    def both_limits(self) -> bool:
        """Whether the output limit is sent under both of its names.

        Azure OpenAI and OpenAI know `max_completion_tokens` for every model, and refuse the two together. Of the other
        servers some ignore it, so that it would limit nothing.
        """
        host = urlsplit(self.endpoint).hostname or ""
        return not (host == "api.openai.com" or host.endswith((*AZURE_HOSTS, ".api.openai.com")))


@dataclass(frozen=True, slots=True)
class Identity:
    """The Entra identity that the app signs in to the model service with.

    `managed`: the managed identity of the Function App; `developer`: the sign-in of `az` or `azd`.
    """

    kind: Literal["managed", "developer"]
    scope: str
    client_id: str | None = None


class Price(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a million tokens of a model cost, in a currency of the operator's choice.

    `cached_input`: of a prompt's tokens those that came from the cache; None: as `input`.
    """

    input: float
    output: float = 0.0
    cached_input: float | None = None

    def cost(self, usage: Usage) -> float:
        """What an answer cost."""
        cached = min(usage.cached_tokens or 0, usage.input_tokens)
        cached_price = self.input if self.cached_input is None else self.cached_input
        input_cost = (usage.input_tokens - cached) * self.input + cached * cached_price
        return (input_cost + usage.output_tokens * self.output) / 1_000_000


@dataclass(frozen=True)
class Settings:
    """The app's settings. Times are in seconds, sizes in bytes.

    `api_key_header` is the header that the key is sent in; None: as a bearer token in `Authorization`.
    `failover_after`: how long a deployment may be silent before its answer's headers until the next one is asked; None:
    until the silence timeout ends the stream. `prices` are by model; the record of one that has none has no cost.
    `resumable_streams`: callers may ask for a stream that can be resumed; `resumable_grace`: how long the response of a
    lost connection is left alone; `resumable_keep`: it is never deleted.
    """

    backends: tuple[BackendSettings, ...]
    api_key: str | None = field(default=None, repr=False)
    api_key_header: str | None = None
    identity: Identity | None = None
    commit_wait: float = 5.0
    ping_interval: float = 15.0
    stream_deadline: float = 220.0
    upstream_connect_timeout: float = 10.0
    upstream_silence_timeout: float = 120.0
    failover_after: float | None = None
    max_body_bytes: int = 1024 * 1024
    max_output_tokens: int = 16384
    prices: Mapping[str, Price] = field(default_factory=dict)
    resumable_streams: bool = False
    resumable_grace: float = 900.0
    resumable_keep: bool = False

    @property
    def models(self) -> tuple[str, ...]:
        """The models that callers may ask for, each once: those of text first, as the default one is one of these."""
        in_order = sorted(self.backends, key=lambda backend: backend.wire not in TEXT_WIRES)
        return tuple(dict.fromkeys(backend.model for backend in in_order))

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings out of `environ`; raises `SettingsError` with every error at once."""
        parser = _Parser(environ)
        backends = parser.backends()
        settings = cls(
            backends=backends,
            api_key=parser.key("AZURE_OPENAI_API_KEY"),
            api_key_header=parser.key_header("AZURE_OPENAI_API_KEY_HEADER"),
            identity=parser.identity(backends),
            commit_wait=parser.seconds("COMMIT_WAIT_SECONDS", cls.commit_wait, least=0, most=60),
            ping_interval=parser.seconds("PING_INTERVAL_SECONDS", cls.ping_interval, least=0.05, most=200),
            stream_deadline=parser.seconds("STREAM_DEADLINE_SECONDS", cls.stream_deadline, least=0.1, most=1500),
            upstream_connect_timeout=parser.seconds(
                "UPSTREAM_CONNECT_TIMEOUT_SECONDS", cls.upstream_connect_timeout, least=0.1, most=60
            ),
            upstream_silence_timeout=parser.seconds(
                "UPSTREAM_SILENCE_TIMEOUT_SECONDS", cls.upstream_silence_timeout, least=0.1, most=3600
            ),
            failover_after=parser.seconds("FAILOVER_AFTER_SECONDS", None, least=0.1, most=3600),
            max_body_bytes=parser.whole("MAX_BODY_BYTES", cls.max_body_bytes, least=1, most=100 * 1024 * 1024),
            max_output_tokens=parser.whole("MAX_OUTPUT_TOKENS", cls.max_output_tokens, least=1, most=1_000_000),
            prices=parser.prices("TOKEN_PRICES"),
            resumable_streams=parser.switch("RESUMABLE_STREAMS"),
            resumable_grace=parser.seconds("RESUMABLE_GRACE_SECONDS", cls.resumable_grace, least=0, most=3600),
            resumable_keep=parser.switch("RESUMABLE_KEEP"),
        )
        ChatSettings._parse(parser)
        if parser.errors:
            raise SettingsError(tuple(parser.errors))
        return settings


@dataclass(frozen=True, slots=True)
class ChatSettings:
    """The operator's settings of the chat page; an empty one stands for the page's own text, or all models."""

    enabled: bool = True
    name: str = ""
    greeting: str = ""
    examples: tuple[str, ...] = ()
    notice: str = ""
    models: tuple[str, ...] = ()

    @classmethod
    def read(cls, environ: Mapping[str, str]) -> Self:
        """Read the settings out of `environ`; a wrong one is ignored here, and an error of `Settings.read`."""
        return cls._parse(_Parser(environ))

    @classmethod
    def _parse(cls, parser: "_Parser") -> Self:
        return cls(
            enabled=parser.choice("CHAT_PAGE", ("on", "off")) != "off",
            name=parser.short_text("CHAT_NAME", 60),
            greeting=parser.short_text("CHAT_GREETING", 200),
            examples=parser.texts("CHAT_EXAMPLES", most=8, length=300),
            notice=parser.short_text("CHAT_NOTICE", 500),
            models=parser.names("CHAT_MODELS"),
        )

    def page_config(self) -> dict[str, object]:
        """The members that the page reads."""
        texts = {"name": self.name, "greeting": self.greeting, "notice": self.notice}
        return {**texts, "examples": list(self.examples), "models": list(self.models)}


def auth_level(environ: Mapping[str, str]) -> Literal["FUNCTION", "ANONYMOUS"]:
    """Whether the routes that cost something require a function key.

    `HTTP_AUTH_LEVEL=anonymous` is for an app behind other access control, such as App Service's Entra ID sign-in, which
    rejects everyone without a token. With any other value a key is required. Where callers are named, the app itself
    admits them (`relay.callers.door`), also if what names them is wrong: it then admits no one.
    """
    if environ.get("HTTP_AUTH_LEVEL", "").strip().lower() == "anonymous":
        return "ANONYMOUS"
    return (
        "ANONYMOUS"
        if any(CALLERS_SETTING.fullmatch(name) and environ[name].strip() for name in environ)
        else "FUNCTION"
    )


# A setting is one environment variable, which Linux bounds to 128 KiB: more than a thousand callers take several.
CALLERS_SETTING: Final = re.compile(r"CALLERS(?:_\d{1,4})?", re.ASCII)


class _BackendEntry(msgspec.Struct, forbid_unknown_fields=True):
    """One element of `AZURE_OPENAI_BACKENDS`."""

    endpoint: str
    deployment: str
    model: str | None = None
    name: str | None = None
    priority: int = 1
    wire: str = "chat"


class _Parser:
    """Parses the environment and collects errors instead of stopping at the first."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self.errors: list[SettingError] = []

    def text(self, setting: str) -> str:
        return self.environ.get(setting, "").strip()

    def key(self, setting: str) -> str | None:
        key = self.text(setting)
        if key and not _KEY.fullmatch(key):
            self.add_error(setting, "must be a key as the portal shows it: letters, digits and signs, without spaces.")
        return key or None

    def key_header(self, setting: str) -> str | None:
        """None for `Authorization`, in which a key is a bearer token."""
        name = self.text(setting)
        if not name:
            return None
        if not _HEADER.fullmatch(name) or name.lower() in _HEADERS_IN_USE:
            self.add_error(setting, f"must be the name of a header that carries the key, {_HEADER_EXAMPLE}")
        elif not self.text("AZURE_OPENAI_API_KEY"):
            self.add_error(setting, "remove it, or set AZURE_OPENAI_API_KEY: only a key is sent in this header.")
        return None if name.lower() == "authorization" else name

    def add_error(self, setting: str, message: str) -> None:
        self.errors.append(SettingError(setting, message))

    def seconds[T: (float, float | None)](self, setting: str, default: T, *, least: float, most: float) -> float | T:
        text = self.text(setting)
        if not text:
            return default
        try:
            value = float(text)
        except ValueError:
            value = math.nan
        if not least <= value <= most:
            example = 10.0 if default is None else default
            self.add_error(setting, f"must be a number of seconds from {least:g} to {most:g}, for example {example:g}.")
            return default
        return value

    def choice(self, setting: str, choices: tuple[str, ...]) -> str:
        """One of the choices in lower case; the first one by default."""
        value = self.text(setting).lower() or choices[0]
        if value not in choices:
            self.add_error(setting, f"must be {' or '.join(choices)}.")
            return choices[0]
        return value

    def short_text(self, setting: str, most: int) -> str:
        text = self.text(setting)
        if len(text) > most:
            self.add_error(setting, f"must have {most} characters at most.")
            return ""
        return text

    def texts(self, setting: str, *, most: int, length: int) -> tuple[str, ...]:
        text = self.text(setting)
        if not text:
            return ()
        try:
            given = msgspec.json.decode(text, type=list[str])
        except (msgspec.DecodeError, UnicodeError):
            given = [""]
        values = tuple(each.strip() for each in given)
        if not 1 <= len(values) <= most or not all(1 <= len(each) <= length for each in values):
            self.add_error(
                setting,
                f"must be a JSON list of 1 to {most} texts of 1 to {length} characters, "
                'for example ["Summarise this: "].',
            )
            return ()
        return values

    def names(self, setting: str) -> tuple[str, ...]:
        names = tuple(name.strip() for name in self.text(setting).split(",") if name.strip())
        if not all(map(_NAME.fullmatch, names)):
            self.add_error(setting, "must be names of models, separated by commas.")
            return ()
        return tuple(dict.fromkeys(names))

    def whole(self, setting: str, default: int, *, least: int, most: int) -> int:
        text = self.text(setting)
        if not text:
            return default
        value = int(text) if re.fullmatch(r"[0-9]{1,12}", text) else -1
        if not least <= value <= most:
            self.add_error(setting, f"must be a whole number from {least} to {most}, for example {default}.")
            return default
        return value

    def prices(self, setting: str) -> dict[str, Price]:
        text = self.text(setting)
        if not text:
            return {}
        try:
            prices = msgspec.json.decode(text, type=dict[str, Price])
            values = [it for price in prices.values() for it in msgspec.structs.astuple(price) if it is not None]
            if all(0 <= value < 1e9 for value in values):
                return prices
            where = ""
        except (msgspec.DecodeError, UnicodeError, RecursionError) as error:
            where = f" ({error})" if isinstance(error, msgspec.ValidationError) else ""
        self.add_error(
            setting,
            'must be a JSON object such as {"gpt-5.4-mini": {"input": 0, "cached_input": 0, "output": 0}}, with the '
            f"prices of a million tokens{where}.",
        )
        return {}

    def switch(self, setting: str) -> bool:
        """Off unless it is 1. A number, as all settings that Terraform's `relay_settings` takes."""
        text = self.text(setting)
        if text not in ("", "0", "1"):
            self.add_error(setting, "must be 1 (on) or 0 (off).")
        return text == "1"

    def backends(self) -> tuple[BackendSettings, ...]:
        several = self.text("AZURE_OPENAI_BACKENDS")
        if several:
            for setting in ("AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_DEPLOYMENTS"):
                if self.text(setting):
                    self.add_error(setting, "remove it: AZURE_OPENAI_BACKENDS is set and names every deployment.")
            return self._backends_from_list(several)
        endpoint = self._endpoint("AZURE_OPENAI_ENDPOINT", self.text("AZURE_OPENAI_ENDPOINT"))
        setting = "AZURE_OPENAI_DEPLOYMENTS"
        example = "for example gpt-5.4-mini (several: separated by commas, the default one first)."
        deployments = tuple(name.strip() for name in self.text(setting).split(",") if name.strip())
        if not deployments:
            self.add_error(setting, f"set it to the name of a model deployment, {example}")
        elif not all(map(_NAME.fullmatch, deployments)):
            self.add_error(setting, f"must be names without spaces and quotation marks, {example}")
        if endpoint is None:
            return ()
        return tuple(BackendSettings(name, endpoint, name, name) for name in dict.fromkeys(deployments))

    def _backends_from_list(self, text: str) -> tuple[BackendSettings, ...]:
        setting = "AZURE_OPENAI_BACKENDS"
        try:
            entries = msgspec.json.decode(text, type=list[_BackendEntry])
        except (msgspec.DecodeError, UnicodeError) as error:
            where = f" ({error})" if isinstance(error, msgspec.ValidationError) else ""
            self.add_error(
                setting,
                'must be a JSON list of {"endpoint": "https://NAME.openai.azure.com/", "deployment": "gpt-5.4-mini"}, '
                f'each with "model", "name", "priority" and "wire" if wanted{where}.',
            )
            return ()
        backends: list[BackendSettings] = []
        names: set[str] = set()
        for position, entry in enumerate(entries):
            endpoint = self._endpoint(f"{setting}[{position}].endpoint", entry.endpoint.strip())
            deployment = entry.deployment.strip()
            model = (entry.model or "").strip() or deployment
            for member, name in (("deployment", deployment), ("model", model)):
                if not _NAME.fullmatch(name):
                    self.add_error(
                        f"{setting}[{position}].{member}", "must be a name without spaces, commas and quotation marks."
                    )
            if not 0 <= entry.priority <= 1000:
                self.add_error(f"{setting}[{position}].priority", "must be from 0 to 1000; the lowest is tried first.")
            wire = self._wire(f"{setting}[{position}].wire", entry.wire.strip())
            if endpoint is None:
                continue
            host = urlsplit(endpoint).hostname or ""
            name = (entry.name or "").strip() or f"{host.split('.')[0]}/{deployment}"
            if not _NAME.fullmatch(name):
                self.add_error(
                    f"{setting}[{position}].name", "must be a name without spaces, commas and quotation marks."
                )
            if name in names:
                self.add_error(f"{setting}[{position}].name", "is there twice; give each backend a name of its own.")
            names.add(name)
            if any(it.model == model and (it.wire in TEXT_WIRES) != (wire in TEXT_WIRES) for it in backends):
                self.add_error(
                    f"{setting}[{position}].model",
                    'names a model of embeddings and one of text alike: give one another name, or correct its "wire".',
                )
            backends.append(BackendSettings(name, endpoint, deployment, model, entry.priority, wire))
        if not entries:
            self.add_error(setting, "must name at least one deployment.")
        return tuple(backends)

    def _wire(self, setting: str, text: str) -> Wire:
        for wire in WIRES:
            if text == wire:
                return wire
        self.add_error(
            setting,
            "must be the API that the deployment has: chat (chat completions, the default), responses or embeddings.",
        )
        return "chat"

    def _endpoint(self, setting: str, text: str) -> str | None:
        """The API's base address: the bare address of an account gets `/openai/v1/`, any other must end in `/v1`."""
        example = "for example https://NAME.openai.azure.com/ (or any server's /v1 address)."
        if not text:
            self.add_error(setting, f"set it to the address of the model service, {example}")
            return None
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            parts, port = urlsplit(""), None
        if parts.query or parts.fragment or parts.username or parts.password:
            self.add_error(setting, f"must be an address without a query, a fragment or a password, {example}")
            return None
        host = parts.hostname or ""
        if "[" in parts.netloc and ":" not in host:
            host = ""  # brackets are for IPv6 addresses
        if parts.scheme not in ("http", "https") or not _is_host(host) or port == 0 or not _PATH.fullmatch(parts.path):
            self.add_error(setting, f"must be an http or https address, {example}")
            return None
        path = parts.path.rstrip("/")
        if path in ("", "/openai"):
            path = "/openai/v1"
        if not path.endswith("/v1"):
            self.add_error(setting, f"its path must end in /v1, {example}")
            return None
        return f"{parts.scheme}://{parts.netloc}{path}/"

    def identity(self, backends: tuple[BackendSettings, ...]) -> Identity | None:
        """None where a key is set; a server that is not Azure's gets no token unless a scope is set."""
        scope = self.text("AZURE_OPENAI_TOKEN_SCOPE")
        if scope and not re.fullmatch(r"[^\s/]+://\S+|[0-9a-fA-F-]{36}/\S+", scope):
            self.add_error("AZURE_OPENAI_TOKEN_SCOPE", f"must be a token scope, for example {AZURE_TOKEN_SCOPE}.")
        if self.text("AZURE_OPENAI_API_KEY"):
            return None
        azure = [_belongs_to_azure(backend.endpoint) for backend in backends]
        if not scope and not any(azure):
            return None
        setting = "AZURE_OPENAI_BACKENDS" if self.text("AZURE_OPENAI_BACKENDS") else "AZURE_OPENAI_ENDPOINT"
        if any(urlsplit(it.endpoint).scheme != "https" and not _is_loopback(it.endpoint) for it in backends):
            self.add_error(setting, "must begin with https:// when the app signs in with its Entra identity.")
        if not scope and not all(azure):
            self.add_error(
                "AZURE_OPENAI_BACKENDS",
                "names servers of Azure and others; set AZURE_OPENAI_TOKEN_SCOPE to send all of them the Entra token.",
            )
        client_id = self.text("AZURE_CLIENT_ID") or None
        # IDENTITY_ENDPOINT is where the platform serves tokens for a managed identity.
        managed = bool(self.text("IDENTITY_ENDPOINT"))
        return Identity("managed" if managed else "developer", scope or AZURE_TOKEN_SCOPE, client_id)


# Valid in a header, a URL and a JSON string alike.
_KEY: Final = re.compile(r"[\x21-\x7e]+")
_HEADER: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]{1,100}")  # RFC 9110, section 5.1
_HEADER_EXAMPLE: Final = "for example api-key or Ocp-Apim-Subscription-Key."
# The headers that every request has, or that concern the connection.
_HEADERS_IN_USE: Final = frozenset(
    (
        "accept",
        "accept-encoding",
        "connection",
        "content-encoding",
        "content-length",
        "content-type",
        "cookie",
        "expect",
        "host",
        "keep-alive",
        "proxy-authorization",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
        "user-agent",
        "x-ms-client-request-id",
    )
)
_NAME: Final = re.compile(r"[^\x00-\x20\x22,\x5c\x7f-\U0010ffff]{1,256}")
_PATH: Final = re.compile(r"[A-Za-z0-9._~/-]*")
_HOST_NAME: Final = re.compile(r"(?!.*\.[0-9]+\.?$)[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9])?\.?")


def _is_host(host: str) -> bool:
    """A name, or an IP address; what ends in a number is an address or nothing (WHATWG URL, section 3.5)."""
    if _HOST_NAME.fullmatch(host):
        return ".." not in host
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _belongs_to_azure(endpoint: str) -> bool:
    return (urlsplit(endpoint).hostname or "").endswith(AZURE_HOSTS)


def _is_loopback(endpoint: str) -> bool:
    host = urlsplit(endpoint).hostname or ""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
