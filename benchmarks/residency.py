"""What is in memory at each step of quantizing LLaDA-8B, added up from shapes: not measured.

    python benchmarks/residency.py          # on a GPU at the paper's text, and on a CPU

The default recipe without tuning. Each step lists what it holds, in the code's own constants; the
full-precision model runs beside the one under way, so that blocks and states are there twice. The
CPU's column is there to be held against what `benchmarks/stream.py` measures.
"""

import argparse
from dataclasses import dataclass

from quant_dllm.checkpoint.writer import SHARD_BYTES
from quant_dllm.pipeline.entry import BATCH_TOKENS
from quant_dllm.pipeline.sensitivity import POSITIONS
from quant_dllm.pipeline.stream import HELD_BYTES
from quant_dllm.quantizers.outside import LAUNCHES, TILE
from quant_dllm.recipe import DEFAULT, Recipe
from quant_dllm.rounding.second_order import PANEL
from quant_dllm.statistics.reduction import ACCOUNT_BYTES, SHARDS
from stream import MLP, VOCAB, WIDTH

GROUP = 128  # channels of a block
LAYERS = (4, 3)  # [width, width] and [width, mlp] of a block
WAITING = SHARDS.bit_length()  # accounts of a tree
GB = 1e9
PROCESS = 0.4e9  # Python and torch, before anything is read
CASES = {
    "on a GPU, in bfloat16, 128 × 4096 tokens, states in host memory": {"number": 2},
    "on a CPU, in float32, states in a pool of 1 GB": {
        "number": 4, "always": PROCESS + GB, "held": 0,
    },
}  # fmt: skip
Step = dict[str, float]


@dataclass(frozen=True)
class Case:
    """Where it runs.

    Attributes:
        number: Bytes of a number that is computed with.
        always: Bytes that are there all the time: the process, and the pool of states.
        held: Bytes of states that wait within a block.
        order: Planes of the layer that is solved, on average.
    """

    number: int
    always: float = 0.0
    held: float = HELD_BYTES
    order: float = 2.0

    @property
    def block(self) -> float:
        """The block as it computes."""
        return self.number * (LAYERS[0] * WIDTH**2 + LAYERS[1] * WIDTH * MLP)

    @property
    def weights(self) -> float:
        """Its weights in float32, where it computes in less."""
        return 0 if self.number == 4 else 2 * self.block

    def steps(self) -> dict[str, Step]:
        """Return what each step holds, bytes."""
        form = Recipe.load(DEFAULT).outside.build("outside")
        packed = form.stored_bytes(VOCAB, WIDTH)
        base = {"process, pool": self.always}
        table = {"embedding or head": self.number * VOCAB * WIDTH}
        working = {
            "block, twice": 2 * self.block, "float32 weights": self.weights,
            "states held, twice": 2 * self.held,
        }  # fmt: skip
        token = self.number * BATCH_TOKENS
        moment = 4 * MLP**2
        logits = POSITIONS * VOCAB * (12 + 2 * self.number)
        trees = 2 * moment * WAITING
        return {
            "head": base | table | {"logits and their gradients": logits},
            "back through a block": base
            | {"block": self.block, "sums": self._sums()}
            | {"activations": token * (12 * WIDTH + 7 * MLP) + self._watched()},
            "moments of 12288 inputs": base | working
            | {"sums": trees if trees <= ACCOUNT_BYTES else 4 * moment}
            | {"a batch, twice": 2 * token * 3 * MLP + 4 * BATCH_TOKENS * MLP},
            "factor of 12288 inputs": base | working | {"moment, factors, drift": 6 * moment},
            "second-order rounding": base | working
            | {"moment, damped, drift": 3 * moment} | self._refit(),
            "head, rounded": base
            | {"16-bit head": 2 * VOCAB * WIDTH, "its codes": 3 * VOCAB * WIDTH}
            | {"moment, factor, drift": 3 * 4 * WIDTH**2, "rows at work": 8 * 4 * self._rows()},
            "saving": base
            | {"packed embedding, head": 2 * packed, "a 16-bit table": 2 * VOCAB * WIDTH}
            | {"a shard of the output": SHARD_BYTES},
        }  # fmt: skip

    def _rows(self) -> int:
        """Weights of the head that are rounded at once."""
        return TILE * (1 if self.number == 4 else LAUNCHES)

    def _sums(self) -> float:
        """What one pass back sums: inputs, and for each layer the inputs by its gradients."""
        narrow = 4 * WAITING * WIDTH**2 * (4 + 2 + 3)
        wide = 4 * WAITING * MLP**2 * 2
        return max(narrow, wide if wide <= ACCOUNT_BYTES else 3 * 4 * MLP**2)

    def _watched(self) -> float:
        """Inputs in float32 that wait for their gradients."""
        return 0 if self.number == 4 else 4 * BATCH_TOKENS * (6 * WIDTH + MLP)

    def _refit(self) -> Step:
        """What the column scales' equations of [width, mlp] take."""
        rows = int(self.order * MLP)
        ends = [min(start + PANEL, rows) for start in range(0, rows, PANEL)]
        panels = sum(4 * (end - start) * end for start, end in zip([0, *ends], ends, strict=False))
        planes = self.order * WIDTH * MLP
        return {"equations": panels, "signs": (4 + 4 + 1) * planes, "matrices": 3 * 4 * WIDTH * MLP}


def table(case: Case) -> str:
    """Format the steps as Markdown."""
    rows = ["| step | holds, GB | in all, GB |", "|---|---|--:|"]
    for name, step in case.steps().items():
        parts = ", ".join(f"{what} {size / GB:.2f}" for what, size in step.items() if size)
        rows.append(f"| {name} | {parts} | {sum(step.values()) / GB:.1f} |")
    return "\n".join(rows)


def text(order: float = 2.0) -> str:
    """Format all cases."""
    parts = []
    for where, given in CASES.items():
        case = Case(**given, order=order)
        most = max(sum(step.values()) for step in case.steps().values())
        parts.append(f"Computed from shapes, not measured, {where}: {most / GB:.1f} GB at most.")
        parts.append(table(case))
    return "\n\n".join(parts)


def main() -> None:
    parser = argparse.ArgumentParser(description="What each step holds; computed, not measured.")
    parser.add_argument("--order", type=float, default=2.0, help="planes of the widest layer")
    print(text(parser.parse_args().order))


if __name__ == "__main__":
    main()
