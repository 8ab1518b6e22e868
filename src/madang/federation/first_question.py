"""The first real question, asked as any tenant would: over HTTP, with a key, at the national entry.

Owns the question. Refuses to look behind the API. Called by `madang up`.
"""

import time

import httpx
import msgspec

from madang.core import Unavailable
from madang.runtime.http_trust import trust_for

QUESTION = "대한민국의 수도는 어디인가요? 한 문장으로 답해 주세요."
_ANSWER_TIMEOUT_S = 60.0
_RETRY_S = 0.25


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """What came back, and from where."""

    question: str
    text: str
    model: str
    site: str
    chip: str
    request_id: str
    duration_s: float
    completion_tokens: int


def ask(url: str, api_key: str, service: str, *, wait_s: float) -> Answer:
    """Return the answer of a chat service.

    Args:
        url: base URL of a gateway.
        api_key: a tenant's key.
        service: what the API calls `model`.
        wait_s: how long refusals that pass by themselves (429, 502, 503, 504) are tried again.

    Raises:
        Unavailable: with the last refusal.
    """
    body = {
        "model": service,
        "messages": [{"role": "user", "content": QUESTION}],
        "max_tokens": 64,
        "temperature": 0,
    }
    deadline_ns = time.monotonic_ns() + round(wait_s * 1e9)
    with httpx.Client(timeout=_ANSWER_TIMEOUT_S, trust_env=False, verify=trust_for(url)) as client:
        while True:
            started_ns = time.monotonic_ns()
            try:
                response = client.post(
                    f"{url}/v1/chat/completions", json=body, headers={"authorization": f"Bearer {api_key}"}
                )
            except httpx.TransportError as error:
                refusal, is_passing = f"{url} does not answer: {error or type(error).__name__}", True
            else:
                if response.is_success:
                    return _read(response, (time.monotonic_ns() - started_ns) / 1e9)
                refusal = f"{url} answered {response.status_code}: {response.text[:500]}"
                is_passing = response.status_code in (429, 502, 503, 504)
            if not is_passing or time.monotonic_ns() > deadline_ns:
                raise Unavailable(
                    f"the first question was not answered: {refusal}", next_step="see: madang status, madang wan status"
                )
            time.sleep(_RETRY_S)


def _read(response: httpx.Response, duration_s: float) -> Answer:
    found = response.json()
    return Answer(
        question=QUESTION,
        text=found["choices"][0]["message"]["content"].strip(),
        model=found["model"],
        site=response.headers.get("x-madang-site", ""),
        chip=response.headers.get("x-madang-chip", ""),
        request_id=response.headers.get("x-request-id", ""),
        duration_s=round(duration_s, 3),
        completion_tokens=(found.get("usage") or {}).get("completion_tokens", 0),
    )
