"""How a gateway hands a tenant's request to its own site process, over loopback.

Owns the names on that way. Refuses to know who is behind the fields: the gateway has judged key and residency before
it sends them, and the site believes whoever shows the token that only the two of them can read.

The site serves a tenant's path under `INTERNAL_PREFIX`, on its admin port, for nobody else.
"""

INTERNAL_PREFIX = "/internal"
TENANT_FIELD = "x-madang-tenant"
PROJECT_FIELD = "x-madang-project"
KEY_FIELD = "x-madang-key"
REQUEST_ID_FIELD = "x-madang-request-id"
DATA_CLASS_FIELD = "x-madang-data-class"
GATEWAY_TOKEN_FILE = "gateway.token"
"""In the site's state folder, mode 0600; made by the site's bootstrap, read by both."""
