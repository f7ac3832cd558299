"""The oracles have teeth: a fault planted in the code makes the named test fail.

A fault is a change of one function's source. It is compiled with the rest of its file, and takes
the place of the function's code for as long as the test runs, whoever imported the function.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType, FunctionType

import pytest

from quant_dllm.calibration.mcs import MaskedCalibrationSimulation
from quant_dllm.precision.abmp import AdaptiveBlockwiseMixedPrecision
from quant_dllm.quantizers.gptaq import drift_correction
from quant_dllm.rounding.planes import Fit
from quant_dllm.rounding.sweep import block_error, column_by_column, diagonal_error, sweep
from quant_dllm.statistics.hessian import inverse_factor
from quant_dllm.statistics.importance import divisor, emphasis_mask
from tests.conftest import correlated_layer
from tests.oracle import test_gptaq, test_planes, test_sweep
from tests.unit import test_abmp, test_mcs


def with_layer(test: Callable, **options) -> Callable[[], None]:
    """Give a test the layer that its fixture would."""

    def run() -> None:
        weight, _, stats = correlated_layer(24, 72)
        test((weight, stats), **options)

    return run


def gptaq_oracle() -> None:
    test_gptaq.test_it_equals_the_least_squares_after_every_column(
        test_gptaq.drifted_layer(), [2, 2, 2, 2]
    )


def abmp_oracle() -> None:
    test_abmp.test_it_equals_the_definition(160, 0.1)


def scales_oracle() -> None:
    test_planes.test_row_and_column_scales_are_exact_minimisers(2, weighted=True)


GPTQ_ORACLE = with_layer(
    test_sweep.test_gptq_equals_optimal_brain_quantization_across_blocks, static_groups=False
)
FACTOR_ORACLE = with_layer(test_sweep.test_the_factor_is_that_of_the_inverse)
EXACT_ORACLE = with_layer(test_sweep.test_the_exact_form_moves_later_blocks_to_their_optimum)
RELEASE_ORACLE = with_layer(test_sweep.test_the_release_form_divides_by_the_diagonal)
PREFIX_ORACLE = test_mcs.test_the_prefix_is_visible_and_what_is_visible_is_unchanged


@dataclass(frozen=True)
class Fault:
    """What is replaced by what in the source of a function, and the test that must notice."""

    name: str
    function: Callable
    found: str
    planted: str
    test: Callable[[], None]


FAULTS = [
    Fault("columns of a block updated twice", column_by_column,
          "error[j], alpha=-1", "error[j], alpha=-2", GPTQ_ORACLE),
    Fault("columns of later blocks updated twice", sweep,
          "factor[channels, right], alpha=-1", "factor[channels, right], alpha=-2", GPTQ_ORACLE),
    Fault("no feedback across blocks", sweep,
          "factor[channels, right], alpha=-1", "factor[channels, right], alpha=0", GPTQ_ORACLE),
    Fault("error of a column not in its own units", column_by_column,
          ".div_(d)", ".div_(1.0)", GPTQ_ORACLE),
    Fault("factor transposed where it is made", inverse_factor,
          "return found.flip(0, 1)", "return found.flip(0, 1).T", FACTOR_ORACLE),
    Fault("factor transposed, as rounding sees it", inverse_factor,
          "return found.flip(0, 1)", "return found.flip(0, 1).T", GPTQ_ORACLE),
    Fault("factor transposed inside a block", column_by_column,
          "factor[j, j + 1 :]", "factor[j + 1 :, j]", GPTQ_ORACLE),
    Fault("factor transposed in the exact solve", block_error,
          "factor, block - values, upper=True", "factor.T, block - values, upper=False",
          EXACT_ORACLE),
    Fault("diagonal squared in the release's feedback", diagonal_error,
          "values) / factor.diagonal()", "values) / factor.diagonal() ** 2", RELEASE_ORACLE),
    Fault("lambda squared twice", emphasis_mask,
          "(emphasis - 1.0)", "(emphasis**2 - 1.0)", RELEASE_ORACLE),
    Fault("importance divided by the diagonal of the inverse", divisor,
          'saliency == "factor"', 'saliency == "inverse"', RELEASE_ORACLE),
    Fault("column scales weighted by the row scales unsquared", Fit.rescale,
          "(a.square() @ weight)", "(a @ weight)", scales_oracle),
    Fault("drift correction of the wrong sign", drift_correction,
          "torch.triu(", "-torch.triu(", gptaq_oracle),
    Fault("drift correction acting on its own column", drift_correction,
          "diagonal=1", "diagonal=0", gptaq_oracle),
    Fault("ABMP swapping one block too many", AdaptiveBlockwiseMixedPrecision.allocate,
          "k = min(", "k = 1 + min(", abmp_oracle),
    Fault("ABMP taking from the most important blocks", AdaptiveBlockwiseMixedPrecision.allocate,
          "bits[ranked[:k]] -= 1\n        bits[ranked[-k:]] += 1",
          "bits[ranked[:k]] += 1\n        bits[ranked[-k:]] -= 1", abmp_oracle),
    Fault("a mask that hides the prefix", MaskedCalibrationSimulation.hidden,
          "return behind & (", "return (", PREFIX_ORACLE),
]  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.name)
def test_a_planted_fault_is_found(fault, monkeypatch):
    fault.test()  # sound code passes
    function = inspect.unwrap(fault.function)
    assert isinstance(function, FunctionType)
    path = Path(inspect.getfile(function))
    source = path.read_text()
    assert source.count(fault.found) == 1, "a fault is planted at one place"
    faulty = compile(source.replace(fault.found, fault.planted), path, "exec")
    monkeypatch.setattr(function, "__code__", code_of(function, faulty))
    with pytest.raises(AssertionError):
        fault.test()


def code_of(function: FunctionType, module: CodeType) -> CodeType:
    """Find a function's code in that of its module, by its qualified name."""
    (code,) = (code for code in nested(module) if code.co_qualname == function.__qualname__)
    return code


def nested(code: CodeType) -> Iterator[CodeType]:
    """Walk over all code inside."""
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield constant
            yield from nested(constant)
