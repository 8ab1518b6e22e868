"""The hub's three streams and the sites' consumers: their names and configurations, and nothing else.

Owns what JetStream is told to keep. Refuses to talk to it. Durations are nanoseconds, as its API has them.
"""

from typing import Any

from madang.core import s_to_ns
from madang.runtime.nats import DESIRED_BUCKET, DESIRED_STREAM

USAGE_STREAM = "USAGE_ALL"
USAGE_CONSUMER = "ingest"
STATUS_STREAM = "STATUS"
DESIRED_SUBJECTS = f"$KV.{DESIRED_BUCKET}.>"
STATUS_SUBJECTS = "status.>"

_DAY_S = 24 * 3600.0
_USAGE_KEPT_S = 30 * _DAY_S
_DUPLICATE_WINDOW_S = 3600.0
_DESIRED_BYTES_MAX = 2 * 1024**3
_STATUS_BYTES_MAX = 512 * 1024**2
_SLACK_BYTES = 256 * 1024**2


def file_bytes_max(usage_bytes_max: int) -> int:
    """Return what the server must allow all streams together.

    It reserves each stream's bound when the stream is made, and refuses to make one that no longer fits.
    """
    return usage_bytes_max + _DESIRED_BYTES_MAX + _STATUS_BYTES_MAX + _SLACK_BYTES


def usage_stream(bytes_max: int) -> dict[str, Any]:
    """Return the stream of usage events: nothing in it can be deleted, and when full it refuses the newest."""
    return {
        "name": USAGE_STREAM,
        "subjects": ["usage.>"],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_age": s_to_ns(_USAGE_KEPT_S),
        "max_bytes": bytes_max,
        "duplicate_window": s_to_ns(_DUPLICATE_WINDOW_S),
        "deny_delete": True,
        "deny_purge": True,
        "compression": "s2",
        "num_replicas": 1,
    }


def usage_consumer(start_seq: int) -> dict[str, Any]:
    """Return the consumer that the ledger pulls from, beginning at a sequence number (1 or higher)."""
    return {
        "durable_name": USAGE_CONSUMER,
        "deliver_policy": "by_start_sequence",
        "opt_start_seq": start_seq,
        "ack_policy": "explicit",
        "ack_wait": s_to_ns(30.0),
        "max_ack_pending": 64,
        "max_deliver": -1,
        "replay_policy": "instant",
    }


def desired_stream() -> dict[str, Any]:
    """Return the stream behind the bucket `desired`; the names and settings are those of a NATS KV bucket."""
    return {
        "name": DESIRED_STREAM,
        "subjects": [DESIRED_SUBJECTS],
        "storage": "file",
        "retention": "limits",
        "discard": "new",
        "max_msgs_per_subject": 1,
        "max_bytes": _DESIRED_BYTES_MAX,
        "allow_rollup_hdrs": True,
        "allow_direct": True,
        "deny_delete": True,
        "duplicate_window": s_to_ns(120.0),
        "num_replicas": 1,
    }


def desired_subjects_of(site: str) -> str:
    """Return the subjects of one site's desired state."""
    return f"$KV.{DESIRED_BUCKET}.{site}.>"


def desired_consumer(site: str) -> dict[str, Any]:
    """Return a site's consumer; the hub makes it, the site only pulls.

    Whoever may create a consumer chooses where the hub publishes, so no site is given that right.
    """
    return {
        "durable_name": site,
        "filter_subject": desired_subjects_of(site),
        "deliver_policy": "last_per_subject",
        "ack_policy": "explicit",
        "ack_wait": s_to_ns(10.0),
        "max_ack_pending": 256,
        "max_deliver": -1,
        "replay_policy": "instant",
    }


def status_stream() -> dict[str, Any]:
    """Return the stream that keeps the last status of every site."""
    return {
        "name": STATUS_STREAM,
        "subjects": [STATUS_SUBJECTS],
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "max_msgs_per_subject": 1,
        "max_bytes": _STATUS_BYTES_MAX,
        "duplicate_window": s_to_ns(120.0),
        "num_replicas": 1,
    }
