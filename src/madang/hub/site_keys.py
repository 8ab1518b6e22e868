"""The public keys that sites sign with, those of revoked sites included: what receipts are verified with.

Owns how they are gathered: from the audit log, which remembers every enrolment and revocation, while the table of
sites knows only the newest. Refuses to hold private keys; each site keeps its own.
"""

import msgspec
import sqlalchemy as sa

from madang.core import SiteId
from madang.hub.tables import AUDIT
from madang.wire.receipts import SiteKey, make_kid

_ENROL, _REVOKE = "site.enrol", "site.revoke"


class _Detail(msgspec.Struct):
    identity_ed25519: str = ""


def read_site_keys(connection: sa.Connection) -> tuple[SiteKey, ...]:
    """Return every key that a site was ever enrolled with, in order of enrolment; one pass over the audit log."""
    query = (
        sa.select(AUDIT.c.at_s, AUDIT.c.action, AUDIT.c.target, AUDIT.c.detail)
        .where(AUDIT.c.action.in_((_ENROL, _REVOKE)))
        .order_by(AUDIT.c.seq)
    )
    found: dict[tuple[str, str], SiteKey] = {}
    for row in connection.execute(query):
        public_key = msgspec.json.decode(row.detail, type=_Detail).identity_ed25519
        place = row.target, public_key
        if row.action == _REVOKE and place in found:
            found[place] = msgspec.structs.replace(found[place], revoked_at_s=row.at_s)
        elif row.action == _ENROL and place not in found:
            found[place] = SiteKey(
                site=SiteId(row.target),
                public_key=public_key,
                kid=make_kid(bytes.fromhex(public_key)),
                valid_from_s=row.at_s,
            )
    return tuple(found.values())
