import importlib
import inspect
import pkgutil

import numpy as np
import pytest

import cloudem.kernels
from cloudem.backend.kernel import Kernel, kernel
from cloudem.kernels.ctf import ctf_values


def all_kernels() -> list[Kernel]:
    found = []
    for module in pkgutil.iter_modules(cloudem.kernels.__path__):
        if not module.ispkg:
            members = vars(importlib.import_module(f"cloudem.kernels.{module.name}")).values()
            found += [
                value for value in members if isinstance(value, Kernel) and value.__module__.endswith(module.name)
            ]
    return found


@pytest.mark.parametrize("family", ["_numba", "_cupy"])
@pytest.mark.parametrize("one", all_kernels(), ids=lambda one: one.__name__)
def test_twin_has_the_signature_of_its_reference(one: Kernel, family: str) -> None:
    if family == "_cupy":
        pytest.importorskip("cupy")
    twin = one.twin(family)
    if twin is one.reference:
        pytest.skip(f"{one.__name__} runs its reference for {family}")
    names = [list(inspect.signature(function).parameters) for function in (one.reference, twin)]
    assert names[0] == names[1]


def test_hot_kernels_are_compiled() -> None:
    compiled = {one.__name__ for one in all_kernels() if one.twin("_numba") is not one.reference}
    assert {"extract", "insert", "score_derivatives", "ctf_values", "best_rotations", "shift_samples"} <= compiled


def test_without_a_twin_the_reference_runs() -> None:
    @kernel
    def double(values: np.ndarray) -> np.ndarray:
        """Twice."""
        return 2 * values

    double.reference.__module__ = "cloudem.kernels.ctf"
    assert double.twin("_numba") is double.reference
    np.testing.assert_array_equal(double(np.arange(3)), [0, 2, 4])
    assert (double.__name__, double.__doc__) == ("double", "Twice.")


def test_the_kind_of_the_first_array_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    class Foreign:
        """Stands for a CuPy array where there is no CuPy."""

    Foreign.__module__ = "cupy._core.core"
    asked = []
    monkeypatch.setattr(Kernel, "twin", lambda self, family: asked.append(family) or (lambda *args: None))
    ctf_values(3, Foreign(), np.zeros(1))
    ctf_values(np.zeros(1), Foreign())
    ctf_values(1.0, 2)
    assert asked == ["_cupy", "_numba", "_numba"]


def test_twin_is_looked_up_once() -> None:
    assert ctf_values.twin("_numba") is ctf_values.twin("_numba")
