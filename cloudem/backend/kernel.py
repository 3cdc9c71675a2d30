"""Routing of a kernel to its compiled twin.

The body of a ``@kernel`` function is the readable reference. The twin has the same name and signature and lives in the
module of the same name in ``cloudem.kernels._numba`` (NumPy arrays) or ``cloudem.kernels._cupy`` (CuPy arrays); it is
imported at the first call. Where there is no twin, the reference itself runs.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
from collections.abc import Callable
from typing import Any, Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


class Kernel(Generic[P, R]):
    """A reference function together with the twins that replace it.

    Attributes
    ----------
    reference
        The plain NumPy function; its tests are those of every twin.
    """

    def __init__(self, reference: Callable[P, R]) -> None:
        functools.update_wrapper(self, reference)
        self.reference = reference
        self._twins: dict[str, Callable[P, R]] = {}

    def twin(self, family: str) -> Callable[P, R]:
        """Return the function of a family, ``_numba`` or ``_cupy``; the reference where that family has none."""
        if family not in self._twins:
            package, _, module = self.reference.__module__.rpartition(".")
            name = f"{package}.{family}.{module}"
            found: Any = None
            if importlib.util.find_spec(name) is not None:
                found = getattr(importlib.import_module(name), self.reference.__name__, None)
            self._twins[family] = found if found is not None else self.reference
        return self._twins[family]

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Run the twin for the kind of the first array among the arguments."""
        family = "_numba"
        for argument in args:
            module = type(argument).__module__
            if module.startswith("cupy"):
                family = "_cupy"
                break
            if module == "numpy":
                break
        return self.twin(family)(*args, **kwargs)


def kernel(reference: Callable[P, R]) -> Kernel[P, R]:
    """Mark a reference function as one that compiled twins may replace."""
    return Kernel(reference)
