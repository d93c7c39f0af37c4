"""URLs of stores and brokers: gets what users wrote, hands on redis-py's or kombu's spelling, and one to be shown."""

from __future__ import annotations

import re
from urllib.parse import urlsplit

from ..errors import ConnectionFailed

__all__ = ["broker_url", "check_store_url", "hide_password", "store_url"]


def hide_password(url: str) -> str:
    """The URL, or a broker's options, as they may be shown: with passwords replaced by ``***``, wherever they stand."""
    url = re.sub(r"(//[^:/@]*:).*@", r"\1***@", url)  # up to the last @: people forget to quote those in passwords
    url = re.sub(r"([?&]\w*password=)[^&]*", r"\1***", url)
    return re.sub(r'("\w*(?:password|secret|token|key)\w*": ")[^"]*', r"\1***", url)


def store_url(url: str) -> str:
    """The URL for redis-py of a store in Celery's spelling (``redis+socket://`` becomes ``unix://``)."""
    if url.startswith(("redis+socket://", "socket://")):
        return re.sub(r"^(redis\+)?socket://", "unix://", url).replace("virtual_host=", "db=")
    return url


def broker_url(url: str) -> str:
    """The URL for kombu of a broker in redis-py's spelling (``unix://`` becomes ``redis+socket://``)."""
    if url.startswith("unix://"):
        return url.replace("unix://", "redis+socket://", 1).replace("db=", "virtual_host=")
    return url


def check_store_url(url: str) -> None:
    """Refuse what redis-py would take without a word, or with words that help nobody.

    Raises:
        ConnectionFailed: naming the URL, its password hidden.
    """
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  (raises when it is no number)
    except ValueError as error:
        raise _wrong(url, str(error)) from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        known = "redis://, rediss:// or unix://"
        if parts.scheme.startswith(("amqp", "sqs")):
            raise _wrong(url, f"it must begin with {known}; give another kind of broker as broker_url")
        raise _wrong(url, f"it must begin with {known}")
    if parts.scheme != "unix" and parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise _wrong(url, f"its database must be a number, not {parts.path.strip('/')!r}")


def _wrong(url: str, why: str) -> ConnectionFailed:
    return ConnectionFailed(
        f"{hide_password(url)!r} is not the URL of a Redis or Valkey: {why}. It looks like redis://:password@host:6379/0"
    )
