"""HTTP on loopback for tests: httpx that loads no certificates.

Loading the authorities of the world costs 40 ms of CPU for each client, and the functions of httpx make a client for
each request: a test that looked again every 50 ms took a core from what it waited for.
"""

from functools import partial

import httpx

from madang.runtime.http_trust import trust_for

NOBODY = trust_for("http://")
"""What a client of httpx verifies with: plain HTTP alone."""

request = partial(httpx.request, verify=NOBODY)
get = partial(httpx.get, verify=NOBODY)
post = partial(httpx.post, verify=NOBODY)
