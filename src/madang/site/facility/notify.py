"""Delivers notices of alarms: webhooks and e-mail, by level of escalation.

Owns the two ways and their settings. Refuses to decide who is told when: the alarm machine does. Called by the alarm
desk. What is not delivered is tried again by the machine; nothing is queued here.
"""

import asyncio
import smtplib
import ssl
import tomllib
from email.message import EmailMessage
from pathlib import Path

import httpx
import msgspec

from madang.core import Rejected, Unavailable
from madang.machine.alarm_events import Notice
from madang.runtime.files import read_secret

TIMEOUT_S = 10.0
WEBHOOK = "webhook"
EMAIL = "email"


class Webhook(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Where notices are posted as JSON.

    Attributes:
        urls: by level of escalation; beyond the last, the last.
        token_file: holds a bearer token (0600); none without.
        ca_file: whose certificates are believed, for a receiver inside the house.
    """

    urls: tuple[str, ...]
    token_file: Path | None = None
    ca_file: Path | None = None


class Mail(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """How e-mail is sent.

    Attributes:
        recipients: by level of escalation; beyond the last, the last.
        has_tls: STARTTLS is demanded; only for a relay on this machine may it be left out.
        user, password_file: for relays that ask who we are.
    """

    host: str
    sender: str
    recipients: tuple[tuple[str, ...], ...]
    port: int = 587
    has_tls: bool = True
    user: str = ""
    password_file: Path | None = None


class NotifySettings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """All ways; a notice for a way that is not set up is done at once, since nobody waits for it."""

    webhook: Webhook | None = None
    email: Mail | None = None


def load_notify(path: Path) -> NotifySettings:
    """Return the settings in a file; raises Rejected naming it, and what is wrong."""
    try:
        found = msgspec.convert(tomllib.loads(path.read_text(encoding="utf-8")), NotifySettings)
    except OSError as error:
        raise Rejected(f"{path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, msgspec.ValidationError, UnicodeDecodeError) as error:
        raise Rejected(f"{path} is not what tells where alarms go: {error}") from error
    if found.webhook is not None and not all(url.startswith(("https://", "http://")) for url in found.webhook.urls):
        raise Rejected(f"{path}: every webhook must begin with https:// or http://")
    if (found.webhook is not None and not found.webhook.urls) or (
        found.email is not None and not any(found.email.recipients)
    ):
        raise Rejected(f"{path} names a way without anybody at its end")
    return found


class Notifier:
    """Delivers notices."""

    def __init__(self, settings: NotifySettings, *, title: str) -> None:
        self._settings = settings
        self._title = title

    async def send(self, notice: Notice) -> None:
        """Deliver a notice; raises Unavailable when it did not arrive."""
        webhook, mail = self._settings.webhook, self._settings.email
        if notice.channel == WEBHOOK and webhook is not None:
            await self._post(webhook, notice)
        elif notice.channel == EMAIL and mail is not None:
            await asyncio.to_thread(self._mail, mail, notice)

    async def _post(self, webhook: Webhook, notice: Notice) -> None:
        url = webhook.urls[min(notice.level, len(webhook.urls) - 1)]
        headers = {"content-type": "application/json", "idempotency-key": notice.notice_id}
        if webhook.token_file is not None:
            headers["authorization"] = f"Bearer {read_secret(webhook.token_file).decode()}"
        verify = True if webhook.ca_file is None else ssl.create_default_context(cafile=webhook.ca_file)
        body = msgspec.json.encode({"site_title": self._title, **msgspec.to_builtins(notice)})
        try:
            async with httpx.AsyncClient(timeout=TIMEOUT_S, trust_env=False, verify=verify) as client:
                answer = await client.post(url, content=body, headers=headers)
        except (httpx.HTTPError, OSError) as error:
            raise Unavailable(f"the webhook did not take the notice: {type(error).__name__}") from error
        if answer.status_code >= 300:
            raise Unavailable(f"the webhook answered {answer.status_code}")

    def _mail(self, mail: Mail, notice: Notice) -> None:
        message = EmailMessage()
        message["From"] = mail.sender
        message["To"] = ", ".join(mail.recipients[min(notice.level, len(mail.recipients) - 1)])
        message["Subject"] = f"[{self._title}] {notice.text_ko} / {notice.text_en}"[:200]
        message["Message-ID"] = f"<{notice.notice_id}@{notice.key.site}.madang>"
        message.set_content(f"{notice.text_ko}\n{notice.text_en}\n\n{notice.key}\n{notice.priority} {notice.what}\n")
        try:
            with smtplib.SMTP(mail.host, mail.port, timeout=TIMEOUT_S) as relay:
                if mail.has_tls:
                    relay.starttls(context=ssl.create_default_context())
                if mail.user and mail.password_file is not None:
                    relay.login(mail.user, read_secret(mail.password_file).decode())
                relay.send_message(message)
        except (smtplib.SMTPException, OSError) as error:
            raise Unavailable(f"the mail relay did not take the notice: {type(error).__name__}") from error
