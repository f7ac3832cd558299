"""The server as its clients see it: OpenAI's own client, wrong bodies, many at once, gone ones."""

import asyncio
import json
import random
import socket
import threading
import time
from contextlib import contextmanager

import pytest

openai = pytest.importorskip("openai")
uvicorn = pytest.importorskip("uvicorn")
httpx = pytest.importorskip("httpx2", reason="comes with openai")

from hypothesis import HealthCheck, given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from quant_dllm.models.load import load  # noqa: E402
from quant_dllm.server.app import application  # noqa: E402
from quant_dllm.server.engine import Engine  # noqa: E402
from quant_dllm.server.guard import Guard  # noqa: E402

TEMPLATE = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"
PROMPT = "Once upon a time"


@contextmanager
def serving(model, key=None, slow=0.0, **limits):
    """Run a server in a thread; ``slow`` seconds are added to every call of the model."""
    engine = Engine(model, "small", **limits)
    if slow:
        predict = model.predict
        model.predict = lambda *args: (time.sleep(slow), predict(*args))[1]
    server = uvicorn.Server(
        uvicorn.Config(application(engine, Guard(key)), log_level="critical",
                       timeout_graceful_shutdown=1)
    )  # fmt: skip
    listener = socket.create_server(("127.0.0.1", 0))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", engine
    finally:
        server.should_exit = True
        thread.join(20)
        if slow:
            del model.predict


@pytest.fixture(scope="module")
def model(small_model):
    made = load(small_model)
    made.tokenizer.chat_template = TEMPLATE
    return made


@pytest.fixture(scope="module")
def url(model):
    with serving(model) as (address, _):
        yield address


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as made:
        yield made


def test_a_completion(client):
    found = client.completions.create(
        model="small", prompt=PROMPT, max_tokens=8, seed=1, temperature=0.7, extra_body={"steps": 4}
    )
    assert found.choices[0].finish_reason in ("length", "stop")
    assert found.usage.completion_tokens <= 8 < found.usage.total_tokens
    assert found.denoising["calls"] == 4
    again = client.completions.create(
        model="small", prompt=PROMPT, max_tokens=8, seed=1, temperature=0.7, extra_body={"steps": 4}
    )
    assert again.choices[0].text == found.choices[0].text


def test_several_prompts_and_choices(client):
    found = client.completions.create(model="small", prompt=[PROMPT, "One day"], max_tokens=4, n=2)
    assert [choice.index for choice in found.choices] == [0, 1, 2, 3]


def test_a_stream_is_the_completion(client):
    asked = {"model": "small", "prompt": PROMPT, "max_tokens": 12, "seed": 3}
    whole = client.completions.create(**asked)
    options = {"include_usage": True}
    parts = list(client.completions.create(**asked, stream=True, stream_options=options))
    assert "".join(p.choices[0].text for p in parts if p.choices) == whole.choices[0].text
    assert parts[-1].usage.total_tokens == whole.usage.total_tokens
    assert parts[-2].choices[0].finish_reason == whole.choices[0].finish_reason


def test_a_chat_whole_and_streamed(client):
    turns = [{"role": "system", "content": "Be brief."},
             {"role": "user", "content": [{"type": "text", "text": "Hello"}]}]  # fmt: skip
    asked = {"model": "small", "messages": turns, "max_completion_tokens": 8}
    whole = client.chat.completions.create(**asked)
    assert whole.choices[0].message.role == "assistant"
    parts = list(client.chat.completions.create(**asked, stream=True))
    assert parts[0].choices[0].delta.role == "assistant"
    said = "".join(p.choices[0].delta.content or "" for p in parts)
    assert said == whole.choices[0].message.content


