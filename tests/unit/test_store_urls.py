"""URLs of stores and brokers: what they say, in whose words, and what of them may be shown."""

from __future__ import annotations

import pytest

from nbparallel.errors import ConnectionFailed
from nbparallel.store.urls import check_store_url, hide_password, sentinels


@pytest.mark.parametrize(
    ("url", "nodes", "login", "broker"),
    [
        (
            "sentinel://:p%40w@one:1;sentinel://:p%40w@two:2/3?master_name=m",
            [("one", 1), ("two", 2)],
            {"db": 3, "password": "p@w"},
            "sentinel://:p%40w@one:1/3;sentinel://:p%40w@two:2/3",
        ),
        (
            "sentinel://me:pw@one;two?master_name=m&sentinel_password=other",
            [("one", 26379), ("two", 26379)],
            {"db": 0, "username": "me", "password": "pw"},
            "sentinel://me:pw@one:26379/0;sentinel://me:pw@two:26379/0",
        ),
        ("sentinel://one/0?master_name=m", [("one", 26379)], {"db": 0}, "sentinel://one:26379/0"),
    ],
)
def test_urls_of_sentinels(url: str, nodes: list[tuple[str, int]], login: dict[str, object], broker: str) -> None:
    """Nodes, master and logins are read; each node of the broker's URL has the login and the database."""
    found = sentinels(url)
    assert found is not None
    assert (found.nodes, found.master, found.login, found.broker_url) == (nodes, "m", login, broker)
    assert found.sentinel_login == ({"password": "other"} if "sentinel_password" in url else {})
    check_store_url(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("sentinel://one", "does not name its master: put ?master_name=mymaster at its end"),
        ("sentinel://one:x?master_name=m", "Port could not be cast"),
        ("sentinel://;two?master_name=m", "each of its Sentinels must be sentinel://host:port"),
        ("sqs://key:hunter2@", "give another kind of broker as broker_url"),
    ],
)
def test_wrong_urls(url: str, message: str) -> None:
    """What is wrong is said, and how such a URL looks."""
    with pytest.raises(ConnectionFailed) as caught:
        check_store_url(url)
    assert message in str(caught.value)
    assert "It looks like" in str(caught.value)
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "redis://:hunter2@host:6379/0",
        "sqs://AKIA:hunter2@",
        "sentinel://:hunter2@one:1;sentinel://:hunter2@two:2/0?master_name=m&sentinel_password=hunter2",
        '{"predefined_queues": {"q": {"url": "u", "access_key_id": "AK", "secret_access_key": "hunter2"}}}',
        '{"sentinel_kwargs": {"password": "hunter2"}}',
    ],
)
def test_passwords_are_not_shown(text: str) -> None:
    """Wherever it stands, a password is replaced."""
    assert "hunter2" not in hide_password(text)
    assert "***" in hide_password(text)
