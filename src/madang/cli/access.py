"""Which federation a command speaks to: options that every command takes, and the clients they lead to.

Owns the order: option, environment, `credentials.json` of the state folder. Refuses to print. Called by every
command through `command`, which adds the options to its own.
"""

import inspect
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from madang.core import Rejected

if TYPE_CHECKING:
    from madang.federation.state import Credentials
    from madang.runtime.admin_client import AdminClient

StateOption = Annotated[
    Path | None,
    typer.Option("--state", envvar="MADANG_STATE", help="State folder.", show_default="./.madang", metavar="DIR"),
]
HubUrlOption = Annotated[
    str | None,
    typer.Option("--hub-url", envvar="MADANG_HUB_URL", help="Admin API of a hub elsewhere.", metavar="URL"),
]
TokenOption = Annotated[
    str | None,
    typer.Option("--token", envvar="MADANG_ADMIN_TOKEN", help="Its admin token.", metavar="TOKEN", show_default=False),
]
SiteUrlOption = Annotated[
    str | None,
    typer.Option(
        "--site-url", envvar="MADANG_SITE_URL", help="Admin API of the --site, with its own --token.", metavar="URL"
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]
SiteOption = Annotated[
    str | None,
    typer.Option("--site", help="Ask this site's own admin API: works while it is cut off.", metavar="SITE"),
]
_SHARED: dict[str, Any] = {
    "state": StateOption,
    "hub_url": HubUrlOption,
    "site_url": SiteUrlOption,
    "token": TokenOption,
    "is_json": JsonOption,
}


class Access:
    """What the shared options lead to.

    Attributes:
        state: the state folder as given, or None.
        is_json: print JSON.
    """

    def __init__(
        self, *, state: Path | None, hub_url: str | None, site_url: str | None, token: str | None, is_json: bool
    ) -> None:
        self.state = state
        self.is_json = is_json
        self._hub_url = hub_url
        self._site_url = site_url
        self._token = token

    @property
    def has_hub_elsewhere(self) -> bool:
        """Whether a hub was named, rather than the one of the state folder."""
        return self._hub_url is not None

    @property
    def state_dir(self) -> Path:
        """The state folder, absolute."""
        from madang.federation.state import choose_state_dir

        return choose_state_dir(self.state)

    def credentials(self) -> "Credentials":
        """Return the credentials in the state folder; raises Rejected, naming the next step, without any."""
        from madang.federation.state import CREDENTIALS_FILE, read_credentials

        found = read_credentials(self.state_dir / CREDENTIALS_FILE)
        if found is None:
            raise Rejected(
                f"there is no federation in {self.state_dir}",
                next_step="start one with: madang up; or name one with --state, with --hub-url and --token, "
                "or a site with --site, --site-url and --token",
            )
        return found

    def hub(self) -> "AdminClient":
        """Return a client of the hub's admin API."""
        from madang.runtime.admin_client import AdminClient

        if self._hub_url is None:
            known = self.credentials()
            return AdminClient(known.hub_url, self._token or known.admin_token, name="the hub")
        if self._token is None:
            raise Rejected(
                f"the hub at {self._hub_url} asks for an admin token",
                next_step="pass --token or set MADANG_ADMIN_TOKEN",
            )
        return AdminClient(self._hub_url, self._token, name="the hub")

    def hub_as_worker(self) -> tuple[str, str]:
        """Return the hub's URL and the token that was given; a worker's token is never that of the state folder."""
        if self._token is None:
            raise Rejected(
                "a worker needs its own --token", next_step="get one with: madang model worker NAME --offer …"
            )
        return self._hub_url or self.credentials().hub_url, self._token

    def site(self, name: str) -> "AdminClient":
        """Return a client of a site's own admin API; URL and token are those given, else of the state folder."""
        from madang.runtime.admin_client import AdminClient

        if self._site_url is not None:
            if self._token is None:
                raise Rejected(
                    f"the site at {self._site_url} asks for its own admin token",
                    next_step="pass --token or set MADANG_ADMIN_TOKEN",
                )
            return AdminClient(self._site_url, self._token, name=f"site {name}")
        known = self.credentials()
        token = known.token_of(name)
        urls = {site.name: site.admin_url for site in known.sites}
        return AdminClient(urls.get(name, known.national_admin_url), token, name=f"site {name}")

    def hub_or_site(self, name: str | None) -> "AdminClient":
        """Return a client of the named site, or of the hub when none is named."""
        return self.hub() if name is None else self.site(name)


def command(group: typer.Typer, name: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Register a function as a command of `group`, with the shared options added to its own.

    The function's first parameter is an Access; the rest are the command's own, in typer's manner.
    """

    def register(function: Callable[..., None]) -> Callable[..., None]:
        group.command(name)(with_access(function))
        return function

    return register


def with_access(function: Callable[..., None]) -> Callable[..., None]:
    """Return a function for typer that makes an Access of the shared options and calls `function` with it."""
    own = list(inspect.signature(function, eval_str=True).parameters.values())[1:]
    shared = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, annotation=kind, default=False if name == "is_json" else None
        )
        for name, kind in _SHARED.items()
    ]

    def run(**values: Any) -> None:
        access = Access(**{name: values.pop(name) for name in _SHARED})
        function(access, **values)

    run.__doc__ = function.__doc__
    keyword_only = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in own]
    run.__signature__ = inspect.Signature([*keyword_only, *shared])  # type: ignore[attr-defined]
    return run


def rows_of(found: Any, name: str) -> list[dict[str, Any]]:
    """Return the rows of a listing, which an API answers bare or in an object under `name`."""
    rows: list[dict[str, Any]] = found if isinstance(found, list) else found[name]
    return rows
