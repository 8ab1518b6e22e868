"""The site's audit chain, which works with the hub out of reach. Owns which table it is in.

`madang.runtime.audit_log` does the rest, with fields and hashes as in the hub's.
"""

from madang.runtime.audit_log import AuditLog
from madang.site.tables import AUDIT

AUDIT_LOG = AuditLog(AUDIT)
