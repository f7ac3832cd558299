"""A mixture of experts: a router sends each token to few of many MLPs.

Shape suffixes of locals:
    T  tokens    N  experts    C  chosen experts
"""

from collections.abc import Generator, Iterable, Iterator

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from quant_dllm.models.config import Mixture
from quant_dllm.models.mlp import MLP
from quant_dllm.models.stage import Group, Stage


class Router(nn.Module):
    """Choose experts; it computes in float32 and is never quantized.

    A choice between two nearly equal experts is decided by digits that rounding would take.
    """

    def __init__(self, width: int, mixture: Mixture):
        super().__init__()
        self.mixture = mixture
        self.weight = nn.Parameter(torch.zeros(mixture.experts, width, dtype=torch.float32))
        if mixture.bias:
            self.expert_bias = nn.Parameter(
                torch.zeros(mixture.experts, dtype=torch.float32), requires_grad=False
            )

    def forward(
        self, x: Float[Tensor, "tokens width"]
    ) -> tuple[Int[Tensor, "tokens chosen"], Float[Tensor, "tokens chosen"]]:
        """Return the experts of each token and what their outputs are multiplied by, float32."""
        m = self.mixture
        logits_TN = F.linear(x.float(), self.weight.float())
        scores_TN = logits_TN.softmax(-1) if m.scores == "softmax" else logits_TN.sigmoid()
        ranked_TN = scores_TN + self.expert_bias.float() if m.bias else scores_TN
        if m.groups > 1:
            ranked_TN = self._within_best_groups(ranked_TN)
        chosen_TC = ranked_TN.topk(m.chosen, dim=-1).indices
        weights_TC = scores_TN.gather(-1, chosen_TC)
        if m.renormalise:
            weights_TC = weights_TC / (weights_TC.sum(-1, keepdim=True) + 1e-20)
        return chosen_TC, weights_TC * m.scale

    def _within_best_groups(
        self, ranked: Float[Tensor, "tokens experts"]
    ) -> Float[Tensor, "tokens experts"]:
        """Rule out the experts of all groups but the best, by the sum of a group's best two."""
        m = self.mixture
        groups = ranked.unflatten(-1, (m.groups, -1))
        best = groups.topk(min(2, groups.shape[-1]), dim=-1).values.sum(-1)
        kept = torch.zeros_like(best, dtype=torch.bool)
        kept.scatter_(-1, best.topk(m.chosen_groups, dim=-1).indices, True)
        return groups.masked_fill(~kept[..., None], -torch.inf).flatten(-2)


class Experts(nn.Module):
    """A router, its experts, and perhaps one more that sees every token."""

    def __init__(self, width: int, mixture: Mixture):
        super().__init__()
        self.router = Router(width, mixture)
        self.experts = nn.ModuleList(MLP(width, mixture.width) for _ in range(mixture.experts))
        if mixture.shared_width:
            self.shared = MLP(width, mixture.shared_width)
        self.has_shared = bool(mixture.shared_width)

    def forward(self, x: Float[Tensor, "*batch width"]) -> Float[Tensor, "*batch width"]:
        """Add up what the chosen experts say of each token."""
        flat = x.flatten(0, -2)
        chosen, weights = self.router(flat)
        out = torch.zeros_like(flat)
        for e, expert in enumerate(self.experts):
            token, place = (chosen == e).nonzero(as_tuple=True)
            if len(token):
                weight = weights[token, place, None].to(x.dtype)
                out.index_add_(0, token, expert(flat[token]) * weight)
        if self.has_shared:
            out = out + self.shared(flat)
        return out.view_as(x)

    def routes(self, x: Float[Tensor, "*batch width"]) -> Bool[Tensor, "tokens experts"]:
        """Tell which experts see which token."""
        chosen, _ = self.router(x.flatten(0, -2))
        routes = torch.zeros(len(chosen), len(self.experts), dtype=torch.bool, device=x.device)
        return routes.scatter_(1, chosen, True)

    def stages(self, name: str, norm: str) -> tuple[Stage, Stage]:
        """Name the layers into the experts and those out of them: a group for each expert.

        The norm feeds the router and all experts, so that it cannot carry the scale of one.
        """
        names = [(f"{name}.experts.{e}", True) for e in range(len(self.experts))]
        names += [(f"{name}.shared", False)] * self.has_shared
        into = tuple(Group((f"{n}.gate", f"{n}.up"), None, routed) for n, routed in names)
        return into, tuple(Group((f"{n}.down",), f"{n}.up", routed) for n, routed in names)

    def stage_inputs(
        self, x: Float[Tensor, "*batch width"], routes: Bool[Tensor, "tokens experts"] | None
    ) -> Generator[Iterable[Tensor], None, None]:
        """Yield, for each of the stages, what each expert receives, one after the other.

        Args:
            x: Behind the norm.
            routes: Which experts see which token; the router's own choice if not given.
        """
        flat = x.flatten(0, -2)
        routes = self.routes(x) if routes is None else routes
        yield (flat[seen] for _, seen in self._seen(routes))
        yield (expert.activate(flat[seen]) for expert, seen in self._seen(routes))

    def _seen(self, routes: Tensor) -> Iterator[tuple[MLP, Tensor | slice]]:
        yield from zip(self.experts, routes.T, strict=True)  # type: ignore[misc]
        if self.has_shared:
            yield self.shared, slice(None)
