"""The answers to one request that an engine's stream does not fit as it is: read, perhaps parsed, worded anew.

Owns how reader, stage and writer work together and the bound on what is held. Refuses to know sockets and time. Called
by the gateway's `MappedLeg`, with the payloads of each answer's events in order.
"""

from collections.abc import Sequence

from madang.wire.generation import AnswerWriter, CallBegin, CallPiece, EngineReader, Reasoning, Stage, Text
from madang.wire.openai import ApiRequest
from madang.wire.openai_answers import ANSWER_BYTES_MAX, LOGPROB_BYTES, TOOL_CALL_BYTES, EngineFailed, TokenCount


class MappedAnswers:
    """Follows all answers to one request.

    Args:
        request: what was asked.
        writer: words what came.
        stages: one for each answer, or none.
    """

    def __init__(self, request: ApiRequest, writer: AnswerWriter, stages: Sequence[Stage]) -> None:
        self._is_stream = request.is_stream
        self._writer = writer
        self._stages = stages
        self._readers = [EngineReader(request.prompt_bytes) for _ in range(request.answers)]
        self._room = ANSWER_BYTES_MAX
        self._has_begun = False

    def take(self, answer: int, payload: bytes) -> bytes:
        """Take an event of one answer and return what a streaming client gets for it.

        Raises:
            EngineFailed: the engine reported a failure, sent what is no answer, or more than is held.
        """
        written = b""
        if not self._has_begun:
            self._has_begun = True
            written = self._writer.begin()
        for delta in self._readers[answer].read(payload):
            for fact in self._stages[answer].feed(delta) if self._stages else (delta,):
                if isinstance(fact, Text | Reasoning | CallPiece):
                    self._room -= len(fact.text) + (LOGPROB_BYTES * len(fact.logprobs) if type(fact) is Text else 0)
                elif isinstance(fact, CallBegin):
                    self._room -= TOOL_CALL_BYTES
                written += self._writer.add(answer, fact)
        if self._room < 0:
            raise EngineFailed(f"the answer is over {ANSWER_BYTES_MAX} bytes")
        return written if self._is_stream else b""

    @property
    def held_bytes(self) -> int:
        """How much is kept of answers that are put together; 0 for a client that is streamed to."""
        return 0 if self._is_stream else ANSWER_BYTES_MAX - self._room

    @property
    def has_token(self) -> bool:
        """Whether anything that is not empty came."""
        return any(reader.has_token for reader in self._readers)

    def is_done(self, answer: int) -> bool:
        """Return whether the engine said that an answer is complete."""
        return self._readers[answer].is_done

    def is_finished(self, answer: int) -> bool:
        """Return whether the engine gave a reason to finish."""
        return self._readers[answer].is_finished

    def count(self) -> TokenCount:
        """Return what all answers consumed; each read the prompt."""
        counts = [reader.count() for reader in self._readers]
        return TokenCount(
            sum(count.prompt_tokens for count in counts),
            sum(count.completion_tokens for count in counts),
            any(count.is_estimated for count in counts),
        )

    def last(self) -> bytes:
        """Return what waits for the usage event: the end of the stream, or the whole answer."""
        return self._writer.last(self.count()) if self._is_stream else self._writer.whole(self.count())

    def failed(self, message: str) -> bytes:
        """Return the events that end a stream which can no longer succeed."""
        return self._writer.failed(message)
