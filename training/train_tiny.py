"""Train ``tiny``: stories15M turned into a masked diffusion model of LLaDA's form.

The network starts from stories15M's weights and loses its causal mask. The loss is the masked
diffusion bound: of a window of L tokens l are hidden, l stratified over 1 … L within the batch, and
the cross-entropy of the hidden tokens is weighted by 1/t = L/l. The blocks' matrices follow Muon,
the rest AdamW, at one rate with linear warm-up and decay; an average of the last weights is kept.

    python training/train_tiny.py [--minutes 300]
    python training/train_tiny.py --minutes 7 --device cuda --workers 1 --batch 256 --micro 256

Reads ``training/data`` (see `sample_corpus.py`), keeps its state in ``training/runs`` and goes on
from it when it is started again, writes the model folder, and a record of the loss curve.

Reference: Sahoo et al., "Simple and Effective Masked Diffusion Language Models", arXiv:2406.07524;
Nie et al., "Large Language Diffusion Models", arXiv:2502.09992.
"""

import argparse
import copy
import gzip
import json
import time
from dataclasses import replace
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from tokenizers import Tokenizer
from torch import Tensor

import stories15m
from checkpoint import save_model
from muon import Muon
from quant_dllm.models.backbone import Backbone
from stories15m import END

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


def hide(windows: Tensor, dice: torch.Generator) -> tuple[Tensor, Tensor]:
    """Hide l tokens of each window, l stratified over 1 … L; return what is hidden, and t = l/L."""
    batch, length = windows.shape
    even = torch.arange(batch, device=windows.device)
    shift = torch.rand((), generator=dice, device=windows.device)
    count = ((shift + even / batch) % 1.0 * length).floor() + 1
    order = torch.rand(windows.shape, generator=dice, device=windows.device).argsort(1)
    return order < count[:, None], count / length


def bound(model: Backbone, windows: Tensor, hidden: Tensor, t: Tensor) -> Tensor:
    """Estimate the bound on the negative log-likelihood, nats a token."""
    canvas = torch.where(hidden, model.config.vocab - 1, windows)
    logits = model.head(model.norm(model.hidden(canvas)[hidden]))
    loss = F.cross_entropy(logits.float(), windows[hidden], reduction="none")
    weight = (1 / t)[:, None].expand(windows.shape)[hidden]
    return (loss * weight).sum() / windows.numel()


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


