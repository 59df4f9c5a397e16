"""LiteLLM as it comes, which does not say what each stream costs: then the prices of its models count."""

from decimal import Decimal

import pytest

import gateway
import litellm_proxy
import serving
from conftest import Gateway, database_url
from litellm_proxy import CLAUDE
from test_books import chat, client_of, nano, send


@pytest.fixture(scope="module")
def stack(provider, issuer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("defaults")
    with (
        litellm_proxy.run(provider.url, folder, costs_in_streams=False) as litellm,
        database_url("sqlite", folder) as database,
        gateway.run(folder, database, litellm.url, issuer) as url,
    ):
        yield litellm, Gateway(url, issuer)


def test_a_stream_costs_what_litellm_books(stack):
    litellm, alchemi = stack
    tenant = alchemi.tenant()
    user = tenant.user()
    asked = [
        chat(stream=True),
        chat(stream=True, stream_options={"include_usage": True}),
        ("/v1/messages", {"model": CLAUDE, "max_tokens": 100, "stream": True}),
    ]
    with client_of(tenant, user) as client:
        ids = [send(client, path, body, at).request_id for at, (path, body) in enumerate(asked)]
    serving.eventually(lambda: set(ids) - litellm.spend().keys(), set(), "calls that LiteLLM has not booked")
    serving.eventually(lambda: len(tenant.own_rows(user)), len(ids), "rows of the ledger")
    rows = {row["id"]: row for row in tenant.own_rows(user)}
    spend = litellm.spend()
    found = [Decimal(rows[one]["raw_cost"]) for one in ids]
    assert found == [nano(spend[one].cost) for one in ids]
    assert all(cost > 0 for cost in found)
    assert rows[ids[-1]]["cost_source"] == "priced", "of Anthropic's streams it says nothing"
