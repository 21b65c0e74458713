"""What the process's environment may decide about requests to the model service: a company network's proxy, no more."""

import ipaddress
import os
import re
import urllib.request
from typing import Final
from urllib.parse import urlsplit

_CLIENT_SETTINGS: Final = "OPENAI_"


def remove_client_settings() -> None:
    """Remove the variables that the openai client would read when it is imported and constructed.

    Of a developer's shell, for example: `OPENAI_ORG_ID` and `OPENAI_PROJECT_ID` add headers, `OPENAI_CUSTOM_HEADERS`
    replaces any header, also `Authorization`, and `OPENAI_LOG` logs the prompts. It reads more of them with each
    version, so that all are removed; nothing else in this process reads them.
    """
    for name in [name for name in os.environ if name.startswith(_CLIENT_SETTINGS)]:
        os.environ.pop(name, None)


def proxy_for(url: str) -> str | None:
    """The proxy for requests to `url`, by the environment (or the system's settings, on macOS and Windows).

    Loopback addresses and the hosts of `NO_PROXY` are reached directly. Only proxies of HTTP can be used.
    """
    parts = urlsplit(url)
    host = (parts.hostname or "").rstrip(".")
    proxy = urllib.request.getproxies().get(parts.scheme, "")
    if not proxy or is_loopback(host) or _is_excluded(host, parts.port) or urllib.request.proxy_bypass(host):
        return None
    if "://" not in proxy:
        proxy = f"http://{proxy}"
    return proxy if urlsplit(proxy).scheme in ("http", "https") and urlsplit(proxy).hostname else None


def without_credentials(url: str) -> str:
    """The address alone: scheme, host and port."""
    parts = urlsplit(url)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}" + (f":{parts.port}" if parts.port else "")


def is_loopback(host: str) -> bool:
    """Whether the host is this machine (RFC 6761, section 6.3, for the names)."""
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return address.is_loopback or (mapped is not None and mapped.is_loopback)


def _is_excluded(host: str, port: int | None) -> bool:
    """By `NO_PROXY`: names with all their subdomains, addresses, networks (`10.0.0.0/8`), each with a port or without.

    Python's own reading of it, which is asked too, knows no networks.
    """
    excluded = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    for entry in re.split(r"[\s,]+", excluded.lower()):
        name, with_port, entry_port = entry.rpartition(":")
        if not with_port or not entry_port.isdecimal() or (":" in name and not name.endswith("]")):
            name, entry_port = entry, ""
        name = name.strip("[]").removeprefix("*").lstrip(".")
        if entry_port and int(entry_port) != port:
            continue
        if entry == "*" or (name and (host == name or host.endswith(f".{name}") or _is_in_network(host, name))):
            return True
    return False


def _is_in_network(host: str, network: str) -> bool:
    try:
        return ipaddress.ip_address(host) in ipaddress.ip_network(network, strict=False)
    except ValueError:
        return False
