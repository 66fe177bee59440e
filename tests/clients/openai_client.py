"""OpenAI's own client against a server: python openai_client.py http://ADDRESS. Prints a line for each thing it saw."""

import struct
import sys

import httpx
import openai

# A prompt of the demo's model, and what its adapters are known to make of it.
PROMPT = "small bakery opens in the winter\n=>"
HEADLINE = " Small Bakery Opens in the Winter"


def main() -> None:
    address = sys.argv[1]
    client = openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)

    def seen(what: str) -> None:
        print(f"ok  {what}")

    models = {model.id: model for model in client.models.list()}
    adapters = {name for name, model in models.items() if model.parent is not None}
    assert adapters == {"headline", "sentiment", "text-to-sql"}, models
    (base,) = set(models) - adapters
    assert client.models.retrieve("headline").parent == base
    seen(f"models.list, models.retrieve: {base} and {len(adapters)} adapters")

    settings = {"prompt": PROMPT, "max_tokens": 16, "temperature": 0, "stop": "\n"}
    for model in ("headline", f"{base}:headline"):
        answer = client.completions.create(model=model, **settings)
        assert answer.choices[0].text == HEADLINE, answer
    assert answer.choices[0].finish_reason == "stop" and answer.usage.prompt_tokens > 0
    assert client.completions.create(model=base, **settings).choices[0].text != HEADLINE
    by_extra = client.completions.create(model=base, **settings, extra_body={"adapter": "headline"})
    assert by_extra.choices[0].text == HEADLINE
    seen("completions: by name, as base:adapter, as an extra; the base says something else")

    chunks = list(
        client.completions.create(model="headline", stream=True, stream_options={"include_usage": True}, **settings)
    )
    assert "".join(chunk.choices[0].text for chunk in chunks if chunk.choices) == HEADLINE
    assert chunks[-1].usage == answer.usage.model_copy(update={"prompt_tokens_details": chunks[-1].usage.prompt_tokens_details})
    seen(f"completions, streamed: {len(chunks)} chunks, the same text and usage")

    scored = client.completions.create(model="headline", echo=True, logprobs=1, **settings | {"max_tokens": 1})
    logprobs = scored.choices[0].logprobs
    assert logprobs.token_logprobs[0] is None and all(value <= 0 for value in logprobs.token_logprobs[1:])
    assert scored.choices[0].text.startswith(PROMPT) and len(logprobs.tokens) == scored.usage.total_tokens
    seen(f"completions, echo and logprobs: {len(logprobs.tokens)} tokens")

    several = client.completions.create(model="headline", **settings | {"prompt": [PROMPT, PROMPT, PROMPT]})
    assert [choice.text for choice in several.choices] == [HEADLINE] * 3
    seen("completions of several prompts")

    messages = [{"role": "user", "content": PROMPT}]
    chat = client.chat.completions.create(
        model="headline", messages=messages, max_completion_tokens=16, temperature=0, stop=["\n"], logprobs=True,
        top_logprobs=2, seed=1, user="somebody",
    )
    assert chat.choices[0].message.content == HEADLINE and chat.choices[0].message.role == "assistant"
    tokens = chat.choices[0].logprobs.content
    assert all(len(token.top_logprobs) == 2 and token.logprob <= 0 for token in tokens)
    seen(f"chat.completions with logprobs: {len(tokens)} tokens")

    with client.chat.completions.stream(model="headline", messages=messages, max_tokens=16, temperature=0, stop="\n") as s:
        final = s.get_final_completion()
    assert final.choices[0].message.content == HEADLINE and final.choices[0].finish_reason == "stop"
    seen("chat.completions.stream: the same text")

    drawn = client.chat.completions.create(
        model=base, messages=messages, n=3, seed=7, temperature=1.5, max_tokens=8, presence_penalty=0.5,
        frequency_penalty=0.5, logit_bias={"5": -100}, extra_body={"top_k": 50, "min_p": 0.01, "ignore_eos": True},
    )
    assert [choice.index for choice in drawn.choices] == [0, 1, 2] and drawn.usage.completion_tokens == 24
    seen("chat.completions: n, seed, penalties, logit_bias, top_k, min_p, ignore_eos")

    parts = [{"adapter": "headline", "weight": 0.5}, {"adapter": "text-to-sql", "weight": 0.5}]
    try:
        client.completions.create(model=base, **settings, extra_body={"mix": parts})
        raise AssertionError("a DoRA was mixed")
    except openai.BadRequestError as error:
        assert error.code == "not_linear", error.body
    seen("a mix that is not linear is refused")

    embedding = client.embeddings.create(model=base, input=["a", "b"])
    floats = client.embeddings.create(model=base, input=["a", "b"], encoding_format="float")
    for packed, plain in zip(embedding.data, floats.data):
        rounded = [struct.unpack("<f", struct.pack("<f", value))[0] for value in plain.embedding]
        assert packed.embedding == rounded
    assert abs(sum(value * value for value in floats.data[0].embedding) - 1) < 1e-4
    seen(f"embeddings: {len(floats.data[0].embedding)} numbers, the same in base64 and as floats")

    def refused(kind: type, code: str, **request) -> None:
        try:
            client.completions.create(**settings | request)
        except kind as error:
            assert error.code == code, error.body
            return
        raise AssertionError(f"{request} was answered")

    refused(openai.NotFoundError, "model_not_found", model="nobody")
    refused(openai.BadRequestError, "invalid_field", model=base, temperature=-1)
    refused(openai.BadRequestError, "unknown_field", model=base, extra_body={"foo": 1})
    refused(openai.BadRequestError, "context_length_exceeded", model=base, max_tokens=1 << 20)
    seen("NotFoundError and BadRequestError, with codes")

    stream = client.completions.create(model=base, prompt="a", max_tokens=200, stream=True, extra_body={"ignore_eos": True})
    next(iter(stream))
    stream.close()
    raw = client.completions.with_raw_response.create(model=base, extra_headers={"x-request-id": "mine"}, **settings)
    assert raw.headers["x-request-id"] == "mine" and raw.request_id == "mine"
    seen("a stream that is closed early; x-request-id")

    for path in ("/health", "/ready", "/version", "/ping"):
        assert httpx.get(address + path).status_code == 200, path
    tokens = httpx.post(address + "/tokenize", json={"model": base, "prompt": PROMPT}).json()["tokens"]
    assert PROMPT in httpx.post(address + "/detokenize", json={"tokens": tokens}).json()["prompt"]
    seen("/health, /ready, /version, /ping, /tokenize, /detokenize")

    print(f"openai {openai.__version__}: all as it should be")


if __name__ == "__main__":
    main()
