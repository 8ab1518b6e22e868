"""The response object of `/v1/responses` and the events of its stream, worded from facts.

Owns items, their numbers and the order of events: created, in_progress, then for each item added, its deltas and done,
at last completed, incomplete or failed. Refuses to know sockets and time. Called by `madang.wire.mapped_answers`.
"""

from typing import Any

import msgspec

from madang.core import RequestId
from madang.wire.chat_writer import call_id
from madang.wire.generation import CallBegin, CallPiece, Delta, Finish, Text
from madang.wire.openai_answers import TokenCount
from madang.wire.openai_errors import ErrorCode
from madang.wire.responses import ResponsesForm

_encoder = msgspec.json.Encoder()


class _Item:
    """One item of the output, as far as it came."""

    def __init__(self, index: int, fields: dict[str, Any]) -> None:
        self.index = index
        self.fields = fields
        self.pieces: list[str] = []
        self.logprobs: list[Any] = []


class ResponsesWriter:
    """Words the one answer to a request.

    Args:
        form: what the response repeats.
        request_id: names response and items.
        created_s: wall time.
    """

    def __init__(self, form: ResponsesForm, request_id: RequestId, created_s: int) -> None:
        self._form = form
        self._request_id = request_id
        self._created_s = created_s
        self._number = 0
        self._items: list[_Item] = []
        self._is_item_open = False
        self._reason = ""

    def begin(self) -> bytes:
        """Return the first two events."""
        response = self._response("in_progress", None)
        return self._event("response.created", response=response) + self._event(
            "response.in_progress", response=response
        )

    def add(self, answer: int, delta: Delta) -> bytes:
        """Take a fact and return its events; what a model thinks aloud is not shown."""
        match delta:
            case Text(text=text, logprobs=logprobs):
                return self._add_text(text, logprobs)
            case CallBegin(index=index, name=name):
                return self._close() + self._open_call(call_id(self._request_id, answer, index), name)
            case CallPiece(text=text):
                item = self._items[-1]
                item.pieces.append(text)
                place = {"item_id": item.fields["id"], "output_index": item.index}
                return self._event("response.function_call_arguments.delta", **place, delta=text)
            case Finish(reason=reason):
                self._reason = reason
                return self._close()
            case _:
                return b""

    def last(self, count: TokenCount) -> bytes:
        """Return the event that carries the whole response."""
        status = self._status()
        return self._event(f"response.{status}", response=self._response(status, count))

    def whole(self, count: TokenCount) -> bytes:
        """Return the response object."""
        self._close()
        return _encoder.encode(self._response(self._status(), count))

    def failed(self, message: str) -> bytes:
        """Return the event of a response that broke off."""
        response = self._response("failed", None)
        response["error"] = {"code": "server_error", "message": f"{message} ({ErrorCode.UPSTREAM_FAILED})"}
        return self._event("response.failed", response=response)

    def _status(self) -> str:
        return "incomplete" if self._reason == "length" else "completed"

    def _response(self, status: str, count: TokenCount | None) -> dict[str, Any]:
        return {
            "id": f"resp_{self._request_id}",
            "object": "response",
            "created_at": self._created_s,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "model": self._form.service,
            "output": [item.fields for item in self._items],
            **self._form.echo,
            "usage": None if count is None else _usage(count),
        }

    # --- items

    def _open_text(self) -> bytes:
        fields: dict[str, Any] = {"type": "message", "role": "assistant", "content": []}
        item = self._new_item("msg", fields)
        opened = self._event("response.output_item.added", output_index=item.index, item=item.fields)
        part = _part("", [])
        return opened + self._event("response.content_part.added", **_place(item), part=part)

    def _open_call(self, call: str, name: str) -> bytes:
        item = self._new_item("fc", {"type": "function_call", "call_id": call, "name": name, "arguments": ""})
        return self._event("response.output_item.added", output_index=item.index, item=item.fields)

    def _new_item(self, prefix: str, fields: dict[str, Any]) -> _Item:
        index = len(self._items)
        item = _Item(index, {"id": f"{prefix}_{self._request_id}_{index}", "status": "in_progress", **fields})
        self._items.append(item)
        self._is_item_open = True
        return item

    def _add_text(self, text: str, logprobs: tuple[Any, ...]) -> bytes:
        opened = b""
        if not self._is_item_open or self._items[-1].fields["type"] != "message":
            opened = self._close() + self._open_text()
        item = self._items[-1]
        item.pieces.append(text)
        item.logprobs += logprobs
        place = _place(item)
        return opened + self._event("response.output_text.delta", **place, delta=text, logprobs=list(logprobs))

    def _close(self) -> bytes:
        """Return the events that complete the item that is open, if one is."""
        if not self._is_item_open:
            return b""
        self._is_item_open = False
        item = self._items[-1]
        text = "".join(item.pieces)
        item.fields = {**item.fields, "status": self._item_status()}
        if item.fields["type"] == "message":
            part = _part(text, item.logprobs)
            item.fields["content"] = [part]
            written = self._event("response.output_text.done", **_place(item), text=text, logprobs=item.logprobs)
            written += self._event("response.content_part.done", **_place(item), part=part)
        else:
            item.fields["arguments"] = text
            place = {"item_id": item.fields["id"], "output_index": item.index}
            name = item.fields["name"]
            written = self._event("response.function_call_arguments.done", **place, name=name, arguments=text)
        return written + self._event("response.output_item.done", output_index=item.index, item=item.fields)

    def _item_status(self) -> str:
        return "incomplete" if self._reason == "length" else "completed"

    def _event(self, kind: str, **fields: Any) -> bytes:
        if not self._form.is_stream:
            return b""
        number = self._number
        self._number += 1
        body = _encoder.encode({"type": kind, "sequence_number": number, **fields})
        return b"event: %b\ndata: %b\n\n" % (kind.encode(), body)


def _place(item: _Item) -> dict[str, Any]:
    return {"item_id": item.fields["id"], "output_index": item.index, "content_index": 0}


def _part(text: str, logprobs: list[Any]) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}


def _usage(count: TokenCount) -> dict[str, Any]:
    return {
        "input_tokens": count.prompt_tokens,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": count.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": count.prompt_tokens + count.completion_tokens,
    }
