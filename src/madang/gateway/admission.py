"""Admission: what a key may do here, what a request can cost at most, and the money and rates that it takes first.

Owns the terms of each key, the order of judgement and the words of a refusal. Refuses to compute prices
(`policy.pricing`), to count rates (`rates`) and to keep money (`purse`). Journeys call it once a body is read, and tell
it how the request ended.

Who reads the body admits: an entry for what it serves or spills, the serving site for what came through an entry unread
(it holds the tenant's budgets and policies, a mere entry does not need to). A spilled request is charged by the serving
site, whose event is what is billed; the pass tells it the class, the Korean day whose tariff holds and how much of the
charge the budgets cover, and its answer says the charge, which the entry then settles. So where price books differ, as
they may for the second in which a change is on its way, event and lease still agree; only the worst case that was
reserved is the entry's. Where the peer's word never comes, the entry settles by what it passed on, and never by less
than was surely produced: a lease is then spent a little early, and no budget is exceeded.
"""

from madang.core import Clock, KeyId, ProjectId, ServiceName, TenantId
from madang.gateway.account import NO_ACCOUNT, Account
from madang.gateway.errand import Errand
from madang.gateway.feed import Caller, Desired
from madang.gateway.key_rates import Excess, KeyRates, rates_of
from madang.gateway.metrics import Meter
from madang.gateway.purse import Purse
from madang.gateway.rates import Claim, RateTable
from madang.gateway.reservation import Draw, Shortage, budget_lines
from madang.gateway.rows import NOTHING_COUNTED, count_rows
from madang.model import CatalogEntry, EngineFeature, Outcome, PriorityClass, Service, Tariff, Task
from madang.model.priority import lower_of
from madang.policy.pricing import (
    TEMPLATE_TOKENS_MAX,
    audio_ms_max,
    charge_micro_won,
    day_start_s,
    kst_day,
    kst_day_number,
)
from madang.wire.oip import InferRequest
from madang.wire.openai import ApiRequest
from madang.wire.openai_errors import ApiError, ErrorCode
from madang.wire.plain_chat import PlainChat, tokens_wanted
from madang.wire.purse import HINT_CUT, HINT_SPENT
from madang.wire.transcription import TranscriptionForm

PRIORITY_FIELD = b"x-madang-priority"
UNKNOWN_RETRY_S = 1.0
"""A policy follows its key within a second or two."""
MORE_RETRY_S = 1.0
CUT_RETRY_S = 5.0
SPENT_RETRY_S_MAX = 3600.0
"""A budget can be raised meanwhile; a client that slept until the month ends would not notice."""
_DAY_S = 86_400.0
_UNKNOWN = Tariff(tariff_id="", service=ServiceName(""), priority=PriorityClass.BATCH, valid_from="")
"""Stands for a tariff that was not looked up yet; None is one that is not there."""
_WITHOUT_TOKENS = (Task.TRANSCRIPTION, Task.INFER)
_CLASSES = {one.value: one for one in PriorityClass}


class Terms:
    """What one key may do, from one snapshot."""

    __slots__ = ("draw", "priority", "project_id", "rates", "trouble")

    def __init__(
        self, priority: PriorityClass, project_id: ProjectId, draw: Draw | None, rates: KeyRates | None, trouble: str
    ) -> None:
        """Keep it.

        Attributes:
            priority: the class of its requests unless they ask for a lower one.
            draw: the budgets it draws on, None without any.
            rates: its limits, None without any.
            trouble: why it may not be used yet; empty when it may.
        """
        self.priority = priority
        self.project_id = project_id
        self.draw = draw
        self.rates = rates
        self.trouble = trouble


