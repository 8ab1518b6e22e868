"""`madang service apply`: the services of a file, and the models they need, made so at the hub.

Owns the reading of the file and the comparison with what the hub has. Refuses to judge facts: the hub does. Everything
in the file is read and compared before anything is sent, so a file with a mistake changes nothing, and
one that was applied before changes nothing either.
"""

import tomllib
from collections.abc import Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from madang.cli.access import Access, rows_of
from madang.cli.coverage import tell_gaps
from madang.cli.terminal import print_json, render, say
from madang.core import Rejected
from madang.model import CatalogEntry, Service

if TYPE_CHECKING:
    from madang.runtime.admin_client import AdminClient

_TABLES = ("model", "service")
_NOT_SHOWN = frozenset(("name",))


class Action(StrEnum):
    """What becomes of a fact; the value is how a line about it begins."""

    ADD = "+"
    CHANGE = "~"
    KEEP = "="


class Change(NamedTuple):
    """One fact of the file beside the hub's.

    Attributes:
        fact: as it shall be.
        differences: (field, before, after); of a new one those that are not the default, without a before.
        origin: where a model came from, empty for the file.
        told: what whoever uses a service's model must know: what it needs, and its warning.
    """

    fact: CatalogEntry | Service
    action: Action
    differences: tuple[tuple[str, Any, Any], ...]
    origin: str = ""
    told: str = ""

    @property
    def kind(self) -> str:
        """What it is."""
        return "service" if isinstance(self.fact, Service) else "model"

    def line(self) -> str:
        """Return it as people read it."""
        head = f"{self.action} {self.kind} {self.fact.name}"
        if self.action is Action.KEEP:
            return f"{head}: as it is"
        if self.action is Action.ADD and isinstance(self.fact, CatalogEntry):
            return f"{head} ({self.origin or 'from the file'}; {self.fact.licence}): {self.fact.title}"
        words = (
            f"{name}={_word(after)}" if self.action is Action.ADD else f"{name} {_word(before)} -> {_word(after)}"
            for name, before, after in self.differences
        )
        told = f"\n    {self.told}" if self.told and self.action is Action.ADD else ""
        return f"{head}: {', '.join(words)}{told}"


def _word(value: Any) -> str:
    """Return a value short enough for a line; an artifact by its id."""
    if isinstance(value, tuple):
        return render([getattr(one, "artifact_id", one) for one in value])
    return render(value)


def apply_file(access: Access, file: Path, *, is_dry: bool) -> None:
    """Make the services of a file so, and print what that changed; with `is_dry`, only print it."""
    models, services = read_file(file)
    with access.hub() as hub:
        changes = plan_changes(models, services, *_known(hub), str(file))
        if not is_dry:
            _send(hub, changes)
        _print(access, hub, changes, is_dry=is_dry)


def _print(access: Access, hub: "AdminClient", changes: list[Change], *, is_dry: bool) -> None:
    if access.is_json:
        print_json({"is_applied": not is_dry, "changes": [_plain(one) for one in changes]})
        return
    for change in changes:
        say(change.line())
    count = sum(change.action is not Action.KEEP for change in changes)
    if is_dry:
        say(f"nothing was changed: --dry-run; {count} to apply")
    else:
        say(f"applied: {count}" if count else "nothing to apply")
        for change in changes:
            if change.kind == "service":
                tell_gaps(hub, str(change.fact.name))


