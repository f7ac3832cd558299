"""Train ``tiny``: stories15M turned into a masked diffusion model of LLaDA's form.

The network starts from stories15M's weights and loses its causal mask. The loss is the masked
diffusion bound: of a window of L tokens l are hidden, l stratified over 1 … L within the batch, and
the cross-entropy of the hidden tokens is weighted by 1/t = L/l. AdamW, linear warm-up and decay,
an exponential average of the weights is what is kept.

    python training/train_tiny.py [--minutes 180] [--device cuda]

Reads ``training/data`` (see `sample_corpus.py`), keeps its state in ``training/runs`` and goes on
from it when it is started again, writes the model folder, and a record of the loss curve.

Reference: Sahoo et al., "Simple and Effective Masked Diffusion Language Models", arXiv:2406.07524;
Nie et al., "Large Language Diffusion Models", arXiv:2502.09992.
"""

import argparse
import gzip
import json
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

import stories15m
from quant_dllm.models.backbone import Backbone
from quant_dllm.models.llada import FAMILY
from stories15m import END, MASK, UNKNOWN

HERE = Path(__file__).parent


def initial(kept_ids: Tensor) -> Backbone:
    """Cut stories15M to the pieces ``kept_ids``, add the mask token, untie the head."""
    source = stories15m.read_model()
    model = Backbone(replace(source.config, vocab=len(kept_ids) + 1))
    state = source.state_dict()
    rows = state["embed.weight"][kept_ids]
    rows = torch.cat((rows, rows.mean(0, keepdim=True)))
    model.load_state_dict(state | {"embed.weight": rows, "head.weight": rows.clone()})
    return model


