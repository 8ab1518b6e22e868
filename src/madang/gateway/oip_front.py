"""What the gateway itself answers under `/v2`: what this server is, whether it lives, whether a model is served.

Owns those answers. Refuses to judge who asks, and asks no engine. The tenants' port calls it, with a caller that may be
here. Like everything on the tenants' port these want a key: the standard has none, and the operator's own health is on
the admin port.
"""

from collections.abc import Callable

import msgspec

import madang
from madang.core import RequestId
from madang.gateway.exchange import JSON_TYPE, Exchange
from madang.gateway.feed import Caller, Desired, service_of
from madang.gateway.journey import check_version, unknown_model
from madang.gateway.relay import Relay, id_fields
from madang.model import Service
from madang.wire.oip_paths import EXTENSIONS, OipQuestion, OipTarget
from madang.wire.openai_errors import ApiError, ErrorCode

NOT_READY_RETRY_S = 5.0
IsServed = Callable[[Desired, Caller, str], bool]


class OipFront:
    """Answers questions about the server, and about models as far as the feed knows."""

    def __init__(self, relay: Relay) -> None:
        self._relay = relay

    def answer(
        self,
        exchange: Exchange,
        desired: Desired,
        caller: Caller,
        request_id: RequestId,
        target: OipTarget,
        is_served: IsServed,
    ) -> None:
        """Answer one question.

        Args:
            exchange: where.
            desired: the site's snapshot.
            caller: who asks.
            request_id: ours.
            target: what is asked.
            is_served: tells whether a caller may use a service and somebody legal serves it now.

        Raises:
            ApiError: 404 for a model or version that the caller does not have, 429 and 503 for what is not ready.
        """
        match target.asked:
            case OipQuestion.LIVE:
                value: dict[str, object] = {"live": True}
            case OipQuestion.READY:
                self._relay.check_open()
                value = {"ready": True}
            case OipQuestion.MODEL_READY:
                service = _find_service(desired, caller, target)
                if exchange.access is not None:
                    exchange.access.service = service.name
                if not is_served(desired, caller, service.name):
                    message = f"no replica of {service.name} is ready where the tenant's data may go"
                    raise ApiError(ErrorCode.NO_REPLICA, message, retry_after_s=NOT_READY_RETRY_S)
                value = {"name": service.name, "ready": True}
            case _:
                value = {"name": "madang", "version": madang.__version__, "extensions": EXTENSIONS}
        self._relay.meter.count_request(target.asked.value, 200, self._relay.site)
        exchange.respond(200, JSON_TYPE + id_fields(request_id), msgspec.json.encode(value))


def _find_service(desired: Desired, caller: Caller, target: OipTarget) -> Service:
    """Return the service that is asked about; raises ApiError 404 for one, or a version, that the caller has not."""
    service = service_of(desired, target.model, caller.tenant_id, caller.key_id)
    if service is None:
        raise unknown_model(target.model)
    if target.version:
        check_version(desired, service, target.version)
    return service
