"""The oracles have teeth: a fault planted in the code makes the named test fail.

A fault is a change of one function's source. It is compiled with the rest of its file, and takes
the place of the function's code for as long as the test runs, whoever imported the function.
"""

import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from types import CodeType, FunctionType

import pytest

from quant_dllm.calibration.mcs import MaskedCalibrationSimulation
from quant_dllm.precision.abmp import AdaptiveBlockwiseMixedPrecision
from quant_dllm.quantizers.gptaq import drift_correction
from quant_dllm.rounding.planes import Terms
from quant_dllm.rounding.sweep import block_error, column_by_column, diagonal_error, sweep
from quant_dllm.statistics.drift import towards_full
from quant_dllm.statistics.hessian import inverse_factor
from quant_dllm.statistics.importance import divisor, emphasis_mask
from tests.conftest import correlated_layer
from tests.oracle import test_drift, test_gptaq, test_planes, test_sweep
from tests.unit import test_abmp, test_mcs


def layer() -> tuple:
    """Make what the fixture of that name gives."""
    weight, _, stats = correlated_layer(24, 72)
    return weight, stats


def given(test: Callable, *arguments, **options) -> Callable[[], None]:
    """Call a test with its arguments; functions among them make what a fixture would."""

    @wraps(test)
    def run() -> None:
        test(*(a() if callable(a) else a for a in arguments), **options)

    return run


GPTAQ_ORACLE = given(
    test_gptaq.test_it_equals_the_least_squares_after_every_column,
    test_gptaq.drifted_layer, [2, 2, 2, 2],
)  # fmt: skip
ABMP_ORACLE = given(test_abmp.test_it_equals_the_definition, 160, 0.1)
SCALES_ORACLE = given(test_planes.test_row_and_column_scales_are_exact_minimisers, 2, weighted=True)
GPTQ_ORACLE = given(
    test_sweep.test_gptq_equals_optimal_brain_quantization_across_blocks, layer, static_groups=False
)
FACTOR_ORACLE = given(test_sweep.test_the_factor_is_that_of_the_inverse, layer)
EXACT_ORACLE = given(test_sweep.test_the_exact_form_moves_later_blocks_to_their_optimum, layer)
RELEASE_ORACLE = given(test_sweep.test_the_release_form_divides_by_the_diagonal, layer)
DRIFT_ORACLE = test_drift.test_the_target_solves_least_squares_on_the_tokens_of_both_models
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
          "error.T / diagonal", "error.T", GPTQ_ORACLE),
    Fault("factor transposed where it is made", inverse_factor,
          "return found.flip(0, 1)", "return found.flip(0, 1).T", FACTOR_ORACLE),
    Fault("factor transposed, as rounding sees it", inverse_factor,
          "return found.flip(0, 1)", "return found.flip(0, 1).T", GPTQ_ORACLE),
    Fault("factor transposed inside a block", column_by_column,
          "in enumerate(factor / ", "in enumerate(factor.T / ", GPTQ_ORACLE),
    Fault("factor transposed in the exact solve", block_error,
          "factor, block - values, upper=True", "factor.T, block - values, upper=False",
          EXACT_ORACLE),
    Fault("diagonal squared in the release's feedback", diagonal_error,
          "values) / factor.diagonal()", "values) / factor.diagonal() ** 2", RELEASE_ORACLE),
    Fault("lambda squared twice", emphasis_mask,
          "(emphasis - 1.0)", "(emphasis**2 - 1.0)", RELEASE_ORACLE),
    Fault("importance divided by the diagonal of the inverse", divisor,
          'saliency == "factor"', 'saliency == "inverse"', RELEASE_ORACLE),
    Fault("column scales weighted by the row scales unsquared", Terms.over_rows,
          "a.square() @ self.omega", "a @ self.omega", SCALES_ORACLE),
    Fault("drift correction of the wrong sign", drift_correction,
          "torch.triu(", "-torch.triu(", GPTAQ_ORACLE),
    Fault("drift correction acting on its own column", drift_correction,
          "diagonal=1", "diagonal=0", GPTAQ_ORACLE),
    Fault("drift made up for in the wrong direction", towards_full,
          "weight + strength", "weight - strength", DRIFT_ORACLE),
    Fault("drift through the inverse's factor transposed", towards_full,
          "@ U.T @ U", "@ U @ U.T", DRIFT_ORACLE),
    Fault("ABMP swapping one block too many", AdaptiveBlockwiseMixedPrecision.allocate,
          "k = min(", "k = 1 + min(", ABMP_ORACLE),
    Fault("ABMP taking from the most important blocks", AdaptiveBlockwiseMixedPrecision.allocate,
          "bits[ranked[:k]] -= 1\n        bits[ranked[-k:]] += 1",
          "bits[ranked[:k]] += 1\n        bits[ranked[-k:]] -= 1", ABMP_ORACLE),
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


def table() -> str:
    """List the faults and the test that each one makes fail, in Markdown."""
    rows = ["| planted fault | in | the test that fails |", "|---|---|---|"]
    for fault in FAULTS:
        where = inspect.unwrap(fault.function).__qualname__
        test = f"{fault.test.__module__.rpartition('.')[2]}.{fault.test.__name__}"
        rows.append(f"| {fault.name} | `{where}` | `{test}` |")
    return "\n".join(rows) + "\n"


def test_the_faults_stand_in_the_docs():
    page = Path(__file__).parents[2] / "docs" / "methods.md"
    assert table() in page.read_text(), "python -m tests.oracle.test_planted_faults prints it"


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


if __name__ == "__main__":
    print(table(), end="")
