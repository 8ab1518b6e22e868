"""The field's latency metrics, computed in this one place for gateway, simulator and proving ground alike."""


def ttft_s(sent_ns: int, first_token_ns: int) -> float:
    """Return time to first token: from sending the request to the first non-empty token, seconds."""
    return (first_token_ns - sent_ns) / 1e9


def tpot_s(duration_s: float, first_token_s: float, output_tokens: int) -> float | None:
    """Return time per output token, (end-to-end - TTFT) / (output tokens - 1), or None below two tokens."""
    if output_tokens < 2:
        return None
    return (duration_s - first_token_s) / (output_tokens - 1)