def validation_windows(data: Path, length: int) -> Tensor:
    """Lay the validation stories end to end and cut them into windows."""
    tokenizer = Tokenizer.from_file(str(data / "tokenizer.json"))
    stories = gzip.decompress((data / "validation.txt.gz").read_bytes()).decode().split(END)
    encoded = tokenizer.encode_batch([story.strip() for story in stories if story.strip()])
    ids = torch.tensor([i for e in encoded for i in (*e.ids, 1)])
    return ids[: len(ids) // length * length].view(-1, length)


@torch.no_grad()
def evaluate(model: Backbone, windows: Tensor) -> float:
    """Estimate the bound on windows, the same masks at every call."""
    dice = torch.Generator(windows.device).manual_seed(0)
    parts = windows.split(32)
    total = sum(bound(model, part, *hide(part, dice)).item() * len(part) for part in parts)
    return total / len(windows)


def rate(progress: float, peak: float) -> float:
    """Warm up over 2 % of the run, fall linearly to zero from 30 % on."""
    return peak * min(1.0, progress / 0.02, (1.0 - progress) / 0.7)


class Trainer:
    """One of ``workers`` processes; each computes its share of every step's gradient."""

    def __init__(self, worker: int, args: argparse.Namespace):
        self.worker, self.args, self.lead = worker, args, worker == 0
        self.corpus = Corpus(args.data / "train.bin", args.device)
        self.model = initial(torch.load(args.data / "kept_ids.pt")).to(args.device)
        self.average = copy.deepcopy(self.model)
        inner = [p for p in self.model.blocks.parameters() if p.ndim == 2]
        outer = [*self.model.embed.parameters(), *self.model.head.parameters()]
        flat = [p for p in self.model.parameters() if p.ndim == 1]
        if args.adamw:
            inner, outer = [], inner + outer
        self.optimizers = [
            torch.optim.AdamW(
                [{"params": outer, "weight_decay": 0.05}, {"params": flat, "weight_decay": 0.0}],
                lr=args.peak, betas=(0.9, 0.98), fused=True,
            )
        ]  # fmt: skip
        if inner:
            self.optimizers.append(Muon(inner, args.peak, momentum=0.95, weight_decay=0.05))
        self.run = torch.compile(bound) if args.compile else bound
        self.step, self.spent, self.tokens, self.curve = 0, 0.0, 0, []

    def keep(self) -> None:
        """Save the state: write beside, then rename."""
        state = {"model": self.model.state_dict(), "average": self.average.state_dict(),
                 "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                 "step": self.step, "spent": self.spent, "tokens": self.tokens,
                 "curve": self.curve}  # fmt: skip
        beside = self.args.state.with_suffix(".part")
        torch.save(state, beside)
        beside.replace(self.args.state)

    def resume(self) -> None:
        """Go on from a saved state, if there is one."""
        if not self.args.state.exists():
            return
        state = torch.load(self.args.state, map_location=self.args.device)
        for part, kept in zip(
            (self.model, self.average, *self.optimizers),
            (state["model"], state["average"], *state["optimizers"]), strict=True,
        ):  # fmt: skip
            part.load_state_dict(kept)
        for name in ("step", "spent", "tokens", "curve"):
            setattr(self, name, state[name])
        if self.lead:
            print(f"going on from step {self.step}, {self.spent / 60:.1f} minutes", flush=True)

    def gradient(self) -> float:
        """Add up the gradient of one step; every fourth step has shorter windows."""
        args = self.args
        length = args.length if self.step % 4 else args.length // 2
        dice = stories15m.dice(args.device, args.seed, self.step, self.worker)
        count = args.batch * args.length // length // args.workers
        parts = self.corpus.windows(count, length, dice).split(args.micro * args.length // length)
        total = 0.0
        for part in parts:
            with torch.autocast(args.device, torch.bfloat16, enabled=args.bfloat16):
                loss = self.run(self.model, part, *hide(part, dice)) / len(parts)
            loss.backward()
            total += loss.item()
        self.tokens += args.batch * args.length
        if args.workers > 1:
            flat = torch.cat([p.grad.flatten() for p in self.model.parameters()])
            dist.all_reduce(flat)
            torch.nn.utils.vector_to_parameters(
                flat / args.workers, [p.grad for p in self.model.parameters()]
            )
        return total

    def update(self, progress: float) -> None:
        """Take one step and move the average after it."""
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate(progress, self.args.peak)
            optimizer.step()
            optimizer.zero_grad(set_to_none=False)
        self.step += 1
        follow = 20 / (self.step + 19)  # the average looks back over the last twentieth
        with torch.no_grad():
            torch._foreach_lerp_(
                list(self.average.parameters()), list(self.model.parameters()), follow
            )

    def progress(self) -> float:
        """Return the share of the time that is spent, the same in every worker."""
        share = torch.tensor([self.spent / (self.args.minutes * 60)])
        if self.args.workers > 1:
            dist.broadcast(share, 0)
        return share.item()

    def train(self) -> None:
        """Train until the time is spent."""
        held = validation_windows(self.args.data, self.args.length)[:64].to(self.args.device)
        began, saved = time.monotonic() - self.spent, self.spent
        while (progress := self.progress()) < 1.0:
            loss = self.gradient()
            self.update(progress)
            self.spent = time.monotonic() - began
            if self.lead and self.spent - saved > max(60, self.args.minutes * 3):
                saved = self.spent
                point = {"step": self.step, "tokens": self.tokens,
                         "minutes": round(self.spent / 60, 2), "train": round(loss, 4),
                         "validation": round(evaluate(self.average, held), 4)}  # fmt: skip
                self.curve.append(point)
                print(json.dumps(point), flush=True)
                self.keep()
                save_model(self.args.out, self.average, self.args.data)


def work(worker: int, args: argparse.Namespace) -> None:
    """Run one process."""
    torch.set_float32_matmul_precision("high")
    torch.set_num_threads(1)
    if args.workers > 1:
        store = args.state.with_suffix(".store").absolute().as_uri()
        dist.init_process_group("gloo", store, rank=worker, world_size=args.workers)
    trainer = Trainer(worker, args)
    trainer.resume()
    trainer.train()
    if not trainer.lead:
        return
    trainer.keep()
    save_model(args.out, trainer.average, args.data)
    held = validation_windows(args.data, args.length)[:512].to(args.device)
    result = round(evaluate(trainer.average, held), 4)
    record = {"what": "train_tiny", "nelbo_nats_per_token": result,
              "steps": trainer.step, "tokens": trainer.tokens,
              "minutes": round(trainer.spent / 60, 2), "device": args.device,
              "workers": args.workers,
              "parameters": sum(p.numel() for p in trainer.model.parameters()),
              "batch": args.batch, "length": args.length, "peak_rate": args.peak,
              "seed": args.seed, "curve": trainer.curve}  # fmt: skip
    (args.out.parent / "train_tiny.json").write_text(json.dumps(record) + "\n")
    print(json.dumps({k: v for k, v in record.items() if k != "curve"}))


def main() -> None:
    """Train, or go on training."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", type=float, default=300, help="length of the whole run")
    parser.add_argument("--batch", type=int, default=16, help="windows a step")
    parser.add_argument("--micro", type=int, default=4, help="windows at once")
    parser.add_argument("--length", type=int, default=256, help="tokens a window")
    parser.add_argument("--peak", type=float, default=2e-3, help="highest learning rate")
    parser.add_argument("--adamw", action="store_true", help="do without Muon")
    parser.add_argument("--workers", type=int, default=2, help="processes of one thread each")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--bfloat16", action="store_true", help="slow where it is not native")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--data", type=Path, default=HERE / "data")
    parser.add_argument("--state", type=Path, default=HERE / "runs" / "tiny.pt")
    parser.add_argument("--out", type=Path, default=HERE / "runs" / "tiny")
    args = parser.parse_args()
    args.state.parent.mkdir(parents=True, exist_ok=True)
    args.state.with_suffix(".store").unlink(missing_ok=True)
    torch.multiprocessing.spawn(work, (args,), nprocs=args.workers)


if __name__ == "__main__":
    main()
