"""Which variables of the caller's environment reach the programs of the embedded federation.

Owns the rule: a setting may come from the environment, as in any installation, unless the map of the federation
decides it; whatever else begins with MADANG_ (tokens, URLs, folders of the command line) stays with the caller. Pure.
"""

from collections.abc import Iterator, Mapping

import msgspec

from madang.federation.layout import (
    Layout,
    gateway_settings,
    hub_settings,
    make_layout,
    node_settings,
    relay_settings,
    site_settings,
)

_OURS = "MADANG_"
_UNUSUAL_PORT = 50_000


def choose_environment(environ: Mapping[str, str], layout: Layout) -> dict[str, str]:
    """Return the variables to start the supervisor with."""
    # On ports that are nobody's default, whatever the map decides differs from a default.
    allowed = set(_free_variables(make_layout(layout.state_dir, layout.cache_dir, _UNUSUAL_PORT)))
    return {name: value for name, value in environ.items() if not name.startswith(_OURS) or name in allowed}


def _free_variables(layout: Layout) -> Iterator[str]:
    boxes = [site for site in layout.sites if not site.is_entry_only]
    # An empty digest equals the default, but a token is never for the environment to change.
    digest = "0" * 64
    structs: dict[str, list[msgspec.Struct]] = {
        "HUB": [hub_settings(layout, digest)],
        "SITE": [site_settings(layout, site, digest) for site in layout.sites],
        "NODE": [node_settings(layout, site) for site in boxes],
        "GATEWAY": [gateway_settings(site) for site in layout.sites],
        "RELAY": [relay_settings(layout)],
    }
    for program, values in structs.items():
        for field in msgspec.structs.fields(values[0]):
            default = field.default if field.default_factory is msgspec.NODEFAULT else field.default_factory()
            if all(getattr(value, field.name) == default for value in values):
                yield f"{_OURS}{program}_{field.name.upper()}"
