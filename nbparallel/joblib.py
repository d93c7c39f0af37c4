"""joblib's ``Parallel`` on a cluster: a backend over ``executor.py``.

>>> import joblib, nbparallel.joblib
>>> nbparallel.joblib.register()
>>> with joblib.parallel_config(backend="nbparallel", n_jobs=2, session="serial"):
...     joblib.Parallel()(joblib.delayed(abs)(x) for x in (-1, -2))
[1, 2]
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from .api import Where
from .cluster.handle import default_cluster
from .errors import UsageError
from .executor import Executor

try:
    from joblib import parallel
    from joblib._parallel_backends import AutoBatchingMixin, ParallelBackendBase, SequentialBackend
except ImportError as error:
    raise UsageError(f"nbparallel.joblib needs joblib: pip install 'nbparallel[joblib]' ({error})") from error

__all__ = ["NbparallelBackend", "register"]


class NbparallelBackend(AutoBatchingMixin, ParallelBackendBase):  # type: ignore[misc]
    """Runs joblib's batches on a cluster: the one that ``pmap`` uses, or ``session``; it starts none of its own."""

    supports_retrieve_callback = True

    def __init__(self, nesting_level: int | None = None, session: Where = None, **options: Any) -> None:
        super().__init__(nesting_level=nesting_level, **options)
        self._session = session

    def configure(self, n_jobs: int = 1, parallel: Any = None, **options: Any) -> int:
        """Called at the start of a ``Parallel``."""
        self.parallel = parallel
        self._executor = Executor(self.effective_n_jobs(n_jobs), session=self._session or default_cluster())
        return self.effective_n_jobs(n_jobs)

    def effective_n_jobs(self, n_jobs: int | None) -> int:
        """How many batches may run at once: joblib keeps twice as many on their way."""
        if n_jobs == 0:
            raise UsageError("n_jobs == 0 in Parallel has no meaning")
        session: Any = self._session or default_cluster()
        slots = 1 if session == "serial" else session.session.slots("")
        return slots if n_jobs is None else n_jobs if n_jobs > 0 else max(1, slots + 1 + n_jobs)

    def submit(self, func: Callable[[], Any], callback: Callable[[Any], None] | None = None) -> Future[Any]:
        """Have a batch run."""
        future = self._executor.submit(func)
        future.add_done_callback(callback or (lambda _: None))
        return future

    def retrieve_result_callback(self, out: Future[Any]) -> Any:
        """The results of a batch, or what it raised."""
        return out.result()

    def abort_everything(self, ensure_ready: bool = True) -> None:
        """A batch failed, or ■: stop the others."""
        self._executor.cancel()
        if ensure_ready:
            self.configure(self.parallel.n_jobs, self.parallel)

    def terminate(self) -> None:
        """Called at the end of a ``Parallel``."""
        self._executor.shutdown(wait=False)
        self.reset_batch_stats()

    def get_nested_backend(self) -> tuple[Any, None]:  # for a ``Parallel`` inside of a worker
        return SequentialBackend(nesting_level=(self.nesting_level or 0) + 1), None


def register(make_default: bool = False) -> None:
    """Make ``parallel_config(backend="nbparallel")`` known to joblib."""
    parallel.register_parallel_backend("nbparallel", NbparallelBackend, make_default=make_default)
