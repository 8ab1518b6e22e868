import hashlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import Rejected, SiteId
from madang.model import Residency, ResidencyScope, Tenant
from madang.wire import bus


def make_heartbeat(**changes):
    values = {
        "site": SiteId("daegu"),
        "boot_id": "b1",
        "seq": 7,
        "sent_at_s": 1.5,
        "applied_generation": 42,
        "state_hash": "ab",
        "outbox_depth": 3,
        "oldest_unsent_age_s": 0.25,
    }
    return bus.Heartbeat(**{**values, **changes})


def test_a_heartbeat_of_version_1_is_read_from_its_golden_bytes():
    golden = (
        b'{"kind":"heartbeat","site":"daegu","boot_id":"b1","seq":7,"sent_at_s":1.5,"applied_generation":42,'
        b'"state_hash":"ab","outbox_depth":3,"oldest_unsent_age_s":0.25,"version":1}'
    )
    assert bus.encode(make_heartbeat()) == golden
    assert bus.decode(golden, bus.Heartbeat) == make_heartbeat()


def test_a_field_from_the_future_is_ignored_and_a_version_from_the_future_refused():
    known = bus.encode(make_heartbeat())
    assert bus.decode(known[:-1] + b',"mood":"calm"}', bus.Heartbeat) == make_heartbeat()
    with pytest.raises(Rejected, match="version 2"):
        bus.decode(bus.encode(make_heartbeat(version=2)), bus.Heartbeat)


def test_a_message_of_another_kind_is_refused():
    with pytest.raises(Rejected, match="Digest"):
        bus.decode(bus.encode(make_heartbeat()), bus.Digest)


@given(st.binary(max_size=200))
def test_arbitrary_bytes_are_a_message_or_rejected(data):
    kinds = (bus.Heartbeat, bus.Digest, bus.UsageBatch, bus.MeterBatch, bus.ResyncPart, bus.CommandReply)
    for kind in (*kinds, bus.SiteStatus):
        with pytest.raises(Rejected):
            bus.decode(data, kind)
    with pytest.raises(Rejected):
        bus.decode_desired(data)


def make_tenant(title):
    return Tenant(tenant_id="t1", title=title, residency=Residency(scope=ResidencyScope.SITE, places=("daegu",)))


def test_a_desired_item_comes_back_whole_and_an_altered_one_is_refused():
    item = bus.make_desired_item(SiteId("daegu"), "tenant", "t1", 9, make_tenant("대구의원"))
    data = bus.encode(item)
    back = bus.decode_desired(data)
    assert back.generation == 9
    assert msgspec.json.decode(back.spec, type=Tenant) == make_tenant("대구의원")
    with pytest.raises(Rejected, match="altered"):
        bus.decode_desired(data.replace(b'daegu"],', b'gumi1"],'))


def test_a_tombstone_has_an_empty_spec():
    item = bus.make_desired_item(SiteId("daegu"), "tenant", "t1", 9, None)
    assert item.is_deleted
    assert item.sha256 == hashlib.sha256(b"{}").hexdigest()


items = st.dictionaries(
    st.tuples(st.sampled_from(["key", "tenant", "site"]), st.from_regex(r"[a-z0-9]{1,8}", fullmatch=True)),
    st.from_regex(r"[0-9a-f]{64}", fullmatch=True),
    max_size=12,
)


@given(items, st.randoms())
def test_the_state_hash_depends_on_content_and_not_on_order(state, random):
    pairs = list(state.items())
    random.shuffle(pairs)
    assert bus.state_hash(dict(pairs)) == bus.state_hash(state)
    for key in state:
        assert bus.state_hash({k: v for k, v in state.items() if k != key}) != bus.state_hash(state)


@pytest.mark.parametrize("subject", ["hb.daegu", "usage.daegu.batch", "status.daegu.observed", "digest.daegu"])
def test_the_second_token_names_the_site(subject):
    assert bus.site_of_subject(subject) == "daegu"
