"""Keys are built from checked parts only, so that nothing from outside can name another key."""

from __future__ import annotations

import pytest

from nbparallel.errors import WireError
from nbparallel.store import keys

ID = "0123456789abcdef" * 2


def test_a_job_key_names_namespace_job_and_epoch() -> None:
    """The key says whose job it is, which, and in which epoch."""
    assert keys.job_key("mine", ID, 3) == f"nbp:mine:{ID}.3"
    assert keys.job_key("mine", ID, 0).startswith(keys.prefix("mine"))


def test_ids_are_new_and_valid() -> None:
    """Fresh ids differ, and keys can be made of them."""
    ids = {keys.new_id() for _ in range(100)}
    assert len(ids) == 100
    assert all(keys.job_key("n", id, 0) for id in ids)


@pytest.mark.parametrize(
    "job",
    [
        "",
        ID[:-1],
        ID + "0",
        ID.upper(),
        ID[:-1] + "g",
        ID + "\n",
        ID[:-1] + " ",
        f"{ID}.1:meta",
        "*" * 32,
        None,
        7,
        b"x",
    ],
)
def test_a_job_id_from_outside_is_checked(job: object) -> None:
    """Anything but 32 lower-case hexadecimal digits is refused before a key is built."""
    with pytest.raises(WireError, match="32 hexadecimal digits"):
        keys.job_key("mine", job, 0)  # type: ignore[arg-type]


@pytest.mark.parametrize("epoch", [-1, 1_000_000, 1.0, "1", None, True])
def test_an_epoch_from_outside_is_checked(epoch: object) -> None:
    """An epoch is a small number, not something that looks like one."""
    with pytest.raises(WireError, match=f"of job {ID} is not a small number"):
        keys.job_key("mine", ID, epoch)  # type: ignore[arg-type]


@pytest.mark.parametrize("epoch", [0, 999_999])
def test_the_ends_of_the_range_of_epochs(epoch: int) -> None:
    """The first and the last epoch are good."""
    assert keys.job_key("mine", ID, epoch).endswith(f".{epoch}")


@pytest.mark.parametrize("namespace", ["default", "a", "A-Z_0.9", "x" * 64])
def test_good_namespaces(namespace: str) -> None:
    """Letters, digits, underscore, dot and hyphen make a namespace."""
    assert keys.prefix(namespace) == f"nbp:{namespace}:"


@pytest.mark.parametrize("namespace", ["", "x" * 65, "a b", "a:b", "a*", "a\n", "ä", "{a}"])
def test_a_namespace_that_could_name_other_keys_is_refused(namespace: str) -> None:
    """What could end the prefix early, match a pattern, or break a line is refused, by its repr."""
    with pytest.raises(WireError, match="1 to 64 letters"):
        keys.prefix(namespace)


def test_a_long_id_is_shown_short() -> None:
    """An error about a huge id does not repeat all of it."""
    with pytest.raises(WireError) as caught:
        keys.job_key("mine", "x" * 10_000, 0)
    assert len(str(caught.value)) < 200


def test_namespaces_never_share_a_key() -> None:
    """No job key of one namespace begins with the prefix of another."""
    names = ["a", "ab", "a.b", "a-b", "a_b"]
    for one in names:
        for other in names:
            assert keys.job_key(one, ID, 1).startswith(keys.prefix(other)) == (one == other)
