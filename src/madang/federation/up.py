"""`madang up` and `madang down`: brings the embedded federation up, whatever state it is in, or ends it.

Owns the order of steps. Refuses to print: a `Screen` is told what happens. Called by the command line.
"""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Protocol

import msgspec

from madang.core import MadangError, Rejected
from madang.federation.bootstrap import enrol, prepare
from madang.federation.catalog import builtin_catalog
from madang.federation.demo import CHAT_SERVICE, GUIDE_TENANT, apply_demo
from madang.federation.first_question import Answer, ask
from madang.federation.layout import BASE_PORT, Layout, make_layout
from madang.federation.models import fetch_models
from madang.federation.relay import read_modes
from madang.federation.relay_settings import LinkMode
from madang.federation.running import (
    check_machine,
    clean_leftovers,
    exclusive,
    find_supervisor,
    retry_now,
    start_supervisor,
    stop_everything,
)
from madang.federation.state import (
    Credentials,
    choose_cache_dir,
    read_credentials,
    read_layout,
    read_state,
    write_credentials,
    write_state,
)
from madang.federation.waiting import Culprit, PartView, Watcher
from madang.node.artifacts import FetchProgress
from madang.policy.pricing import kst_day
from madang.runtime.admin_client import AdminClient
from madang.runtime.clock import SystemClock

UP_WAIT_S = 180.0
_ASK_WAIT_S = 30.0
_POLL_S = 0.2


class Screen(Protocol):
    """Where progress goes."""

    def say(self, part: str, text: str) -> None:
        """A part has come to a new point."""
        ...

    def show(self, views: list[PartView]) -> None:
        """This is how far the parts are; called several times a second."""
        ...

    def fetched(self, progress: FetchProgress) -> None:
        """So much of a file is here; called several times a second."""
        ...


class UpOptions(msgspec.Struct, frozen=True, kw_only=True):
    """What the caller wants.

    Attributes:
        state_dir: absolute.
        base_port: None for what the state says, or the usual one.
        has_demo: make the tenants and services of the first day.
        wait_s: how long to wait for everything to answer.
    """

    state_dir: Path
    base_port: int | None = None
    has_demo: bool = True
    wait_s: float = UP_WAIT_S


class UpReport(msgspec.Struct, frozen=True, kw_only=True):
    """What stands now."""

    layout: Layout
    credentials: Credentials
    was_running: bool
    duration_s: float
    answer: Answer | None


class NotUp(MadangError):
    """The federation did not come up in time; carries who is to blame."""

    def __init__(self, message: str, culprit: Culprit | None, *, next_step: str) -> None:
        super().__init__(message, next_step=next_step)
        self.culprit = culprit


def bring_up(options: UpOptions, screen: Screen) -> UpReport:
    """Bring the federation up and ask it a first question.

    Raises:
        Rejected, Conflict, Unavailable: before anything was started, or when a step was refused.
        NotUp: when some part did not come up in time.
    """
    started_ns = time.monotonic_ns()
    layout = _choose_layout(options)
    with exclusive(layout):
        was_running = find_supervisor(layout) is not None
        if was_running:
            screen.say("federation", "runs already")
            retry_now(layout)
            credentials = read_credentials(layout.credentials_path)
            if credentials is None:
                raise Rejected(f"{layout.credentials_path} is missing", next_step="madang down, then madang up")
        else:
            credentials = _start(layout, options, screen)
        credentials = _first_day(layout, credentials, options, screen)
        _await_ready(layout, credentials, options, screen)
        answer = _ask_first(layout, credentials, screen)
    duration_s = (time.monotonic_ns() - started_ns) / 1e9
    return UpReport(
        layout=layout, credentials=credentials, was_running=was_running, duration_s=duration_s, answer=answer
    )


def _choose_layout(options: UpOptions) -> Layout:
    known = read_state(options.state_dir)
    usual_port = known.base_port if known is not None else BASE_PORT
    layout = make_layout(options.state_dir, choose_cache_dir(), options.base_port or usual_port)
    if known is not None and layout.base_port != known.base_port and find_supervisor(layout) is not None:
        raise Rejected(
            f"the federation in {layout.state_dir} runs on ports from {known.base_port} on",
            next_step="to move it: madang down, then madang up --base-port",
        )
    return layout


