"""What a message quotes may be anything; the message itself is short, on one line, and harmless to a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cloudem.errors import FormatError, MissingColumnError, ParameterError, StorageError, one_line, parsing, shown


@pytest.mark.parametrize("kind", [FormatError, MissingColumnError, StorageError])
def test_a_message_is_one_short_line_that_a_terminal_does_not_act_upon(kind: type[Exception]) -> None:
    text = str(kind("a.star: \x1b[2J\x1b]0;owned\x07\n\u202e" + "x" * 10**6 + "; write it again"))
    assert text.isprintable()
    assert len(text) <= 400
    assert text.startswith("a.star: \\x1b[2J")
    assert text.endswith("; write it again")


def test_what_is_short_and_plain_stays_as_it_is() -> None:
    text = "Größe von /a b/c.mrc: 1.5 Å; try …"
    assert str(FormatError(text)) == one_line(text) == text


def test_values_that_python_will_not_write_out_are_described() -> None:
    deep: list[object] = []
    for _ in range(100_000):
        deep = [deep]
    assert len(shown("y" * 10**6)) <= 60
    assert "too long to show (int)" in shown(1 << 10**6)
    assert "too long to show (list)" in shown(deep)


def test_whatever_a_parser_raises_names_the_file_and_what_to_try() -> None:
    for raised in (
        RuntimeError("no chain B\nat line 7"),
        KeyError("pools"),
        RecursionError(),
        OSError("no gzip"),
        FormatError("inner"),
    ):
        says = r"^x\.toml is not TOML: .+; give another$"
        with (
            pytest.raises(ParameterError, match=says) as caught,
            parsing("x.toml is not TOML", "give another", ParameterError),
        ):
            raise raised
        assert caught.value.__cause__ is raised
    with pytest.raises(PermissionError), parsing("x", "y"):  # is no matter of what the file holds
        raise PermissionError(13, "Permission denied", "x")


def test_damaged_files_of_every_kind_get_a_clear_answer() -> None:
    script = Path(__file__).parents[1] / "benchmarks" / "mutations.py"
    done = subprocess.run(
        [sys.executable, str(script), "--count", "25", "--seed", "11"], capture_output=True, text=True, check=False
    )
    rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(rows) == 9, done.stderr
    faults = [line for line in done.stdout.splitlines() if not line.startswith("{")]
    assert not faults, "\n".join(faults)
