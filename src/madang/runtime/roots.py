"""Whose certificates vouch for programs that we dial with TLS.

Owns the reading of a file of roots and its words when it cannot be used. Refuses to dial. Called by gateway workers and
by the site process, where a setting names such a file: at the start, so that a wrong one is an error then.
"""

import ssl
from pathlib import Path

from madang.core import Rejected


def load_roots(key: str, file: Path | None) -> ssl.SSLContext:
    """Return how certificates are judged: by their host's name, by the system's roots or by those in a file.

    Args:
        key: the setting that names the file, for the error.
        file: PEM; None for the system's roots.

    Raises:
        Rejected: the file cannot be read or holds no certificate.
    """
    try:
        context = ssl.create_default_context(cafile=file)
    except (OSError, ssl.SSLError) as error:
        raise Rejected(f"{key} {file} cannot be used: {error}", next_step="expected PEM with certificates") from error
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    return context