def hide(windows: Tensor, mask_id: int, dice: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Hide l tokens of each window, l stratified over 1 … L; return canvas, hidden, t = l/L."""
    batch, length = windows.shape
    even = torch.arange(batch, device=windows.device)
    shift = torch.rand((), generator=dice, device=windows.device)
    count = ((shift + even / batch) % 1.0 * length).floor() + 1
    order = torch.rand(windows.shape, generator=dice, device=windows.device).argsort(1)
    hidden = order < count[:, None]
    return torch.where(hidden, mask_id, windows), hidden, count / length


def bound(model: Backbone, windows: Tensor, canvas: Tensor, hidden: Tensor, t: Tensor) -> Tensor:
    """Estimate the bound on the negative log-likelihood, nats a token."""
    loss = F.cross_entropy(
        model(canvas).float().flatten(0, 1), windows.flatten(), reduction="none"
    ).view_as(windows)
    return ((loss * hidden).sum(1) / t).mean() / windows.shape[1]


class Corpus:
    """Windows of ``train.bin``; half of them begin where a story begins."""

    def __init__(self, path: Path, device: str):
        size = path.stat().st_size // 2
        flat = torch.from_file(str(path), size=size, dtype=torch.int16)
        self.tokens = flat.to(device)
        self.starts = (flat == 1).nonzero().flatten().to(device) + 1

    def windows(self, batch: int, length: int, dice: torch.Generator) -> Tensor:
        """Draw token windows [batch, length]."""
        device, last = self.tokens.device, len(self.tokens) - length
        anywhere = torch.randint(last, (batch,), generator=dice, device=device)
        story = torch.randint(len(self.starts), (batch,), generator=dice, device=device)
        begin = torch.where(anywhere % 2 == 0, anywhere, self.starts[story].clamp(max=last))
        return self.tokens[begin[:, None] + torch.arange(length, device=device)].long()


def heldout_windows(data: Path, length: int) -> Tensor:
    """Lay the held-out stories end to end and cut them into windows."""
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    stories = gzip.decompress((data / "validation.txt.gz").read_bytes()).decode().split(END)
    encoded = tokenizer.encode_batch([story.strip() for story in stories if story.strip()])
    ids = torch.tensor([i for e in encoded for i in (*e.ids, 1)])
    return ids[: len(ids) // length * length].view(-1, length)


@torch.no_grad()
def evaluate(model: Backbone, windows: Tensor, mask_id: int, autocast) -> float:
    """Estimate the bound on held-out windows, the same masks at every call."""
    dice = torch.Generator(windows.device).manual_seed(0)
    with autocast:
        return sum(bound(model, part, *hide(part, mask_id, dice)).item() * len(part)
                   for part in windows.split(64)) / len(windows)  # fmt: skip


def rate(progress: float, peak: float) -> float:
    """Warm up over 2 % of the run, fall linearly to zero from 30 % on."""
    return peak * min(1.0, progress / 0.02, (1.0 - progress) / 0.7)


def save_model(out: Path, model: Backbone, data: Path) -> None:
    """Write LLaDA's own checkpoint form in bfloat16."""
    out.mkdir(parents=True, exist_ok=True)
    tensors = {
        FAMILY.upstream(name): tensor.to(torch.bfloat16).cpu().contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    c = model.config
    config = {
        "architectures": ["LLaDAModelLM"], "model_type": "llada", "d_model": c.width,
        "n_layers": c.blocks, "n_heads": c.heads, "n_kv_heads": c.kv_heads,
        "mlp_hidden_size": c.mlp_width, "vocab_size": c.vocab, "embedding_size": c.vocab,
        "max_sequence_length": c.context, "rope_theta": c.rope_theta, "rms_norm_eps": c.norm_eps,
        "block_type": "llama", "block_group_size": 1, "layer_norm_type": "rms",
        "activation_type": "silu", "rope": True, "rope_full_precision": True, "alibi": False,
        "include_bias": False, "include_qkv_bias": False, "weight_tying": False,
        "scale_logits": False, "init_device": "meta", "eos_token_id": 1, "pad_token_id": 1,
        "mask_token_id": c.vocab - 1, "torch_dtype": "bfloat16",
    }  # fmt: skip
    (out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    (out / "tokenizer.json").write_bytes((data / "tokenizer.json").read_bytes())
    words = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": UNKNOWN, "eos_token": END,
             "pad_token": END, "additional_special_tokens": [MASK], "model_max_length": c.context,
             "clean_up_tokenization_spaces": False}  # fmt: skip
    (out / "tokenizer_config.json").write_text(json.dumps(words, indent=2) + "\n")


def batches(corpus: Corpus, args, step: int) -> Iterator[Tensor]:
    """Draw the windows of one step in parts; every fourth step has shorter windows."""
    device = corpus.tokens.device
    dice = torch.Generator(device).manual_seed(args.seed << 32 | step)
    length = args.length if step % 4 else args.length // 2
    count = args.batch * args.length // length
    yield from corpus.windows(count, length, dice).split(args.micro * args.length // length)


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=180, help="length of the whole run")
    parser.add_argument("--batch", type=int, default=32, help="windows a step")
    parser.add_argument("--micro", type=int, default=32, help="windows at once")
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    parser.add_argument("--peak", type=float, default=1e-3, help="highest learning rate")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="slow where it is not native")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--state", type=Path, default=HERE / "runs" / "tiny.pt")
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "tiny")
    args = parser.parse_args()

    torch.set_float32_matmul_precision("high")
    corpus = Corpus(args.data / "train.bin", args.device)
    held = heldout_windows(args.data, args.length).to(args.device)
    model = initial(torch.load(args.data / "kept_ids.pt")).to(args.device)
    mask_id = model.config.vocab - 1
    average = {name: p.detach().clone() for name, p in model.named_parameters()}
    flat = [p for p in model.parameters() if p.ndim < 2]
    deep = [p for p in model.parameters() if p.ndim >= 2]
    optimizer = torch.optim.AdamW(
        [{"params": deep, "weight_decay": 0.05}, {"params": flat, "weight_decay": 0.0}],
        lr=args.peak, betas=(0.9, 0.98), fused=args.device == "cuda",
    )  # fmt: skip
    step, spent, tokens, curve = 0, 0.0, 0, []
    if args.state.exists():
        kept = torch.load(args.state, map_location=args.device)
        model.load_state_dict(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        average, step, spent = kept["average"], kept["step"], kept["spent"]
        tokens, curve = kept["tokens"], kept["curve"]
        print(f"going on from step {step}, {spent / 60:.1f} minutes", flush=True)
    run = torch.compile(bound, dynamic=False) if args.compile else bound
    autocast = torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16)

    def averaged() -> Backbone:
        copy = Backbone(model.config).to(args.device)
        copy.load_state_dict(average)
        return copy

    def keep() -> None:
        """Save the state: write beside, then rename."""
        args.state.parent.mkdir(parents=True, exist_ok=True)
        beside = args.state.with_suffix(".part")
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict(),
                    "average": average, "step": step, "spent": spent, "tokens": tokens,
                    "curve": curve}, beside)  # fmt: skip
        beside.replace(args.state)

    began, saved = time.monotonic() - spent, spent
    while spent < args.minutes * 60:
        progress = spent / (args.minutes * 60)
        for group in optimizer.param_groups:
            group["lr"] = rate(progress, args.peak) if step else 0.0
        total = torch.zeros((), device=args.device)
        dice = torch.Generator(args.device).manual_seed((args.seed + 1) << 32 | step)
        parts = list(batches(corpus, args, step))
        for part in parts:
            with autocast:
                loss = run(model, part, *hide(part, mask_id, dice)) / len(parts)
            loss.backward()
            total += loss.detach()
            tokens += part.numel()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        decay = min(0.999, 1 - 1 / step)
        with torch.no_grad():
            torch._foreach_lerp_(list(average.values()), list(model.parameters()), 1 - decay)
        if step % 20 == 0:
            total.item()  # let the device catch up, so that the clock tells the truth
        spent = time.monotonic() - began
        if step in (1, 100) or spent - saved > args.minutes * 60 / 40:
            saved = spent
            point = {"step": step, "tokens": tokens, "minutes": round(spent / 60, 3),
                     "train": round(total.item(), 4), "heldout": round(
                         evaluate(averaged(), held[:128], mask_id, autocast), 4)}  # fmt: skip
            curve.append(point)
            print(json.dumps(point), flush=True)
            keep()
    keep()
    final = averaged()
    save_model(args.out, final, args.data)
    result = evaluate(final, held[:512], mask_id, torch.autocast(args.device, enabled=False))
    record = {"what": "train_tiny", "nelbo_nats_per_token": round(result, 4), "steps": step,
              "tokens": tokens, "minutes": round(spent / 60, 2), "device": args.device,
              "parameters": sum(p.numel() for p in model.parameters()), "batch": args.batch,
              "length": args.length, "peak_rate": args.peak, "seed": args.seed,
              "curve": curve}  # fmt: skip
    (args.out.parent / "train_tiny.json").write_text(json.dumps(record) + "\n")
    print(json.dumps({k: v for k, v in record.items() if k != "curve"}))


if __name__ == "__main__":
    main()
