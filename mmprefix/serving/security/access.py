"""Access: the bearer key, the origins of browsers, and the headers that every answer has."""

from __future__ import annotations

import hashlib
import hmac
import os
from collections.abc import Collection, Mapping
from urllib.parse import urlsplit

from mmprefix.errors import InputError
from mmprefix.serving.faults import RequestError
from mmprefix.trust.hosts import is_own_name

KEY_VARIABLE = "MMPREFIX_API_KEY"
OPEN_PATHS = frozenset({"/healthz", "/readyz", "/docs", "/openapi.json"})  # answered without a key
HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'",
}


def key_from_environment() -> str | None:
    """The key in ``MMPREFIX_API_KEY``, None where it is not set. Raises InputError for one that no header can hold."""
    key = os.environ.get(KEY_VARIABLE)
    if key is None:
        return None
    if not key or not key.isascii() or not key.isprintable() or " " in key:
        raise InputError(f"{KEY_VARIABLE}: give printable ASCII characters without spaces, or unset it")
    return key


def require_key(headers: Mapping[str, str], key: str | None) -> None:
    """Raise RequestError 401 unless ``headers`` bear ``key``; every wrong one takes the same time."""
    if key is None:
        return
    scheme, _, sent = headers.get("authorization", "").partition(" ")
    same = hmac.compare_digest(_digest(sent.strip()), _digest(key))
    if not same or scheme.lower() != "bearer":
        raise RequestError(
            401,
            "no valid key; send Authorization: Bearer KEY",
            code="invalid_api_key",
            headers={"WWW-Authenticate": "Bearer"},
        )


def require_origin(headers: Mapping[str, str], allowed: Collection[str], *, has_key: bool) -> None:
    """Raise RequestError 403 for a browser's page of another site: it may not use a service that its user can reach.

    A site may let its name lead to this machine once its page is loaded (DNS rebinding), and then page and service
    have one name. Without a key, which such a page does not know, names other than this machine's own are refused too.
    """
    origin = headers.get("origin")
    if origin is None or origin in allowed:
        return
    host = headers.get("host", "")
    if _netloc(origin) != host or not (has_key or is_own_name(host)):
        raise RequestError(403, "pages of other sites may not use this service (--allow-origin)", code="origin")


def _netloc(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:  # such as http://[
        return None


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode(errors="surrogatepass")).digest()