def test_a_stop_text_ends_the_answer(client):
    asked = {"model": "small", "prompt": PROMPT, "max_tokens": 24, "seed": 5}
    whole = client.completions.create(**asked).choices[0].text
    stop = whole[len(whole) // 2 :][:3]
    wanted = whole[: whole.index(stop)]
    found = client.completions.create(**asked, stop=stop).choices[0]
    assert (found.text, found.finish_reason) == (wanted, "stop")
    parts = client.completions.create(**asked, stop=[stop, "never"], stream=True)
    assert "".join(p.choices[0].text for p in parts) == wanted


def test_models_are_listed(client):
    assert [m.id for m in client.models.list()] == ["small"]
    assert client.models.retrieve("small").id == "small"
    with pytest.raises(openai.NotFoundError, match="'small' is served"):
        client.completions.create(model="other", prompt=PROMPT)


def test_refusals_say_what_is_wrong(client):
    def refused(**asked):
        with pytest.raises(openai.BadRequestError) as error:
            client.completions.create(**{"model": "small", "prompt": PROMPT} | asked)
        return error.value.body["message"]

    assert "trained on 64" in refused(max_tokens=2000)
    assert "no multiple of block length" in refused(max_tokens=9, extra_body={"block_length": 2})
    assert "logprobs is not supported" in refused(logprobs=3)
    assert "temperature" in refused(temperature=-1)
    assert "empty" in refused(prompt="")


def test_every_step_is_told(url):
    asked = {"prompt": PROMPT, "max_tokens": 8, "steps": 4}
    with httpx.stream("POST", f"{url}/v1/denoise", json=asked) as answer:
        told = [line for line in answer.iter_lines() if line.startswith("data: ")]
    start, *steps, end = (json.loads(line[6:]) for line in told)
    assert start["length"] == 8 and len(steps) == 4 and isinstance(end["text"], str)
    written = [position for step in steps for position, _, _ in step["written"]]
    assert sorted(written) == list(range(8))
    assert all(0 <= sure <= 1 for step in steps for _, _, sure in step["written"])


def test_the_page_and_the_metrics(url):
    page = httpx.get(f"{url}/")
    assert "http://" not in page.text.replace("http://www.w3.org", "")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    assert httpx.get(f"{url}/health").json()["status"] == "ok"
    assert "quant_dllm_tokens_total" in httpx.get(f"{url}/metrics").text
    assert httpx.get(f"{url}/nothing").json()["error"]["message"] == "Not Found"


def test_a_key_is_wanted(model):
    with serving(model, key="sesame") as (address, _):
        with openai.OpenAI(base_url=f"{address}/v1", api_key="wrong", max_retries=0) as wrong:
            for ask in (wrong.models.list, lambda: wrong.completions.create(model="", prompt="")):
                with pytest.raises(openai.AuthenticationError):
                    ask()
        with openai.OpenAI(base_url=f"{address}/v1", api_key="sesame") as right:
            assert right.models.list().data
        assert httpx.get(f"{address}/metrics").status_code == 401
        assert httpx.get(f"{address}/health").status_code == 200


def test_fifty_clients_all_get_answers(model):
    async def ask_all(address):
        async with openai.AsyncOpenAI(
            base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=120
        ) as client:

            async def ask(i):
                asked = {"model": "small", "prompt": f"Day {i}", "max_tokens": 4}
                if i % 2:
                    return (await client.completions.create(**asked)).choices[0].text
                stream = await client.completions.create(**asked, stream=True)
                return "".join([part.choices[0].text async for part in stream])

            return await asyncio.gather(*map(ask, range(50)))

    with serving(model) as (address, engine):
        found = asyncio.run(ask_all(address))
        assert len(found) == 50
        assert engine.admitted == 0


def test_a_full_queue_says_so(model):
    asked = {"prompt": PROMPT, "max_tokens": 24}
    with serving(model, slow=0.05, queue=0) as (address, _):  # noqa: SIM117
        with httpx.stream("POST", f"{address}/v1/denoise", json=asked) as first:
            lines = first.iter_lines()
            next(line for line in lines if line.startswith("event: step"))
            busy = httpx.post(f"{address}/v1/completions", json={"prompt": PROMPT})
            assert busy.status_code == 429 and busy.headers["retry-after"]
            assert any(line == "event: end" for line in lines)


def test_it_takes_too_long(model):
    with serving(model, slow=0.1, timeout=0.3) as (address, engine):
        late = httpx.post(f"{address}/v1/completions", json={"prompt": PROMPT, "max_tokens": 24})
        assert late.status_code == 504 and "longer than 0.3 s" in late.json()["error"]["message"]
        assert engine.admitted == 0


@pytest.mark.parametrize("stream", [False, True])
def test_who_goes_away_is_given_up(model, stream):
    with serving(model, slow=0.1) as (address, engine):
        asked = {"prompt": PROMPT, "max_tokens": 40, "stream": stream}
        gone = pytest.raises(httpx.TimeoutException)
        where = f"{address}/v1/completions"
        with gone, httpx.Client(timeout=0.4) as c, c.stream("POST", where, json=asked) as answer:
            for _ in answer.iter_bytes():
                time.sleep(0.2)
                raise httpx.ReadTimeout("enough")
        until = time.monotonic() + 5
        while (engine.admitted or not engine.metrics.cancelled._value.get()) and (
            time.monotonic() < until
        ):
            time.sleep(0.02)
        assert engine.admitted == 0 and engine.metrics.cancelled._value.get() == 1


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=8,
)
FIELDS = ("model", "max_tokens", "temperature", "top_p", "seed", "stop", "n", "stream", "steps",
          "stream_options", "block_length", "sampler", "threshold", "editing", "guidance", "cache",
          "logprobs", "echo", "prompt", "messages")  # fmt: skip
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
KNOBS = dict(max_examples=40, deadline=None, derandomize=True, suppress_health_check=SLOW)


