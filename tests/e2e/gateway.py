"""The alchemi binary under test, configured by environment variables alone."""

import contextlib
import os
import subprocess
import uuid
from collections.abc import Iterator
from pathlib import Path

import litellm_proxy
import serving
from issuer import PROJECT, Issuer

ROOT = Path(__file__).resolve().parents[2]
MASTER_KEY = "e2e-master-key-of-at-least-32-characters"
START_SECONDS = 90


def binary() -> Path:
    path = Path(os.environ.get("ALCHEMI_BIN", ROOT / "target/debug/alchemi"))
    if not path.exists():
        raise RuntimeError(f"no gateway at {path}: run `cargo build`, or set ALCHEMI_BIN")
    return path


@contextlib.contextmanager
def run(folder: Path, database: str, upstream: str, issuer: Issuer) -> Iterator[str]:
    """Starts `alchemi serve` and waits until it is ready; yields its base URL."""
    port, log = serving.free_port(), folder / "alchemi.log"
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "RUST_BACKTRACE") if name in os.environ}
    env = inherited | {
        "ALCHEMI_LISTEN": f"127.0.0.1:{port}",
        "ALCHEMI_DATA_DIR": str(folder / "data"),
        "ALCHEMI_MASTER_KEY": MASTER_KEY,
        "ALCHEMI_UPSTREAM_URL": upstream,
        "ALCHEMI_UPSTREAM_API_KEY": litellm_proxy.MASTER_KEY,
        "DATABASE_URL": database,
        "ZITADEL_ISSUER": issuer.url,
        "ZITADEL_PROJECT_ID": PROJECT,
        "RUST_LOG": os.environ.get("RUST_LOG", "info"),
    }
    with serving.process([binary(), "serve"], log, env, folder) as child:
        serving.wait_until_ready(f"http://127.0.0.1:{port}/readyz", child, log, START_SECONDS)
        yield f"http://127.0.0.1:{port}"


@contextlib.contextmanager
def postgres() -> Iterator[str | None]:
    """A fresh PostgreSQL database: on the server of ALCHEMI_TEST_POSTGRES_URL, else on a private one.

    None when PostgreSQL is not installed; with CI set that is an error.
    """
    if server := os.environ.get("ALCHEMI_TEST_POSTGRES_URL"):
        name = f"alchemi_e2e_{uuid.uuid4().hex}"
        subprocess.run(["psql", server, "-qc", f'CREATE DATABASE "{name}"'], check=True)
        base, _, query = server.partition("?")
        yield f"{base.rsplit('/', 1)[0]}/{name}" + (f"?{query}" if query else "")
        return
    script = ROOT / "tests/common/postgres.sh"
    with subprocess.Popen(["sh", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        url = server.stdout.readline().strip()
        if not url and (server.wait() != 3 or os.environ.get("CI")):
            raise RuntimeError("the private PostgreSQL did not start; see the messages above")
        yield url or None
        server.stdin.close()  # ends and removes it
