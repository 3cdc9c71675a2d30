"""Job files and workflow files that nobody wrote by hand."""

from __future__ import annotations

from pathlib import Path

import pytest

from cloudem.errors import ParameterError
from cloudem.runs.workflow import read_workflow


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b'job = "mask"\nx = ' + b"[" * 4900, "is not valid TOML: "),
        (b'job = "mask"\nx = ' + b"9" * 4900, "is not valid TOML: "),
        (b'job = "mask"\n' + b"a." * 2000 + b"a = 1", "line 2 has more than"),
        (b"#" * 4000 + b"\n" + b"#\n" * 200_000, "more than 128 KiB"),
        (b'job = "mask"\nmap = "\xff"', "is not valid TOML: "),
        (b'job = "mask"\nself = 1\nmap = "m.mrc"\nout = "o"', "mask has no parameter 'self'"),
        (b'job = "mask"\nmap = "m.mrc"\nout = "o"\nedge_A = 0x' + b"f" * 4900, "too long to show"),
        (b'job = "mask"\nmap = "m.mrc"\nout = "o"\n"\\u001b[2J" = 1', "no parameter '\\x1b"),
    ],
)
def test_odd_files_are_one_line_that_says_what_is_wrong(text: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_bytes(text)
    with pytest.raises(ParameterError) as caught:
        read_workflow(str(path))
    assert message in str(caught.value)
    assert "job.toml" in str(caught.value)
    assert str(caught.value).isprintable()


def test_entries_that_are_no_tables_are_said(tmp_path: Path) -> None:
    path = tmp_path / "job.toml"
    path.write_text("job = [1, 2]")
    with pytest.raises(ParameterError, match="names no job"):
        read_workflow(str(path))
