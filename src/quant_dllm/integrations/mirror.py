"""The same modules under two names: the network's own, and upstream's.

transformers fills, moves, offloads and saves a model by the names in its module tree, and a
checkpoint has upstream's. So the leaves of the network (embedding, norms, linear layers) hang in a
second tree under upstream's paths. Blocks are called through that tree, since what moves tensors
between devices hooks into the modules that it knows.
"""

import re
from collections.abc import Generator, Iterable
from typing import Any

from torch import Tensor, nn

from quant_dllm.models.family import ModelFamily
from quant_dllm.models.network import Network, NetworkBlock
from quant_dllm.models.stage import Stage


class MirrorBlock(NetworkBlock):
    """A block whose leaves hang in it under upstream's names.

    Args:
        block: The block that is called.
    """

    def __init__(self, block: NetworkBlock):
        super().__init__()
        self._own = (block,)  # in a tuple: its modules are registered under other names

    @property
    def own(self) -> NetworkBlock:
        """Return the block itself."""
        return self._own[0]

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Name the linear layers of the block itself."""
        return self.own.stages

    def forward(self, *args: Any) -> Tensor:
        """Call the block."""
        return self.own(*args)

    def stage_inputs(
        self, x: Tensor, sight: Any, routes: Any = None
    ) -> Generator[Iterable[Tensor], None, Tensor | None]:
        """Ask the block."""
        return self.own.stage_inputs(x, sight, routes)

    def routes(self, x: Tensor, sight: Any) -> Any:
        """Ask the block."""
        return self.own.routes(x, sight)


def mirror(root: nn.Module, network: Network, family: ModelFamily) -> dict[str, str]:
    """Hang the leaves of a network into another module under upstream's paths.

    Args:
        root: The module; its tree grows.
        network: The network; its blocks are replaced by `MirrorBlock`.
        family: Knows the names.

    Returns:
        Slots of the network by upstream's path.
    """
    leaves = {name.rpartition(".")[0]: name for name in network.state_dict()}
    paths = {slot: family.upstream(name).rpartition(".")[0] for slot, name in leaves.items()}
    modules = {slot: network.get_submodule(slot) for slot in paths}
    blocks = [MirrorBlock(block) for block in network.blocks]  # type: ignore[arg-type]
    for slot, path in paths.items():
        if number := re.match(r"blocks\.(\d+)\.", slot):
            home = re.match(rf".*?\.{number[1]}(?=\.)", path)
            assert home, "upstream numbers its blocks too"
            _hang(root, home[0], blocks[int(number[1])])
    for slot, path in paths.items():
        _hang(root, path, modules[slot])
    network.blocks = nn.ModuleList(blocks)
    return {path: slot for slot, path in paths.items()}


def replace(network: Network, slot: str, module: nn.Module) -> None:
    """Replace a leaf of a mirrored network."""
    number = re.match(r"blocks\.(\d+)\.(.*)", slot)
    if number is None:
        network.set_submodule(slot, module)
        return
    block = network.blocks[int(number[1])]
    assert isinstance(block, MirrorBlock), "the network is mirrored"
    block.own.set_submodule(number[2], module)


def _hang(root: nn.Module, path: str, module: nn.Module) -> None:
    """Register a module under a path, through empty modules where there are none yet."""
    *parents, leaf = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    if leaf not in root._modules:
        root.add_module(leaf, module)
