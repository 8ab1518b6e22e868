"""The certificate and key that a gateway shows, and a newer pair when the files change.

Owns when the files are looked at, and what is said of them. Refuses to open sockets and to judge a pair
(`madang.runtime.tls_pair` does). Connections that are open keep what they began with. Imported only where TLS is asked
for, since reading certificates costs some megabytes of memory.
"""

import asyncio
import ssl
from datetime import UTC, datetime
from pathlib import Path

from madang.core import Clock, Rejected
from madang.gateway.settings import GatewaySettings
from madang.runtime.roots import load_roots
from madang.runtime.telemetry import EventLog
from madang.runtime.tls_pair import PROTOCOLS, PairFiles

LOOK_PERIOD_S = 1.0
"""How soon a new pair is in use."""
SOON_S = 14 * 86_400.0
"""So long before its end a certificate is named in the log and in readiness."""


class TlsIdentity:
    """The pair in use."""

    def __init__(
        self,
        settings: GatewaySettings,
        *,
        loop: asyncio.AbstractEventLoop,
        clock: Clock,
        log: EventLog,
    ) -> None:
        """Read the pair; raises Rejected when there is none that can be used."""
        certificate, key = settings.tls_certificate_file, settings.tls_key_file
        if certificate is None or key is None:
            raise Rejected(
                "a TLS port is set and its certificate is not",
                next_step="set tls_certificate_file and tls_key_file",
            )
        self._certificate = certificate
        self._loop = loop
        self._clock = clock
        self._log = log
        self._files = PairFiles(certificate, key, clock)
        self._told = ""
        self._timer: asyncio.TimerHandle | None = None

    def context(self) -> ssl.SSLContext:
        """Return the context for a new connection."""
        return self._files.pair.context

    @property
    def not_after_s(self) -> float:
        """The last second of the certificate in use, wall clock."""
        return self._files.pair.not_after_s

    def start(self) -> None:
        """Look for a newer pair now and then."""
        self.look()
        self._timer = self._loop.call_later(LOOK_PERIOD_S, self.start)

    def stop(self) -> None:
        """Look no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def look(self) -> None:
        """Take the files' pair if it is another one and whole; two stat calls when it is not."""
        try:
            is_new = self._files.look()
        except Rejected as error:
            self._log.warning("gateway_certificate_kept", reason=str(error))
        else:
            if is_new:
                names = self._files.pair.names
                self._log.info("gateway_certificate_replaced", names=names, not_after_s=round(self.not_after_s))
        self._note_end()

    def warning(self) -> str:
        """Return what is soon or already wrong with the certificate in use; empty when nothing is."""
        left_s = self.not_after_s - self._clock.wall_s()
        if left_s > SOON_S:
            return ""
        end = datetime.fromtimestamp(self.not_after_s, UTC)
        words = "expired at" if left_s < 0 else "expires at"
        return f"TLS certificate {self._certificate} {words} {end:%Y-%m-%d %H:%M} UTC"

    def _note_end(self) -> None:
        warning = self.warning()
        if warning != self._told:
            self._told = warning
            if warning:
                self._log.warning("gateway_certificate_ends", reason=warning)


def peer_context(ca_file: Path | None) -> ssl.SSLContext:
    """Return how peers' certificates are judged: by their host's name, by the system's roots or by those in a file.

    Raises:
        Rejected: the file cannot be read or holds no certificate.
    """
    context = load_roots("peer_ca_file", ca_file)
    context.set_alpn_protocols(PROTOCOLS)
    return context