def _start(layout: Layout, options: UpOptions, screen: Screen) -> Credentials:
    ended = clean_leftovers(layout)
    if ended:
        screen.say("leftovers", f"ended {ended} processes of a crashed start")
    check_machine(layout)
    if options.has_demo:
        fetch_models(layout, screen.say, screen.fetched)
    screen.say("state", f"prepares {layout.state_dir}")
    credentials, specs = prepare(layout)
    screen.say("supervisor", f"starts {len(specs)} programs")
    start_supervisor(layout)
    return credentials


def _first_day(layout: Layout, credentials: Credentials, options: UpOptions, screen: Screen) -> Credentials:
    """Do what is left of enrolment and of the demo; nothing on any later day."""
    with AdminClient(layout.hub_url, credentials.admin_token, name="the hub") as hub:
        state = read_state(layout.state_dir)
        assert state is not None
        if not state.is_enrolled:
            _await_hub(layout, credentials, options, screen)
            enrol(layout, hub, credentials, screen.say)
        if options.has_demo and not state.is_demo_applied:
            _await_hub(layout, credentials, options, screen)
            screen.say("hub", "takes tenants, keys, models, services and example prices")
            credentials = apply_demo(
                hub,
                builtin_catalog(),
                credentials,
                lambda new: write_credentials(layout.credentials_path, new),
                lambda: kst_day(SystemClock().wall_s()),
            )
            state = read_state(layout.state_dir)
            assert state is not None
            write_state(layout.state_dir, msgspec.structs.replace(state, is_demo_applied=True))
    return credentials


def _guide_key(credentials: Credentials) -> str:
    return next((tenant.api_key for tenant in credentials.tenants if tenant.name == GUIDE_TENANT), "")


def _await_hub(layout: Layout, credentials: Credentials, options: UpOptions, screen: Screen) -> None:
    watcher = Watcher(layout, credentials, "")
    _wait(layout, watcher, options, screen, lambda: [watcher.look_at_hub()])


def _await_ready(layout: Layout, credentials: Credentials, options: UpOptions, screen: Screen) -> None:
    watcher = Watcher(layout, credentials, _guide_key(credentials))
    _wait(layout, watcher, options, screen, watcher.look)


def _wait(
    layout: Layout, watcher: Watcher, options: UpOptions, screen: Screen, look: Callable[[], list[PartView]]
) -> None:
    deadline_ns = time.monotonic_ns() + round(options.wait_s * 1e9)
    try:
        while True:
            if find_supervisor(layout) is None:
                raise NotUp("the supervisor has ended", None, next_step=f"madang up; its log: {layout.log_dir}")
            views = look()
            screen.show(views)
            waiting = [view for view in views if not view.is_ready]
            if not waiting:
                return
            culprit = watcher.find_looping()
            if culprit is not None or time.monotonic_ns() > deadline_ns:
                names = ", ".join(f"{view.name} ({view.text})" for view in waiting)
                raise NotUp(
                    f"not ready: {names}",
                    culprit or watcher.find_culprit(),
                    next_step="what runs stays up; mend the cause and run madang up again, or end it: madang down",
                )
            time.sleep(_POLL_S)
    finally:
        watcher.close()


def _ask_first(layout: Layout, credentials: Credentials, screen: Screen) -> Answer | None:
    api_key = _guide_key(credentials)
    if not api_key:
        return None
    modes = read_modes(layout.run_dir)
    whole = [site for site in layout.sites if modes.get(site.name, LinkMode.OK) is LinkMode.OK]
    # The national entry when it can reach others; else a site that serves by itself.
    site = whole[0] if len(whole) > 1 and whole[0] is layout.national else layout.sites[1]
    screen.say("question", f"asks {site.name} in Korean")
    return ask(site.tenant_url, api_key, CHAT_SERVICE, wait_s=_ASK_WAIT_S)


def bring_down(state_dir: Path, screen: Screen) -> int:
    """End the federation and prove that nothing remains; return how many processes it had."""
    layout = read_layout(state_dir)
    with exclusive(layout):
        if find_supervisor(layout) is not None:
            screen.say("federation", "stops")
        return stop_everything(layout)
