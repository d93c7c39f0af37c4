"""What a worker process keeps of a job."""

from __future__ import annotations

import pytest
from unit.workbench import KEY, SID, Work

from nbparallel import envelope
from nbparallel.errors import WireError
from nbparallel.store.protocol import Claim
from nbparallel.worker.jobs import LoadedJob, load_job


def claim(work: Work) -> Claim:
    """The first claim of a child."""
    (ticket,) = work.submit([1, 2, 3])
    found: Claim = work.store.claim(work.key, "token", ticket, lease=1000, first=True, fresh=True)
    return found


def test_a_job_is_loaded_from_its_first_claim() -> None:
    """Function, session and rules are what the client sealed."""
    work = Work(abs, timeout=2.5)
    job = load_job(KEY, work.key, claim(work))
    assert (job.job, job.sid, job.function, job.refusal) == (work.key, SID, abs, "")
    assert (job.options["timeout"], job.options["star"], job.seeded) == (2.5, False, None)


@pytest.mark.parametrize(("rng", "star"), [(True, False), (False, True)])
def test_a_seeded_job_draws_by_index(rng: bool, star: bool) -> None:
    """With a seed each item has a stream of its own, whatever the function takes."""
    work = Work(lambda *_, **options: len(options), seed=5, rng=rng, star=star)
    job = load_job(KEY, work.key, claim(work))
    assert job.seeded is not None
    assert job.seeded(0, 1) == int(rng)


def test_a_payload_is_opened_once() -> None:
    """The payload that was used last serves chunks that come without one; another one is not mistaken for it."""
    work = Work(abs)
    job, given = load_job(KEY, work.key, claim(work)), claim(work)
    payload = job.payload(KEY, given.blob, given.payload)
    assert list(payload.columns[0]) == [1, 2, 3]
    assert job.payload(KEY, given.blob, None) is payload
    with pytest.raises(LookupError, match="the payload other of job"):
        job.payload(KEY, "other", None)


def test_a_payload_under_another_name_is_refused() -> None:
    """Payloads cannot be swapped; after a refusal nothing old is taken for it."""
    work = Work(abs)
    first = claim(work)
    job = load_job(KEY, work.key, first)
    job.payload(KEY, first.blob, first.payload)
    with pytest.raises(WireError, match="wrong MAC"):
        job.payload(KEY, "other", first.payload)
    assert job.last is None


def test_a_job_without_a_payload_has_none() -> None:
    """A process that never had a payload says so."""
    with pytest.raises(LookupError):
        LoadedJob("job", SID, abs, {}).payload(KEY, "b0", None)


def test_rules_of_another_job_are_refused() -> None:
    """What was sealed for one job is not believed for another."""
    work, other = Work(abs), Work(abs)
    given = claim(work)._replace(meta=envelope.seal_meta(KEY, other.key, {"sid": SID}))
    with pytest.raises(WireError, match="wrong MAC"):
        load_job(KEY, work.key, given)
