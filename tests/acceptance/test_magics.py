"""The extension in a real kernel: its names, its magics, and ■ in cells that wait for jobs."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from kernel import Cell, Kernel, running_kernel
from support import eventually, our_processes

import nbparallel

ROOT = str(Path(nbparallel.__file__ or "").parents[1])


@pytest.fixture(scope="module")
def shared() -> Iterator[Kernel]:
    """A kernel with the extension, for the tests of this module."""
    with running_kernel(PYTHONPATH=ROOT, NBPARALLEL_WORKERS="2") as kernel:
        assert kernel.run("%load_ext nbparallel").error is None
        yield kernel


@pytest.fixture
def kernel(shared: Kernel) -> Kernel:
    """The shared kernel without jobs and names of earlier tests."""
    cell = shared.run("%nbparallel cancel\nfor name in ('out', 'job', 'x', 'y', 'seen'): globals().pop(name, None)")
    assert cell.error is None, cell.error
    return shared


def test_the_extension_brings_its_names(kernel: Kernel) -> None:
    """After %load_ext the functions are there, and work."""
    assert kernel.value("list(pmap(abs, [-1, 2]))") == [1, 2]
    assert kernel.value("sweep(lambda a, b: a * b, grid(a=[1, 2], b=[3, 4])).result()") == [3, 4, 6, 8]


def test_a_name_of_the_user_is_left_alone(kernel: Kernel) -> None:
    """A variable called grid stays; the user is told once, and how to get ours."""
    cell = kernel.run("grid = 'mine'\nget_ipython().extension_manager.reload_extension('nbparallel')")
    assert cell.error is None, cell.error
    assert "nbparallel.grid" in cell.stderr
    assert kernel.value("grid") == "mine"
    assert kernel.run("%reload_ext nbparallel").stderr == ""
    assert kernel.run("del grid\n%reload_ext nbparallel").stderr == ""
    assert kernel.value("len(grid(a=[1, 2]))") == 2


def test_the_extension_can_be_unloaded_and_loaded_twice(kernel: Kernel) -> None:
    """%unload_ext takes names and magics away; loading twice changes nothing."""
    assert kernel.run("%unload_ext nbparallel").error is None
    assert kernel.value("'pmap' in globals(), 'sweep' in globals()") == (False, False)
    gone = kernel.run("%nbparallel")
    assert "not found" in gone.stdout + gone.stderr + str(gone.error)
    again = kernel.run("%load_ext nbparallel\nimport nbparallel\nnbparallel.load_ipython_extension(get_ipython())")
    assert (again.error, again.stderr) == (None, "")
    assert kernel.run("%nbparallel").error is None


def test_the_status_says_what_runs(kernel: Kernel) -> None:
    """%nbparallel names versions, cluster, workers, queues, and the jobs that run."""
    kernel.run(
        "job = pmap(lambda s: __import__('time').sleep(s), [60], name='sleeper', progress=False)\nlist(pmap(abs, [1]))"
    )
    said = kernel.run("%nbparallel").stdout
    assert f"nbparallel {nbparallel.__version__}" in said
    assert "2 worker processes" in said
    assert "queues nbparallel" in said
    assert "sleeper: running, 0 of 1 done" in said
    assert "cancelled: sleeper" in kernel.run("%nbparallel cancel sleeper").stdout
    assert kernel.value("job.status") == "cancelled"
    assert kernel.run("%nbparallel jobs").stdout == "no job runs\n"


def test_a_wrong_command_is_one_line(kernel: Kernel) -> None:
    """A command that does not exist is told in one line, with those that do."""
    cell = kernel.run("%nbparallel strat")
    said = cell.stderr + str(cell.error)
    assert "strat" in said
    assert "start" in said
    assert "Traceback" not in said


def test_tab_completes_commands_and_options(kernel: Kernel) -> None:
    """Tab offers the commands of %nbparallel and the options of %%pmap, and help says what they do."""
    assert {"start", "connect", "stop", "jobs", "cancel", "status"} <= set(kernel.completions("%nbparallel "))
    assert "--retries" in kernel.completions("%%pmap x in xs --r")
    assert "retries=" in kernel.completions("pmap(abs, [1], ret")
    assert "retries=" in kernel.completions("pstarmap(abs, [1], ret")
    assert "retries=" in kernel.completions("job = sweep(abs, points, ret")
    assert "start --workers 4" in kernel.value("get_ipython().find_line_magic('nbparallel').__doc__")


def test_a_cluster_can_be_chosen(kernel: Kernel) -> None:
    """%nbparallel start gives a cluster of so many workers to all that comes; stop ends it."""
    assert "1 worker" in kernel.run("%nbparallel start --workers 1").stdout
    assert kernel.value("len({p for p in pmap(lambda _: __import__('os').getpid(), range(20), chunks=1)})") == 1
    assert "stopped" in kernel.run("%nbparallel stop").stdout
    assert "no cluster" in kernel.run("%nbparallel status").stdout
    assert kernel.value("pmap(abs, [-3]).result()") == [3]


def test_a_cell_runs_for_every_item(kernel: Kernel) -> None:
    """%%pmap runs its cell for each item; the last expression is the result, other variables are the notebook's."""
    cell = kernel.run("xs, k = range(4), 10\n")
    cell = kernel.run("%%pmap x in xs -> out\ny = x * k\ny + 1")
    assert cell.error is None, cell.error
    assert kernel.value("out") == [1, 11, 21, 31]
    assert kernel.value("'y' in globals()") is False


