"""The notebook of the documentation: runs as it stands, tells what it promises, and holds no outputs."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "example.ipynb"

pytestmark = pytest.mark.filterwarnings("default")  # of Jupyter's packages, none of which is cloudem's


@pytest.fixture(scope="module")
def executed(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The notebook with the outputs of its cells; a cell that fails stops it."""
    import nbformat
    from nbclient import NotebookClient

    patch = pytest.MonkeyPatch()
    place = tmp_path_factory.mktemp("notebook")
    source = str(NOTEBOOK.parents[1])
    patch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (source, os.environ.get("PYTHONPATH", "")))))
    patch.setenv("TMPDIR", str(place))
    patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    try:
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(notebook, timeout=250, kernel_name="python3", resources={"metadata": {"path": place}}).execute()
    finally:
        patch.undo()
    assert list(place.glob("cloudem-example-*")) == []  # it leaves nothing behind
    return notebook


def outputs(notebook: Any, kind: str) -> list[str]:
    """What the cells left of one type."""
    data = [output.get("data", {}) for cell in notebook.cells for output in cell.get("outputs", ())]
    return [one[kind] for one in data if kind in one]


def printed(notebook: Any) -> str:
    return "".join(
        output.text for cell in notebook.cells for output in cell.get("outputs", ()) if output.output_type == "stream"
    )


def test_the_repository_holds_no_outputs() -> None:
    text = NOTEBOOK.read_text()
    assert text.count('"outputs": []') == text.count('"cell_type": "code"') > 8
    assert text.count('"execution_count": null') == text.count('"cell_type": "code"')


def test_result_and_particles_are_shown(executed: Any) -> None:
    particles, result = outputs(executed, "text/html")
    assert particles.count("<img") == 6
    assert result.count("<img") == 3
    assert len(particles) + len(result) < 200_000
    assert len(outputs(executed, "image/png")) == 2


def test_the_refined_map_and_orientations_are_near_the_truth(executed: Any) -> None:
    text = printed(executed)
    said = re.search(r"the half-maps say ([\d.]+) Å, the truth says ([\d.]+) Å", text)
    assert said is not None, text
    assert 8.0 <= float(said[1]) < 11.0
    assert 8.0 <= float(said[2]) < 11.0
    angle = re.search(r"within ([\d.]+)°", text)
    assert angle is not None
    assert float(angle[1]) < 5
