"""The official SDKs as an application has them: defaults throughout, retries included, every sent request noted."""

import anthropic
import httpx
import openai


class Sent(list):
    """The requests that an SDK has put on the wire, retries included, with their answers."""

    def client(self) -> httpx.Client:
        return httpx.Client(event_hooks={"response": [self.append]}, timeout=60)


def openai_client(url: str, key: str, sent: Sent | None = None) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{url}/v1", api_key=key, http_client=(Sent() if sent is None else sent).client())


def anthropic_client(url: str, key: str) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, api_key=key)


def ask(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]
