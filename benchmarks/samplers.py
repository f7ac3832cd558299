"""What each way of sampling costs and gives: calls, positions, seconds, and the text's bound.

    python benchmarks/samplers.py [MODEL] [--texts 16] [--length 112] > table.md

Continues openings of held-out stories. The bound is that of the 16-bit model on opening and
continuation, nats a token: text that it finds likely, be it by repeating itself. So the share of
different words is shown beside. One JSON object a row goes to standard error.
"""

import argparse
import json
import sys
import time

import torch

from quant_dllm.evaluation.evaluate import held_out
from quant_dllm.evaluation.likelihood import mean_and_error, nelbo
from quant_dllm.evaluation.masks import stratified
from quant_dllm.generation.denoisers import build_denoiser
from quant_dllm.generation.masked import denoise
from quant_dllm.models.load import load
from quant_dllm.models.sampling import Sampling
from quant_dllm.report.table import markdown

OPENING = 16  # tokens of a story that are given
SETTINGS = {
    "whole canvas": Sampling(),
    "blocks of 16": Sampling(block_length=16),
    "blocks, entropy": Sampling(block_length=16, remasking="entropy"),
    "blocks, margin": Sampling(block_length=16, remasking="margin"),
    "blocks, random": Sampling(block_length=16, remasking="random"),
    "blocks, half the steps": Sampling(block_length=16, steps=56),
    "blocks, threshold 0.9": Sampling(block_length=16, threshold=0.9),
    "blocks, threshold 0.7": Sampling(block_length=16, threshold=0.7),
    "blocks, guidance 0.5": Sampling(block_length=16, guidance=0.5),
    "blocks, temperature 0.7": Sampling(block_length=16, temperature=0.7, top_p=0.95),
    "blocks, prefix cache": Sampling(block_length=16, cache="prefix"),
    "blocks, dual cache": Sampling(block_length=16, cache="dual"),
    "dual cache, threshold 0.9": Sampling(block_length=16, cache="dual", threshold=0.9),
}
COLUMNS = (
    "sampler",
    "calls",
    "positions",
    "seconds",
    "bound",
    "different",
    "same as without cache",
)


def write(model, openings, length, sampling):
    """Continue every opening; return canvases, calls, positions, seconds."""
    canvases, calls, positions, began = [], 0, 0, time.monotonic()
    for i, opening in enumerate(openings):
        denoiser = build_denoiser(model, sampling, OPENING, OPENING + length)
        *_, last = denoise(
            denoiser, opening[None], length=length, sampling=sampling, seed=i,
            mask_token_id=model.mask_token_id,
        )  # fmt: skip
        canvases.append(last[0])
        calls, positions = calls + denoiser.calls, positions + denoiser.positions
    n = len(openings)
    return torch.stack(canvases), calls / n, positions / n, (time.monotonic() - began) / n


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", nargs="?", default="tiny")
    parser.add_argument("--base", default="tiny", help="the 16-bit model that judges")
    parser.add_argument("--texts", type=int, default=16)
    parser.add_argument("--length", type=int, default=112)
    args = parser.parse_args()
    model, base = load(args.model), load(args.base)
    windows = held_out(model, None, sequences=args.texts, length=OPENING + args.length, seed=0)
    hidden = stratified(args.texts, 8, OPENING + args.length, seed=0)
    rows, plain = [], {}
    for name, sampling in SETTINGS.items():
        texts, *cost = write(model, windows[:, :OPENING], args.length, sampling)
        bound, error = mean_and_error(nelbo(base, texts, hidden))
        different = sum(len(set(text.tolist())) / len(text) for text in texts) / len(texts)
        uncached = Sampling(**{**vars(sampling), "cache": "none"})
        plain.setdefault(str(uncached), texts)
        same = (plain[str(uncached)] == texts)[:, OPENING:].float().mean().item()
        calls, positions, seconds = cost
        record = {"sampler": name, "calls": calls, "positions": positions, "seconds": seconds,
                  "bound_nats": bound, "bound_stderr": error, "different": different,
                  "same_as_without_cache": same}  # fmt: skip
        print(json.dumps(record), file=sys.stderr)
        kept = "-" if sampling.cache == "none" else f"{same:.0%}"
        rows.append((name, f"{calls:.0f}", f"{positions:.0f}", f"{seconds:.2f}",
                     f"{bound:.3f} ± {error:.3f}", f"{different:.0%}", kept))  # fmt: skip
    bound, error = mean_and_error(nelbo(base, windows, hidden))
    rows.append(("the stories themselves", "-", "-", "-", f"{bound:.3f} ± {error:.3f}", "-", "-"))
    print(markdown(COLUMNS, rows), end="")


if __name__ == "__main__":
    main()
