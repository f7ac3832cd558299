"""Compile the Triton programs for a GPU that need not be there; print what they ask for.

    python compile_triton.py CAPABILITY

A line a program: name, bytes of shared memory, instructions of tensor cores.
"""

import re
import sys

import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from quant_dllm.kernels import triton_programs as programs

POINTERS = {
    "scaled": "*bf16", "x": "*bf16", "words": "*i32", "rows": "*fp16", "columns": "*fp16",
    "groups": "*i32", "counts": "*i32", "bias": "*bf16", "weight": "*bf16",
}  # fmt: skip


def compiled(function, constants: dict, capability: int, y: str, warps: int = 4):
    """Compile one program; widths are multiples of 16."""
    kinds = POINTERS | {"y": y} | dict.fromkeys(constants, "constexpr")
    signature = {name: kinds.get(name, "i32") for name in function.arg_names}
    names = list(signature)
    aligned = [i for i, n in enumerate(names) if n in kinds or n in ("inputs", "outputs")]
    source = ASTSource(
        fn=function,
        signature=signature,
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(i,): [["tt.divisibility", 16]] for i in aligned if names[i] not in constants},
    )
    options = {"num_warps": warps, "num_stages": 3}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)


def main(capability: int) -> None:
    """Compile programs of both kinds, with few and many tokens."""
    few = {"HAS_BIAS": True, "ONES": 0x3F803F80, "UPCAST": False, "GROUP": 128}
    many = {"HAS_BIAS": True, "DTYPE": tl.bfloat16, "UPCAST": False, "MOST": 3, "GROUP": 128}
    cases = [
        (programs.multiply_planes, few | {"N": 64, "M": 16}, "*fp32", 4),
        (programs.multiply_planes, few | {"N": 128, "M": 32}, "*bf16", 4),
        (programs.multiply_groups, many | {"N": 64, "M": 64}, "*fp32", 4),
        (programs.multiply_groups, many | {"N": 128, "M": 128}, "*bf16", 8),
        (programs.dequantize, {"ORDER": 2, "GROUP": 128, "N": 64}, "*bf16", 4),
    ]
    for function, constants, y, warps in cases:
        made = compiled(function, constants, capability, y, warps)
        products = len(re.findall(r"^\s*(?:wgmma\.mma_async|mma\.sync)", made.asm["ptx"], re.M))
        print(function.__name__, made.metadata.shared, products)


if __name__ == "__main__":
    main(int(sys.argv[1]))
