"""Each public name of a module has one meaning in the whole package."""

import ast
from collections import defaultdict
from pathlib import Path

import cloudem

HERE = Path(cloudem.__file__).parent

EXCEPTIONS = {"main"}  # of what is started as a program


def test_no_public_function_or_class_has_its_name_from_another() -> None:
    places: dict[str, set[str]] = defaultdict(set)
    for path in sorted(HERE.rglob("*.py")):
        place = path.relative_to(HERE).as_posix().replace("_numba/", "").replace("_cupy/", "")  # twins have one name
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith(
                "_"
            ):
                places[node.name].add(place)
    shared = {name: sorted(found) for name, found in places.items() if len(found) > 1}
    assert shared.keys() == EXCEPTIONS, shared
