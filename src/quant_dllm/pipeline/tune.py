"""Tune the scales of a packed model end to end; the loop behind `tuning.end_to_end`."""

import copy
import logging
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from quant_dllm.checkpoint import durable
from quant_dllm.distributed import mean_gradients, rank, world
from quant_dllm.models.config import BackboneConfig
from quant_dllm.models.model import DiffusionLM
from quant_dllm.models.norm import RMSNorm
from quant_dllm.pipeline.teacher import Teacher
from quant_dllm.record import TuningStep
from quant_dllm.tuning.end_to_end import EndToEnd
from quant_dllm.tuning.objective import HEAD_ROWS, TopLogits, divergence, mean_by_sequence
from quant_dllm.tuning.recompute import keep, recompute
from quant_dllm.tuning.scales import freeze, thaw
from quant_dllm.tuning.schedule import rate_at

logger = logging.getLogger(__name__)

NARROW, WIDE = 10, 4  # tensors as wide as a block, and as its MLP, that it keeps for the gradient
PART_TOKENS = 4096  # that go through the model together
VISIT_TOKENS = 1 << 18  # that the 16-bit model is asked about together: their states are in memory
KEPT_BYTES = 2 << 30  # of states that blocks may keep for the gradient; above, they are recomputed


@dataclass(frozen=True)
class Batch:
    """Canvases, what is hidden in them, the text, and what the 16-bit model says of it."""

    canvas: Int[Tensor, "batch length"]
    hidden: Bool[Tensor, "batch length"]
    text: Int[Tensor, "batch length"]
    target: TopLogits

    def parts(self, tokens: int) -> list["Batch"]:
        """Cut it into windows of at most so many tokens together, or into single ones."""
        size = max(1, tokens // self.canvas.shape[1])
        hidden = self.hidden.split(size)
        targets = self.target.split([int(part.sum()) for part in hidden])
        canvases, texts = self.canvas.split(size), self.text.split(size)
        return [Batch(*part) for part in zip(canvases, hidden, texts, targets, strict=True)]


class EndToEndTuning:
    """One tuning run.

    Args:
        model: The packed model; its scales change.
        teacher: The 16-bit model.
        settings: How.
        windows: Text to learn from.
        validation: Text to stop by.
        seed: Seed of the masks.
        state: ``.safetensors`` file to keep the state in, round by round, so that a run can go on;
            a JSON file of the same stem goes with it.
    """

    def __init__(
        self,
        model: DiffusionLM,
        teacher: Teacher,
        settings: EndToEnd,
        windows: Int[Tensor, "n length"],
        validation: Int[Tensor, "v length"],
        seed: int,
        state: Path | None = None,
    ):
        self.model, self.teacher, self.settings = model, teacher, settings
        self.windows, self.seed, self.state = windows, seed, state
        self.learned = thaw(model.backbone)
        if settings.norms:
            self.learned += _norms(model.backbone)
        if kept_bytes(model.source.config, min(PART_TOKENS, windows[0].numel())) > KEPT_BYTES:
            recompute(model.backbone.blocks)
        self.optimizer = torch.optim.Adam(self.learned, lr=settings.rate, betas=(0.9, 0.95))
        self.validation = self.ask(self._mask(validation.split(settings.batch), step=-1))
        self.step, self.best, self.curve = 0, copy.deepcopy(self._values()), [self.validate()]

    def run(self) -> Iterator[TuningStep]:
        """Tune; yield every update. At the end the best scales are in place."""
        self._resume()
        last = self.settings.steps
        began, asking, first = time.monotonic(), 0.0, self.step
        while self.step < last:
            visit = time.monotonic()
            steps = range(self.step, min(self.step + self.round(), last))
            batches = self.ask(self._draw(steps))
            asking += time.monotonic() - visit
            for step, batch in zip(steps, batches, strict=True):
                loss = self.update(step, batch)
                self.step = step + 1
                if self.step % self.settings.validate_every == 0 or self.step == last:
                    self._look()
                learning = (time.monotonic() - began - asking) / (self.step - first)
                left = learning * (last - self.step)
                left += asking / (steps.stop - first) * (last - steps.stop)
                yield TuningStep(
                    done=self.step, steps=last, tokens=batch.canvas.numel() * world(), loss=loss,
                    curve=list(self.curve), seconds_left=left,
                )  # fmt: skip
            self.save()
        for parameter, value in zip(self.learned, self.best, strict=True):
            parameter.data.copy_(value)
        keep(self.model.backbone.blocks)
        freeze(self.model.backbone)

    def round(self) -> int:
        """Count the updates up to the next visit of the 16-bit model."""
        tokens = -(-self.settings.batch // world()) * self.windows.shape[1]
        return max(1, min(self.settings.round, VISIT_TOKENS // tokens))

    @torch.no_grad()
    def validate(self) -> float:
        """Return the mean KL to the 16-bit model on the validation windows, nats."""
        parts = [part for batch in self.validation for part in batch.parts(PART_TOKENS)]
        losses = [self._loss(part).item() * len(part.canvas) for part in parts]
        return sum(losses) / sum(len(part.canvas) for part in parts)

    def _loss(self, batch: Batch) -> Tensor:
        device = self.model.device
        states = self.model.states_at(
            batch.canvas.to(device), batch.hidden.to(device), batch.text.to(device)
        )
        sequence = batch.hidden.nonzero()[:, 0].to(states.device)
        return mean_by_sequence(self._divergence(states, batch.target), sequence, len(batch.canvas))

    def _divergence(self, states: Tensor, target: TopLogits) -> Tensor:
        """Hold the model against the 16-bit one, some positions at a time."""

        def of(states: Tensor, target: TopLogits) -> Tensor:
            return divergence(self.model.backbone.project(states), target)

        if len(states) <= HEAD_ROWS:
            return of(states, target)
        parts = states.split(HEAD_ROWS)
        targets = target.split([len(part) for part in parts])
        kl = [checkpoint(of, *pair, use_reentrant=False, preserve_rng_state=False)
              for pair in zip(parts, targets, strict=True)]  # fmt: skip
        return torch.cat(kl)

    def update(self, step: int, batch: Batch) -> float:
        """Learn from a batch; return the loss that there was, nats."""
        settings = self.settings
        for group in self.optimizer.param_groups:
            group["lr"] = rate_at(step, settings.steps, settings.rate, settings.warmup)
        self.optimizer.zero_grad(set_to_none=True)
        found = 0.0
        for part in batch.parts(PART_TOKENS):
            loss = self._loss(part) * (len(part.canvas) / len(batch.canvas))
            loss.backward()
            found += loss.item()
        mean_gradients(self.learned)
        self.optimizer.step()
        return found

    def _look(self) -> None:
        """Note the validation loss, and the scales if they are the best so far."""
        now = self.validate()
        if now < min(self.curve):
            self.best = copy.deepcopy(self._values())
        self.curve.append(now)
        logger.debug("tuning step=%d validation=%.5f", self.step, now)

    def _draw(self, steps: range) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Draw this process's share of the windows of some steps, and hide tokens in them."""
        found = []
        for step in steps:
            share = -(-self.settings.batch // world())
            first = (step * world() + rank()) * share
            at = torch.arange(first, first + share) % len(self.windows)
            found += self._mask([self.windows[at]], step)
        return found

    def _mask(self, parts, step: int) -> list[tuple[Tensor, Tensor, Tensor]]:
        """Hide l of L tokens in each window, l stratified over the windows of a part."""
        found = []
        for i, windows in enumerate(parts):
            own = f"{self.seed} {step} {i} {rank()}"  # 32 bits are all that a generator looks at
            dice = torch.Generator().manual_seed(zlib.crc32(own.encode()))
            batch, length = windows.shape
            shift = torch.rand((), generator=dice)
            count = ((shift + torch.arange(batch) / batch) % 1.0 * length).floor() + 1
            order = torch.rand(batch, length, generator=dice).argsort(1).argsort(1)
            hidden = order < count[:, None]
            found.append((torch.where(hidden, self.model.mask_token_id, windows), hidden, windows))
        return found

    def ask(self, masked: list[tuple[Tensor, Tensor, Tensor]]) -> list[Batch]:
        """Have the 16-bit model say what it thinks of each batch."""
        targets = self.teacher.targets(*(list(part) for part in zip(*masked, strict=True)))
        return [Batch(*parts, target) for parts, target in zip(masked, targets, strict=True)]

    def _values(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.learned]

    def save(self) -> None:
        """Save the state, so that it is whole or as it was; see `durable`."""
        if self.state is None or rank():
            return
        tensors = _numbered("learned", self._values()) | _numbered("best", self.best)
        for parameter, moments in self.optimizer.state_dict()["state"].items():
            tensors |= {f"adam.{parameter}.{name}": value for name, value in moments.items()}
        durable.save(self.state, tensors, {"step": self.step, "curve": self.curve})

    def _resume(self) -> None:
        """Go on from a saved state, if there is one.

        Raises:
            CheckpointError: It was changed since.
        """
        if self.state is None or not self.state.with_suffix(".json").is_file():
            return
        facts = durable.read_facts(self.state.with_suffix(".json"))
        kept = durable.read_tensors(self.state, facts["file"])
        for i, parameter in enumerate(self.learned):
            parameter.data.copy_(kept[f"learned.{i}"])
            self.best[i] = kept[f"best.{i}"].to(parameter.device)
        moments: dict[int, dict[str, Tensor]] = {}
        for name in (name for name in kept if name.startswith("adam.")):
            _, parameter, moment = name.split(".")
            moments.setdefault(int(parameter), {})[moment] = kept[name]
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.step, self.curve = facts["step"], facts["curve"]
        logger.info("tuning goes on from step %d", self.step)


def kept_bytes(config: BackboneConfig, tokens: int) -> int:
    """Estimate what blocks keep for the gradient of so many tokens, in float32."""
    positions = tokens * (2 if config.attention_block else 1)  # the text stands beside its canvas
    wide = config.mlp_width
    if config.mixture:
        wide = config.mixture.chosen * config.mixture.width + config.mixture.shared_width
    return 4 * positions * config.blocks * (NARROW * config.width + WIDE * wide)


def _numbered(name: str, tensors: list[Tensor]) -> dict[str, Tensor]:
    return {f"{name}.{i}": tensor for i, tensor in enumerate(tensors)}


def _norms(backbone: nn.Module) -> list[nn.Parameter]:
    """Make the norms' weights learnable."""
    found = [module.weight for module in backbone.modules() if isinstance(module, RMSNorm)]
    for weight in found:
        weight.requires_grad_(True)
    return found
