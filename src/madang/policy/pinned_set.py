"""The prompts on which artifacts are compared: fixed, so that a verdict can be repeated.

Owns the set and its name. Refuses to know how prompts are asked. Called by `madang model compare`. The prompts are
ours: Korean and English, code, numbers, mixed scripts and signs, since tokenizers differ first where scripts meet.
"""

import hashlib

import msgspec

from madang.model import Task

ANSWER_TOKENS = 24
"""Of a greedy answer: enough to leave the beginning that every model shares, short of where rounding always shows."""

_SENTENCES = (
    "대한민국의 수도는 어디입니까? 한 문장으로 답해 주세요.",
    "List the days of the week in English, separated by commas.",
    "서버실 온도가 35도를 넘으면 무엇을 먼저 확인해야 합니까?",
    "def fibonacci(n):\n    # return the n-th Fibonacci number\n",
    "12 곱하기 12는 얼마입니까? 숫자만 답하세요.",
    "Translate to Korean: The battery is fully charged.",
    "혈압 120/80 mmHg는 정상 범위입니까? 예 또는 아니요로 답하세요.",
    "Which is heavier, one kilogram of iron or one kilogram of cotton?",
    "다음 낱말을 가나다순으로 쓰세요: 포도, 사과, 배, 감",
    "SELECT name FROM site WHERE region = 'yeongnam' ORDER BY",
    "경상북도 구미시는 어떤 산업으로 알려져 있습니까?",
    "Write the number 2026 in Roman numerals.",
    "이 문장을 존댓말로 바꾸세요: 내일 회의에 늦지 마.",
    '{"site": "daegu", "power_w": 1250.5, "is_cut": false} — what is power_w?',
    "🙂 웃는 얼굴 그림문자는 어떤 감정을 나타냅니까?",
    "물의 끓는점은 섭씨 몇 도입니까?",
)


def prompts_of(task: Task) -> tuple[str, ...]:
    """Return the prompts of a task; embeddings take the same sentences."""
    return _SENTENCES if task in (Task.CHAT, Task.EMBEDDING) else ()


def name_set(task: Task) -> str:
    """Return the SHA-256 of the set, in hex: of its prompts, the task and the length of answers."""
    return hashlib.sha256(msgspec.json.encode((task.value, ANSWER_TOKENS, prompts_of(task)))).hexdigest()
