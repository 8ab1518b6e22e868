"""Whose certificates clients of HTTP believe."""

import ssl

import pytest

from madang.runtime.http_trust import trust_for


@pytest.mark.parametrize("url", ["http://127.0.0.1:7700", "HTTP://hub.example"])
def test_over_plain_http_nobody_is_trusted_should_tls_ever_come_up(url):
    context = trust_for(url)
    assert context.get_ca_certs() == []
    assert context.verify_mode == ssl.CERT_REQUIRED
    assert context.check_hostname


@pytest.mark.parametrize("url", ["https://hub.example", "HTTPS://hub.example", "hub.example", ""])
def test_anything_else_is_verified_as_httpx_does(url):
    assert trust_for(url) is True
