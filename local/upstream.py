"""Which model service the app talks to here: what the settings say, what overrides them, and how to choose another."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import ProxyHandler, build_opener

from local.functions_host import HostError
from relay.settings import Settings, SettingsError

_ENDPOINT, _DEPLOYMENTS, _BACKENDS = "AZURE_OPENAI_ENDPOINT", "AZURE_OPENAI_DEPLOYMENTS", "AZURE_OPENAI_BACKENDS"
_API_KEY = "AZURE_OPENAI_API_KEY"
# The simulated model service: no other server on this machine has Azure's own path.
_SIMULATED = re.compile(r"(?<=://)(127\.0\.0\.1|localhost):(\d{1,5})(?=/openai/v1/?(?:[\"\s,]|$))")
_LIST_SECONDS = 5.0


class Upstream:
    """The model service of one run of `make start`."""

    def __init__(self, values: Mapping[str, str], environ: Mapping[str, str]) -> None:
        """`values` are those of local.settings.json, which variables of `environ` override."""
        self._values = values
        self._environ = environ
        self.moved: dict[str, str] = {}

    @property
    def settings(self) -> dict[str, str]:
        """What the app sees."""
        return {**self._values, **self._environ, **self.moved}

    def simulated_ports(self) -> list[int]:
        """Where the settings expect a simulated model service."""
        found = _SIMULATED.findall(f"{self.settings.get(_ENDPOINT, '')} {self.settings.get(_BACKENDS, '')}")
        return list(dict.fromkeys(int(port) for _, port in found))

    def move(self, configured: int, port: int) -> None:
        """The simulated model service is on another port in this run."""
        for name in (_ENDPOINT, _BACKENDS):
            text = self.settings.get(name, "")
            moved = _SIMULATED.sub(
                lambda found: f"{found[1]}:{port if int(found[2]) == configured else found[2]}", text
            )
            if moved != text:
                self.moved[name] = moved

    def move_all(self, port: int) -> None:
        """All of them are one, on this port."""
        for configured in self.simulated_ports():
            self.move(configured, port)

    def overriding(self) -> list[str]:
        """The variables of the environment that override, or add to, what is in local.settings.json."""
        names = {*self._values, *(name for name in self._environ if re.match(r"AZURE_OPENAI_|AZURE_CLIENT_ID$", name))}
        return sorted(
            name for name in names if name in self._environ and self._environ[name] != self._values.get(name, "")
        )

    def description(self) -> list[str]:
        """Which model service is asked, with whose credential, and what decides that."""
        lines = []
        try:
            settings = Settings.read(self.settings)
        except SettingsError as error:
            lines += [f"Wrong setting: {it.setting} {it.message}" for it in error.errors]
        else:
            endpoints = list(dict.fromkeys(backend.endpoint for backend in settings.backends))
            simulated = [endpoint for endpoint in endpoints if _SIMULATED.search(endpoint)]
            for endpoint in endpoints:
                kind = "simulated, on this machine" if endpoint in simulated else endpoint
                address = f" (port {urlsplit(endpoint).port})" if endpoint in simulated else ""
                lines.append(f"Model service: {kind}{address}; {_credential(settings, endpoint in simulated)}")
        if names := self.overriding():
            lines.append(
                f"These environment variables override local.settings.json: {', '.join(names)}. "
                f"To use the file: unset {' '.join(names)}"
            )
        return lines


def _credential(settings: Settings, simulated: bool) -> str:
    if settings.api_key is not None:
        return f"the key in {_API_KEY} is sent"
    if settings.identity is None or simulated:
        return "no key is sent"
    if settings.identity.kind == "developer":
        return "signed in as you (az login, or azd auth login)"
    return "signed in with the managed identity"


@dataclass(frozen=True, slots=True)
class Choice:
    """A common model service. `endpoint` None: it must be given; `deployments` None: the server is asked, or given."""

    endpoint: str | None
    deployments: str | None = None
    lists_models: bool = False
    needs: str = ""


CHOICES = {
    "simulated": Choice("http://127.0.0.1:7072/openai/v1/", "gpt-5.4-mini"),
    "azure": Choice(None, needs="ENDPOINT=https://NAME.openai.azure.com/ DEPLOYMENTS=gpt-5.4-mini (and: az login)"),
    "openai": Choice("https://api.openai.com/v1", needs=f"DEPLOYMENTS=gpt-5.4-mini (and: export {_API_KEY}=…)"),
    "ollama": Choice("http://127.0.0.1:11434/v1", lists_models=True, needs="DEPLOYMENTS=llama3.2"),
    "lmstudio": Choice("http://127.0.0.1:1234/v1", lists_models=True, needs="DEPLOYMENTS=NAME"),
    "vllm": Choice("http://127.0.0.1:8000/v1", lists_models=True, needs="DEPLOYMENTS=NAME"),
    "llamacpp": Choice("http://127.0.0.1:8080/v1", lists_models=True, needs="DEPLOYMENTS=NAME"),
}


def choose(
    path: Path, name: str, environ: Mapping[str, str], *, endpoint: str | None = None, deployments: str | None = None
) -> str:
    """Write this model service into local.settings.json and return what was written.

    Changes the two values only, so comments and all other settings stay. Raises `HostError` that names what is missing.
    """
    choice = CHOICES.get(name)
    if choice is None:
        raise HostError(f"MODEL={name} is not known. Choose one of: {', '.join(CHOICES)}.")
    for setting in (_ENDPOINT, _DEPLOYMENTS, _BACKENDS):
        if environ.get(setting):
            raise HostError(
                f"MODEL={name} would have no effect: {setting} is exported and overrides the file. Unset it."
            )
    endpoint = endpoint or choice.endpoint
    deployments = deployments or choice.deployments
    if endpoint and not deployments and choice.lists_models:
        deployments = _first_model(name, endpoint, choice)
    if not endpoint or not deployments:
        raise HostError(f"MODEL={name} needs: make start MODEL={name} {choice.needs}")
    try:
        text = path.read_text(encoding="utf-8")
        if re.search(rf'"{_BACKENDS}"\s*:\s*"[^"]', text):
            raise HostError(f"{_BACKENDS} in {path.name} names the deployments: empty it to use MODEL={name}.")
        for setting, value in ((_ENDPOINT, endpoint), (_DEPLOYMENTS, deployments)):
            text = _with_value(path, text, setting, value)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise HostError(f"{path.name} can't be changed: {error.strerror}.") from None
    return f"Wrote to {path.name}: {_ENDPOINT}={endpoint} {_DEPLOYMENTS}={deployments}"


def _with_value(path: Path, text: str, setting: str, value: str) -> str:
    changed, count = re.subn(
        rf'("{setting}"\s*:\s*)"(?:\\.|[^"\\])*"', lambda found: found[1] + json.dumps(value), text, count=1
    )
    if count:
        return changed
    changed, count = re.subn(
        r'("Values"\s*:\s*\{)', lambda found: f'{found[1]}\n    "{setting}": {json.dumps(value)},', text, count=1
    )
    if not count:
        raise HostError(f"{path.name} has no Values: delete it, and make start writes a new one.")
    return changed


def _first_model(name: str, endpoint: str, choice: Choice) -> str:
    """The first model that the server lists."""
    try:
        with build_opener(ProxyHandler({})).open(f"{endpoint.rstrip('/')}/models", timeout=_LIST_SECONDS) as response:
            models = [str(model["id"]) for model in json.load(response)["data"]]
    except (OSError, ValueError, TypeError, LookupError):
        raise HostError(
            f"{name} does not list its models at {endpoint}: start it, or name the model: "
            f"make start MODEL={name} {choice.needs}"
        ) from None
    if not models:
        raise HostError(f"{name} at {endpoint} has no model: load one, and run this again.")
    return models[0]
