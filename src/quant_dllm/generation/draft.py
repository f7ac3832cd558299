"""An answer on its way from masks to text, step by step: for all who show or serve it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from quant_dllm.errors import ModelError, RequestError
from quant_dllm.generation.denoisers import Counting, build_denoiser
from quant_dllm.generation.masked import denoise, plan
from quant_dllm.generation.pieces import Pieces, decode
from quant_dllm.models.model import DiffusionLM
from quant_dllm.models.sampling import Sampling


def check_tokenizer(model: DiffusionLM) -> None:
    """Refuse a model that can neither read nor write text.

    Raises:
        ModelError: It has no tokenizer.
    """
    if model.tokenizer is None:
        raise ModelError(
            f"{model.source.folder.path} has no tokenizer, so that no text can be written. "
            "Copy tokenizer.json beside the weights."
        )


class Listening:
    """A denoiser that remembers the logits of its last call, to tell how sure the model was."""

    def __init__(self, denoiser: Counting):
        self.denoiser = denoiser
        self.positions = slice(0, 0)
        self.logits: Tensor | None = None

    def predict(self, input_ids: Tensor, positions: slice) -> Tensor:
        """Score the tokens of some positions: logits [batch, some, vocab]."""
        self.positions, self.logits = positions, self.denoiser.predict(input_ids, positions)
        return self.logits

    def confidence(self, canvas: Int[Tensor, "1 canvas"]) -> Float[Tensor, " some"]:
        """Return the probability of each token of the last positions, at temperature one."""
        assert self.logits is not None, "a step was made"
        tokens = canvas[0, self.positions, None].to(self.logits.device)
        return self.logits[0].float().softmax(-1).gather(-1, tokens)[:, 0].cpu()


@dataclass
class Draft:
    """One answer under way; made by `Draft.begin`.

    Attributes:
        prompt: What the model was given.
        start: Tokens of the prompt.
        length: Tokens to write.
        ends: Tokens behind which the answer ends; none: it is written to its full length.
        watched: Whether `confidence` is kept up, at the price of one softmax a step.
        canvas: Prompt and answer after the last step; hidden tokens are masks.
        confidence: How sure the model was of each token of the answer when it wrote it; NaN where
            it is hidden.
        step: Steps made so far.
    """

    model: DiffusionLM
    prompt: str
    start: int
    length: int
    sampling: Sampling
    seed: int
    ends: frozenset[int]
    watched: bool
    canvas: Int[Tensor, "1 canvas"]
    confidence: Float[Tensor, " length"]
    denoiser: Counting
    plan: list[tuple[slice, int]]
    step: int = 0
    began: float = field(default_factory=time.monotonic)

    @classmethod
    def begin(
        cls,
        model: DiffusionLM,
        prompt: str,
        sampling: Sampling,
        *,
        length: int,
        seed: int = 0,
        stop: bool = True,
        watched: bool = False,
    ) -> "Draft":
        """Check that the answer can be written, and lay out its canvas.

        Raises:
            RequestError: An empty prompt, numbers that do not divide, or a canvas longer than the
                model's context.
            ModelError: The model has no tokenizer.
        """
        check_tokenizer(model)
        ids = model.tokenizer(prompt, add_special_tokens=False, return_tensors="pt")["input_ids"]
        start, block = ids.shape[1], model.source.config.attention_block
        if not start:
            raise RequestError(
                "The prompt is empty; at least one token is wanted, which the answer follows."
            )
        if start + length > model.source.config.context:
            raise RequestError(
                f"The prompt has {start} token{'s' * (start > 1)} and {length} are to be written; "
                f"{model.source.name} was trained on {model.source.config.context} in all. "
                "Shorten one of them."
            )
        blocks = plan(start, length, sampling, block)
        masks = torch.full((1, blocks[-1][0].stop - start), model.mask_token_id)
        return cls(
            model=model, prompt=prompt, start=start, length=length, sampling=sampling, seed=seed,
            ends=model.end_token_ids if stop else frozenset(), watched=watched, plan=blocks,
            canvas=torch.cat((ids.long(), masks), dim=1).to(model.device),
            confidence=torch.full((length,), torch.nan),
            denoiser=build_denoiser(model, sampling, start, blocks[-1][0].stop),
        )  # fmt: skip

    @property
    def planned(self) -> int:
        """Count the steps that the answer may take; thresholds and ends make them fewer."""
        return sum(calls for _, calls in self.plan)

    @property
    def seconds(self) -> float:
        """Tell the time since the first step was begun."""
        return time.monotonic() - self.began

    def steps(self) -> Iterator[Tensor]:
        """Denoise; yield the canvas [1, tokens] after every step."""
        self.began, ear = time.monotonic(), Listening(self.denoiser)
        canvases = denoise(
            ear if self.watched else self.denoiser, self.canvas[:, : self.start],
            length=self.length, sampling=self.sampling, mask_token_id=self.model.mask_token_id,
            seed=self.seed, attention_block=self.model.source.config.attention_block,
            ends=self.ends,
        )  # fmt: skip
        for canvas in canvases:
            if self.watched:
                self._note(ear, canvas)
            self.canvas, self.step = canvas, self.step + 1
            yield canvas

    def _note(self, ear: Listening, canvas: Tensor) -> None:
        """Keep the confidence of the tokens that this step wrote."""
        at = slice(ear.positions.start - self.start, ear.positions.stop - self.start)
        known = self.confidence[at]
        new = (canvas != self.canvas)[0, ear.positions][: len(known)].cpu()
        known[new] = ear.confidence(canvas)[: len(known)][new]

    @property
    def answer(self) -> list[int]:
        """Return the tokens of the answer, masks too."""
        return self.canvas[0, self.start : self.start + self.length].tolist()

    @property
    def token_ids(self) -> list[int]:
        """Return the tokens that are written."""
        return [token for token in self.answer if token != self.model.mask_token_id]

    @property
    def ended(self) -> bool:
        """Tell whether the answer holds a token that ends it."""
        return any(token in self.ends for token in self.answer)

    @property
    def text(self) -> str:
        """Return what is written, hidden tokens left out, up to the first token that ends it."""
        return self._decode(self.token_ids)

    @property
    def settled(self) -> str:
        """Return the text in front of the first hidden token, which no later step changes."""
        answer = self.answer
        mask = self.model.mask_token_id
        stop = answer.index(mask) if mask in answer else len(answer)
        if self.sampling.editing and mask in answer:  # the active block may still be edited
            ends = [block.stop - self.start for block, _ in self.plan]
            stop = max((end for end in ends if end <= stop), default=0)
        return self._decode(answer[:stop])

    def cells(self) -> list[tuple[str | None, float]]:
        """Return each token of the answer as text, ``None`` where hidden, and its confidence."""
        pieces, mask = Pieces.of(self.model.tokenizer), self.model.mask_token_id
        return [
            (None if token == mask else pieces[token], sure)
            for token, sure in zip(self.answer, self.confidence.tolist(), strict=True)
        ]

    def _decode(self, answer: list[int]) -> str:
        prompt = self.canvas[0, : self.start].tolist()
        return decode(self.model.tokenizer, prompt, answer, self.model.end_token_ids)

    def facts(self) -> dict[str, Any]:
        """Say what it took so far, in JSON's types."""
        return {"steps": self.step, "planned": self.planned, "calls": self.denoiser.calls,
                "positions": self.denoiser.positions,
                "seconds": round(self.seconds, 3)}  # fmt: skip
