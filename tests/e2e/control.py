"""A small client of alchemi's `/v1`, as an operator's script would have it. Money is Decimal."""

import json
import uuid
from dataclasses import dataclass
from decimal import Decimal

import httpx

from issuer import Issuer


class Control:
    """Calls `/v1` with the master key, for one account when told so."""

    def __init__(self, url: str, key: str, account: str | None = None) -> None:
        headers = {"authorization": f"Bearer {key}"} | ({"x-account-id": account} if account else {})
        self._http = httpx.Client(base_url=f"{url}/v1", headers=headers, timeout=30)

    def call(self, method: str, path: str, body: dict | None = None, **query):
        """The answer's JSON; any status but 200 fails the test with the answer's own words."""
        content = None if body is None else json.dumps(body, default=str)
        headers = {"content-type": "application/json"} if content else {}
        query = {name: value for name, value in query.items() if value is not None}
        answer = self._http.request(method, path, content=content, headers=headers, params=query)
        assert answer.status_code == 200, f"{method} /v1{path} {body or ''} {query or ''}\n{answer.status_code} {answer.text}"
        return json.loads(answer.text, parse_float=Decimal, parse_int=Decimal)

    def get(self, path: str, **query):
        return self.call("GET", path, **query)

    def post(self, path: str, body: dict):
        return self.call("POST", path, body)


@dataclass(frozen=True)
class User:
    """A person of the account: their row in the directory, and their subject at the issuer."""

    id: str
    subject: str


@dataclass
class Tenant:
    """One account with an org, a team, a plan and grants: everything a call needs in order to be admitted."""

    gateway: str
    issuer: Issuer
    control: Control
    account: str
    org: str
    team: str
    plan: str

    @classmethod
    def create(
        cls, gateway: str, master_key: str, issuer: Issuer, *, monthly="1000", credit_factor="1", models=("*",)
    ) -> "Tenant":
        operator = Control(gateway, master_key)
        account = operator.post("/accounts", {"account_name": f"e2e {uuid.uuid4()}"})["account_id"]
        allocation = {"account_id": account, "monthly_credits": monthly, "credit_factor": credit_factor}
        operator.post("/budgets/account-allocation", allocation)

        control = Control(gateway, master_key, account)
        org = control.post("/copilot/orgs", {"name": "research"})["item"]["id"]
        team = control.post("/copilot/teams", {"org_id": org, "name": "assistants"})["item"]["id"]
        plan = control.post("/budgets/copilot/plans", {"name": "e2e", "cycle": "monthly"})["item"]["id"]
        tenant = cls(gateway, issuer, control, account, org, team, plan)
        tenant.allocate("org", org, monthly)
        tenant.allocate("team", team, monthly)
        for model in models:
            tenant.grant(model)
        return tenant

    def grant(self, model: str, scope_type: str = "account", scope_id: str | None = None, mode: str = "allow") -> None:
        grant = {"domain": "copilot", "model_name": model, "scope_type": scope_type, "access_mode": mode}
        self.control.post("/copilot/models/grants", grant | {"scope_id": scope_id or self.account})

    def allocate(self, scope_type: str, scope_id: str, credits: str) -> None:
        scope = {"plan_id": self.plan, "scope_type": scope_type, "scope_id": scope_id}
        self.control.post("/budgets/copilot/allocations/upsert", scope | {"allocated_credits": credits})

    def user(self, credits: str | None = None) -> User:
        """A new member of the team, with an allocation of their own when `credits` is given."""
        subject = str(uuid.uuid4().int % 10**18)
        person = {"identity_user_id": subject, "email": f"{subject}@tenant.test", "team_ids": [self.team]}
        user = User(self.control.post("/copilot/users", person)["item"]["id"], subject)
        if credits is not None:
            self.allocate("user", user.id, credits)
        return user

    def token(self, user: User, **claims) -> str:
        return self.issuer.token(user.subject, self.account, **claims)

    def spent(self, user: User | None = None) -> Decimal:
        """The ledger's cost in US dollars, of the account or of one user."""
        return self._costs(user, "raw_cost")

    def credits(self, user: User | None = None) -> Decimal:
        return self._costs(user, "credits_incurred")

    def _costs(self, user: User | None, field: str) -> Decimal:
        rows = self.control.get("/costs/breakdown", domain="copilot", user_id=user and user.id)["items"]
        return sum((Decimal(row[field]) for row in rows), Decimal(0))

    def used_by_scope(self) -> dict[tuple[str, str], Decimal]:
        """The counters: what each scope of the plan has used."""
        items = self.control.get("/budgets/copilot/usage-by-scope")["items"]
        return {(item["scope_type"], item["scope_id"]): Decimal(item["used"]) for item in items}

    def own_rows(self, user: User) -> list[dict]:
        """Every row of the ledger that the user is shown in `/me/usage`."""
        control, rows, cursor = Control(self.gateway, self.token(user)), [], None
        while True:
            page = control.get("/me/usage", limit=200, cursor=cursor)
            rows += page["items"]
            cursor = page["next_cursor"]
            if cursor is None:
                return rows

    def own_usage(self, user: User) -> Decimal:
        """The credits that the user is told of in `/me/usage`."""
        return sum((Decimal(row["credits_incurred"]) for row in self.own_rows(user)), Decimal(0))
