"""Which processes a site and a federation are made of, and in which order they end."""

import sys
from pathlib import Path

import msgspec

from madang.federation.layout import gateway_settings, make_layout, node_settings, site_settings
from madang.federation.programs import SitePrograms, plan_federation_programs, plan_site_programs
from madang.runtime.supervision import check_specs, decode_specs, encode_specs, plan_stop

LAYOUT = make_layout(Path("/state"), Path("/cache"))
DAEGU = LAYOUT.sites[1]


def plan_daegu(workers=1, has_node=True):
    return plan_site_programs(
        SitePrograms(
            config_dir=DAEGU.folder,
            log_dir=LAYOUT.log_dir,
            site=site_settings(LAYOUT, DAEGU, ""),
            gateway=msgspec.structs.replace(gateway_settings(DAEGU), workers=workers),
            node=node_settings(LAYOUT, DAEGU) if has_node else None,
            nats_server=Path("/bin/nats-server"),
            nats_config=Path("/n.conf"),
        )
    )


def plan_all():
    configs = {site.name: Path(f"/{site.name}.conf") for site in LAYOUT.sites}
    return plan_federation_programs(
        LAYOUT, nats_server=Path("/bin/nats-server"), hub_nats_config=Path("/hub.conf"), site_nats_configs=configs
    )


def test_a_site_is_four_programs_and_an_entry_three():
    assert [spec.name for spec in plan_daegu()] == ["daegu-nats", "daegu-site", "daegu-node", "daegu-gateway"]
    assert [spec.name for spec in plan_daegu(has_node=False)] == ["daegu-nats", "daegu-site", "daegu-gateway"]


def test_gateway_workers_share_the_sockets_that_the_supervisor_holds():
    workers = [spec for spec in plan_daegu(workers=2) if "gateway" in spec.name]
    assert [spec.name for spec in workers] == ["daegu-gateway0", "daegu-gateway1"]
    assert [spec.argv[-2:] for spec in workers] == [("--worker", "0"), ("--worker", "1")]
    for spec in workers:
        assert [(listen.name, listen.port) for listen in spec.listeners] == [("tenant", 7710), ("peer", 7714)]
    assert [spec.ready_url[-13:] for spec in workers] == [":7713/healthz", ":7714/healthz"]


def test_a_sites_nats_server_waits_for_its_credentials():
    nats = plan_daegu()[0]
    assert nats.needs_files == (DAEGU.folder / "nats" / "leaf.creds",)


def test_answers_end_before_what_carries_their_usage():
    specs = plan_all()
    check_specs(specs)
    groups = [{spec.name.rpartition("-")[2] for spec in group} for group in plan_stop(specs)]
    assert groups == [{"gateway"}, {"site"}, {"node"}, {"nats"}, {"hub"}, {"nats"}, {"relay", "plant"}]
    assert len(specs) == 2 + 2 + 3 + 3 * 4


def test_programs_run_in_this_python_and_not_in_what_lies_in_their_folder():
    for spec in plan_all():
        assert spec.argv[0] == "/bin/nats-server" or spec.argv[:3] == (sys.executable, "-P", "-m")


def test_specifications_survive_their_file():
    assert decode_specs(encode_specs(plan_all())) == plan_all()
