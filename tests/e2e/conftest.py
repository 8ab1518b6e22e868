"""One embedded federation for the whole session: real NATS, real databases, real engines, the real model."""

import socket

import pytest
from tests.e2e.embedded import Embedded, wait_for
from tests.e2e.installed import Tesseract, find_tesseract


def free_base_port() -> int:
    """Return a base from which a whole block of ports is free now."""
    for base in range(17700, 19700, 100):
        sockets = []
        try:
            for port in range(base, base + 90):
                one = socket.socket()
                one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                sockets.append(one)
                one.bind(("127.0.0.1", port))
        except OSError:
            continue
        finally:
            for one in sockets:
                one.close()
        return base
    raise AssertionError("no block of 90 free ports between 17700 and 19700")


@pytest.fixture(scope="session")
def tesseract_here(request):
    """Tesseract for the nodes, looked for only where a selected test reads pictures."""
    is_wanted = any("tesseract" in getattr(item, "fixturenames", ()) for item in request.session.items)
    return find_tesseract() if is_wanted else Tesseract({}, "no test asked for it")


@pytest.fixture(scope="session")
def federation(tmp_path_factory, tesseract_here):
    folder = tmp_path_factory.mktemp("federation")
    embedded = Embedded(folder, free_base_port(), tesseract_here.environ)
    try:
        done = embedded.madang("up", "--base-port", str(embedded.base_port), timeout_s=600)
        embedded.first_words = done.stdout
        yield embedded
    finally:
        ended = embedded.madang("down", is_ok=False)
    assert "no process and no port remains" in ended.stdout
    assert embedded.leftovers() == []


@pytest.fixture(scope="session")
def tesseract(tesseract_here):
    """Only where the nodes have Tesseract."""
    if tesseract_here.missing:
        pytest.skip(tesseract_here.missing)


@pytest.fixture
def healthy(federation):
    """The federation with every link healed and every service answering again, before and after."""

    def is_healthy() -> bool:
        status = federation.admin("GET", "/api/v1/status")
        sites = [s for s in status["sites"] if not s.get("is_entry_only")]
        return all(s["state"] == "connected" and s["in_sync"] for s in sites) and all(
            any(r["phase"] == "ready" for r in federation.engines(s["name"], "madang-chat")) for s in sites
        )

    wait_for("every site connected, in sync and ready", is_healthy, 60, every_s=0.3)
    yield federation
    for site in federation.broken_links():
        federation.madang("wan", "heal", site)
    wait_for("every site connected, in sync and ready", is_healthy, 60, every_s=0.3)


@pytest.fixture(autouse=True)
def closed_clients(request):
    """Close the official clients that a test made."""
    yield
    if "federation" in request.fixturenames:
        request.getfixturevalue("federation").close_clients()
