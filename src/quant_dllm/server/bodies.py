"""What may be asked for: the bodies of requests, checked in full before a model sees them.

Fields of OpenAI's that mean nothing to a denoiser are passed over; those that would change the
answer and cannot be honoured are refused.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Count = Annotated[int, Field(ge=1, le=1 << 20)]
Share = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
Text = Annotated[str, Field(max_length=1 << 20)]
Stop = Annotated[str, Field(min_length=1, max_length=256)]
UNSUPPORTED = {"best_of": 1, "echo": False, "logit_bias": {}, "logprobs": False, "tools": [],
               "top_logprobs": 0, "suffix": ""}  # fmt: skip


class StreamOptions(BaseModel):
    """``include_usage``: a last chunk with the counts."""

    model_config = ConfigDict(strict=True)
    include_usage: bool = False


class Body(BaseModel):
    """Fields that all requests share.

    Attributes:
        max_tokens: Tokens to write, see also ``max_completion_tokens``; what is left of the
            context, 128 at most, if not given.
        steps: Model calls to plan for; one a token if not given.
        block_length: Tokens of a block, which is finished before the next is begun.
        sampler: What is written first: confidence, entropy, margin or random.
        threshold: Write all tokens at once that are this probable.
        guidance, cache, editing: See `models.sampling.Sampling`.
    """

    model_config = ConfigDict(strict=True, extra="allow")
    model: Text | None = None
    max_tokens: Count | None = None
    max_completion_tokens: Count | None = None
    temperature: Annotated[float, Field(ge=0, le=10, allow_inf_nan=False)] | None = None
    top_p: Share | None = None
    seed: Annotated[int, Field(ge=-(1 << 62), le=1 << 62)] | None = None
    stop: Stop | Annotated[list[Stop], Field(max_length=8)] | None = None
    n: Annotated[int, Field(ge=1, le=8)] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    steps: Count | None = None
    block_length: Count | None = None
    sampler: Literal["confidence", "entropy", "margin", "random"] | None = None
    threshold: Share | None = None
    editing: Share | None = None
    guidance: Annotated[float, Field(ge=0, le=100, allow_inf_nan=False)] | None = None
    cache: Literal["none", "exact", "prefix", "dual"] | None = None

    @model_validator(mode="after")
    def _refuse_what_cannot_be_honoured(self) -> "Body":
        for name, harmless in UNSUPPORTED.items():
            value = (self.model_extra or {}).get(name)
            if value is not None and value != harmless:
                raise ValueError(f"{name} is not supported; leave it out")
        return self

    @property
    def stops(self) -> list[str]:
        """List the texts that end an answer."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []

    def settings(self) -> dict[str, Any]:
        """Return what changes the family's sampling."""
        given = {
            "temperature": self.temperature, "top_p": self.top_p, "steps": self.steps,
            "block_length": self.block_length, "remasking": self.sampler,
            "threshold": self.threshold, "editing": self.editing, "guidance": self.guidance,
            "cache": self.cache,
        }  # fmt: skip
        return {name: value for name, value in given.items() if value is not None}


class CompletionBody(Body):
    """``/v1/completions``: texts to write on from."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=16)]

    @property
    def prompts(self) -> list[str]:
        """List the texts."""
        return [self.prompt] if isinstance(self.prompt, str) else self.prompt


class Part(BaseModel):
    """One part of a turn's content: text only."""

    model_config = ConfigDict(strict=True)
    type: Literal["text"]
    text: Text


class Turn(BaseModel):
    """One turn of a conversation."""

    model_config = ConfigDict(strict=True, extra="allow")
    role: Literal["system", "developer", "user", "assistant"]
    content: Text | Annotated[list[Part], Field(min_length=1, max_length=64)]

    def plain(self) -> dict[str, str]:
        """Return what a chat template reads."""
        parts = self.content
        content = parts if isinstance(parts, str) else "".join(part.text for part in parts)
        return {"role": "system" if self.role == "developer" else self.role, "content": content}


class ChatBody(Body):
    """``/v1/chat/completions``: a conversation to answer."""

    messages: Annotated[list[Turn], Field(min_length=1, max_length=512)]


class DenoiseBody(Body):
    """``/v1/denoise``: a prompt or a conversation, whose answer is shown step by step."""

    prompt: Text | None = None
    messages: Annotated[list[Turn], Field(min_length=1, max_length=512)] | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> "DenoiseBody":
        if (self.prompt is None) == (self.messages is None):
            raise ValueError("one of prompt and messages is wanted")
        return self
