"""What an application does with the official SDKs, at LiteLLM itself and through alchemi: no difference may show."""

import pytest

from litellm_proxy import CHAT, CLAUDE, EMBEDDING, MOCK
from provider import WORDS
from sdk import anthropic_client, ask, openai_client

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture
def openai(endpoint):
    return openai_client(endpoint.url, endpoint.key)


@pytest.fixture
def anthropic(endpoint):
    return anthropic_client(endpoint.url, endpoint.key)


def starts_the_sentence(text: str) -> bool:
    return len(text.split()) >= 3 and " ".join(WORDS).startswith(text.strip())


def test_chat(openai):
    answer = openai.chat.completions.create(model=CHAT, messages=ask("hello"))
    assert starts_the_sentence(answer.choices[0].message.content)
    assert answer.usage.completion_tokens == len(answer.choices[0].message.content.split())


def test_chat_of_a_mocked_model(openai):
    answer = openai.chat.completions.create(model=MOCK, messages=ask("hello"))
    assert answer.choices[0].message.content == "Hello from a mock."


def test_stream_without_usage(openai):
    chunks = list(openai.chat.completions.create(model=CHAT, messages=ask("hello"), stream=True))
    assert starts_the_sentence("".join(c.choices[0].delta.content or "" for c in chunks))
    assert chunks[-1].choices[0].finish_reason == "stop"
    assert all(chunk.usage is None for chunk in chunks), "a client that did not ask for usage must not get it"


def test_stream_with_usage(openai):
    options = {"include_usage": True}
    chunks = list(openai.chat.completions.create(model=CHAT, messages=ask("hello"), stream=True, stream_options=options))
    assert [chunk.usage is not None for chunk in chunks].count(True) == 1
    assert chunks[-1].usage.completion_tokens >= 3


def test_tools(openai):
    answer = openai.chat.completions.create(model=CHAT, messages=ask("weather?"), tools=[WEATHER], tool_choice="auto")
    [call] = answer.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("weather", '{"city":"Paris"}')


def test_embeddings(openai):
    answer = openai.embeddings.create(model=EMBEDDING, input="hello", encoding_format="float")
    assert answer.data[0].embedding == [0.1, 0.2, 0.3]


def test_responses(openai):
    answer = openai.responses.create(model=CHAT, input="hello")
    assert starts_the_sentence(answer.output_text)
    assert answer.usage.output_tokens >= 3


def test_responses_stream(openai):
    events = list(openai.responses.create(model=CHAT, input="hello", stream=True))
    assert starts_the_sentence("".join(e.delta for e in events if e.type == "response.output_text.delta"))
    assert events[-1].type == "response.completed"
    assert events[-1].response.usage.output_tokens >= 3


def test_messages(anthropic):
    answer = anthropic.messages.create(model=CLAUDE, max_tokens=100, messages=ask("hello"))
    assert starts_the_sentence(answer.content[0].text)
    assert answer.usage.output_tokens >= 3


def test_messages_stream(anthropic):
    with anthropic.messages.stream(model=CLAUDE, max_tokens=100, messages=ask("hello")) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert starts_the_sentence(text)
    assert final.usage.output_tokens == len(text.split())


def test_models_are_listed(openai):
    assert {CHAT, CLAUDE, EMBEDDING, MOCK} <= {model.id for model in openai.models.list()}
