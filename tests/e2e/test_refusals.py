"""What is refused, how the SDKs show it, and what the provider sees of it: nothing."""

import uuid
from decimal import Decimal

import anthropic
import openai
import pytest

import serving
from issuer import Issuer
from litellm_proxy import CHAT, CHEAP, CLAUDE, EMBEDDING, MASTER_KEY, MODELS
from sdk import Sent, anthropic_client, ask, openai_client


@pytest.fixture
def word() -> str:
    """A word to put into a prompt, and to look for at the provider."""
    return uuid.uuid4().hex


def test_models_are_listed_as_granted(alchemi):
    tenant = alchemi.tenant(models=(CHAT, EMBEDDING))
    client = openai_client(alchemi.url, tenant.token(tenant.user()))
    assert {model.id for model in client.models.list()} == {CHAT, EMBEDDING}


def test_a_refused_model(alchemi, provider, word):
    tenant = alchemi.tenant(models=(CHAT,))
    client = openai_client(alchemi.url, tenant.token(tenant.user()))
    with pytest.raises(openai.PermissionDeniedError) as refusal:
        client.chat.completions.create(model=CHEAP, messages=ask(word))
    assert refusal.value.code == "model_denied"
    assert CHEAP in refusal.value.body["message"], "the message names the model"
    assert CHAT in refusal.value.body["message"], "and what may be used instead"
    assert refusal.value.body["request_id"] == refusal.value.response.headers["x-request-id"]
    assert provider.requests_with(word) == []


def test_a_model_denied_to_one_user(alchemi, provider, word):
    tenant = alchemi.tenant(models=("gpt-*",))
    denied, other = tenant.user(), tenant.user()
    tenant.grant(CHAT, "user", denied.id, "deny")
    with pytest.raises(openai.PermissionDeniedError):
        openai_client(alchemi.url, tenant.token(denied)).chat.completions.create(model=CHAT, messages=ask(word))
    assert provider.requests_with(word) == []
    openai_client(alchemi.url, tenant.token(other)).chat.completions.create(model=CHAT, messages=ask(word))
    assert len(provider.requests_with(word)) == 1


def test_a_refused_model_for_anthropic(alchemi, provider, word):
    tenant = alchemi.tenant(models=(CHAT,))
    client = anthropic_client(alchemi.url, tenant.token(tenant.user()))
    with pytest.raises(anthropic.PermissionDeniedError) as refusal:
        client.messages.create(model=CLAUDE, max_tokens=10, messages=ask(word))
    assert refusal.value.body["type"] == "error"
    assert CLAUDE in refusal.value.body["error"]["message"]
    assert provider.requests_with(word) == []


@pytest.mark.parametrize("stream", [False, True])
def test_an_exhausted_budget_is_not_retried(alchemi, provider, word, stream):
    tenant = alchemi.tenant()
    user, sent = tenant.user(credits="0.000000001"), Sent()
    client = openai_client(alchemi.url, tenant.token(user), sent)
    with pytest.raises(openai.APIStatusError) as refusal:
        client.chat.completions.create(model=CHAT, messages=ask(word), stream=stream)
    assert refusal.value.status_code == 402
    assert refusal.value.code == "allocation_exhausted"
    assert refusal.value.body["scope"]
    assert {"remaining_credits", "requested_credits", "resets_at"} <= refusal.value.body.keys()
    assert len(sent) == 1, "the SDK did not try again"
    assert provider.requests_with(word) == []


def test_a_budget_is_spent_and_not_overspent(alchemi):
    tenant = alchemi.tenant()
    user, cap = tenant.user(credits="0.0001"), "0.0001"
    client = openai_client(alchemi.url, tenant.token(user))
    admitted = 0
    with pytest.raises(openai.APIStatusError) as refusal:
        for _ in range(100):
            client.chat.completions.create(model=CHAT, messages=ask("hello"), max_tokens=30)
            admitted += 1
    assert refusal.value.status_code == 402
    assert admitted > 0
    # An answer may cost more than was held for it: the input is estimated by its length. Requests
    # one after the other overshoot by one such difference at most.
    spent = tenant.credits(user)
    assert 0 < spent <= Decimal(cap) + spent / admitted


def test_an_unknown_model_is_the_upstreams_answer(alchemi):
    tenant = alchemi.tenant()
    user = tenant.user()
    with pytest.raises(openai.BadRequestError) as refusal:
        openai_client(alchemi.url, tenant.token(user)).chat.completions.create(model="nope", messages=ask("hello"))
    assert "Invalid model name" in refusal.value.message
    serving.eventually(lambda: tenant.spent(user), 0, "the cost of a request that failed")


@pytest.mark.parametrize("field", ["api_base", "mock_response", "model_list"])
def test_a_field_that_steers_the_upstream(alchemi, provider, word, field):
    tenant = alchemi.tenant()
    client = openai_client(alchemi.url, tenant.token(tenant.user()))
    with pytest.raises(openai.BadRequestError) as refusal:
        client.chat.completions.create(model=CHAT, messages=ask(word), extra_body={field: "x"})
    assert refusal.value.code == "field_not_allowed"
    assert provider.requests_with(word) == []


def test_no_token(alchemi):
    with pytest.raises(openai.AuthenticationError) as refusal:
        openai_client(alchemi.url, "not-a-token").chat.completions.create(model=CHAT, messages=ask("hello"))
    assert refusal.value.response.headers["www-authenticate"].startswith("Bearer ")


def test_a_forged_token(alchemi):
    tenant = alchemi.tenant()
    user = tenant.user()
    forger = Issuer(url=alchemi.issuer.url)  # the same issuer and key id, another key
    forged = forger.token(user.subject, tenant.account, roles=("account_admin",))
    with pytest.raises(openai.AuthenticationError) as refusal:
        openai_client(alchemi.url, forged).chat.completions.create(model=CHAT, messages=ask("hello"))
    assert refusal.value.code == "token_invalid"


def test_the_upstreams_own_key_passes_through(alchemi):
    models = openai_client(alchemi.url, MASTER_KEY).models.list()
    assert set(MODELS) <= {model.id for model in models}
