"""Settings and control messages of the relay that stands for the WAN of the embedded federation.

Owns their shape and what each mode means for a link. Refuses to know sockets: `madang.federation.relay` has them.
"""

from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path

import msgspec

CONTROL_SOCKET = "wan.sock"
HUB = "hub"
"""What a link to the hub names as its other end; the hub is no site and has no mode of its own."""
MODES_FILE = "wan.json"


class LinkMode(StrEnum):
    """What happens to traffic: `cut` resets and refuses, `hole` keeps sockets open and forwards nothing."""

    OK = "ok"
    HOLE = "hole"
    CUT = "cut"


class RelayLink(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One way between two ends.

    Attributes:
        site: who dials.
        other: who is dialled: another site, or `hub`.
        purpose: `leaf`, `http` or `peer`.
        listen_port: where `site` dials.
        target_port: where `other` listens.
    """

    site: str
    other: str
    purpose: str
    listen_port: int
    target_port: int


class RelaySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The relay.

    Attributes:
        host: where it listens and where all targets are.
        run_dir: holds the control socket and the modes, which outlive the relay.
        links: every way.
        buffer_bytes_max: bytes held for a receiver that is slow, each way, before the sender is paused.
        connections_max: connections of one link; over it the newest is closed.
    """

    host: str = "127.0.0.1"
    run_dir: Path
    links: tuple[RelayLink, ...]
    buffer_bytes_max: int = 256 * 1024
    connections_max: int = 1024


class WanModes(msgspec.Struct, frozen=True, kw_only=True):
    """The file that keeps what was asked for, by site; a site that is not named is `ok`."""

    modes: dict[str, LinkMode] = {}
    version: int = 1


class WanCommand(msgspec.Struct, frozen=True, kw_only=True):
    """One line to the control socket: `set` a site's mode, or only ask with `status`."""

    verb: str
    site: str = ""
    mode: LinkMode = LinkMode.OK


class LinkState(msgspec.Struct, frozen=True, kw_only=True):
    """One link as it is."""

    site: str
    other: str
    purpose: str
    mode: LinkMode
    connections: int
    is_listening: bool


class WanReply(msgspec.Struct, frozen=True, kw_only=True):
    """The answer to a command; `error` is empty when it was done."""

    modes: dict[str, LinkMode] = {}
    links: tuple[LinkState, ...] = ()
    error: str = ""


def sites_of(links: tuple[RelayLink, ...]) -> list[str]:
    """Return the sites at either end of links, in order of first appearance."""
    ends = (end for link in links for end in (link.site, link.other) if end != HUB)
    return list(dict.fromkeys(ends))


def mode_of_link(link: RelayLink, modes: Mapping[str, LinkMode]) -> LinkMode:
    """Return the worse of the modes of both ends; the hub has none of its own."""
    ends = {modes.get(link.site, LinkMode.OK), modes.get(link.other, LinkMode.OK)}
    return next(mode for mode in (LinkMode.CUT, LinkMode.HOLE, LinkMode.OK) if mode in ends)
