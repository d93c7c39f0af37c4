"""Settings: argument, then environment, then default."""

from __future__ import annotations

import dataclasses
import math

import pytest

from nbparallel.errors import UsageError
from nbparallel.settings import Settings


def test_defaults() -> None:
    """Without arguments and environment every setting has its default."""
    assert Settings.load(environ={}) == Settings()


def test_argument_wins_over_environment() -> None:
    """An argument counts more than the environment, which counts more than the default."""
    environ = {"NBPARALLEL_LEASE_SECONDS": "20", "NBPARALLEL_WORKERS": "3"}
    settings = Settings.load({"lease_seconds": 5, "workers": None}, environ)
    assert (settings.lease_seconds, settings.workers, settings.crash_limit) == (5.0, 3, Settings().crash_limit)


def test_the_process_environment_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """``NBPARALLEL_*`` of the process is the environment unless another is given."""
    monkeypatch.setenv("NBPARALLEL_QUEUE", "mine")
    assert Settings.load().queue == "mine"


def test_an_empty_variable_is_no_setting() -> None:
    """A variable that is set but empty changes nothing, as people expect from a shell."""
    assert Settings.load(environ={"NBPARALLEL_WORKERS": ""}).workers == Settings().workers


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [("workers", "4", 4), ("turn_seconds", "0.25", 0.25), ("url", "redis://h", "redis://h"), ("flush_bytes", "10", 10)],
)
def test_text_becomes_the_type_of_the_setting(name: str, text: str, value: object) -> None:
    """What the environment gives as text arrives with the type that the setting has."""
    got = getattr(Settings.load(environ={f"NBPARALLEL_{name.upper()}": text}), name)
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("arguments", "environ", "message"),
    [
        ({"worker": 3}, {}, "unknown setting 'worker'; known are .*workers"),
        ({"workers": "many"}, {}, "setting workers must be of type int, not 'many'"),
        ({"workers": True}, {}, "setting workers must be of type int, not True"),
        ({"workers": -1}, {}, "setting workers must be at least 0, not -1"),
        ({"url": 3}, {}, "setting url must be of type str, not 3"),
        ({"lease_seconds": math.nan}, {}, "setting lease_seconds must be at least 0.1, not nan"),
        ({}, {"NBPARALLEL_WORKERS": "2.5"}, "environment variable NBPARALLEL_WORKERS must be of type int, not '2.5'"),
        ({}, {"NBPARALLEL_TURN_SECONDS": "0"}, "environment variable NBPARALLEL_TURN_SECONDS must be at least 0.01"),
    ],
)
def test_bad_settings_are_refused(arguments: dict[str, object], environ: dict[str, str], message: str) -> None:
    """A wrong name, type or value is refused, and the message says where it came from."""
    with pytest.raises(UsageError, match=message):
        Settings.load(arguments, environ)


def test_explain_says_where_each_value_comes_from() -> None:
    """One row a setting: name, value, source and a sentence on what it is for."""
    rows = Settings.explain({"workers": 2}, {"NBPARALLEL_QUEUE": "q"})
    sources = {name: (value, source) for name, value, source, _ in rows}
    assert sources["workers"] == (2, "argument")
    assert sources["queue"] == ("q", "environment")
    assert sources["namespace"] == ("default", "default")
    assert [row[0] for row in rows] == [field.name for field in dataclasses.fields(Settings)]
    assert all(text for *_, text in rows)


def test_settings_cannot_be_changed() -> None:
    """Settings are a value: nobody can change them under another's feet."""
    with pytest.raises(dataclasses.FrozenInstanceError):
        Settings().workers = 3  # type: ignore[misc]


@pytest.mark.parametrize("given", [{"region": "eu"}, '{"region": "eu"}'])
def test_a_brokers_options_as_mapping_or_json(given: object) -> None:
    """The broker's options are a mapping or its JSON, and come out as JSON."""
    assert Settings.load({"broker_options": given}, {}).broker_options == '{"region": "eu"}'
    assert Settings.load({}, {"NBPARALLEL_BROKER_OPTIONS": '{"a": 1}'}).broker_options == '{"a": 1}'


@pytest.mark.parametrize("wrong", ["region=eu", "[1]", 7, {"a": object()}])
def test_a_brokers_options_that_are_none(wrong: object) -> None:
    """What is no JSON object is refused with an example."""
    with pytest.raises(UsageError, match=r"setting broker_options must be a JSON object such as \{"):
        Settings.load({"broker_options": wrong}, {})
