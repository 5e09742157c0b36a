"""Names of this machine, told from those of other sites that lead to it for a moment (DNS rebinding)."""

from __future__ import annotations

import ipaddress
import socket
from urllib.parse import urlsplit


def is_own_name(host: str) -> bool:
    """True for a ``Host`` header that no other site can have: an IP address, localhost, or this machine's host name."""
    name = (hostname_of(f"//{host}") or "").lower()
    if name == "localhost" or name.endswith(".localhost") or name == socket.gethostname().lower():
        return True
    try:
        return bool(ipaddress.ip_address(name))
    except ValueError:
        return False


def hostname_of(address: str) -> str | None:
    """Host of an address; None where it has none, or is not written as an address is."""
    try:
        return urlsplit(address).hostname
    except ValueError:  # such as http://[
        return None
