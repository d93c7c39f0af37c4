"""Is started by the command line; runs the main job, a word count of Python's own library, and prints the outcome."""

from __future__ import annotations

import re
import sysconfig
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

__all__ = ["count_words", "demo", "find_files"]

#: Files that are read.
SUFFIXES = frozenset({".py", ".rst", ".txt"})
#: How many of the most frequent words are shown.
SHOWN = 10


def demo(workers: int = 0, folder: Path | None = None) -> int:
    """Count the words of every text file of the standard library, in parallel and then serially.

    Args:
        workers: worker processes; 0 for one per usable core.
        folder: another folder to read.

    Returns:
        The exit status: 0 when both counts agree, else 1.
    """
    from .api import pmap
    from .cluster.handle import Cluster

    folder = folder or Path(sysconfig.get_path("stdlib"))
    print(f"Counting the words of Python's own library, {folder}")
    paths = find_files(folder)
    # Reading everything once also means that neither of the two counts is the one that waits for the disk.
    megabytes = sum(len(Path(path).read_bytes()) for path in paths) / 1e6
    _show("input", f"{len(paths):,} files ({', '.join(sorted(SUFFIXES))}), {megabytes:.1f} MB")

    began = time.perf_counter()
    with Cluster(workers=workers) as cluster:
        list(pmap(abs, [0], session=cluster, progress=False))
        _show("cluster", f"{cluster.workers} worker processes, first result after {time.perf_counter() - began:.2f} s")
        began = time.perf_counter()
        job = pmap(count_words, paths, session=cluster, progress=True, name="word count")
        words = total(job)
        parallel = time.perf_counter() - began
        snapshot = job.snapshot()
    _show("stopped", "everything that was started")

    began = time.perf_counter()
    expected = total(map(count_words, paths))
    serial = time.perf_counter() - began

    _show("most often", ", ".join(f"{word} {count:,}" for word, count in words.most_common(SHOWN)))
    _show("speed", f"{len(paths) / parallel:,.0f} items/s in {snapshot.chunks:,} chunks")
    _show("time", f"{parallel:.2f} s in parallel, {serial:.2f} s serially: {serial / parallel:.2f} times as fast")
    if words != expected:
        _show("check", f"FAILED: {words.total():,} words in parallel, {expected.total():,} serially")
        return 1
    _show("check", f"both counts agree: {words.total():,} words, {len(words):,} different ones")
    return 0


def find_files(folder: Path) -> list[str]:
    """Every text file below the folder, in order; what was installed beside the library (site-packages) is left out."""
    return sorted(
        str(path)
        for path in folder.rglob("*")
        if path.suffix in SUFFIXES
        and not {"site-packages", "dist-packages"} & set(path.relative_to(folder).parts)
        and path.is_file()
    )


def count_words(path: str) -> Counter[str]:
    """How often each word stands in one file; runs in a worker process."""
    text = Path(path).read_text(encoding="utf-8", errors="replace")
    return Counter(re.findall(r"[^\W\d_]+", text.lower()))


def total(counts: Iterable[Counter[str]]) -> Counter[str]:
    """The sum of all counts."""
    words: Counter[str] = Counter()
    for count in counts:
        words.update(count)
    return words


def _show(label: str, text: str) -> None:
    print(f"  {label:<10}  {text}", flush=True)
