"""The measurement behind `madang model compare`: both services answer a pinned set through the tenants' API.

Owns the asking and the scores. Refuses to judge: the hub does. Called by `madang model compare`.
"""

from typing import Any

import httpx

from madang.core import Rejected, Unavailable
from madang.model import Task
from madang.policy.equivalence import Measured, score_texts, score_vectors
from madang.policy.pinned_set import ANSWER_TOKENS, name_set, prompts_of
from madang.runtime.admin_client import is_loopback
from madang.runtime.http_trust import trust_for

_TIMEOUT_S = 120.0


def compare_services(task: Task, reference: str, candidate: str, url: str, key: str) -> Measured:
    """Return how far two services agree on the set of a task.

    Raises:
        Rejected: there is no set for the task, or a service refuses a prompt.
        Unavailable: one does not answer.
    """
    prompts = prompts_of(task)
    if not prompts:
        raise Rejected(f"models of task {task.value} are not compared by this release; of chat and embedding they are")
    scores: list[float] = []
    counts: list[tuple[int, int]] = []
    headers = {"authorization": f"Bearer {key}"}
    with httpx.Client(
        base_url=url, headers=headers, timeout=_TIMEOUT_S, trust_env=not is_loopback(url), verify=trust_for(url)
    ) as client:
        for prompt in prompts:
            one, other = (_ask(client, task, service, prompt) for service in (reference, candidate))
            scores.append(_score(task, one, other))
            counts.append((_count(one), _count(other)))
    return Measured(set_sha256=name_set(task), scores=tuple(scores), prompt_tokens=tuple(counts))


def _ask(client: httpx.Client, task: Task, service: str, prompt: str) -> Any:
    body: dict[str, Any] = {"model": service, "input": [prompt]}
    path = "/v1/embeddings"
    if task is Task.CHAT:
        path = "/v1/chat/completions"
        body = {
            "model": service,
            "messages": [{"role": "user", "content": prompt}],
            "max_tokens": ANSWER_TOKENS,
            "temperature": 0,
            "seed": 1,
        }
    try:
        answer = client.post(path, json=body)
    except httpx.HTTPError as error:
        raise Unavailable(f"service {service} does not answer: {error or type(error).__name__}") from error
    if answer.status_code >= 500 or answer.status_code == 429:
        raise Unavailable(f"service {service} answers with {answer.status_code}: {answer.text[:300]}")
    if answer.status_code != 200:
        raise Rejected(f"service {service} answers with {answer.status_code}: {answer.text[:300]}")
    return answer.json()


def _score(task: Task, one: Any, other: Any) -> float:
    if task is Task.EMBEDDING:
        return score_vectors(one["data"][0]["embedding"], other["data"][0]["embedding"])
    texts = [answer["choices"][0]["message"].get("content") or "" for answer in (one, other)]
    return score_texts(texts[0], texts[1])


def _count(answer: Any) -> int:
    return int(answer.get("usage", {}).get("prompt_tokens", 0))
