"""A real LiteLLM in front of the fake provider, as its documentation says to start one."""

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path

import serving

MASTER_KEY = "sk-e2e-litellm-master-key"
CHAT, CHEAP, CLAUDE, EMBEDDING, MOCK = (
    "gpt-4o-mini",
    "gpt-4.1-nano",
    "claude-sonnet-4-6",
    "text-embedding-3-small",
    "mock-gpt",
)
MODELS = (CHAT, CHEAP, CLAUDE, EMBEDDING, MOCK)
START_SECONDS = 180


def config(provider: str, *, costs_in_streams: bool) -> dict:
    openai = {"api_base": f"{provider}/v1", "api_key": "sk-provider", "max_retries": 0}
    return {
        "model_list": [
            *({"model_name": name, "litellm_params": {"model": f"openai/{name}"} | openai} for name in (CHAT, CHEAP, EMBEDDING)),
            {
                "model_name": CLAUDE,
                "litellm_params": {"model": f"anthropic/{CLAUDE}", "api_base": provider, "api_key": "sk-provider"},
            },
            {
                "model_name": MOCK,
                "litellm_params": {"model": f"openai/{CHAT}", "api_key": "sk-none", "mock_response": "Hello from a mock."},
            },
        ],
        "general_settings": {"master_key": MASTER_KEY},
        "router_settings": {"num_retries": 0, "disable_cooldowns": True},
        "litellm_settings": {"callbacks": ["spend_log.recorder"], "include_cost_in_streaming_usage": costs_in_streams},
    }


@dataclass(frozen=True)
class Spend:
    """What LiteLLM says a call has cost, in US dollars, and who pays."""

    cost: Decimal
    customer: str | None


@dataclass(frozen=True)
class LiteLlm:
    """A running proxy, and what it has written into its own books."""

    url: str
    spend_log: Path

    def spend(self) -> dict[str, Spend]:
        """LiteLLM's books, by call id."""
        lines = self.spend_log.read_text().splitlines() if self.spend_log.exists() else []
        entries = [json.loads(line) for line in lines]
        return {one["call_id"]: Spend(Decimal(one["cost"] or 0), one["customer"]) for one in entries}


@contextlib.contextmanager
def run(provider: str, folder: Path, *, costs_in_streams: bool = True) -> Iterator[LiteLlm]:
    """Starts LiteLLM and waits for it; needs no network: its price list is the one in the package."""
    shutil.copy(Path(__file__).with_name("spend_log.py"), folder)
    file, log, port = folder / "config.yaml", folder / "litellm.log", serving.free_port()
    file.write_text(json.dumps(config(provider, costs_in_streams=costs_in_streams)))  # JSON is YAML
    proxy = LiteLlm(f"http://127.0.0.1:{port}", folder / "spend.jsonl")
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    env = inherited | {
        "LITELLM_LOCAL_MODEL_COST_MAP": "True",
        "LITELLM_LOG": "ERROR",
        "LITELLM_TELEMETRY": "False",
        "SPEND_LOG": str(proxy.spend_log),
        "NO_PROXY": "127.0.0.1",
    }
    command = [Path(sys.executable).with_name("litellm"), "--config", file, "--host", "127.0.0.1", "--port", port]
    with serving.process([*command, "--num_workers", 1], log, env, folder) as child:
        serving.wait_until_ready(f"{proxy.url}/health/readiness", child, log, START_SECONDS)
        yield proxy
