"""The provider behind LiteLLM: OpenAI's and Anthropic's wire shapes, with usage that varies with the prompt.

Words in the prompt steer it: `slow` waits between the events of a stream, `fail429` and `fail500` fail.
"""

import asyncio
import json
import threading
from collections.abc import AsyncIterator

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

WORDS = "The quick brown fox jumps over the lazy dog while nobody is looking at the fence again".split()
SECONDS_BETWEEN_SLOW_EVENTS = 0.1


class Provider:
    """Answers, and remembers every request that it was sent."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._requests: list[dict] = []
        self.app = Starlette(
            routes=[
                Route("/v1/chat/completions", self.chat, methods=["POST"]),
                Route("/v1/embeddings", self.embeddings, methods=["POST"]),
                Route("/v1/responses", self.responses, methods=["POST"]),
                Route("/v1/messages", self.messages, methods=["POST"]),
            ]
        )

    def requests_with(self, text: str) -> list[dict]:
        """The requests whose body holds `text`: tests put a word of their own into the prompt."""
        with self._lock:
            return [seen for seen in self._requests if text in seen["text"]]

    async def _read(self, request: Request) -> tuple[dict, str]:
        raw = (await request.body()).decode()
        with self._lock:
            self._requests.append({"path": request.url.path, "headers": dict(request.headers), "text": raw})
        return json.loads(raw), raw

    async def chat(self, request: Request) -> Response:
        body, raw = await self._read(request)
        if (failure := failing(raw)) is not None:
            return failure
        words, prompt = usage(raw)
        tokens = {"prompt_tokens": prompt, "completion_tokens": words, "total_tokens": prompt + words}
        head = {"id": "chatcmpl-1", "created": 1760000000, "model": body["model"]}
        if body.get("stream"):
            asked = body.get("stream_options", {}).get("include_usage", False)
            return events(chat_events(head, words, tokens if asked else None), slow="slow" in raw)
        message = {"role": "assistant", "content": " ".join(WORDS[:words])}
        finish = "stop"
        if body.get("tools"):
            function = {"name": body["tools"][0]["function"]["name"], "arguments": '{"city":"Paris"}'}
            call = {"id": "call_1", "type": "function", "function": function}
            message, finish = {"role": "assistant", "content": None, "tool_calls": [call]}, "tool_calls"
        choice = {"index": 0, "message": message, "finish_reason": finish}
        return JSONResponse(head | {"object": "chat.completion", "choices": [choice], "usage": tokens})

    async def embeddings(self, request: Request) -> Response:
        body, raw = await self._read(request)
        prompt = usage(raw)[1]
        data = [{"object": "embedding", "index": 0, "embedding": [0.1, 0.2, 0.3]}]
        tokens = {"prompt_tokens": prompt, "total_tokens": prompt}
        return JSONResponse({"object": "list", "data": data, "model": body["model"], "usage": tokens})

    async def responses(self, request: Request) -> Response:
        body, raw = await self._read(request)
        if (failure := failing(raw)) is not None:
            return failure
        words, prompt = usage(raw)
        if body.get("stream"):
            return events(response_events(body["model"], words, prompt), slow="slow" in raw)
        return JSONResponse(response_object(body["model"], "completed", words, prompt))

    async def messages(self, request: Request) -> Response:
        body, raw = await self._read(request)
        words, prompt = usage(raw)
        if body.get("stream"):
            return events(message_events(body["model"], words, prompt), slow="slow" in raw)
        content = [{"type": "text", "text": " ".join(WORDS[:words])}]
        return JSONResponse(message_object(body["model"], content, "end_turn", prompt, words))


def usage(raw: str) -> tuple[int, int]:
    """Output and input tokens of a request: the same for the same bytes, different for others."""
    return 3 + len(raw) % 13, 5 + len(raw) % 89


def failing(raw: str) -> Response | None:
    if "fail429" in raw:
        error = {"message": "Rate limit reached", "type": "requests", "param": None, "code": "rate_limit_exceeded"}
        return JSONResponse({"error": error}, status_code=429, headers={"retry-after": "1"})
    if "fail500" in raw:
        error = {"message": "The server had an error", "type": "server_error", "param": None, "code": None}
        return JSONResponse({"error": error}, status_code=500)
    return None


def events(payloads: list[tuple[str | None, dict | str]], slow: bool) -> Response:
    async def frames() -> AsyncIterator[str]:
        for name, payload in payloads:
            if slow:
                await asyncio.sleep(SECONDS_BETWEEN_SLOW_EVENTS)
            data = payload if isinstance(payload, str) else json.dumps(payload)
            yield (f"event: {name}\n" if name else "") + f"data: {data}\n\n"

    return StreamingResponse(frames(), media_type="text/event-stream")


def chat_events(head: dict, words: int, tokens: dict | None) -> list[tuple[None, dict | str]]:
    def chunk(delta: dict, finish: str | None = None) -> dict:
        choice = {"index": 0, "delta": delta, "finish_reason": finish}
        return head | {"object": "chat.completion.chunk", "choices": [choice]}

    chunks: list[dict | str] = [chunk({"role": "assistant", "content": ""})]
    chunks += [chunk({"content": f"{word} "}) for word in WORDS[:words]]
    chunks.append(chunk({}, "stop"))
    if tokens:
        chunks.append(head | {"object": "chat.completion.chunk", "choices": [], "usage": tokens})
    return [(None, one) for one in [*chunks, "[DONE]"]]


def response_object(model: str, status: str, words: int, prompt: int) -> dict:
    text = " ".join(WORDS[:words])
    part = {"type": "output_text", "text": text, "annotations": []}
    output = [{"type": "message", "id": "msg_1", "status": "completed", "role": "assistant", "content": [part]}]
    tokens = {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 0},
        "output_tokens": words,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + words,
    }
    done = status == "completed"
    return {
        "id": "resp_1",
        "object": "response",
        "created_at": 1760000000,
        "status": status,
        "error": None,
        "incomplete_details": None,
        "instructions": None,
        "metadata": {},
        "model": model,
        "output": output if done else [],
        "parallel_tool_calls": True,
        "temperature": 1.0,
        "tool_choice": "auto",
        "tools": [],
        "top_p": 1.0,
        "usage": tokens if done else None,
    }


def response_events(model: str, words: int, prompt: int) -> list[tuple[str, dict]]:
    done = response_object(model, "completed", words, prompt)
    started = response_object(model, "in_progress", words, prompt)
    item, part = done["output"][0], done["output"][0]["content"][0]
    place = {"item_id": "msg_1", "output_index": 0, "content_index": 0}
    payloads = [
        {"type": "response.created", "response": started},
        {"type": "response.output_item.added", "output_index": 0, "item": item | {"content": [], "status": "in_progress"}},
        {"type": "response.content_part.added", **place, "part": part | {"text": ""}},
        *({"type": "response.output_text.delta", **place, "delta": f"{word} "} for word in WORDS[:words]),
        {"type": "response.output_text.done", **place, "text": part["text"]},
        {"type": "response.content_part.done", **place, "part": part},
        {"type": "response.output_item.done", "output_index": 0, "item": item},
        {"type": "response.completed", "response": done},
    ]
    return [(payload["type"], payload | {"sequence_number": at}) for at, payload in enumerate(payloads)]


def message_object(model: str, content: list, stop: str | None, prompt: int, words: int) -> dict:
    return {
        "id": "msg_1",
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop,
        "stop_sequence": None,
        "usage": {"input_tokens": prompt, "output_tokens": words},
    }


def message_events(model: str, words: int, prompt: int) -> list[tuple[str, dict]]:
    payloads = [
        {"type": "message_start", "message": message_object(model, [], None, prompt, 1)},
        {"type": "content_block_start", "index": 0, "content_block": {"type": "text", "text": ""}},
        *(
            {"type": "content_block_delta", "index": 0, "delta": {"type": "text_delta", "text": f"{word} "}}
            for word in WORDS[:words]
        ),
        {"type": "content_block_stop", "index": 0},
        {
            "type": "message_delta",
            "delta": {"stop_reason": "end_turn", "stop_sequence": None},
            "usage": {"output_tokens": words},
        },
        {"type": "message_stop"},
    ]
    return [(payload["type"], payload) for payload in payloads]
