"""Runs commands as you would type them in terminals beside the notebook; all of them end with it."""

import atexit
import os
import secrets
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from nbparallel.cluster.server import find_server

#: Where Debian has the program itself; the one on PATH changes to a user of its own first.
RABBITMQ = shutil.which("rabbitmq-server", path=f"/usr/lib/rabbitmq/bin:{os.environ['PATH']}")


class Terminals:
    """A store runs in the first; the others are for you."""

    def __init__(self):
        self.folder = Path(tempfile.mkdtemp())
        self.processes = []
        self.epmd = None
        atexit.register(self.close)
        self.port, password = free_port(), secrets.token_hex(8)
        self.url = f"redis://:{password}@127.0.0.1:{self.port}/0"
        key = self.folder / "nbparallel.key"
        key.write_text(secrets.token_hex(32))
        self.environ = {"NBPARALLEL_URL": self.url, "NBPARALLEL_KEY_FILE": str(key)}
        self.run(f"{find_server()} --port {self.port} --bind 127.0.0.1 --requirepass {password} --save ''")
        self.wait(self.port)

    def run(self, command, **environ):
        """Start a command; what it writes goes to a file."""
        program, *arguments = shlex.split(command)
        words = [sys.executable, "-m", program] if program in ("celery", "nbparallel") else [program]
        if program == "python":
            words = [sys.executable]
        with (self.folder / f"{len(self.processes)}.log").open("wb") as log:
            process = subprocess.Popen(
                [*words, *arguments], env={**os.environ, **self.environ, **environ}, cwd=Path(__file__).parent,
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            )  # fmt: skip
        self.processes.append(process)
        return process

    def rabbitmq(self):
        """Start a RabbitMQ that keeps everything in our folder; its port, or None where it is not installed."""
        if RABBITMQ is None:
            return None
        port, self.epmd = free_port(), str(free_port())
        settings = {
            "NODE_PORT": port, "NODE_IP_ADDRESS": "127.0.0.1", "DIST_PORT": free_port(),
            "NODENAME": f"notebook{port}@localhost", "MNESIA_BASE": self.folder / "rabbitmq",
            "LOG_BASE": self.folder / "rabbitmq", "PID_FILE": self.folder / "rabbitmq.pid",
            "ENABLED_PLUGINS_FILE": self.folder / "plugins", "CONFIG_FILE": self.folder / "none",
        }  # fmt: skip
        (self.folder / "plugins").write_text("[].")
        environ = {f"RABBITMQ_{name}": str(value) for name, value in settings.items()}
        self.run(RABBITMQ, HOME=str(self.folder), ERL_EPMD_PORT=self.epmd, **environ)
        self.wait(port)
        return port

    def wait(self, port):
        """Wait until something listens on a port."""
        for _ in range(600):
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        raise TimeoutError((self.folder / f"{len(self.processes) - 1}.log").read_text())

    def end(self, processes):
        """Close some of them."""
        for process in processes:
            process.terminate()
        for process in processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()

    def close(self):
        """Close all, the store last."""
        self.end(self.processes[1:])
        self.end(self.processes[:1])
        self.processes.clear()
        if self.epmd is not None:  # Erlang's port mapper, which RabbitMQ leaves behind
            subprocess.run(["epmd", "-port", self.epmd, "-kill"], stdout=subprocess.DEVNULL)
            self.epmd = None
        shutil.rmtree(self.folder, ignore_errors=True)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
