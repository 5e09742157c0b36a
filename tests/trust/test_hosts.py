"""Names of this machine: addresses and its own name, and no name that another site may have."""

from __future__ import annotations

import socket

import pytest

from mmprefix.trust.hosts import hostname_of, is_own_name

OWN = ["127.0.0.1", "127.0.0.1:7860", "[::1]:80", "10.0.0.3", "localhost", "LOCALHOST:1", "page.localhost:2"]
OTHER = [
    "",
    "example.org",
    "example.org:80",
    "127.0.0.1.example.org",
    "localhost.example.org",
    "xlocalhost",
    "[",
    "[::1",
]


@pytest.mark.parametrize("host", [*OWN, socket.gethostname()])
def test_own_names(host: str) -> None:
    assert is_own_name(host)


@pytest.mark.parametrize("host", OTHER)
def test_names_that_another_site_may_have(host: str) -> None:
    assert not is_own_name(host)


def test_addresses_without_a_host() -> None:
    assert hostname_of("http://[") is None
    assert hostname_of("null") is None
    assert hostname_of("https://Name.example:8/x") == "name.example"
