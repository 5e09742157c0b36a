"""Addresses that clients send: fetched from public hosts alone, whatever a name or a redirect says.

A name is resolved once for each connection, all its addresses are checked, and the connection goes to the address that
was checked: a name that is resolved anew to a private address (DNS rebinding) gains nothing. Redirects are followed by
the same connections. Proxies of the environment, file: and ftp: are not used.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import urllib.request
from collections.abc import Callable
from typing import Any
from urllib.parse import urlsplit

from mmprefix.errors import InputError
from mmprefix.inference.urls import download

Resolve = Callable[[str, int], list[str]]
_EMBEDS_IPV4 = [ipaddress.ip_network(net) for net in ("64:ff9b::/96", "64:ff9b:1::/48", "2002::/16", "2001::/32")]


def is_public(address: str) -> bool:
    """True for an address of the public internet.

    Not private, loopback, link-local, shared, multicast or reserved; nor an IPv6 address that holds an IPv4 one.
    """
    try:
        parsed = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(parsed, ipaddress.IPv6Address):
        if parsed.ipv4_mapped is not None:
            parsed = parsed.ipv4_mapped
        elif parsed.is_site_local or any(parsed in net for net in _EMBEDS_IPV4):
            return False
    return parsed.is_global and not (parsed.is_multicast or parsed.is_reserved or parsed.is_unspecified)


def resolve(host: str, port: int) -> list[str]:
    """Addresses of ``host``, in the order of the resolver."""
    rows = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(row[4][0]) for row in rows))


def public_address(host: str, port: int, resolver: Resolve = resolve) -> str:
    """First address of ``host``. Raises InputError unless all of its addresses are public."""
    try:
        addresses = resolver(host, port)
    except (OSError, UnicodeError) as error:
        raise InputError(f"{host}: no such host") from error
    if not addresses or not all(map(is_public, addresses)):
        raise InputError(f"{host}: is no public host, and nothing is fetched from any other")
    return addresses[0]


def fetch_public(url: str, seconds: float, resolver: Resolve = resolve) -> bytes:
    """Bytes at ``url`` within the limits of ``mmprefix.inference.urls``; InputError for all that is not public."""
    try:
        parts = urlsplit(url)
        valid = parts.scheme.lower() in ("http", "https") and bool(parts.hostname) and parts.username is None
        _ = parts.port  # raises ValueError for one that is no number
    except ValueError:
        valid = False
    if not valid or any(not character.isprintable() or character.isspace() for character in url):
        raise InputError("url: give an address that begins with http:// or https://, without a user in it")
    return download(url, seconds, opener=_opener(resolver))


def _opener(resolver: Resolve) -> urllib.request.OpenerDirector:
    opener = urllib.request.OpenerDirector()
    for handler in (
        _PublicHandler(resolver),
        urllib.request.HTTPRedirectHandler(),
        urllib.request.HTTPErrorProcessor(),
        urllib.request.HTTPDefaultErrorHandler(),
        urllib.request.UnknownHandler(),
    ):
        opener.add_handler(handler)
    return opener


class _PublicHandler(urllib.request.AbstractHTTPHandler):
    """Handler of http: and https: whose connections go to public addresses."""

    def __init__(self, resolver: Resolve) -> None:
        super().__init__()
        self._resolver = resolver

    http_request = https_request = urllib.request.AbstractHTTPHandler.do_request_

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Answer of an http: address."""
        return self.do_open(self._connection(None), req)

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        """Answer of an https: address, its certificate checked for the name."""
        return self.do_open(self._connection(ssl.create_default_context()), req)

    def _connection(self, context: ssl.SSLContext | None) -> Any:
        resolver = self._resolver

        class Connection(http.client.HTTPConnection):
            default_port = 80 if context is None else 443

            def connect(self) -> None:
                address = public_address(self.host, self.port, resolver)
                self.sock = socket.create_connection((address, self.port), self.timeout)
                if context is not None:
                    self.sock = context.wrap_socket(self.sock, server_hostname=self.host)

        return Connection