class Admission:
    """One worker's judgement of limits and budgets."""

    def __init__(self, purse: Purse, rates: RateTable, meter: Meter, clock: Clock) -> None:
        self._purse = purse
        self._rates = rates
        self._meter = meter
        self._clock = clock
        self._desired: Desired | None = None
        self._terms: dict[KeyId, Terms] = {}
        self._day_starts_s = self._day_ends_s = 0.0
        self._day = 0
        self._tariffs: dict[PriorityClass, dict[str, Tariff | None]] = {}

    def terms_of(self, desired: Desired, key_id: KeyId, tenant_id: TenantId) -> Terms:
        """Return what a key may do; a look-up after the first time in a snapshot."""
        if desired is not self._desired:
            self._forget(desired)
        found = self._terms.get(key_id)
        if found is None:
            found = self._terms[key_id] = self._make_terms(desired, key_id, tenant_id)
        return found

    def _forget(self, desired: Desired) -> None:
        self._desired = desired
        self._terms = {}
        self._tariffs = {one: {} for one in PriorityClass}

    def _make_terms(self, desired: Desired, key_id: KeyId, tenant_id: TenantId) -> Terms:
        key, policy = desired.keys_by_id.get(key_id), desired.key_policies.get(key_id)
        tenant = desired.tenants.get(tenant_id)
        highest = PriorityClass.INTERACTIVE if policy is None else policy.priority
        if tenant is not None:
            highest = lower_of(highest, tenant.priority)
        trouble = ""
        project_id = ProjectId("") if policy is None else policy.project_id
        project = desired.projects.get(project_id) if project_id else None
        if policy is None and key is not None and key.has_policy:
            trouble = f"the policy of the API key {key_id} has not reached site {desired.site_name} yet"
        elif project_id and (project is None or project.tenant_id != tenant_id):
            trouble = f"project {project_id} of the API key {key_id} has not reached site {desired.site_name} yet"
        lines = budget_lines(tenant, project)
        return Terms(
            priority=highest,
            project_id=project_id,
            draw=Draw(lines, tenant_id) if lines else None,
            rates=None if policy is None else rates_of(self._rates, policy),
            trouble=trouble,
        )

    def check(self, desired: Desired, caller: Caller) -> Terms:
        """Return what a caller may do; raises ApiError 503 while that is not known where it would be served."""
        terms = self.terms_of(desired, caller.key_id, caller.tenant_id)
        if terms.trouble and not caller.is_transit:
            raise ApiError(ErrorCode.NO_REPLICA, terms.trouble, retry_after_s=UNKNOWN_RETRY_S)
        return terms

    def open(self, desired: Desired, errand: Errand, request: ApiRequest, service: Service, body_bytes: int) -> Account:
        """Return the account of a request that may begin.

        Args:
            desired: the site's snapshot.
            errand: who asks.
            request: what was read.
            service: what it asks for.
            body_bytes: size of the body.

        Raises:
            ApiError: 429 when a limit or a budget forbids it; 503 while the key's policy is on its way.
        """
        now_s = self._clock.wall_s()
        if not self._day_starts_s <= now_s < self._day_ends_s:
            self._turn_day(now_s)
        tariff = self._tariff(desired, service.name, errand)
        if errand.is_admitted:
            return Account(
                self._meter, tariff, covered=None if errand.covered_micro_won < 0 else errand.covered_micro_won
            )
        terms = self.terms_of(desired, errand.key_id, errand.tenant_id)
        if terms.trouble:
            raise ApiError(ErrorCode.NO_REPLICA, terms.trouble, retry_after_s=UNKNOWN_RETRY_S)
        rates, draw = terms.rates, terms.draw
        if tariff is None:
            if rates is None:
                return NO_ACCOUNT
            draw = None
        elif rates is None and draw is None:
            return Account(self._meter, tariff, self._day)
        prompt_tokens, completion_tokens = worst_tokens(request, service, body_bytes)
        claim = None if rates is None else self._claim(errand, rates, prompt_tokens + completion_tokens)
        if draw is None:
            return Account(self._meter, tariff, self._day, None, claim, prompt_tokens)
        worst = worst_charge(tariff, request, prompt_tokens, completion_tokens, desired.model_of(service))
        may_overdraw = errand.priority is PriorityClass.CLINICAL
        found = self._purse.reserve(draw, worst, now_s, may_overdraw=may_overdraw)
        if isinstance(found, Shortage):
            self._meter.count_quota_refusal("budget")
            fields = b""
            if claim is not None:
                claim.undo()
                fields = claim.fields
            raise shortage_error(found, now_s, fields, may_overdraw=may_overdraw)
        return Account(self._meter, tariff, self._day, found.covered, claim, prompt_tokens, found, worst)

    def _claim(self, errand: Errand, rates: KeyRates, tokens: int) -> Claim:
        claim = rates.admit(tokens)
        if isinstance(claim, Excess):
            self._meter.count_quota_refusal(claim.kind)
            raise excess_error(errand.key_id, claim)
        return claim

    def _turn_day(self, now_s: float) -> None:
        self._day = kst_day_number(now_s)
        self._day_starts_s = day_start_s(kst_day(now_s))
        self._day_ends_s = self._day_starts_s + _DAY_S
        self._tariffs = {one: {} for one in PriorityClass}

    def _tariff(self, desired: Desired, service: str, errand: Errand) -> Tariff | None:
        day, priority = errand.charge_day, errand.priority
        if day and day != self._day:
            return desired.prices.find(service, priority, day)
        if desired is not self._desired:
            self._forget(desired)
        known = self._tariffs[priority]
        found = known.get(service, _UNKNOWN)
        if found is _UNKNOWN:
            found = known[service] = desired.prices.find(service, priority, self._day)
        return found


