"""Every key in the store: names, types, contents, who writes and who removes them.

``P`` is ``nbp:<namespace>:``, ``J`` a job's prefix, ``P<job id>.<epoch>``; ``<sid>`` is a session, in idle and waits
with ":queue" behind it (``group``) for jobs that are not on the default one.

============= ========== =================================================== ================= =========================
key           type       holds                                               written by        removed by
============= ========== =================================================== ================= =========================
J:meta        hash       state, session, stop, limits, counters, sealed meta submit, scripts   TTL (as a tombstone)
J:f           string     sealed function                                     submit            close; TTL
J:pending     sorted set chunk id by first index                             scripts           claim, stop, close
J:chunks      hash       chunk id -> lo hi at attempt crashes losses blob    scripts           report, close
                         token
J:blobs       hash       payload id -> sealed payload                        submit            client; close
J:held        hash       token -> "chunk ticket"                             claim             report, release, reap
J:tickets     sorted set ticket -> -ms published (waits) or +ms (its turn)   submit, leave     leave, release, close
J:out         stream     one entry a flush: sealed outcomes                  report            as consumed (when the
                                                                                               input has no length);
                                                                                               close; TTL
P leases      sorted set "J token" by expiry, ms of the server's clock       claim, renew      report, release, reap
P s:<sid>     string     a session's beat                                    client            TTL; client at its end
P wake:<sid>  stream     one entry: "read your streams anew"                 submit            TTL; client at its end
P idle:<sid>  sorted set children that linger, by the ms until which         linger            submit, unlinger; TTL
P await:<cid> string     token, lease, job that it knows and group of such   linger            submit, unlinger; TTL
                         a child
P waits:<sid> list       "J ticket" that a message was sent for              submit, remint    linger; TTL
P bell:<cid>  list       "J ticket" handed to a lingering child, and what    submit            the child; TTL
                         it would be answered; "": it is to stop lingering
P part:<n>:i  string     the i-th part of a large body                       PartsDepot        the client; TTL
P shared:<id> string     sealed shared value, or a note of where it lies     the client        with the handle or the
                                                                                               session; TTL
P workers     sorted set worker id by the ms at which it counts as gone      beat              beat, unbeat
P beats       hash       worker id -> sealed description                     beat              beat, unbeat
P jobs        hash       J -> what ``jobs()`` shows                          submit            close, sweep
P ranks       sorted set J by its priority, of the jobs that are open        submit            close, sweep
P ctl         channel    "stop J n": look at your slots                      stop              -
============= ========== =================================================== ================= =========================
"""

from __future__ import annotations

import os
import re

from ..errors import WireError

__all__ = ["group", "job_key", "new_id", "prefix"]

_JOB_ID = re.compile(r"[0-9a-f]{32}")
_NAMESPACE = re.compile(r"[A-Za-z0-9_.-]{1,64}")


def prefix(namespace: str) -> str:
    """``P``, the prefix of all keys of a namespace.

    Raises:
        WireError: the namespace has other characters than letters, digits and ``_.-``.
    """
    if not _NAMESPACE.fullmatch(namespace):
        raise WireError(f"namespace {namespace!r} must be 1 to 64 letters, digits or _.- characters")
    return f"nbp:{namespace}:"


def job_key(namespace: str, job: str, epoch: int) -> str:
    """``J``, the prefix of a job's keys; ids from outside are checked here, before any key is built.

    Raises:
        WireError: the id is not 32 hexadecimal digits, or the epoch is out of range.
    """
    if type(job) is not str or not _JOB_ID.fullmatch(job):
        raise WireError(f"job id {job!r:.60} is not 32 hexadecimal digits")
    if type(epoch) is not int or not 0 <= epoch < 1_000_000:
        raise WireError(f"epoch {epoch!r:.20} of job {job} is not a small number")
    return f"{prefix(namespace)}{job}.{epoch}"


def group(sid: str, queue: str) -> str:
    """Whose work a lingering child waits for: that of a session, on one queue ("": the default one)."""
    return f"{sid}:{queue}" if queue else sid


def new_id() -> str:
    """A fresh random id of 32 hexadecimal digits, for jobs, sessions and tickets."""
    return os.urandom(16).hex()
