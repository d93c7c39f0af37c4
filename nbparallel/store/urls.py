"""URLs of stores and brokers: gets what users wrote, hands on redis-py's or kombu's spelling, and one to be shown."""

from __future__ import annotations

import re
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, quote, unquote, urlsplit

from ..errors import ConnectionFailed

__all__ = ["Sentinels", "broker_url", "check_store_url", "hide_password", "sentinels", "store_url"]


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


class Sentinels(NamedTuple):
    """What ``sentinel://:password@one:26379;sentinel://two:26379/0?master_name=mymaster`` says.

    Attributes:
        nodes: hosts and ports of the Sentinels.
        master: the name by which they know the server.
        login: user, password and database of that server, in redis-py's words.
        sentinel_login: user and password of the Sentinels themselves.
    """

    nodes: list[tuple[str, int]]
    master: str
    login: dict[str, Any]
    sentinel_login: dict[str, Any]

    @property
    def broker_url(self) -> str:
        """In kombu's words, which tries one after the other and takes the login from the one it tries."""
        user, password = (quote(self.login.get(name, ""), safe="") for name in ("username", "password"))
        login = f"{user}:{password}@" if user or password else ""
        return ";".join(f"sentinel://{login}{host}:{port}/{self.login['db']}" for host, port in self.nodes)


def sentinels(url: str) -> Sentinels | None:
    """The parts of a URL of Sentinels; None when it is another one.

    Raises:
        ConnectionFailed: it is one, and something in it is missing or wrong.
    """
    if not url.startswith("sentinel://"):
        return None
    try:
        parts = [urlsplit(one if "://" in one else f"sentinel://{one}") for one in url.split(";")]
        nodes = [(part.hostname or "", part.port or 26379) for part in parts]
    except ValueError as error:
        raise _wrong(url, str(error)) from None
    if not all(host for host, _ in nodes) or any(part.scheme != "sentinel" for part in parts):
        raise _wrong(url, "each of its Sentinels must be sentinel://host:port, with semicolons between them")
    query = dict(parse_qsl(parts[-1].query))
    if not query.get("master_name"):
        raise _wrong(url, "it does not name its master: put ?master_name=mymaster at its end")
    if unknown := sorted(set(query) - {"master_name", "sentinel_username", "sentinel_password"}):
        raise _wrong(url, f"it says {unknown[0]!r}; known are master_name, sentinel_username and sentinel_password")
    database = parts[-1].path.strip("/") or "0"
    if not database.isdecimal():
        raise _wrong(url, f"its database must be a number, not {database!r}")
    login: dict[str, Any] = {"db": int(database)}
    for name in ("username", "password"):
        if given := next((value for part in parts if (value := getattr(part, name))), None):
            login[name] = unquote(given)
    theirs = {name: query[f"sentinel_{name}"] for name in ("username", "password") if f"sentinel_{name}" in query}
    return Sentinels(nodes, query["master_name"], login, theirs)


def check_store_url(url: str) -> None:
    """Refuse what redis-py would take without a word, or with words that help nobody.

    Raises:
        ConnectionFailed: naming the URL, its password hidden.
    """
    if sentinels(url) is not None:
        return
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  (raises when it is no number)
    except ValueError as error:
        raise _wrong(url, str(error)) from None
    if parts.scheme not in ("redis", "rediss", "unix"):
        known = "redis://, rediss://, unix:// or sentinel://"
        if parts.scheme.startswith(("amqp", "sqs")):
            raise _wrong(url, f"it must begin with {known}; give another kind of broker as broker_url")
        raise _wrong(url, f"it must begin with {known}")
    if parts.scheme != "unix" and parts.path.strip("/") and not parts.path.strip("/").isdecimal():
        raise _wrong(url, f"its database must be a number, not {parts.path.strip('/')!r}")


def _wrong(url: str, why: str) -> ConnectionFailed:
    kind, example = "a Redis or Valkey", "redis://:password@host:6379/0"
    if url.startswith("sentinel:"):
        kind, example = "Sentinels", "sentinel://:password@one:26379;sentinel://two:26379/0?master_name=mymaster"
    return ConnectionFailed(f"{hide_password(url)!r} is not the URL of {kind}: {why}. It looks like {example}")
