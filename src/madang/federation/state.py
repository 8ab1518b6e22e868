"""The embedded federation's own files: what layout the state has, and the credentials that people read.

Owns both files, their versions and their migration. Refuses to know the programs' state, which carries its own
schema versions. Called by the bootstrap, by `madang up`, `down`, `status` and by the command line, which finds
URLs and tokens here.
"""

import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from madang import __version__
from madang.core import Rejected, Unavailable
from madang.federation.layout import BASE_PORT, Layout, make_layout
from madang.model import Residency
from madang.node.cache import default_cache_dir
from madang.runtime.files import read_secret, replace_file, write_secret

STATE_VERSION = 1
STATE_FILE = "federation.json"
CREDENTIALS_FILE = "credentials.json"
STATE_VARIABLE = "MADANG_STATE"

_MIGRATIONS: dict[int, Callable[[Path], None]] = {}
"""From which layout version, and what to do to reach the next; the folder is the state's."""


class FederationState(msgspec.Struct, frozen=True, kw_only=True):
    """What is remembered of a federation between its starts.

    Attributes:
        base_port: the hub's port.
        cache_dir: where artifacts are kept; text, since JSON has no paths.
        is_enrolled: every site has its credentials.
        is_demo_applied: tenants, keys and services of the first day were made; what people change later stays.
        release: the release that wrote the file.
        version: of the state's layout.
    """

    base_port: int = BASE_PORT
    cache_dir: str = ""
    is_enrolled: bool = False
    is_demo_applied: bool = False
    release: str = __version__
    version: int = STATE_VERSION


class SiteCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """How to reach one site."""

    name: str
    url: str
    admin_url: str
    admin_token: str


class TenantCredentials(msgspec.Struct, frozen=True, kw_only=True):
    """A demo tenant and its key; `residency` as in the admin API."""

    name: str
    residency: Residency
    api_key: str


class Credentials(msgspec.Struct, frozen=True, kw_only=True):
    """`credentials.json`: a contract; fields may be added."""

    hub_url: str
    national_url: str
    admin_token: str
    sites: tuple[SiteCredentials, ...] = ()
    tenants: tuple[TenantCredentials, ...] = ()
    national_admin_url: str = ""
    national_admin_token: str = ""

    def token_of(self, site: str) -> str:
        """Return the admin token of a site or of the national entry; raises Rejected when it is unknown."""
        if site == "national":
            return self.national_admin_token
        for known in self.sites:
            if known.name == site:
                return known.admin_token
        names = ", ".join(["national", *(known.name for known in self.sites)])
        raise Rejected(f"site {site!r} is not of this federation", next_step=f"choose one of {names}")


def choose_state_dir(given: Path | None) -> Path:
    """Return the state folder: as given, else of the environment, else `./.madang`; absolute."""
    return (given or Path(os.environ.get(STATE_VARIABLE) or ".madang")).expanduser().absolute()


def choose_cache_dir() -> Path:
    """Return where artifacts are kept: below `$MADANG_CACHE`, else `~/.cache/madang`; absolute."""
    return default_cache_dir(os.environ).expanduser().absolute()


def read_state(state_dir: Path) -> FederationState | None:
    """Return what the state folder remembers, migrated to this release; None when there is no federation in it.

    Raises:
        Rejected: when the file is damaged or was written by a newer release.
        Unavailable: when it cannot be read.
    """
    path = state_dir / STATE_FILE
    state = _read_state_file(path)
    if state is None:
        return None
    if state.version > STATE_VERSION:
        raise Rejected(
            f"{path} was written by release {state.release} (layout {state.version}); "
            f"this is {__version__} (layout {STATE_VERSION})",
            next_step="use that release or a newer one, or another --state",
        )
    for version in range(state.version, STATE_VERSION):
        _MIGRATIONS[version](state_dir)
        state = msgspec.structs.replace(state, version=version + 1, release=__version__)
        write_state(state_dir, state)
    return state


def _read_state_file(path: Path) -> FederationState | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=FederationState)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise Unavailable(f"cannot read {path}: {error.strerror}") from error
    except msgspec.MsgspecError as error:
        raise Rejected(
            f"{path} is damaged: {error}", next_step="restore it, or choose another --state for a new federation"
        ) from error


def write_state(state_dir: Path, state: FederationState) -> None:
    """Remember `state`, durably."""
    replace_file(state_dir / STATE_FILE, msgspec.json.format(msgspec.json.encode(state), indent=2), is_durable=True)


def read_layout(state_dir: Path) -> Layout:
    """Return the map of an existing federation; raises Rejected, naming the next step, when there is none."""
    state = read_state(state_dir)
    if state is None:
        raise Rejected(f"there is no federation in {state_dir}", next_step="start one with: madang up")
    return make_layout(state_dir, Path(state.cache_dir), state.base_port)


def read_credentials(path: Path) -> Credentials | None:
    """Return the credentials, or None when there are none yet; raises Rejected when they are damaged."""
    if not path.exists():
        return None
    try:
        return msgspec.json.decode(read_secret(path), type=Credentials)
    except msgspec.MsgspecError as error:
        raise Rejected(f"{path} is damaged: {error}", next_step="restore it from a copy") from error


def write_credentials(path: Path, credentials: Credentials) -> None:
    """Keep the credentials with mode 0600, durably."""
    write_secret(path, msgspec.json.format(msgspec.json.encode(credentials), indent=2) + b"\n")
