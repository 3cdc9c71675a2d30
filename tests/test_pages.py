"""What people read: its links lead somewhere, its index is whole, and the package says which version it is."""

from __future__ import annotations

import re
import runpy
from importlib import metadata
from pathlib import Path

import pytest

import cloudem

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    page for folder in (ROOT, ROOT / "docs", ROOT / "benchmarks") for page in folder.glob("*.md") if page.is_file()
)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_to_files_that_are_there(page: Path) -> None:
    without_code = re.sub(r"```.*?```|`[^`]*`", "", page.read_text(), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", without_code)
    missing = [target for target in targets if "://" not in target and not (page.parent / target).exists()]
    assert missing == []


def test_the_index_names_every_page_once() -> None:
    named = re.findall(r"^- \[[^]]*\]\(([^)]+\.md)\)", (ROOT / "docs/index.md").read_text(), re.MULTILINE)
    inside = [name for name in named if "/" not in name]
    assert sorted(inside) == sorted(page.name for page in (ROOT / "docs").glob("*.md") if page.name != "index.md")


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 100


def test_the_version_is_that_of_the_installed_package() -> None:
    assert cloudem.__version__ == metadata.version("cloudem")


def test_a_source_tree_that_is_not_installed_has_a_version_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def not_installed(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", not_installed)
    assert runpy.run_path(str(Path(cloudem.__file__)))["__getattr__"]("__version__") == "0+source"