@pytest.mark.parametrize(
    ("line", "body", "expected"),
    [
        ("x, y in zip([1, 2], [10, 20]) -> out", "x + y", [11, 22]),
        ("x, y in [1, 2], [10, 20] -> out", "x + y", [11, 22]),
        ("x, y in [(1, 2), (3, 4)] -> out", "x * y", [2, 12]),
        ("i, (a, b) in enumerate([(1, 2), (3, 4)]) -> out", "i + a + b", [3, 8]),
        ("x in [3, 1] -> out --retries 2 --chunks 1 --name squares", "x ** 2", [9, 1]),
        ("x in [1, 2] -> out", "z = x", [None, None]),
        ("x in [i for i in range(3)] -> out", "def f(v):\n    return v + x\nf(1)", [1, 2, 3]),
    ],
)
def test_forms_of_the_cell_magic(kernel: Kernel, line: str, body: str, expected: list[object]) -> None:
    """Several names, zip-like sources, options, cells without a last expression, and functions in the cell."""
    cell = kernel.run(f"%%pmap {line}\n{body}")
    assert cell.error is None, cell.error
    assert kernel.value("out") == expected


def test_a_failing_cell_shows_its_own_line(kernel: Kernel) -> None:
    """What the cell raises arrives as it is, with the cell's line; what was done is in the job."""
    cell = kernel.run("%%pmap x in [2, 0] -> out --chunks 1\ny = 1\n1 / x  # here")
    assert cell.error is not None
    assert cell.error[0] == "ZeroDivisionError"
    assert "# here" in cell.error[2]
    assert kernel.value("out.results_so_far()") == {0: 0.5}


@pytest.mark.parametrize("line", ["", "x of xs", "x in xs -> 1", "x in xs -> out --wrong 1"])
def test_a_wrong_first_line_is_told(kernel: Kernel, line: str) -> None:
    """A first line that cannot be understood is one clear line, not a traceback."""
    cell = kernel.run(f"%%pmap {line}\nx")
    said = cell.stderr + str(cell.error)
    assert "%%pmap" in said
    assert "Traceback" not in said


#: Says "go" when the next line waits: what comes before it is not part of the wait.
SOON = "import threading\nsoon = lambda: threading.Timer(0.3, lambda: print('go', flush=True)).start()"
WAITS = {
    "iterating": "for r in job:\n    if r == 0: print('go', flush=True)",
    "in the loop's body": "for r in job:\n    print('go', flush=True)\n    time.sleep(60)",
    "waiting for all": "soon()\njob.result()",
    "awaiting": "soon()\nawait job",
    "async for": "async for r in job:\n    print('go', flush=True)\n    await asyncio.sleep(60)",
    "in the loop of a job without a name": (
        "job.cancel()\nwork = lambda s: (__import__('time').sleep(s), 0)[1]\n"
        "for r in pmap(work, [0, 100], chunks=1, progress=False):\n"
        "    print('go', flush=True)\n    time.sleep(60)"
    ),
    "under %%time": "for r in job:\n    print('go', flush=True)\n    time.sleep(60)",
}


@pytest.mark.parametrize("how", WAITS)
def test_an_interrupt_cancels_what_the_cell_waits_for(kernel: Kernel, how: str) -> None:
    """■ cancels the job that the cell reads or awaits, wherever the cell is; other jobs go on."""
    work = "lambda s: (__import__('time').sleep(s), 0)[1]"
    kernel.run(
        f"import time, asyncio\n{SOON}\nearlier = pmap({work}, [100], progress=False)\n"
        f"job = pmap({work}, [0, 100], chunks=1, progress=False)"
    )
    id = kernel.start(("%%time\n" if how == "under %%time" else "") + WAITS[how])
    kernel.wait_for(id, "go")
    kernel.interrupt()
    kernel.finish(id)
    assert kernel.value("job.status, earlier.status") == ("cancelled", "running")
    assert kernel.value("__import__('nbparallel.magics').magics.live_jobs() == [earlier._running]")
    kernel.run("earlier.cancel()")


