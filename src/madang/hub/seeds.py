"""The hub's NATS identities: seeds on disk, and the account JWT that says who is revoked.

Owns `state_dir/keys` and how the account's claims are composed. Refuses to know the database and the server:
`madang.hub.claims` keeps both in line with what is composed here. With the table `nats_claims`, the seeds are what
to back up; whoever holds them can mint a site.
"""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from madang.core import Entropy
from madang.runtime.files import read_secret, write_secret
from madang.runtime.nats import (
    KeyRole,
    make_seed,
    mint_account,
    mint_operator,
    mint_user,
    public_key,
    site_role,
)

ACCOUNT_NAME = "FED"
SYSTEM_NAME = "SYS"
_ROLES = {
    "operator": KeyRole.OPERATOR,
    "system": KeyRole.ACCOUNT,
    "account": KeyRole.ACCOUNT,
    "role": KeyRole.ACCOUNT,
    "hub_user": KeyRole.USER,
    "system_user": KeyRole.USER,
}


class HubSeeds(msgspec.Struct, frozen=True, kw_only=True):
    """All seeds of one federation; its `repr` shows none.

    Attributes:
        operator: signs accounts.
        system: account SYS, in which claims are updated.
        account: account FED, in which everything travels.
        role: signs sites; its scope is what a site may do.
        hub_user: the hub program in FED.
        system_user: the hub program in SYS.
    """

    operator: bytes
    system: bytes
    account: bytes
    role: bytes
    hub_user: bytes
    system_user: bytes

    def __repr__(self) -> str:
        return f"HubSeeds(account={self.account_key!r})"

    @property
    def account_key(self) -> str:
        """Return the public key of account FED."""
        return public_key(self.account)

    @property
    def system_key(self) -> str:
        """Return the public key of account SYS."""
        return public_key(self.system)


def prepare_seeds(folder: Path, entropy: Entropy) -> HubSeeds:
    """Return the seeds in `folder`, making those that are missing; raises Unavailable naming a file."""
    values: dict[str, bytes] = {}
    for name, role in _ROLES.items():
        path = folder / f"{name}.seed"
        if not path.exists():
            write_secret(path, make_seed(role, entropy.token_bytes(32)))
        values[name] = read_secret(path)
        public_key(values[name])
    return HubSeeds(**values)


def load_seeds(folder: Path) -> HubSeeds:
    """Return the seeds in `folder`; raises Unavailable naming the file that is missing or open to others."""
    return HubSeeds(**{name: read_secret(folder / f"{name}.seed") for name in _ROLES})


def compose_account(seeds: HubSeeds, revocations: Mapping[str, int], issued_at_s: int) -> str:
    """Return the JWT of account FED with these revocations (user public key to wall time)."""
    return mint_account(
        seeds.operator,
        seeds.account_key,
        ACCOUNT_NAME,
        issued_at_s=issued_at_s,
        has_jetstream=True,
        scoped_keys={public_key(seeds.role): site_role()},
        revocations=revocations,
    )


def compose_system(seeds: HubSeeds, issued_at_s: int) -> str:
    """Return the JWT of account SYS."""
    return mint_account(seeds.operator, seeds.system_key, SYSTEM_NAME, issued_at_s=issued_at_s)


def compose_operator(seeds: HubSeeds, issued_at_s: int) -> str:
    """Return the operator's JWT."""
    return mint_operator(seeds.operator, "madang", system_account=seeds.system_key, issued_at_s=issued_at_s)


def compose_hub_users(seeds: HubSeeds, issued_at_s: int) -> tuple[str, str]:
    """Return the JWTs of the hub program's users in FED and in SYS."""
    return (
        mint_user(seeds.account, public_key(seeds.hub_user), "hub", issued_at_s=issued_at_s),
        mint_user(seeds.system, public_key(seeds.system_user), "hub_system", issued_at_s=issued_at_s),
    )
