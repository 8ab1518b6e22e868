"""The gateway's feed: what is written comes back, anything else is refused."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from madang.core import KeyId, Rejected, ServiceName, SiteId, TenantId
from madang.model import ApiKey, ReplicaPhase, Residency, ResidencyScope, Service, Site, Tenant
from madang.wire.bus import ServiceLoad
from madang.wire.feed import (
    GatewayLive,
    GatewaySnapshot,
    LocalReplica,
    Peer,
    PeerSession,
    decode_live,
    decode_snapshot,
    encode_feed,
)

text = st.text(max_size=12)
residency = st.builds(Residency, scope=st.sampled_from(ResidencyScope), places=st.lists(text, max_size=2).map(tuple))
snapshots = st.builds(
    GatewaySnapshot,
    site=text.map(SiteId),
    generation=st.integers(0, 2**60),
    sites=st.lists(st.builds(Site, name=text.map(SiteId), region=text), max_size=2).map(tuple),
    keys=st.lists(
        st.builds(
            ApiKey,
            key_id=text.map(KeyId),
            sha256=text,
            tenant_id=text.map(TenantId),
            residency=residency,
            expires_at_s=st.none() | st.floats(0, 1e10),
        ),
        max_size=2,
    ).map(tuple),
    tenants=st.lists(st.builds(Tenant, tenant_id=text.map(TenantId), title=text, residency=residency), max_size=2).map(
        tuple
    ),
    services=st.lists(st.builds(Service, name=text.map(ServiceName), model=text), max_size=2).map(tuple),
    models=st.just(()),
)
lives = st.builds(
    GatewayLive,
    written_ns=st.integers(0, 2**62),
    boot_id=text,
    replicas=st.lists(
        st.builds(
            LocalReplica,
            replica_id=text,
            service=text,
            phase=st.sampled_from(ReplicaPhase),
            endpoint=text,
            engine_key=text,
            chip_kind=text,
            slots=st.integers(0, 99),
            slot=st.integers(0, 255),
        ),
        max_size=2,
    ).map(tuple),
    peers=st.lists(
        st.builds(
            Peer,
            site=text.map(SiteId),
            url=text,
            digest_age_s=st.floats(-1, 100),
            services=st.lists(
                st.builds(ServiceLoad, service=text, replicas_ready=st.just(1), slots=st.just(2), in_flight=st.just(3)),
                max_size=1,
            ).map(tuple),
            sessions=st.lists(
                st.builds(PeerSession, kid=text, key=st.binary(max_size=32), expires_at_s=st.floats(0, 1e10)),
                max_size=1,
            ).map(tuple),
        ),
        max_size=2,
    ).map(tuple),
)


@given(snapshots, lives)
def test_round_trip(snapshot: GatewaySnapshot, live: GatewayLive) -> None:
    assert decode_snapshot(encode_feed(snapshot)) == snapshot
    assert decode_live(encode_feed(live)) == live


@given(st.binary(max_size=100))
def test_any_bytes_are_refused(data: bytes) -> None:
    for decode in (decode_snapshot, decode_live):
        with pytest.raises(Rejected):
            decode(data)
