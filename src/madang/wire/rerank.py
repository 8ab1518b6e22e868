"""`POST /v1/rerank`, as several vendors have it: documents in the order in which they fit a query.

Owns the request, the embedding request that it becomes and the scores. Refuses to know sockets. Called by
`madang.wire.surface` and the gateway's `RerankLeg`.

The score of a document is the cosine of the angle between its embedding and the query's. It ranks the documents of one
request; it is no probability, and scores of different models, or a threshold on them, mean nothing.
"""

import math
from collections.abc import Collection
from operator import mul
from typing import Any, NoReturn

import msgspec

from madang.model import EngineFeature, Service
from madang.wire.openai import ApiRequest, Endpoint
from madang.wire.openai_answers import EngineFailed, TokenCount
from madang.wire.openai_errors import ApiError, ErrorCode

DOCUMENTS_MAX = 1000
_KNOWN = frozenset(("model", "query", "documents", "top_n", "return_documents"))
_DROPPED = frozenset(("user", "truncation", "priority"))
_decoder = msgspec.json.Decoder()
_encoder = msgspec.json.Encoder()


class RerankForm(msgspec.Struct, frozen=True, kw_only=True):
    """What an answer needs of its request.

    Attributes:
        top_n: how many results at most.
        has_documents: results repeat their text.
    """

    query: str
    documents: tuple[str, ...]
    top_n: int
    has_documents: bool


class _Row(msgspec.Struct):
    embedding: list[float]
    index: int = 0


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0


class _Answer(msgspec.Struct):
    data: list[_Row]
    usage: _Usage | None = None


_answer_decoder = msgspec.json.Decoder(_Answer)


def parse_rerank(body: bytes) -> ApiRequest:
    """Return the request in `body`; raises ApiError naming the parameter at fault."""
    try:
        fields = _decoder.decode(body)
    except (msgspec.DecodeError, RecursionError, UnicodeDecodeError) as error:
        raise ApiError(ErrorCode.INVALID_REQUEST, f"the request body is not JSON: {error}") from error
    if type(fields) is not dict:
        raise ApiError(ErrorCode.INVALID_REQUEST, "the request body is not a JSON object")
    fields = {name: value for name, value in fields.items() if value is not None}
    _check_names(fields)
    service, query = fields.get("model"), fields.get("query")
    if type(service) is not str or not service:
        _refuse("model", "the name of a service, see GET /v1/models")
    if type(query) is not str or not query:
        _refuse("query", "a string that is not empty")
    documents = _documents(fields.get("documents"))
    top_n = fields.get("top_n", len(documents))
    if type(top_n) is not int or top_n < 1:
        _refuse("top_n", "an integer of at least 1")
    has_documents = fields.get("return_documents", False)
    if type(has_documents) is not bool:
        _refuse("return_documents", "true or false")
    return ApiRequest(
        endpoint=Endpoint.EMBEDDINGS,
        service=service,
        fields={},
        inputs=len(documents) + 1,
        prompt_bytes=len(query.encode()) + sum(len(document.encode()) for document in documents),
        is_plain=False,
        form=RerankForm(
            query=query,
            documents=documents,
            top_n=min(top_n, len(documents)),
            has_documents=has_documents,
        ),
    )


def _refuse(param: str, expected: str) -> NoReturn:
    raise ApiError(ErrorCode.INVALID_REQUEST, f"'{param}': expected {expected}", param=param)


def _check_names(fields: dict[str, Any]) -> None:
    for name in fields:
        if name in ("rank_fields", "max_chunks_per_doc", "max_tokens_per_doc"):
            message = f"'{name}': the choice of a part of a document is not supported here"
            raise ApiError(ErrorCode.UNSUPPORTED, message, param=name)
        if name not in _KNOWN and name not in _DROPPED:
            shown = name if len(name) <= 64 else name[:64] + "…"
            message = f"'{shown}': no such parameter at {Endpoint.RERANK}"
            raise ApiError(ErrorCode.INVALID_REQUEST, message, param=shown)


def _documents(given: Any) -> tuple[str, ...]:
    if type(given) is not list or not given:
        _refuse("documents", "a list of at least one document")
    if len(given) > DOCUMENTS_MAX:
        _refuse("documents", f"at most {DOCUMENTS_MAX} documents, found {len(given)}")
    texts = []
    for index, document in enumerate(given):
        text = document.get("text") if type(document) is dict else document
        if type(text) is not str or not text:
            _refuse(f"documents[{index}]", "a string, or an object with a string `text`, not empty")
        texts.append(text)
    return tuple(texts)


def embedding_body(form: RerankForm, service: Service, features: Collection[str]) -> bytes:
    """Return the embedding request for query and documents, in that order."""
    texts = [form.query, *form.documents]
    if EngineFeature.QUERY_PASSAGE in features:
        texts = [f"query: {form.query}", *(f"passage: {document}" for document in form.documents)]
    return _encoder.encode({"model": service.name, "input": texts, "encoding_format": "float"})


def rank(request: ApiRequest, body: bytes, answer_id: str) -> tuple[bytes, TokenCount]:
    """Return the client's answer and its cost from an engine's embeddings.

    Cost: documents times dimensions multiplications.

    Raises:
        EngineFailed: the engine's answer is not one vector of one length for each text.
    """
    form = request.form
    assert isinstance(form, RerankForm)
    try:
        answer = _answer_decoder.decode(body)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise EngineFailed(f"the engine's embeddings are malformed: {error}") from error
    rows = sorted(answer.data, key=lambda row: row.index)
    if [row.index for row in rows] != list(range(request.inputs)):
        raise EngineFailed(f"the engine returned {len(rows)} embeddings for {request.inputs} texts")
    query, *others = (row.embedding for row in rows)
    if any(len(other) != len(query) for other in others):
        raise EngineFailed("the engine returned embeddings of several lengths")
    scores = [_cosine(query, other) for other in others]
    best = sorted(range(len(scores)), key=lambda index: (-scores[index], index))[: form.top_n]
    count = TokenCount(max(1, request.prompt_bytes // 4), 0, True)
    if answer.usage is not None:
        count = TokenCount(answer.usage.prompt_tokens, 0, False)
    ranked = {
        "id": answer_id,
        "object": "list",
        "model": request.service,
        "results": [_result(form, index, scores[index]) for index in best],
        "usage": {"prompt_tokens": count.prompt_tokens, "total_tokens": count.prompt_tokens},
    }
    return _encoder.encode(ranked), count


def _result(form: RerankForm, index: int, score: float) -> dict[str, Any]:
    result: dict[str, Any] = {"index": index, "relevance_score": score}
    if form.has_documents:
        result["document"] = {"text": form.documents[index]}
    return result


def _cosine(left: list[float], right: list[float]) -> float:
    """Return the cosine of two vectors of one length; 0 when one of them has none."""
    norm = math.hypot(*left) * math.hypot(*right)
    return sum(map(mul, left, right)) / norm if norm else 0.0
