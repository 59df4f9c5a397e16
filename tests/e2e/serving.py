"""Servers and processes of one test session: loopback only, ports chosen by the system, ended with the session."""

import contextlib
import os
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeVar

import httpx
import uvicorn


T = TypeVar("T")


@contextlib.contextmanager
def serve(app) -> Iterator[str]:
    """Serves an ASGI application from a thread of this process; yields its base URL."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="error", timeout_graceful_shutdown=1))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=10)


def free_port() -> int:
    """One that nobody listens on, outside of those that the system gives to others meanwhile."""
    for port in random.sample(range(20_000, 32_000), 100):
        with contextlib.suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    raise RuntimeError("no port is free")


@contextlib.contextmanager
def process(command: list, log: Path, env: dict[str, str], cwd: Path) -> Iterator[subprocess.Popen]:
    """Runs a command in its own process group; ends the group whatever happens."""
    with log.open("ab") as out:
        child = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=subprocess.STDOUT,
            env=env,
            cwd=cwd,
            start_new_session=True,
        )
    try:
        yield child
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGTERM)
        try:
            child.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()


def wait_until_ready(url: str, child: subprocess.Popen, log: Path, seconds: float) -> None:
    """Returns when `url` answers 200; fails with the end of the log when the process ends or is too slow."""
    deadline = time.monotonic() + seconds
    answer = "no answer"
    while time.monotonic() < deadline and child.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            response = httpx.get(url, timeout=5)
            if response.status_code == 200:
                return
            answer = f"{response.status_code} {response.text[:500]}"
        time.sleep(0.1)
    ended = "is not ready" if child.poll() is None else f"ended with status {child.returncode}"
    tail = "\n".join(log.read_text(errors="replace").splitlines()[-40:])
    raise RuntimeError(f"{child.args[0]} {ended}: {url} gave {answer}\n--- {log}\n{tail}")


def eventually(read: Callable[[], T], expected: T, what: str, seconds: float = 15) -> T:
    """Reads until the value is the expected one: books are closed shortly after an answer ends."""
    deadline = time.monotonic() + seconds
    while (seen := read()) != expected:
        assert time.monotonic() < deadline, f"{what}: expected {expected}, saw {seen} after {seconds} s"
        time.sleep(0.1)
    return seen
