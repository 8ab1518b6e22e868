"""Usage segments as a gateway worker writes them, for the tests of the importer."""

import fcntl
import os

from madang.core import EventId, KeyId, RequestId, ServiceName, SiteId, TenantId
from madang.model import UsageEvent
from madang.wire.usage_log import MAGIC, encode_record


def make_event(number, attempt=1, tenant="t1", **changes):
    request = RequestId(f"daegu-{number:032x}")
    values = {
        "event_id": EventId(f"{request}.{attempt}"),
        "request_id": request,
        "attempt": attempt,
        "tenant_id": TenantId(tenant),
        "key_id": KeyId("k1"),
        "service": ServiceName("chat"),
        "model": "m",
        "endpoint": "/v1/chat/completions",
        "entry_site": SiteId("daegu"),
        "site": SiteId("daegu"),
        "prompt_tokens": 10,
        "completion_tokens": number,
        "started_at_s": 86_400.0 * 20_000,
    }
    return UsageEvent(**{**values, **changes})


def records(*numbers, **changes):
    return b"".join(encode_record(make_event(number, **changes)) for number in numbers)


class Worker:
    """One life of a gateway worker: holds the lock of the segment that it writes."""

    def __init__(self, folder, worker=0, boot="b0"):
        self.folder = folder
        self.stem = f"w{worker}-{boot}"
        self.seq = 0
        self.descriptor = None
        self.rotate()

    @property
    def path(self):
        return self.folder / f"{self.stem}-{self.seq:06d}.log"

    def rotate(self):
        old, self.seq = self.descriptor, self.seq + 1
        self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND)
        fcntl.flock(self.descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.write(self.descriptor, MAGIC)
        if old is not None:
            os.close(old)

    def write(self, data):
        os.write(self.descriptor, data)

    def die(self):
        os.close(self.descriptor)
        self.descriptor = None
