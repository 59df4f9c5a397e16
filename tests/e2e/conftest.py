"""One stack for the session: provider <- LiteLLM <- alchemi, and an issuer beside it.

Fixtures start what a test asks for and nothing else, so `pytest -k litellm` needs no gateway.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

import gateway
import litellm_proxy
import serving
from control import Tenant
from issuer import Issuer
from provider import Provider

DATABASES = ("sqlite", "postgres")


@pytest.fixture(scope="session")
def provider() -> Iterator[Provider]:
    fake = Provider()
    with serving.serve(fake.app) as fake.url:
        yield fake


@pytest.fixture(scope="session")
def issuer() -> Iterator[Issuer]:
    one = Issuer()
    with serving.serve(one.app) as one.url:
        yield one


@pytest.fixture(scope="session")
def litellm(provider: Provider, tmp_path_factory) -> Iterator[litellm_proxy.LiteLlm]:
    with litellm_proxy.run(provider.url, tmp_path_factory.mktemp("litellm")) as proxy:
        yield proxy


@dataclass(frozen=True)
class Gateway:
    """A running alchemi; makes tenants in it."""

    url: str
    issuer: Issuer

    def tenant(self, **settings) -> Tenant:
        return Tenant.create(self.url, gateway.MASTER_KEY, self.issuer, **settings)


@contextlib.contextmanager
def database_url(kind: str, folder: Path) -> Iterator[str]:
    if kind == "sqlite":
        yield f"sqlite:{folder / 'alchemi.db'}"
        return
    with gateway.postgres() as url:
        if url is None:
            pytest.skip("PostgreSQL is not installed")
        yield url


@pytest.fixture(scope="session")
def start(litellm, issuer, tmp_path_factory) -> Iterator[Callable[[str], Gateway]]:
    """Starts a gateway on a kind of database, once each."""
    with contextlib.ExitStack() as stack:

        @functools.cache
        def start_on(kind: str) -> Gateway:
            folder = tmp_path_factory.mktemp(kind)
            database = stack.enter_context(database_url(kind, folder))
            return Gateway(stack.enter_context(gateway.run(folder, database, litellm.url, issuer)), issuer)

        yield start_on


@pytest.fixture(scope="session", params=DATABASES)
def alchemi(request, start) -> Gateway:
    return start(request.param)


@dataclass(frozen=True)
class Endpoint:
    """Where an SDK is pointed to, and with which key."""

    url: str
    key: str


@pytest.fixture(scope="session", params=["litellm", *DATABASES])
def endpoint(request) -> Endpoint:
    """LiteLLM itself, and alchemi in front of it."""
    if request.param == "litellm":
        return Endpoint(request.getfixturevalue("litellm").url, litellm_proxy.MASTER_KEY)
    one: Gateway = request.getfixturevalue("start")(request.param)
    tenant = one.tenant()
    return Endpoint(one.url, tenant.token(tenant.user()))