@settings(**KNOBS)
@given(route=st.sampled_from(["completions", "chat/completions", "denoise"]),
       body=st.dictionaries(st.sampled_from(FIELDS), JUNK, max_size=6))  # fmt: skip
def test_bodies_of_junk_are_refused(url, route, body):
    body |= {"max_tokens": body.get("max_tokens", 2)}
    answer = httpx.post(f"{url}/v1/{route}", content=json.dumps(body).encode(errors="replace"),
                        headers={"content-type": "application/json"}, timeout=30)  # fmt: skip
    assert answer.status_code == 200 or (
        400 <= answer.status_code < 500 and answer.json()["error"]["message"]
    )


def test_bytes_of_junk_are_refused(url):
    dice = random.Random(0)
    whole = json.dumps({"prompt": PROMPT, "max_tokens": 2}).encode()
    bodies = [b"", b"null", b"[]", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 100_000,
              b'{"a":' * 5000, b'{"prompt": 1e999}', b'{"prompt": NaN}', whole[:-3]]  # fmt: skip
    bodies += [dice.randbytes(dice.randrange(200)) for _ in range(30)]
    for _ in range(30):
        broken = bytearray(whole)
        broken[dice.randrange(len(broken))] = dice.randrange(256)
        bodies.append(bytes(broken))
    with httpx.Client() as client:
        for body in bodies:
            answer = client.post(f"{url}/v1/completions", content=body,
                                 headers={"content-type": "application/json"})  # fmt: skip
            assert answer.status_code == 200 or 400 <= answer.status_code < 500, body[:60]
        long = client.post(f"{url}/v1/completions", content=b" " * (2 << 20),
                           headers={"content-type": "application/json"})  # fmt: skip
        assert long.status_code == 413
        form = client.post(f"{url}/v1/completions", content=whole,
                           headers={"content-type": "text/plain"})  # fmt: skip
        assert form.status_code == 415
        assert client.post(
            f"{url}/v1/completions", json={"prompt": PROMPT, "max_tokens": 2}
        ).is_success
