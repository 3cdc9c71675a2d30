"""What others wrote, on a terminal: as it stands, whatever is in it."""

from __future__ import annotations

import tomllib

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from cloudem.cli.cost_tables import ledger_table
from cloudem.cli.tables import clusters_table, following, resource_table, state_view
from cloudem.cloud.money import Note
from cloudem.cloud.nodes import HEAD, Node, Pool, Resource
from cloudem.cloud.planning.estimate import Range
from cloudem.errors import ParameterError
from cloudem.runs.controller.steps import as_toml
from cloudem.runs.leftovers import Left
from cloudem.runs.records import NodeStatus, RunState, Wishes

HOSTILE = "[/red]a[bold]\x1b[31m\x07b"
SHOWN = "[/red]a[bold]\ufffd[31m\ufffdb"


def test_no_markup_and_no_control_character_of_others_reaches_the_terminal() -> None:
    state = RunState(
        at=5.0, status="running", steps=1, job=HOSTILE, why=HOSTILE, progress=(HOSTILE,),
        nodes=(NodeStatus(slot=HOSTILE, id="i", pool="p", state="running", since=1.0),),
    )  # fmt: skip
    head = Node("i", HOSTILE, HEAD, 1, "t", "running", Pool("a", "b", "spot"), 1.0, 2.0)
    resource = Resource("instance", "i", HOSTILE, HOSTILE)
    wanted = Wishes(max_usd=1.0, deadline=9.0)
    screen = Console(width=300, record=True, force_terminal=False)
    with screen.capture() as said:
        for each in (
            state_view("run", state, wanted),
            clusters_table(Left({HOSTILE: (head, [resource])}, [])),
            resource_table([resource]),
            ledger_table([Note(1.0, HOSTILE)]),
        ):
            screen.print(each)
        with following(screen, "run", lambda: wanted) as show:
            show(state)
    text = said.get()
    assert "\x1b" not in text
    assert "\x07" not in text
    assert text.count(SHOWN) == 10


@given(
    st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), max_size=20),
        st.one_of(
            st.text(st.characters(exclude_categories=["Cs"])), st.booleans(), st.integers(-(2**63), 2**63 - 1),
            st.floats(allow_nan=False, allow_infinity=False), st.lists(st.integers(-9, 9)),
            st.lists(st.text("a\x7f\n")),
        ),
    )
)  # fmt: skip
def test_a_job_file_says_what_the_step_said_whatever_is_in_its_names_and_values(step: dict[str, object]) -> None:
    assert tomllib.loads(as_toml(step)) == step


def test_a_job_file_has_no_tables() -> None:
    with pytest.raises(ParameterError, match="is no value of a job file"):
        as_toml({"wall": {"low": Range.exactly(1.0)}})