def priority_of(word: bytes | None, highest: PriorityClass) -> PriorityClass:
    """Return the class of a request that names one, or None: never a higher one than its key has.

    Raises:
        ApiError: 400 for a word that is no class.
    """
    if word is None:
        return highest
    asked = _CLASSES.get(word.decode("latin-1").lower())
    if asked is None:
        name = PRIORITY_FIELD.decode()
        message = f"'{name}': expected one of {', '.join(_CLASSES)}"
        raise ApiError(ErrorCode.INVALID_REQUEST, message, param=name)
    return lower_of(asked, highest)


def worst_tokens(request: ApiRequest, service: Service, body_bytes: int) -> tuple[int, int]:
    """Return the most tokens that a request can read and write.

    Every token of a prompt is at least a byte of the body, or of what the chat template adds, for which JSON's own
    brackets and names make up from message to message; and an engine refuses a prompt over its context. A picture is
    worth more tokens than it may have bytes, so with one it is the whole context. Each of `n` answers reads the prompt.
    """
    context, answers = service.context_tokens, request.answers
    read = body_bytes + TEMPLATE_TOKENS_MAX
    if type(request.form) is not PlainChat and request.endpoint.task is not Task.CHAT:
        # Each text has the context of its own; sounds and tensors have no tokens.
        return (0 if request.endpoint.task in _WITHOUT_TOKENS else read), 0
    if request.needs and EngineFeature.IMAGES in request.needs:
        read = context
    wanted = tokens_wanted(request)
    written = context if wanted is None or wanted > context else wanted
    return min(read, context) * answers, written * answers


def worst_charge(
    tariff: Tariff | None,
    request: ApiRequest,
    prompt_tokens: int,
    completion_tokens: int,
    model: CatalogEntry | None = None,
) -> int:
    """Return the most that a request can cost, from the most that it can read and write, micro-won."""
    form = request.form
    audio_ms, counted = 0, NOTHING_COUNTED
    if type(form) is TranscriptionForm:
        audio_ms = audio_ms_max(len(form.audio))
    elif type(form) is InferRequest:
        counted = count_rows(model, form)
    return charge_micro_won(tariff, Outcome.COMPLETED, prompt_tokens, completion_tokens, audio_ms, *counted)


def excess_error(key_id: KeyId, excess: Excess) -> ApiError:
    """Return the 429 for a limit that is used up."""
    what = {
        "requests": f"uses {excess.used} of its {excess.limit} requests a minute",
        "tokens": f"uses {excess.used} of its {excess.limit} tokens a minute, and this request may need more",
        "streams": f"has {excess.used} of at most {excess.limit} requests under way",
        "slots": f"cannot be counted: over {excess.limit} keys with limits are in use",
    }[excess.kind]
    message = f"the API key {key_id} {what} at this site"
    return QuotaError(message, excess.retry_after_s, excess.fields)


def shortage_error(shortage: Shortage, now_s: float, fields: bytes, *, may_overdraw: bool) -> ApiError:
    """Return the 429 for a budget that does not suffice."""
    period = "daily" if shortage.period == "day" else "monthly"
    name = f"the {period} budget of {shortage.scope} {shortage.account}"
    beyond = " and what may be spent beyond it" if may_overdraw else ""
    if shortage.hint == HINT_SPENT and shortage.ends_at_s is not None:
        wait_s = min(max(1.0, shortage.ends_at_s - now_s), SPENT_RETRY_S_MAX)
        begins = kst_day(shortage.ends_at_s)
        return QuotaError(f"{name}{beyond} is spent; a new one begins on {begins}, 00:00 Korean time", wait_s, fields)
    if shortage.hint == HINT_CUT:
        message = f"{name}{beyond}: what this site holds of it is spent, and it cannot ask for more now"
        return QuotaError(message, CUT_RETRY_S, fields)
    message = f"{name}{beyond}: what is at hand does not cover the most that this request can cost; more is asked for"
    return QuotaError(message, MORE_RETRY_S, fields)


class QuotaError(ApiError):
    """A refusal for a limit or a budget; `fields` are header lines that say how the key stands."""

    def __init__(self, message: str, retry_after_s: float, fields: bytes) -> None:
        super().__init__(ErrorCode.QUOTA_EXCEEDED, message, retry_after_s=retry_after_s)
        self.fields = fields
