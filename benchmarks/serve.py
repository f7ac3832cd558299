"""Ask a running server by many clients at once, and throw junk at it: two records.

quant-dllm serve tiny-2bit --port 8000 &
python benchmarks/serve.py http://127.0.0.1:8000 --clients 50    # and the table of docs/how-to.md
python benchmarks/serve.py --tables                              # the table alone
"""

import argparse
import asyncio
import json
import random
import statistics
import time
from typing import Any

import httpx2 as httpx
import openai

import records
from quant_dllm.report.table import markdown

RESULTS = records.RESULTS / "serve.jsonl"
PAGE = records.ROOT / "docs" / "how-to.md"
BEGIN, END = "<!-- table: made by benchmarks/serve.py -->", "<!-- end of table of the server -->"


async def load(url: str, clients: int, tokens: int) -> dict:
    """Let all clients ask at once; half of them stream."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0,
                                  timeout=600) as client:  # fmt: skip
        name = (await client.models.list()).data[0].id

        async def ask(i: int) -> tuple[float, float]:
            asked = {"model": name, "prompt": f"Story {i}. Once upon a time", "max_tokens": tokens}
            began = time.perf_counter()
            if i % 2:
                await client.completions.create(**asked)
                first = time.perf_counter()
            else:
                first = 0.0
                async for _ in await client.completions.create(**asked, stream=True):
                    first = first or time.perf_counter()
            return first - began, time.perf_counter() - began

        began = time.perf_counter()
        times = await asyncio.gather(*map(ask, range(clients)), return_exceptions=True)
        whole = time.perf_counter() - began
    good = [t for t in times if not isinstance(t, BaseException)]
    ends = [end for _, end in good]
    return {
        "what": "serve load", "model": name, "clients": clients, "answers": len(good),
        "failed": clients - len(good), "tokens": tokens,
        "seconds": round(whole, 2), "median_s": round(statistics.median(ends), 2),
        "slowest_s": round(max(ends), 2), "tokens_a_second": round(len(good) * tokens / whole, 1),
    }  # fmt: skip


def fuzz(url: str, bodies: int) -> dict:
    """Send broken bodies; count what comes back."""
    dice, found = random.Random(0), {}
    whole = json.dumps({"prompt": "Once", "max_tokens": 2, "block_length": 2, "stop": ["x"]})
    with httpx.Client(timeout=600) as client:
        for _ in range(bodies):
            body = bytearray(whole.encode())
            for _ in range(dice.randrange(1, 6)):
                at = dice.randrange(len(body))
                body[at : at + dice.randrange(3)] = dice.randbytes(dice.randrange(3))
            route = dice.choice(["completions", "chat/completions", "denoise"])
            answer = client.post(f"{url}/v1/{route}", content=bytes(body),
                                 headers={"content-type": "application/json"})  # fmt: skip
            found[str(answer.status_code)] = found.get(str(answer.status_code), 0) + 1
        alive = client.get(f"{url}/health").json()["status"]
    statuses = dict(sorted(found.items()))
    return {"what": "serve fuzz", "bodies": bodies, "statuses": statuses, "health": alive}


def table(found: list[dict[str, Any]]) -> str:
    """Write the newest record of each kind."""
    newest = {record["what"]: record for record in found}
    asked, fuzzed = newest["serve load"], newest["serve fuzz"]
    statuses = ", ".join(f"{count} × {status}" for status, count in fuzzed["statuses"].items())
    rows = [
        [f"{asked['clients']} clients at once, {asked['tokens']} tokens each",
         f"{asked['answers']} answers, {asked['failed']} failed"],
        ["the median waited", f"{asked['median_s']:.1f} s"],
        ["the last waited", f"{asked['slowest_s']:.1f} s"],
        ["written", f"{asked['tokens_a_second']:.0f} tokens/s"],
        [f"{fuzzed['bodies']} broken bodies: answer × status", statuses],
        ["`/health` afterwards", fuzzed["health"]],
    ]  # fmt: skip
    told = f"{asked.get('model', 'tiny')}; {asked['processor']}, torch {asked['torch']}; one run."
    return f"{markdown(['', ''], rows)}\n{told}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", nargs="?")
    parser.add_argument("--clients", type=int, default=50)
    parser.add_argument("--tokens", type=int, default=16)
    parser.add_argument("--bodies", type=int, default=1000)
    parser.add_argument("--tables", action="store_true", help="only write the table")
    asked = parser.parse_args()
    if not asked.tables:
        if not asked.url:
            parser.error("name the server's address, or give --tables")
        about = records.where()
        with RESULTS.open("a") as file:
            found = asyncio.run(load(asked.url, asked.clients, asked.tokens))
            print(json.dumps(records.append(file, found | about)), flush=True)
            print(json.dumps(records.append(file, fuzz(asked.url, asked.bodies) | about)))
    records.write_between(PAGE, BEGIN, END, table(records.read(RESULTS)))


if __name__ == "__main__":
    main()
