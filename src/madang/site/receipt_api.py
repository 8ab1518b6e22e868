"""`GET /v1/receipts/{id}`, for the tenants that the gateway hands over.

Owns the words in which a receipt is not there: never told apart are another tenant's and nobody's. Refuses to make
receipts. The id is an event's, as the header `x-madang-receipt` gave it, or a request's for its last attempt here.
"""

from collections.abc import Callable
from typing import NoReturn

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from madang.core import Clock, Rejected, RequestId, SiteId, parse_event_id, site_of_request
from madang.site.internal import caller_of
from madang.site.receipt_book import ReceiptBook
from madang.site.receipt_peers import LOCAL_QUERY, PeerReceipts
from madang.wire.openai_errors import ApiError, ErrorCode

RECEIPTS_PATH = "/v1/receipts"
PATIENCE_S = 900.0
"""A request so young may still be at work, and its receipt on its way; what is older is not there."""
NOT_YET_RETRY_S = 1.0
"""Ten periods of the importer."""


class ReceiptApi:
    """The route."""

    def __init__(
        self,
        site: str,
        book: ReceiptBook,
        clock: Clock,
        is_behind: Callable[[], bool],
        peers: PeerReceipts | None = None,
    ) -> None:
        """Prepare.

        Args:
            site: this site's name.
            book: has the receipts.
            clock: tells how old a request is.
            is_behind: whether events wait to be imported for a reason that is no fault of the asker.
            peers: the way to what other sites served of the requests that entered here.
        """
        self._site = SiteId(site)
        self._book = book
        self._clock = clock
        self._is_behind = is_behind
        self._peers = peers

    def routes(self) -> list[Route]:
        """Return the routes."""
        return [Route(RECEIPTS_PATH + "/{receipt_id}", self.show, methods=["GET"])]

    async def show(self, request: Request) -> Response:
        """Return one receipt."""
        caller, receipt_id = caller_of(request), str(request.path_params["receipt_id"])
        request_id, attempt = parse_receipt_id(receipt_id)
        found = await self._book.find(request_id, attempt, caller.tenant_id)
        if found is None and self._peers is not None and request.url.query != LOCAL_QUERY:
            found = await self._peers.find(receipt_id, request_id, caller)
        if found is None:
            self._refuse(receipt_id, request_id)
        return Response(found, media_type="application/json")

    def _refuse(self, receipt_id: str, request_id: RequestId) -> NoReturn:
        age_s = self._clock.wall_s() - started_at_s(request_id)
        where = "what another site served has its receipt there, and the answer's x-madang-site names that site"
        if age_s < PATIENCE_S or self._is_behind():
            message = f"no receipt {receipt_id} at site {self._site} yet, try again in a moment; {where}"
            raise ApiError(ErrorCode.NOT_YET, message, param="id", retry_after_s=NOT_YET_RETRY_S)
        message = f"no receipt {receipt_id} at site {self._site}; {where}"
        raise ApiError(ErrorCode.INVALID_REQUEST, message, status=404, param="id")


def parse_receipt_id(text: str) -> tuple[RequestId, int | None]:
    """Return the request and the attempt of an id, None for the last; raises ApiError 404 for what is no id."""
    try:
        if "." in text:
            return parse_event_id(text)
        site_of_request(text)
    except Rejected as error:
        message = f"no receipt '{text[:100]}': an id looks like <site>-<32 hex digits>.<attempt>"
        raise ApiError(ErrorCode.INVALID_REQUEST, message, status=404, param="id") from error
    return RequestId(text), None


def started_at_s(request_id: RequestId) -> float:
    """Return the wall time at which a request entered, from its id."""
    return int(request_id.rpartition("-")[2][:12], 16) / 1000
