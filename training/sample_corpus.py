"""Sample the corpus that `train_tiny.py` learns from: stories written by stories15M.

Streams of text are sampled side by side with a key-value cache. stories15M was trained on stories
laid end to end in windows of 256 tokens; so a stream goes on for ever: when the window is full, its
last 96 tokens become the start of the next one. First a short run over the whole vocabulary finds
the pieces that occur; then embedding and head are cut to them and the corpus is sampled. A run that
was stopped goes on where it was.

    python training/sample_corpus.py [--tokens 12e6] [--device cuda --workers 1 --streams 8192]

Writes into ``training/data``: ``train.bin`` (int16 token ids, stories separated by end-of-text),
``tokenizer.json``, ``{heldout,validation,calibration}.txt.gz`` (whole stories, none of which is in
``train.bin``), ``corpus.json`` (what was done).
"""

import argparse
import gzip
import json
import time
from collections import Counter
from itertools import pairwise
from pathlib import Path

import torch
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

import stories15m
from quant_dllm.models.backbone import Backbone
from quant_dllm.models.sight import Rotary
from stories15m import BEGIN_OF_STORY, END, FIRST_BYTE, FIRST_PIECE

KEPT = 96  # tokens of a full window that start the next one
SPLITS = {"heldout": 1_000, "validation": 1_000, "calibration": 4_000}  # stories


class Sampler:
    """The autoregressive model with a static key-value cache: ``streams`` texts at once."""

    def __init__(self, model: Backbone, keep: Tensor, streams: int, device: str):
        c = model.config
        self.dtype = torch.float16 if device == "cuda" else torch.float32
        self.model = model.to(device, self.dtype)
        self.keep = keep.to(device)
        self.embed = model.embed.weight[self.keep]
        self.rotary = Rotary.of(c, torch.arange(c.context, device=device))
        shape = (streams, c.kv_heads, c.context, c.head_width)
        self.cache = [
            tuple(torch.zeros(shape, device=device, dtype=self.dtype) for _ in "kv")
            for _ in model.blocks
        ]

    def step(self, ids: Tensor, at: int) -> Tensor:
        """Feed tokens [streams, new] at position ``at``; return the logits after the last one."""
        x, end = self.embed[ids], at + ids.shape[1]
        here = Rotary(self.rotary.cos[at:end], self.rotary.sin[at:end], self.rotary.full)
        for block, (keys, values) in zip(self.model.blocks, self.cache, strict=True):
            y, a = block.attention_norm(x), block.attention
            q, k, v = (
                layer(y).unflatten(-1, (-1, a.head_width)).transpose(1, 2)
                for layer in (a.q, a.k, a.v)
            )
            keys[:, :, at:end], values[:, :, at:end] = here(k), v
            mixed = F.scaled_dot_product_attention(
                here(q), keys[:, :, :end], values[:, :, :end], is_causal=at == 0
            )
            x = x + a.out(mixed.transpose(1, 2).flatten(2))
            x = x + block.mlp(block.mlp_norm(x))
        return self.model.norm(x[:, -1]) @ self.embed.T


def choose(logits: Tensor, top_p: float, dice: torch.Generator) -> Tensor:
    """Draw from the smallest set of tokens that holds ``top_p`` of the probability."""
    p, ids = logits.float().softmax(-1).topk(min(256, logits.shape[-1]))
    p = p * (p.cumsum(-1) - p < top_p)
    return ids.gather(-1, torch.multinomial(p, 1, generator=dice))