def read_file(path: Path) -> tuple[tuple[CatalogEntry, ...], tuple[Service, ...]]:
    """Return the models and services of a file; raises Rejected naming file, key and expectation."""
    from madang.federation.catalog import check_catalog

    try:
        data = path.read_bytes()
        found: Any = msgspec.json.decode(data) if path.suffix == ".json" else tomllib.loads(data.decode())
    except OSError as error:
        raise Rejected(f"{path} cannot be read: {error.strerror}") from error
    except (msgspec.MsgspecError, tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise Rejected(f"{path} is not {'JSON' if path.suffix == '.json' else 'TOML'}: {error}") from error
    if isinstance(found, list) or not any(isinstance(found.get(name), list) for name in _TABLES):
        found = {"service": found if isinstance(found, list) else [found]}
    unknown = sorted(set(found) - set(_TABLES))
    if unknown:
        raise Rejected(f"{path}: {unknown[0]!r} is unknown: expected [[model]] and [[service]]")
    models = _convert(found.get("model", ()), CatalogEntry, f"{path}: model")
    services = _convert(found.get("service", ()), Service, f"{path}: service")
    check_catalog(models, str(path))
    names = [service.name for service in services]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise Rejected(f"{path}: service {twice[0]!r} stands there twice")
    return models, services


def _convert(rows: Any, kind: type[Any], where: str) -> tuple[Any, ...]:
    try:
        facts: tuple[Any, ...] = msgspec.convert(rows, tuple[kind, ...])  # type: ignore[valid-type]
    except msgspec.ValidationError as error:
        raise Rejected(f"{where}: {error}", next_step="see the fields of it in the API's document") from error
    known = {field.name for field in msgspec.structs.fields(kind)}
    for row, fact in zip(rows, facts, strict=True):
        # A misspelt key would be a wish that nobody hears of again.
        unknown = sorted(set(row) - known)
        if unknown:
            raise Rejected(f"{where} {fact.name}: {unknown[0]!r} is unknown: expected {', '.join(sorted(known))}")
    return facts


def _known(hub: "AdminClient") -> tuple[dict[str, CatalogEntry], dict[str, Service]]:
    models = msgspec.convert(rows_of(hub.get("/api/v1/models"), "models"), tuple[CatalogEntry, ...])
    services = msgspec.convert(rows_of(hub.get("/api/v1/services"), "services"), tuple[Service, ...])
    return {one.name: one for one in models}, {str(one.name): one for one in services}


def plan_changes(
    models: Iterable[CatalogEntry],
    services: Iterable[Service],
    known_models: Mapping[str, CatalogEntry],
    known_services: Mapping[str, Service],
    where: str,
) -> list[Change]:
    """Return what has to be done, models first; raises Rejected for a service whose model is nowhere."""
    from madang.federation.catalog import builtin_catalog

    models = tuple(models)
    changes = [_compare(model, known_models.get(model.name)) for model in models]
    shipped = {entry.name: entry for entry in builtin_catalog()}
    found = {**known_models, **{model.name: model for model in models}}
    later = []
    for service in services:
        name = service.model
        if name not in found:
            if name not in shipped:
                raise Rejected(
                    f"{where}: service {service.name}: model {name!r} is not in the file, at the hub, or in this "
                    "release",
                    next_step=f"models of this release: {', '.join(sorted(shipped))}",
                )
            found[name] = shipped[name]
            changes.append(_compare(shipped[name], None, "built-in catalog"))
        told = " ".join(text for text in (found[name].note, found[name].warning) if text)
        later.append(_compare(service, known_services.get(service.name))._replace(told=told))
    return changes + later


def _compare(fact: CatalogEntry | Service, known: CatalogEntry | Service | None, origin: str = "") -> Change:
    if fact == known:
        return Change(fact, Action.KEEP, (), origin)
    fields = (one for one in msgspec.structs.fields(fact) if one.name not in _NOT_SHOWN)
    pairs = []
    for one in fields:
        before = one.default if known is None else getattr(known, one.name)
        after = getattr(fact, one.name)
        if before != after:
            pairs.append((one.name, None if known is None else before, after))
    return Change(fact, Action.ADD if known is None else Action.CHANGE, tuple(pairs), origin)


def _send(hub: "AdminClient", changes: Iterable[Change]) -> None:
    for change in changes:
        if change.action is Action.KEEP:
            continue
        if isinstance(change.fact, Service):
            hub.call("PUT", f"/api/v1/services/{change.fact.name}", change.fact)
        else:
            hub.call("POST", "/api/v1/models", change.fact)


def _plain(change: Change) -> dict[str, Any]:
    return {
        "kind": change.kind,
        "name": change.fact.name,
        "action": change.action.name.lower(),
        "differences": [
            {"field": name, "before": before, "after": after} for name, before, after in change.differences
        ],
    }
