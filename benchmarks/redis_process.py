"""A redis-server of a benchmark's own, and the thinnest client of it."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hiredis


class Server:
    """A redis-server on a unix socket."""

    def __init__(self, process: subprocess.Popen[bytes], path: Path) -> None:
        self.process, self.path = process, path
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.reader = hiredis.Reader()

    def ask(self, *command: str | bytes | int) -> object:
        """Send one command and return its answer."""
        return self.exchange([hiredis.pack_command(command)], 1)[0]

    def exchange(self, packed: Sequence[bytes], answers: int) -> list[object]:
        """Send packed commands and return so many answers."""
        self.socket.sendall(b"".join(packed))
        found: list[object] = []
        while len(found) < answers:
            answer = self.reader.gets()
            if answer is False:
                self.reader.feed(self.socket.recv(1 << 16))
                continue
            if isinstance(answer, Exception):
                raise answer
            found.append(answer)
        return found

    def cpu_seconds(self) -> float:
        """Return the CPU time of the server so far."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def used_memory(self) -> int:
        """Return ``used_memory``."""
        text = self.ask("INFO", "memory")
        assert isinstance(text, bytes)  # noqa: S101  INFO answers text
        found = re.search(rb"used_memory:(\d+)", text)
        assert found  # noqa: S101
        return int(found[1])

    def aof_bytes(self, directory: Path) -> int:
        """Return the size of the append-only files."""
        return sum(f.stat().st_size for f in directory.rglob("*aof*") if f.is_file())


@contextmanager
def server(binary: Path, *, appendonly: bool) -> Iterator[tuple[Server, Path]]:
    """Run a redis-server as the service does, or without its append-only file."""
    major = int(re.search(r"v=(\d+)", subprocess.check_output([binary, "--version"], text=True))[1])  # type: ignore[index]
    compact = "listpack" if major >= 7 else "ziplist"  # noqa: PLR2004  renamed in 7
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "s"
        process = subprocess.Popen(
            [
                str(binary),
                "--port",
                "0",
                "--unixsocket",
                str(path),
                "--dir",
                directory,
                "--save",
                "",
                "--appendonly",
                "yes" if appendonly else "no",
                f"--zset-max-{compact}-entries",
                "256",
            ],
            stdout=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )
        try:
            while not path.exists():
                time.sleep(0.02)
            yield Server(process, path), Path(directory)
        finally:
            process.kill()
            process.wait()