def test_an_interrupt_can_be_told_to_keep_the_job(kernel: Kernel) -> None:
    """With interrupt="keep" the cell ends and the job goes on."""
    work = "lambda s: (__import__('time').sleep(s), 0)[1]"
    kernel.run(f"import time\n{SOON}\njob = pmap({work}, [0, 100], chunks=1, progress=False, interrupt='keep')")
    for how in ("waiting for all", "in the loop's body"):
        id = kernel.start(WAITS[how])
        kernel.wait_for(id, "go")
        kernel.interrupt()
        cell = kernel.finish(id)
        assert cell.error is not None
        assert kernel.value("job.status") == "running"
    kernel.run("job.cancel()")


def test_an_interrupt_that_the_body_catches_cancels_nothing(kernel: Kernel) -> None:
    """Who catches ■ decides what it means."""
    kernel.run(
        "import time\njob = pmap(lambda s: (__import__('time').sleep(s), 0)[1], [0, 100], chunks=1, progress=False)"
    )
    id = kernel.start(
        "try:\n    for r in job:\n        print('go', flush=True)\n        time.sleep(60)\n"
        "except KeyboardInterrupt:\n    print('caught')"
    )
    kernel.wait_for(id, "go")
    kernel.interrupt()
    assert "caught" in kernel.finish(id).stdout
    assert kernel.value("job.status") == "running"
    kernel.run("job.cancel()")


def test_a_loop_that_raises_leaves_the_job(kernel: Kernel) -> None:
    """An exception of the loop's own body cancels nothing."""
    kernel.run("job = pmap(lambda s: __import__('time').sleep(s), [0, 100], chunks=1, progress=False)")
    cell = kernel.run("for r in job:\n    raise ValueError('mine')")
    assert cell.error is not None
    assert cell.error[0] == "ValueError"
    assert kernel.value("job.status") == "running"


def test_a_traceback_shows_the_users_frames(kernel: Kernel) -> None:
    """IPython shows the lines of the cell and those on the worker as it shows its own, and no line of the engine."""
    kernel.run("def deep(x):\n    return 1 / x  # culprit\n\ndef f(x):\n    return deep(x)  # on the way")
    uses = ["list(job)", "job.result()", "job[1]", "await job", "raise job.errors[0]"]
    for code in uses:
        shown = _shown(kernel.run(f"job = pmap(f, [1, 0], progress=False); job.wait(); {code}  # here"))
        places = [shown.index(words) for words in ("# here", "in f()", "# on the way", "in deep()", "# culprit")]
        assert places == sorted(places)
        assert shown.count("Cell In[") == 3
        assert "nbparallel/" not in shown
        assert "item 1 (0)" in shown
    shown = _shown(kernel.run("pmap(f, [1, 0], session='serial').result()"))
    assert "in deep(x)" in shown
    assert "nbparallel/" not in shown


def test_errors_of_ours_and_interrupts_show_the_cell_alone(kernel: Kernel) -> None:
    """A wrong argument, a cancelled job and ■ are told with the line of the cell, not with ours."""
    kernel.run("import threading, time, _thread\njob = pmap(time.sleep, [60], progress=False)")
    stop = "threading.Timer(0.2, _thread.interrupt_main).start(); "
    for code, name in {
        "pmap(abs, 3)": "UsageError",
        "pmap(abs, [3], retries='many')": "UsageError",
        f"{stop}job.result()": "KeyboardInterrupt",
        "job.result()": "JobCancelled",
        "job = pmap(time.sleep, [60], progress=False); " + stop + "await job": "CancelledError",
    }.items():
        cell = kernel.run(code)
        assert cell.error is not None
        assert cell.error[0] == name
        shown = _shown(cell)
        assert shown.count("Cell In[") == 1
        assert "File" not in shown


def test_what_a_cell_magic_cannot_read_is_shown(kernel: Kernel) -> None:
    """An error in what %%pmap runs for shows the magic's own line."""
    shown = _shown(kernel.run("%%pmap x in missing -> out\nx"))
    assert "for x in missing" in shown
    assert "nbparallel/" not in shown


def _shown(cell: Cell) -> str:
    """The error of a cell as a person sees it."""
    assert cell.error is not None
    return re.sub(r"\x1b\[[0-9;]*m", "", cell.error[2])


def test_a_kernel_leaves_no_process() -> None:
    """When the kernel is restarted, or shut down, in the midst of a job, its cluster goes with it."""
    before = set(our_processes())
    with running_kernel(PYTHONPATH=ROOT, NBPARALLEL_WORKERS="2") as kernel:
        for end in ("restart", "shutdown"):
            kernel.run("%load_ext nbparallel")
            kernel.run("job = pmap(lambda s: __import__('time').sleep(s), [0, 100], chunks=1)\nnext(iter(job))")
            left = set(our_processes()) - before
            assert len(left) >= 4
            if end == "restart":
                kernel.restart()
                eventually(lambda left=left: not left & set(our_processes()), within=10, what="the first are gone")
    eventually(lambda: not set(our_processes()) - before, within=10, what="all processes are gone")