@torch.inference_mode()
def sample(sampler: Sampler, tokens: int, top_p: float, seed: int, path: Path) -> Tensor:
    """Sample streams [streams, length] of at least ``tokens`` tokens, as rows of ``keep``.

    What is sampled is kept at ``path``, window by window.
    """
    streams, window = sampler.cache[0][0].shape[0], sampler.model.config.context
    device = sampler.keep.device
    text = torch.full((streams, 1), int((sampler.keep == BEGIN_OF_STORY).nonzero()), device=device)
    if path.exists():
        text = torch.load(path, map_location=device)
    began, before = time.monotonic(), text.numel()
    while text.numel() < tokens:
        dice = stories15m.dice(device, seed, text.shape[1])
        new, at, found = text[:, -KEPT:], 0, [text]
        while at + new.shape[1] < window:
            logits = sampler.step(new, at)
            at += new.shape[1]
            new = choose(logits, top_p, dice)
            found.append(new)
        text = torch.cat(found, 1)
        torch.save(text, path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
        rate = (text.numel() - before) / (time.monotonic() - began)
        print(f"{path.stem}: {text.numel() / 1e6:.2f} M tokens, {rate:.0f} tokens/s", flush=True)
    return text.to(torch.int32).cpu()


def find_vocabulary(streams: Tensor, pieces: list[bytes], size: int) -> list[int]:
    """Keep the most frequent pieces, and all through which llama's merges reach them."""
    counts = Counter(streams.flatten().tolist())
    ranked = [i for i, _ in counts.most_common() if i >= FIRST_PIECE]
    low, high = 0, len(ranked)
    while low < high:  # the most pieces whose closure fits
        middle = (low + high + 1) // 2
        if len(stories15m.close_under_merges(set(ranked[:middle]), pieces)) <= size - 259:
            low = middle
        else:
            high = middle - 1
    return sorted(stories15m.close_under_merges(set(ranked[:low]), pieces))


def split_stories(streams: Tensor, end: int) -> list[Tensor]:
    """Cut streams [streams, length] into whole stories, each with its end-of-text token."""
    stories = []
    for stream in streams:
        ends = (stream == end).nonzero().flatten().tolist()
        stories += [stream[a + 1 : b + 1] for a, b in pairwise(ends)]
    return [story for story in stories if len(story) > 32]


def write_splits(out: Path, stories: list[Tensor], tokenizer) -> dict[str, int]:
    """Write the named splits as text and the rest as tokens; no story is in two of them."""
    stories = list({story.numpy().tobytes(): story for story in stories}.values())
    at, counts = 0, {}
    for name, most in SPLITS.items():
        size = min(most, len(stories) // 10)
        texts = tokenizer.decode_batch([s.tolist() for s in stories[at : at + size]])
        with gzip.GzipFile(out / f"{name}.txt.gz", "wb", mtime=0) as file:
            file.write("".join(f"{text.strip()}\n{END}\n" for text in texts).encode())
        counts[name], at = len(texts), at + size
    tokens = torch.cat(stories[at:])
    tokens.numpy().tofile(out / "train.bin")
    return counts | {"train": len(stories) - at, "train_tokens": len(tokens)}


def choose_vocabulary(args: argparse.Namespace) -> None:
    """Write ``tokenizer.json`` and ``kept_ids.pt``: row of tiny's embedding → stories15M's."""
    pieces, model = stories15m.read_pieces(), stories15m.read_model()
    scout = Sampler(model, torch.arange(len(pieces)), min(args.streams, 4096), args.device)
    path = args.out / "scout.pt"
    seen = sample(scout, int(args.scout), args.top_p, args.seed, path)
    ids = find_vocabulary(seen, pieces, args.vocabulary)
    stories15m.build_tokenizer(ids, pieces).save(str(args.out / "tokenizer.json"))
    keep = torch.tensor([0, BEGIN_OF_STORY, *range(FIRST_BYTE, FIRST_PIECE), *ids])
    covered = torch.isin(seen, keep).float().mean().item()
    print(f"{len(keep)} pieces hold {covered:.2%} of the first {seen.numel()} tokens", flush=True)
    torch.save(keep, args.out / "kept_ids.pt")


def work(worker: int, args: argparse.Namespace) -> None:
    """Sample one worker's share of the streams."""
    if args.workers > 1:
        torch.set_num_threads(1)
    keep = torch.load(args.out / "kept_ids.pt")
    streams = args.streams // args.workers
    sampler = Sampler(stories15m.read_model(), keep, streams, args.device)
    share, path = int(args.tokens) // args.workers, args.out / f"streams-{worker}.pt"
    sample(sampler, share, args.top_p, args.seed + 1 + worker, path)


def main() -> None:
    """Sample twice: to find the vocabulary, then within it."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--tokens", type=float, default=12e6)
    parser.add_argument("--scout", type=float, default=4e5, help="tokens to find the vocabulary by")
    parser.add_argument("--vocabulary", type=int, default=4096)
    parser.add_argument("--top-p", type=float, default=0.95)
    parser.add_argument("--streams", type=int, default=256)
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "data")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    if not (args.out / "kept_ids.pt").exists():
        choose_vocabulary(args)
    torch.multiprocessing.spawn(work, (args,), nprocs=args.workers)
    tokenizer = Tokenizer.from_file(str(args.out / "tokenizer.json"))
    stories, sampled = [], 0
    for worker in range(args.workers):
        streams = torch.load(args.out / f"streams-{worker}.pt", map_location="cpu")
        stories += split_stories(streams.to(torch.int16), end=1)
        sampled += streams.numel()
    counts = write_splits(args.out, stories, tokenizer)
    record = {"what": "corpus", "source": "stories15M", "top_p": args.top_p, "seed": args.seed,
              "vocabulary": tokenizer.get_vocab_size(),
              "sampled_tokens": sampled, **counts}  # fmt: skip
    (args.out / "corpus.json").write_text(json.dumps(record, indent=1))
    print(json.dumps(record))


if __name__ == "__main__":
    main()
