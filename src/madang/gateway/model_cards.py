"""What `GET /v1/models` says of a service.

Owns the card's facts. Refuses to judge who may see it: the tenants' port does.
"""

from madang.gateway.feed import Caller, Desired, Live, service_of
from madang.wire.openai import Endpoint
from madang.wire.openai_answers import ModelCard


def make_card(desired: Desired, live: Live | None, caller: Caller, name: str) -> ModelCard:
    """Return the card of a service that the caller may use.

    `features` are those that every engine of this site has; a service that only peers serve names none, and they
    say what they can do when they are asked.
    """
    service = service_of(desired, name, caller.tenant_id, caller.key_id)
    assert service is not None
    model = desired.model_of(service)
    task = None if model is None else model.task
    replicas = () if live is None else live.replicas.get(name, ())
    features = [set(one.replica.features) for one in replicas]
    return ModelCard(
        id=name,
        owned_by=caller.tenant_id if service.tenants == (caller.tenant_id,) else "madang",
        madang={
            "task": None if task is None else task.value,
            "endpoints": [endpoint.value for endpoint in Endpoint if task is None or endpoint.task is task],
            "features": sorted(set.intersection(*features)) if features else [],
            "context_tokens": service.context_tokens,
            "unit": None if model is None else model.counted_in.value,
            **({"warning": model.warning} if model is not None and model.warning else {}),
        },
    )
