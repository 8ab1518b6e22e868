"""Whose certificates a client of HTTP believes.

Owns that choice by URL. Refuses to know what is asked. Called by whoever makes a client of httpx, which otherwise
loads the authorities of the world for each client, 40 ms of CPU, though nearly all that it speaks to is plain HTTP.
"""

import ssl


def trust_for(url: str) -> ssl.SSLContext | bool:
    """Return httpx's `verify` for a base URL: its own authorities, or for plain HTTP a context that trusts nobody.

    Should such a client ever be led to https, it refuses every certificate.
    """
    return ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT) if url[:7].lower() == "http://" else True
