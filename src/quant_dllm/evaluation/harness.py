"""The model ``quant-dllm`` of lm-eval: likelihood and generation tasks on denoisers.

``import quant_dllm`` is enough for ``lm_eval.simple_evaluate(model="quant-dllm", ...)``.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from lm_eval.api.instance import Instance  # pyright: ignore[reportMissingImports]
from lm_eval.api.model import LM  # pyright: ignore[reportMissingImports]

from quant_dllm.distributed import spread, sum_counts
from quant_dllm.errors import ModelError, RequestError
from quant_dllm.evaluation.answers import Answer, log_likelihoods
from quant_dllm.evaluation.suites import ONE_TOKEN
from quant_dllm.generation.generate import checked, generate
from quant_dllm.models.load import load
from quant_dllm.models.model import DiffusionLM
from quant_dllm.track import Track, silent

logger = logging.getLogger(__name__)

LENGTH = 256  # tokens to write where a task does not say
INSTRUCT = ("instruct", "chat", "sft", "-1.5")  # in names of models that were taught to answer


class QuantDLLM(LM):
    """A denoiser as lm-eval sees it.

    Args:
        pretrained: A model, or what `load` takes.
        draws: Masks an answer; the family's number, and 1 where answers have one token, if not
            given.
        guidance: w of classifier-free guidance in likelihood tasks; the family's if not given.
        check_greedy: Whether to find out if an answer is what the model would write: as many calls
            as it has tokens, for tasks such as LAMBADA.
        length: Tokens to write; the task's number, else 256, if not given.
        seed: Seed of all draws.
        device: Where to load a model given by name.
        mask_token_id, attention_block: See `load`.
        track: Watches the progress.
        settings: Of the sampler in generation tasks, see `generate`.

    Attributes:
        calls: Canvases that went through the model so far.

    Raises:
        RequestError: A setting that means nothing.
        ModelError: The model has no tokenizer.
    """

    def __init__(
        self,
        pretrained: str | Path | DiffusionLM,
        *,
        draws: int | None = None,
        guidance: float | None = None,
        check_greedy: bool = False,
        length: int | None = None,
        seed: int = 0,
        device: str = "cpu",
        mask_token_id: int | None = None,
        attention_block: int | None = None,
        track: Track = silent,
        batch_size: Any = None,
        max_batch_size: Any = None,
        **settings: Any,
    ):
        super().__init__()
        if not isinstance(pretrained, DiffusionLM):
            pretrained = load(
                pretrained, device=device, mask_token_id=mask_token_id,
                attention_block=attention_block,
            )  # fmt: skip
        if pretrained.tokenizer is None:
            raise ModelError(
                f"{pretrained.source.folder.path} has no tokenizer, so that no task can be read. "
                "Copy tokenizer.json beside the weights."
            )
        self.model, self.tokenizer = pretrained, pretrained.tokenizer
        theirs = pretrained.family.scoring
        self.scoring = replace(theirs, draws=theirs.draws if draws is None else draws)
        self.told_draws, self.guidance, self.length = draws is not None, guidance, length
        self.check_greedy, self.seed, self.track = check_greedy, seed, track
        self.settings, self.calls = checked(settings), 0

    @property
    def tokenizer_name(self) -> str:
        """Name the tokenizer, for lm-eval's cache of prompts."""
        return str(self.model.source.folder.path)

    def chat_template(self, chat_template: bool | str = False) -> str:
        """Return the chat template, for lm-eval's record."""
        return getattr(self.tokenizer, "chat_template", None) or ""

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Write a conversation as the model was taught to read it."""
        return self.tokenizer.apply_chat_template(
            chat_history,
            tokenize=False,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=not add_generation_prompt,
        )

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Estimate the log-likelihood of each continuation, nats."""
        self._warn_of_instruct()
        answers = []
        for request in requests:
            context, continuation = cast("tuple[str, str]", request.args)
            answers.append(self._answer(context, continuation, request.task_name or ""))
        found = self._score(answers)
        greedy = [False] * len(answers)
        if self.check_greedy:
            greedy = self._spread(answers, self._is_greedy, "greedy answers")
        return list(zip(found, greedy, strict=True))

    def loglikelihood_rolling(self, requests: list[Instance]) -> list[float]:
        """Estimate the log-likelihood of whole texts, a context's length at a time."""
        found: list[float] = []
        room = self.model.source.config.context - self.scoring.bos - self.scoring.eos
        for request in requests:
            ids = self._ids(request.args[0])
            pieces = [ids[at : at + room] for at in range(0, len(ids), room)]
            found.append(sum(self._score([self._framed((), piece, "") for piece in pieces])))
        return found

    def generate_until(self, requests: list[Instance]) -> list[str]:
        """Write an answer to each prompt, up to the first of its stops."""
        return self._spread(requests, lambda request: self._write(*request.args), "generation")

    def _spread(self, items: list[Any], work: Callable[[Any], Any], what: str) -> list[Any]:
        """Work on every item, each process on its share; count the calls of all."""
        before = self.calls
        found = spread(items, work, self.track, what, len(items))
        self.calls = before + sum_counts([self.calls - before])[0]
        return found

    def _score(self, answers: list[Answer]) -> list[float]:
        self.calls += sum(answer.calls for answer in answers)
        return log_likelihoods(self.model, answers, self.scoring, self.seed, self.track)

    def _answer(self, context: str, continuation: str, task: str) -> Answer:
        """Cut a request into tokens; spaces at the end of the prompt belong to the answer."""
        stripped = context.rstrip()
        continuation = context[len(stripped) :] + continuation
        before = self._ids(stripped)
        whole = self._ids(stripped + continuation)
        return self._framed(before, whole[len(before) :], task)

    def _framed(self, before: tuple[int, ...], tokens: tuple[int, ...], task: str) -> Answer:
        """Put around a prompt and an answer what the family wants; the prompt's end is kept."""
        scoring = self.scoring
        bos = (self._bos(),) if scoring.bos else ()
        behind = (self.tokenizer.eos_token_id,) if scoring.eos else ()
        room = self.model.source.config.context - len(bos) - len(tokens) - len(behind)
        if room < 0:
            raise RequestError(
                f"An answer of {task or 'a text'} has {len(tokens)} tokens; "
                f"{self.model.source.name} was trained on {self.model.source.config.context} in "
                "all. Leave the task out."
            )
        if len(before) > room:
            logger.warning("a prompt of %d tokens was cut to its last %d", len(before), room)
        kept = before[len(before) - room :] if len(before) > room else before
        guidance = scoring.guidance.get(task, 0.0) if self.guidance is None else self.guidance
        return Answer(
            before=bos + kept,
            tokens=tokens,
            behind=behind,
            guidance=guidance,
            draws=self._draws(task, len(tokens)),
        )

    def _draws(self, task: str, length: int) -> int:
        """Take one draw where it is exact: an answer of one token that is surely hidden."""
        exact = self.scoring.hiding == "count" and (length == 1 or task.startswith(ONE_TOKEN))
        return 1 if exact and not self.told_draws else self.scoring.draws

    def _bos(self) -> int:
        found = self.tokenizer.bos_token_id
        return self.tokenizer.eos_token_id if found is None else found  # Qwen's has none

    def _is_greedy(self, answer: Answer) -> bool:
        """Tell whether the model would write this answer, the surest token first."""
        import torch

        from quant_dllm.generation.denoisers import Anew
        from quant_dllm.generation.masked import denoise
        from quant_dllm.models.sampling import Sampling

        denoiser = Anew(self.model)
        canvases = denoise(
            denoiser, torch.tensor([answer.before], device=self.model.device, dtype=torch.long),
            length=len(answer.tokens), sampling=Sampling(), seed=self.seed,
            mask_token_id=self.model.mask_token_id,
            attention_block=self.model.source.config.attention_block,
        )  # fmt: skip
        *_, last = canvases
        self.calls += denoiser.calls
        written = last[0, len(answer.before) :][: len(answer.tokens)]
        return tuple(written.tolist()) == answer.tokens

    def _write(self, context: str, wanted: dict[str, Any]) -> str:
        length = self.length or int(wanted.get("max_gen_toks") or LENGTH)
        stops = wanted.get("until") or []
        stops = [stops] if isinstance(stops, str) else stops
        greedy = wanted.get("do_sample") is False
        settings: dict[str, Any] = {"temperature": 0.0 if greedy else wanted.get("temperature")}
        settings |= self.settings
        prompt = self._fitting(context, length)
        story = generate(self.model, prompt, length=length, seed=self.seed, **settings)
        self.calls += story.calls
        ends = [story.text.find(stop) for stop in stops if stop and stop in story.text]
        return story.text[: min(ends)] if ends else story.text

    def _fitting(self, context: str, length: int) -> str:
        """Leave out the beginning of a prompt that does not fit before the answer."""
        ids, room = self._ids(context), self.model.source.config.context - length
        if len(ids) <= room:
            return context
        logger.warning("a prompt of %d tokens was cut to its last %d", len(ids), max(room, 0))
        ids = ids[len(ids) - max(room, 1) :]
        while len(self._ids(text := self.tokenizer.decode(ids))) > max(room, 1):
            ids = ids[1:]  # text that was cut within a word may take more tokens
        return text

    def _ids(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _warn_of_instruct(self) -> None:
        source = self.model.source
        names = f"{source.name} {source.folder.config.get('_name_or_path', '')}"
        if source.folder.quantization:
            names += f" {source.folder.manifest.get('base_model', '')}"
        if any(word in names.lower() for word in INSTRUCT):
            logger.warning(
                "%s is an instruct model: it was taught on whole answers in its chat template, and "
                "the likelihood of a bare continuation says little about what it knows. Use "
                "generation tasks, or the base model.", source.name,
            )  # fmt: skip
