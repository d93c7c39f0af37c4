"""Files of items on worker processes: on a real S3 server, in a real directory; and stages that follow each other."""

from __future__ import annotations

import os
import re
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from acceptance.aws import moto_server
from support import Gate, eventually, needed

from nbparallel import Cluster, RetryPolicy, pmap
from nbparallel.files import TransferFailed, declare


@dataclass
class Bucket:
    """A bucket on moto's server, a process of its own."""

    url: str
    log: Path
    options: dict[str, dict[str, Any]]

    def system(self) -> Any:
        """What reads and writes it from here."""
        import fsspec

        return fsspec.filesystem("s3", **self.options["s3"], skip_instance_cache=True)

    def requests(self, method: str, key: str) -> int:
        """How often the server was asked for an object."""
        return len(re.findall(rf'"{method} /weather/{re.escape(key)}[ ?]', self.log.read_text()))


@pytest.fixture(scope="module")
def bucket() -> Iterator[Bucket]:
    """An S3 server with a bucket ``weather``."""
    needed("s3fs")
    with moto_server() as server:
        keys = {"key": "test", "secret": "test"}
        bucket = Bucket(server.url, server.log, {"s3": {"endpoint_url": server.url, **keys}})
        bucket.system().mkdir("weather")
        yield bucket


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    """Two worker processes whose host has a temporary directory of its own, empty at the start and the end."""
    with tempfile.TemporaryDirectory(prefix="f") as directory, pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", directory)
        with Cluster(workers=2) as cluster:
            pmap(abs, [-1], session=cluster).result()  # all of its threads run before the first test looks around
            yield cluster


def test_ten_items_on_two_processes_fetch_once(bucket: Bucket, cluster: Cluster) -> None:
    """Ten items need one object of S3: it is fetched once for both processes, and each stores an object of its own."""
    bucket.system().pipe("weather/2019.csv", b"wind\n" + b"7\n" * 100_000)

    @declare(
        needs={"weather": "s3://weather/{year}.csv"},
        creates={"result": "s3://weather/out/{year}-{site}.txt"},
        options=bucket.options,
    )
    def model(site: int, weather: Path, result: Path, year: int = 2019) -> tuple[int, str]:
        result.write_text(f"{site} {len(weather.read_bytes())}")
        time.sleep(0.05)  # the work, long enough for both processes to take part
        return os.getpid(), str(result)

    ran = pmap(model, range(10), session=cluster, chunks=1).result()
    assert len({pid for pid, _ in ran}) == 2
    assert bucket.requests("GET", "2019.csv") == 1
    system = bucket.system()
    assert [system.cat(f"weather/out/2019-{site}.txt") for site in range(10)] == [
        f"{site} 200005".encode() for site in range(10)
    ]
    assert not any(Path(path).exists() for _, path in ran)


def test_trees_of_objects(bucket: Bucket, cluster: Cluster) -> None:
    """Four items need a tree of S3: each object is fetched once; what they create is stored as trees."""
    system = bucket.system()
    system.pipe({f"weather/years/{name}": name.encode() for name in ("2018", "2019/wind", "2019/sun")})

    @declare(
        needs={"years": "s3://weather/years/"}, creates={"out": "s3://weather/trees/{site}/"}, options=bucket.options
    )
    def model(site: int, years: Path, out: Path) -> list[str]:
        (out / "deep").mkdir()
        (out / "deep" / "sun").write_text((years / "2019" / "sun").read_text())
        return sorted(str(path.relative_to(years)) for path in years.rglob("*") if path.is_file())

    ran = pmap(model, range(4), session=cluster, chunks=1).result()
    assert ran == [["2018", "2019/sun", "2019/wind"]] * 4
    assert [bucket.requests("GET", f"years/{name}") for name in ran[0]] == [1, 1, 1]
    system.invalidate_cache()
    assert system.find("weather/trees/3") == ["weather/trees/3/_SUCCESS", "weather/trees/3/deep/sun"]


def test_a_missing_object_is_one_items_error(bucket: Bucket, cluster: Cluster) -> None:
    """The error of the item names the URL, the others go on, and a second run does only what is missing."""
    system = bucket.system()
    system.pipe({f"weather/m/{year}": str(year).encode() for year in (1, 2, 4)})

    def run() -> list[Any]:
        @declare(
            needs={"src": "s3://weather/m/{year}"},
            creates={"out": "s3://weather/m/out-{year}"},
            existing="skip",
            options=bucket.options,
        )
        def work(year: int, src: Path, out: Path) -> int:
            out.write_bytes(src.read_bytes())
            return year

        return pmap(work, [1, 2, 3, 4], session=cluster, on_error="return").result()

    one, two, three, four = run()
    assert (one, two, four) == (1, 2, 4)
    assert "cannot fetch s3://weather/m/3: FileNotFoundError" in str(three)
    assert isinstance(three.__cause__, TransferFailed)
    system.pipe("weather/m/3", b"3")
    assert run() == [None, None, 3, None]
    assert bucket.requests("GET", "m/1") == 1


def test_a_file_that_comes_late_is_fetched_by_a_retry(cluster: Cluster, tmp_path: Path) -> None:
    """A failed fetch is retried as any other error is: the item succeeds when its file has arrived."""

    @declare(needs={"src": f"file://{tmp_path}/{{name}}"}, creates={"out": f"{tmp_path}/out-{{name}}"})
    def work(name: str, src: Path, out: Path) -> str:
        out.write_text(src.read_text())
        return name

    job = pmap(
        work,
        ["late"],
        session=cluster,
        retries=RetryPolicy(retries=200, retry_on=TransferFailed, backoff=0.05, factor=1.0),
    )
    eventually(lambda: job.snapshot().retried > 0, 20)
    (tmp_path / "half").write_text("here")
    (tmp_path / "half").rename(tmp_path / "late")
    assert job.result(timeout=30) == ["late"]
    assert (tmp_path / "out-late").read_text() == "here"


def test_a_timed_out_item_leaves_no_file(cluster: Cluster, tmp_path: Path) -> None:
    """An item that is interrupted half-way stores nothing, and what it wrote on the host is removed."""

    @declare(creates={"out": f"{tmp_path}/{{x}}"})
    def work(x: int, out: Path) -> str:
        out.write_text("half")
        (tmp_path / f"place-{x}").write_text(str(out))
        time.sleep(60 if x else 0)
        return str(out)

    done, late = pmap(work, [0, 1], session=cluster, timeout=1.0, chunks=1, on_error="return").result(timeout=30)
    assert isinstance(late, TimeoutError)
    assert (tmp_path / "0").exists()
    assert not (tmp_path / "1").exists()
    assert not Path((tmp_path / "place-1").read_text()).parents[1].exists()
    assert not Path(done).parents[1].exists()


def test_stages_stream_from_one_into_the_other(cluster: Cluster, gate: Gate) -> None:
    """``pmap(g, pmap(f, xs))``: g has worked on the first results of f while f's last item still waits."""

    def first(x: int) -> int:
        if x == 5:
            gate.wait()
        return x * 10

    stage = pmap(first, range(6), session=cluster, chunks=1)
    results = iter(pmap(lambda y: y + 1, stage, session=cluster))
    assert [next(results) for _ in range(5)] == [1, 11, 21, 31, 41]
    assert stage.status == "running"
    gate.open()
    assert list(results) == [51]
