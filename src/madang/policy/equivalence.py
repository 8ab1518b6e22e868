"""Whether two artifacts of one model may stand in for each other, and which may run for one service.

Owns the bounds and the judgement. Refuses to ask engines and to store anything. Called by the hub, which judges what a
comparison measured, and by placement, which keeps a service to one artifact and those that were found equivalent to it.

Same weights on another chip are not the same model until shown: a compiler quantises, a runtime brings its own chat
template, a limit cuts the context. A pair is judged against the files that both have; with other files there is no
verdict. It does not carry over: of three artifacts, two that agree with the third need not agree with each other.
"""

import math
from collections.abc import Sequence

import msgspec

from madang.core import Rejected
from madang.model import Artifact, CatalogEntry, Service, Task

TEXT_MEAN_MIN, TEXT_LEAST_MIN = 0.90, 0.25
"""Of greedy answers: the common beginning as a share of the longer one. Rounding flips a near tie now and then, and
what follows differs entirely, so single prompts may differ late; many that do, or one that differs at once, may not."""
VECTOR_MEAN_MIN, VECTOR_LEAST_MIN = 0.999, 0.995
"""Of embeddings: cosine. 8-bit weights keep 0.999 on sentences; a wrong pooling or prefix is far below 0.99."""
PROMPTS_MIN, PROMPTS_MAX = 8, 4096
COMPARED = (Task.CHAT, Task.EMBEDDING)


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """What a comparison measured on a pinned set, prompt by prompt.

    Attributes:
        set_sha256: names the set.
        scores: agreement from 0 to 1.
        prompt_tokens: how many tokens each side counted in the prompt, reference first.
    """

    set_sha256: str
    scores: tuple[float, ...]
    prompt_tokens: tuple[tuple[int, int], ...]


def judge_pair(task: Task, reference: Artifact, candidate: Artifact, measured: Measured) -> tuple[str, ...]:
    """Return every reason why the candidate may not stand in for the reference; none when it may.

    Raises:
        Rejected: the measurement is not one that can be judged.
    """
    _check(task, measured)
    reasons = [
        *_compare_hash("tokenizer", reference.tokenizer_sha256, candidate.tokenizer_sha256),
        *_compare_context(reference, candidate),
        *_compare_counts(measured),
    ]
    if task is Task.CHAT:
        reasons += _compare_hash("chat template", reference.template_sha256, candidate.template_sha256)
    mean_min, least_min = (TEXT_MEAN_MIN, TEXT_LEAST_MIN) if task is Task.CHAT else (VECTOR_MEAN_MIN, VECTOR_LEAST_MIN)
    mean, least = sum(measured.scores) / len(measured.scores), min(measured.scores)
    if mean < mean_min:
        reasons.append(f"answers agree to {mean:.4f} on average, expected {mean_min}")
    if least < least_min:
        reasons.append(f"prompt {measured.scores.index(least) + 1} agrees to {least:.4f}, expected {least_min}")
    return tuple(reasons)


def score_texts(reference: str, candidate: str) -> float:
    """Return the common beginning of two texts as a share of the longer one; 1 for two empty ones."""
    longest = max(len(reference), len(candidate))
    common = 0
    for one, other in zip(reference, candidate, strict=False):
        if one != other:
            break
        common += 1
    return common / longest if longest else 1.0


def score_vectors(reference: Sequence[float], candidate: Sequence[float]) -> float:
    """Return the cosine of two vectors, 0 where it is negative or one of them is no direction."""
    if len(reference) != len(candidate):
        return 0.0
    norms = sum(x * x for x in reference) * sum(y * y for y in candidate)
    if not norms > 0.0:
        return 0.0
    dot = sum(x * y for x, y in zip(reference, candidate, strict=True))
    return min(1.0, max(0.0, dot / math.sqrt(norms)))


def find_lead(entry: CatalogEntry, service: Service) -> Artifact | None:
    """Return the artifact that decides what a service is: the one it names, else the catalog's first."""
    if not service.artifact:
        return next(iter(entry.artifacts), None)
    return next((one for one in entry.artifacts if one.artifact_id == service.artifact), None)


def keep_standing(entry: CatalogEntry, service: Service) -> CatalogEntry:
    """Return the entry with only those artifacts that may run for a service, in the catalog's order."""
    lead = find_lead(entry, service)
    if lead is None:
        return msgspec.structs.replace(entry, artifacts=())
    pairs = {frozenset(pair) for pair in entry.equivalents}
    standing = tuple(
        one
        for one in entry.artifacts
        if one.artifact_id == lead.artifact_id or frozenset((one.artifact_id, lead.artifact_id)) in pairs
    )
    return entry if standing == entry.artifacts else msgspec.structs.replace(entry, artifacts=standing)


def _check(task: Task, measured: Measured) -> None:
    if task not in COMPARED:
        raise Rejected(f"models of task {task.value} are not compared by this release; of chat and embedding they are")
    count = len(measured.scores)
    if not PROMPTS_MIN <= count <= PROMPTS_MAX or len(measured.prompt_tokens) != count:
        raise Rejected(
            f"{count} scores and {len(measured.prompt_tokens)} token counts: expected as many of both, "
            f"{PROMPTS_MIN} to {PROMPTS_MAX}"
        )
    # A number that is none passes no comparison either way.
    if not all(0.0 <= score <= 1.0 for score in measured.scores):
        raise Rejected("a score is outside of 0 to 1")


def _compare_hash(what: str, reference: str, candidate: str) -> list[str]:
    if not reference or not candidate:
        return [f"the {what} is not known of both: neither a file in the hub's store nor the catalog says it"]
    return [] if reference == candidate else [f"the {what}s differ"]


def _compare_context(reference: Artifact, candidate: Artifact) -> list[str]:
    if candidate.context_tokens_max >= reference.context_tokens_max:
        return []
    return [f"the candidate takes {candidate.context_tokens_max} tokens, the reference {reference.context_tokens_max}"]


def _compare_counts(measured: Measured) -> list[str]:
    wrong = [number for number, (one, other) in enumerate(measured.prompt_tokens, start=1) if one != other]
    return [f"prompt {wrong[0]} has another number of tokens on both ({len(wrong)} in all)"] if wrong else []
