"""Which chips of the federation have an artifact of a model, and what exactly is missing where.

Owns the judgement, line by line. Refuses to know databases and sites' networks. Called by the hub for `madang model
show` and `madang service show`.
"""

import shlex
from collections.abc import Collection, Iterable, Sequence
from enum import StrEnum

import msgspec

from madang.model import Artifact, CatalogEntry
from madang.model.build import Build, BuildState

_LOG_WORDS_MAX = 160


class CoverageState(StrEnum):
    """What a kind of chip at a site has of a model."""

    READY = "ready"
    FETCHABLE = "fetchable"
    NO_FILES = "no_files"
    TOO_FEW_CHIPS = "too_few_chips"
    NOT_EQUIVALENT = "not_equivalent"
    BUILDING = "building"
    BUILD_FAILED = "build_failed"
    NO_ARTIFACT = "no_artifact"
    NO_CHIP = "no_chip"


class ChipGroup(msgspec.Struct, frozen=True, kw_only=True):
    """Chips of one kind and one SDK at a site."""

    site: str
    chip_kind: str
    sdk_version: str = ""
    chips: int = 1


class CoverageRow(msgspec.Struct, frozen=True, kw_only=True):
    """What a group of chips has.

    Attributes:
        artifact_id: the one that would run there; empty without any.
        text: for people: what is missing.
        next_step: what to do about it, a command where there is one; empty when nothing is missing.
    """

    site: str
    chip_kind: str
    sdk_version: str
    chips: int
    state: CoverageState
    artifact_id: str = ""
    text: str = ""
    next_step: str = ""


def fits_sdk(artifact_sdk: str, chip_sdk: str) -> bool:
    """Return whether an artifact was compiled for the SDK of a chip; true where either does not say.

    `furiosa-2026.3` fits SDK 2026.3 and 2026.3.1, and not 2026.30.
    """
    version = artifact_sdk.rpartition("-")[2]
    return not version or not chip_sdk or chip_sdk == version or chip_sdk.startswith(f"{version}.")


def cover(
    entry: CatalogEntry,
    standing: Collection[str],
    groups: Iterable[ChipGroup],
    held: Collection[str],
    builds: Sequence[Build],
) -> tuple[CoverageRow, ...]:
    """Return a row for each group of chips, by site and kind.

    Args:
        entry: the model.
        standing: artifacts that may run for the service in question; all, when it is the model that is asked about.
        groups: the federation's chips.
        held: hashes of the entry's files that the hub's store has.
        builds: of this model.
    """
    rows = [_cover_group(entry, standing, group, held, builds) for group in groups]
    return tuple(sorted(rows, key=lambda row: (row.site, row.chip_kind, row.sdk_version)))


def _cover_group(
    entry: CatalogEntry,
    standing: Collection[str],
    group: ChipGroup,
    held: Collection[str],
    builds: Sequence[Build],
) -> CoverageRow:
    if not group.chips:
        return _row(
            group, CoverageState.NO_CHIP, "no chip of this site was seen", "look at its nodes: madang node list"
        )
    kind = [one for one in entry.artifacts if group.chip_kind in one.chip_kinds]
    fitting = [one for one in kind if fits_sdk(one.sdk, group.sdk_version)]
    allowed = [one for one in fitting if one.artifact_id in standing]
    if allowed:
        return _judge_artifact(allowed[0], group, held)
    build = _find_build(group, builds)
    if fitting:
        return _row(
            group,
            CoverageState.NOT_EQUIVALENT,
            f"{fitting[0].artifact_id} runs there and was not found equivalent",
            f"madang model compare {entry.name} --reference SERVICE --candidate SERVICE",
            artifact_id=fitting[0].artifact_id,
        )
    if build is not None and build.state in (BuildState.QUEUED, BuildState.BUILDING):
        by = f" by {build.worker}" if build.state is BuildState.BUILDING else ", no worker has taken it"
        text = f"build {build.build_id} is {build.state.value}{by}"
        return _row(group, CoverageState.BUILDING, text, f"follow it: madang model builds {build.build_id}")
    if build is not None and build.state is BuildState.FAILED:
        words = (build.log.strip().splitlines() or ["nothing"])[-1][:_LOG_WORDS_MAX]
        text = f"build {build.build_id} failed after {build.attempt} attempts, its last words: {words}"
        step = f"madang model builds {build.build_id}, then with --retry"
        return _row(group, CoverageState.BUILD_FAILED, text, step)
    return _row_without_artifact(entry, kind, group)


def _judge_artifact(artifact: Artifact, group: ChipGroup, held: Collection[str]) -> CoverageRow:
    """Return what keeps an artifact that would do from running there."""
    name = artifact.artifact_id
    if artifact.chips > group.chips:
        text = f"{name} needs {artifact.chips} chips, and {group.chips} are there"
        return _row(group, CoverageState.TOO_FEW_CHIPS, text, "an artifact for fewer chips", artifact_id=name)
    missing = [file for file in artifact.files if file.sha256 not in held]
    if not missing:
        return _row(group, CoverageState.READY, "", artifact_id=name)
    lost = [file for file in missing if not file.sources]
    if lost:
        names = ", ".join(f"{file.name} (sha256 {file.sha256})" for file in lost)
        text = f"neither the hub's store nor any source has {names}"
        step = f"on the machine that shall have it: madang model import FILE --sha256 {lost[0].sha256}"
        return _row(group, CoverageState.NO_FILES, text, step, artifact_id=name)
    sizes = sum(file.size_bytes for file in missing)
    text = f"{sizes} bytes come from their publisher: {', '.join(one.name for one in missing)}"
    return _row(group, CoverageState.FETCHABLE, text, artifact_id=name)


def _row_without_artifact(entry: CatalogEntry, kind: Sequence[Artifact], group: ChipGroup) -> CoverageRow:
    """Return that there is none for these chips, and the command that asks for one, as far as it can be known."""
    others = ", ".join(sorted({one.sdk for one in kind if one.sdk}))
    text = f"no artifact for {group.chip_kind}" + (f" {group.sdk_version}" if group.sdk_version else "")
    text += f" (there is one for {others})" if others else ""
    like = kind[0] if kind else None
    vendor = like.sdk.rpartition("-")[0] if like is not None else group.chip_kind
    sdk = f"{vendor}-{group.sdk_version}" if group.sdk_version else "SDK"
    words = ["--chip", group.chip_kind, "--sdk", sdk, "--engine", like.engine if like else "ENGINE"]
    words += ["--memory-bytes", str(like.memory_bytes) if like else "BYTES"]
    words += ["--parallelism", like.parallelism] if like and like.parallelism else []
    return _row(group, CoverageState.NO_ARTIFACT, text, shlex.join(["madang", "model", "build", entry.name, *words]))


def _find_build(group: ChipGroup, builds: Sequence[Build]) -> Build | None:
    fitting = [
        one
        for one in builds
        if one.request.key.chip_kind == group.chip_kind and fits_sdk(one.request.key.sdk, group.sdk_version)
    ]
    return max(fitting, key=lambda one: (one.requested_at_s, one.build_id), default=None)


def _row(
    group: ChipGroup, state: CoverageState, text: str, next_step: str = "", *, artifact_id: str = ""
) -> CoverageRow:
    return CoverageRow(
        site=group.site,
        chip_kind=group.chip_kind,
        sdk_version=group.sdk_version,
        chips=group.chips,
        state=state,
        artifact_id=artifact_id,
        text=text,
        next_step=next_step,
    )
