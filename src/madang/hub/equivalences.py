"""Which artifacts were found to stand in for each other: who judged, when, on what set.

Owns the table `equivalence`. Refuses to judge (`madang.policy.equivalence`) and to measure (`madang model compare`).
Called by the routes and, for the pairs that still hold, whenever a model is written.
"""

import msgspec
import sqlalchemy as sa

from madang.core import Conflict, Rejected
from madang.hub.change import Change
from madang.hub.desired_store import read_models, read_services
from madang.hub.tables import EQUIVALENCE
from madang.hub.text_facts import hashes_of
from madang.model import Artifact, CatalogEntry, Service
from madang.policy.equivalence import Measured, find_lead, judge_pair
from madang.runtime.admin_http import NotFound


class Comparison(msgspec.Struct, frozen=True, kw_only=True):
    """A measurement of two running services of one model."""

    reference_service: str
    candidate_service: str
    measured: Measured


class Equivalence(msgspec.Struct, frozen=True, kw_only=True):
    """A verdict on a pair; it holds as long as both consist of the files that they had.

    Attributes:
        reference_files, candidate_files: hashes, in order.
        reasons: why not; none when the candidate may stand in.
        mean, least: agreement over the set.
    """

    model: str
    reference: str
    candidate: str
    reference_files: tuple[str, ...]
    candidate_files: tuple[str, ...]
    set_sha256: str
    prompts: int
    mean: float
    least: float
    reasons: tuple[str, ...]
    judged_by: str
    judged_at_s: float

    @property
    def is_equivalent(self) -> bool:
        """Return whether the candidate may stand in."""
        return not self.reasons


class Running(msgspec.Struct, frozen=True, kw_only=True):
    """A replica as its site said: of which service, and the hash of the first file that it runs."""

    service: str
    artifact_sha256: str


_decoder = msgspec.json.Decoder(Equivalence)


def judge(change: Change, model: str, comparison: Comparison, running: list[Running]) -> Equivalence:
    """Judge a comparison and keep the verdict.

    Raises:
        NotFound: a model or service does not exist.
        Rejected: the services are not two artifacts of this model, or the measurement cannot be judged.
        Conflict: what runs for a service is not its artifact, so that something else was measured.
    """
    entry = next(iter(read_models(change.connection, [model])), None)
    if entry is None:
        raise NotFound(f"model {model!r} is not in the catalog")
    reference, candidate = (
        _find_artifact(change.connection, entry, name)
        for name in (comparison.reference_service, comparison.candidate_service)
    )
    if reference.artifact_id == candidate.artifact_id:
        raise Rejected(
            f"both services run artifact {reference.artifact_id}",
            next_step='let one of them name another: artifact = "…" in madang service apply',
        )
    _check_running(comparison.reference_service, reference, running)
    _check_running(comparison.candidate_service, candidate, running)
    measured = comparison.measured
    verdict = Equivalence(
        model=model,
        reference=reference.artifact_id,
        candidate=candidate.artifact_id,
        reference_files=hashes_of(reference),
        candidate_files=hashes_of(candidate),
        set_sha256=measured.set_sha256,
        prompts=len(measured.scores),
        reasons=judge_pair(entry.task, reference, candidate, measured),
        mean=sum(measured.scores) / len(measured.scores),
        least=min(measured.scores),
        judged_by=change.actor,
        judged_at_s=change.now_s,
    )
    pair_id = f"{model}/{verdict.reference}/{verdict.candidate}"
    change.write_fact(EQUIVALENCE, EQUIVALENCE.c.pair_id, pair_id, verdict, model=model)
    change.audit("model.compare", model, verdict)
    return verdict


def list_verdicts(connection: sa.Connection, model: str) -> list[Equivalence]:
    """Return every verdict on a model, by pair."""
    query = sa.select(EQUIVALENCE.c.spec).where(EQUIVALENCE.c.model == model).order_by(EQUIVALENCE.c.pair_id)
    return [_decoder.decode(spec) for spec in connection.scalars(query)]


def find_pairs(connection: sa.Connection, entry: CatalogEntry) -> tuple[tuple[str, str], ...]:
    """Return the pairs of an entry that were found equivalent and still consist of the files that were compared."""
    files = {one.artifact_id: hashes_of(one) for one in entry.artifacts}
    return tuple(
        (one.reference, one.candidate)
        for one in list_verdicts(connection, entry.name)
        if one.is_equivalent
        and files.get(one.reference) == one.reference_files
        and files.get(one.candidate) == one.candidate_files
    )


def _find_artifact(connection: sa.Connection, entry: CatalogEntry, name: str) -> Artifact:
    service: Service | None = next(iter(read_services(connection, [name])), None)
    if service is None:
        raise NotFound(f"service {name!r} does not exist")
    if service.model != entry.name:
        raise Rejected(f"service {name} runs model {service.model}, not {entry.name}")
    artifact = find_lead(entry, service)
    if artifact is None:
        raise Rejected(f"service {name} names artifact {service.artifact!r}, which model {entry.name} does not have")
    return artifact


def _check_running(service: str, artifact: Artifact, running: list[Running]) -> None:
    found = {one.artifact_sha256 for one in running if one.service == service}
    if found != {artifact.files[0].sha256}:
        what = f"{len(found)} artifacts run" if found else "nothing is ready"
        raise Conflict(
            f"service {service}: {what}, expected artifact {artifact.artifact_id} alone",
            next_step="wait until its replicas are ready: madang status",
        )
