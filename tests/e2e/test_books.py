"""Three sets of books must agree to the nano: what LiteLLM charged, alchemi's ledger, and its counters."""

import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal

import httpx
import openai
import pytest

import serving
from control import Tenant, User
from litellm_proxy import CHAT, CHEAP, CLAUDE, EMBEDDING, LiteLlm
from sdk import ask, openai_client

NANO = Decimal("1e-9")
REQUESTS = 500
WORKERS = 8


def nano(amount: Decimal) -> Decimal:
    return amount.quantize(NANO, ROUND_HALF_EVEN)


@dataclass(frozen=True)
class Answer:
    """What a client sees of one request."""

    status: int
    request_id: str
    header_cost: Decimal | None


def chat(model: str = CHAT, **more) -> tuple[str, dict]:
    return "/v1/chat/completions", {"model": model} | more


# Each kind of request, and how many in twenty there are of it.
MIX: list[tuple[int, int, tuple[str, dict]]] = [
    # share, expected status, request
    (4, 200, chat()),
    (2, 200, chat(CHEAP)),
    (2, 200, chat(stream=True)),
    (2, 200, chat(stream=True, stream_options={"include_usage": True})),
    (2, 200, ("/v1/embeddings", {"model": EMBEDDING})),
    (1, 200, ("/v1/responses", {"model": CHAT})),
    (1, 200, ("/v1/responses", {"model": CHAT, "stream": True})),
    (1, 200, ("/v1/messages", {"model": CLAUDE, "max_tokens": 100})),
    (1, 200, ("/v1/messages", {"model": CLAUDE, "max_tokens": 100, "stream": True})),
    (1, 429, chat(prompt="fail429")),
    (1, 500, chat(prompt="fail500")),
    (1, 400, chat("nope")),
    (1, 403, chat("not-granted")),
]


def send(client: httpx.Client, path: str, body: dict, at: int) -> Answer:
    """Sends a request whose prompt, and so whose usage, differs from the others, and reads all of its answer."""
    body = dict(body)
    prompt = f"{body.pop('prompt', 'hello')} {'x' * (at % 97)}"
    body |= {"messages": ask(prompt)} if "messages" in path or "chat" in path else {"input": prompt}
    with client.stream("POST", path, json=body) as answer:
        answer.read()
    cost = answer.headers.get("x-litellm-response-cost")
    return Answer(answer.status_code, answer.headers["x-request-id"], Decimal(cost) if cost else None)


def hang_up(client: httpx.Client, at: int) -> None:
    """Reads four events of a slow stream and goes away."""
    path, body = chat(stream=True, max_tokens=10_000, messages=ask(f"slow {at}"))
    with client.stream("POST", path, json=body) as answer:
        assert answer.status_code == 200, answer.read()
        lines = answer.iter_lines()
        for _ in range(8):
            next(lines)


def in_parallel(count: int, work: Callable[[int], object]) -> list:
    with ThreadPoolExecutor(WORKERS) as pool:
        return list(pool.map(work, range(count)))


@pytest.fixture
def tenant(alchemi) -> Tenant:
    tenant = alchemi.tenant(credit_factor="2.5", models=(CHAT, CHEAP, CLAUDE, EMBEDDING, "nope"))
    return tenant


def client_of(tenant: Tenant, user: User, **headers: str) -> httpx.Client:
    return httpx.Client(
        base_url=tenant.gateway, headers=headers | {"authorization": f"Bearer {tenant.token(user)}"}, timeout=60
    )


def charged(litellm: LiteLlm, answers: list[Answer]) -> dict[str, Decimal]:
    """What LiteLLM has in its own books for these answers, once it has written them all."""
    wanted = {answer.request_id for answer in answers}
    serving.eventually(lambda: wanted - litellm.spend().keys(), set(), "calls that LiteLLM has not booked")
    spend = litellm.spend()
    for answer in answers:
        if answer.header_cost is not None:
            assert spend[answer.request_id].cost == answer.header_cost
    return {request_id: nano(spend[request_id].cost) for request_id in wanted}


def test_the_books_agree_over_a_mixed_load(alchemi, litellm, tenant):
    reader, leaver = tenant.user(credits="500"), tenant.user(credits="500")
    mix = [(status, path, body) for share, status, (path, body) in MIX for _ in range(share)]

    with client_of(tenant, reader) as client, client_of(tenant, leaver) as leaving:

        def one(at: int) -> Answer | None:
            if at % 25 == 24:
                return hang_up(leaving, at)
            status, path, body = mix[at % len(mix)]
            answer = send(client, path, body, at)
            assert answer.status == status, f"{path} {body}"
            return answer

        answers = [answer for answer in in_parallel(REQUESTS, one) if answer]

    costs = charged(litellm, [answer for answer in answers if answer.status == 200])
    credits = sum(nano(cost * Decimal("2.5")) for cost in costs.values())
    settled = len([answer for answer in answers if answer.status != 403])
    serving.eventually(lambda: len(tenant.own_rows(reader)), settled, "rows of the ledger")
    rows = {row["id"]: row for row in tenant.own_rows(reader)}
    differing = [
        (rows[request_id]["kind"], rows[request_id]["model_name"], rows[request_id]["cost_source"], cost, rows[request_id]["raw_cost"])
        for request_id, cost in costs.items()
        if Decimal(rows[request_id]["raw_cost"]) != cost
    ]
    assert not differing, "kind, model, source, LiteLLM's cost, ours"
    assert tenant.spent(reader) == sum(costs.values()), "the ledger against LiteLLM's own books"
    assert tenant.credits(reader) == credits
    assert tenant.own_usage(reader) == credits, "what the user is told"

    left = tenant.credits(leaver)
    assert left > 0, "who hangs up is charged for what they got"
    used = tenant.used_by_scope()
    assert used["user", reader.id] == credits
    assert used["user", leaver.id] == left
    assert used["team", tenant.team] == used["org", tenant.org] == tenant.credits() == credits + left


def test_a_hang_up_is_charged_and_not_for_the_whole_reservation(alchemi, tenant):
    user = tenant.user(credits="1")
    with client_of(tenant, user) as client:
        hang_up(client, 0)
    serving.eventually(lambda: tenant.spent(user) > 0, True, "a hang-up in the ledger")
    whole = Decimal("0.006")  # 10,000 tokens at 0.6 dollars a million
    assert tenant.spent(user) < whole / 10


def test_the_account_pays_whatever_the_client_says(alchemi, litellm, tenant):
    user, victim = tenant.user(), "somebody-else"
    steering = {"x-litellm-customer-id": victim, "X_LiteLLM_End_User_Id": victim, "x-litellm-call-id": str(uuid.uuid4())}
    with client_of(tenant, user, **steering) as client:
        answer = send(client, *chat(user=victim, metadata={"user_id": victim}), 0)
    assert answer.status == 200
    serving.eventually(lambda: answer.request_id in litellm.spend(), True, "the call under our request id")
    assert litellm.spend()[answer.request_id].customer == f"{tenant.account}:{user.id}"


def test_context_headers_reach_the_upstream_and_the_key_does_not_leak(alchemi, provider, tenant):
    user, word = tenant.user(), uuid.uuid4().hex
    client = openai_client(alchemi.url, tenant.token(user))
    raw = client.chat.completions.with_raw_response.create(model=CHAT, messages=ask(word))
    assert isinstance(raw.parse(), openai.types.chat.ChatCompletion)
    assert raw.headers["x-alchemi-decision"].startswith("allow")
    [seen] = provider.requests_with(word)
    assert "sk-e2e" not in str(seen["headers"]) and tenant.account not in seen["text"]
