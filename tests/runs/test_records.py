"""What a run keeps: written once, appended, compared and swapped, and read by whoever comes."""

from __future__ import annotations

import json
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from cloudem.cloud.money import NodeEnded, NodeStarted, Note
from cloudem.cloud.nodes import Pool
from cloudem.cloud.reconcile import Attempt
from cloudem.errors import FormatError, MissingInputError, OutputExistsError, ParameterError
from cloudem.io.storage.location import join
from cloudem.runs.records import RunRecord, RunState, RunStore, Wishes, new_name, runs_of

POOL = Pool("local.1", "local-a", "spot")


def record(name: str = "first-20260102-030405") -> RunRecord:
    return RunRecord(
        name=name, created=1e9, owner="me@here", provider="local", region="local", steps=({"job": "mask"},), plan={},
        version="0",
    )  # fmt: skip


@pytest.fixture(params=["folder", "s3"])
def project(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "folder":
        return str(tmp_path / "project")
    server = request.getfixturevalue("s3")
    return f"s3://{server.bucket()}/project"


def test_a_run_is_written_once_and_found_again(project: str) -> None:
    store = RunStore.of(project, "first-20260102-030405")
    with pytest.raises(MissingInputError, match="is not a run"):
        store.record()
    store.create(record(), Wishes(max_usd=2.0, deadline=2e9))
    assert RunStore(store.url + "/").record() == record()
    assert store.wanted() == Wishes(max_usd=2.0, deadline=2e9)
    assert store.state() is None
    assert store.head() is None
    assert runs_of(project) == ["first-20260102-030405"]
    with pytest.raises(OutputExistsError, match="already exists"):
        store.create(record(), Wishes(max_usd=2.0, deadline=2e9))


def test_two_owners_change_different_things_and_nothing_is_lost(project: str) -> None:
    store = RunStore.of(project, "first-20260102-030405")
    store.create(record(), Wishes(max_usd=2.0, deadline=2e9))
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(lambda values: RunStore(store.url).change(**values), [{"max_usd": 3.0}, {"stop": True}]))
    assert store.wanted() == Wishes(max_usd=3.0, deadline=2e9, stop=True)


def test_of_two_who_resume_a_run_at_once_one_does(project: str) -> None:
    store = RunStore.of(project, "first-20260102-030405")
    store.create(record(), Wishes(max_usd=2.0, deadline=2e9))
    assert store.change(after=1, launch=2).launch == 2
    with pytest.raises(ParameterError, match="by someone else"):
        store.change(after=1, launch=2)
    with pytest.raises(ParameterError, match="max_usd"):
        store.change(max_usd=float("inf"))


def test_the_ledger_only_grows_whoever_writes(project: str) -> None:
    first, second = (RunStore.of(project, "first-20260102-030405") for _ in range(2))
    first.append(NodeStarted(1.0, "n1", "head", POOL, 0.1), Note(2.0, "begins"))
    second.append(NodeEnded(3.0, "n1", "ended"))
    first.append(Note(4.0, "goes on"))
    assert [entry.at for entry in second.ledger()] == [1.0, 2.0, 3.0, 4.0]
    assert second.ledger()[0] == NodeStarted(1.0, "n1", "head", POOL, 0.1)


def test_attempts_steps_and_notices(project: str) -> None:
    from cloudem.io.storage.location import write_bytes

    store = RunStore.of(project, "first-20260102-030405")
    assert (store.attempts(), store.finished(), store.notices()) == ([], {}, {})
    attempt = Attempt("t", "worker-0", 1, 5.0, "sent", "", (POOL,))
    store.write_attempts([attempt])
    store.finish(0, {"seconds": 3})
    write_bytes(join(store.url, "notices/n1.json"), b'{"taken": 7.5}')
    write_bytes(join(store.url, "notices/n2.json"), b"half a docum")
    for number, never in enumerate((b"1e308", b"Infinity", b"NaN", b"-1", b'"soon"', b"null")):
        write_bytes(join(store.url, f"notices/m{number}.json"), b'{"taken": ' + never + b"}")
    assert store.attempts() == [attempt]
    assert store.finished() == {0: {"seconds": 3}}
    assert store.notices() == {"n1": 7.5}


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("run.json", b'{"format": 1', "run.json cannot be read"),
        ("run.json", json.dumps({**record().model_dump(), "name": "../../etc"}).encode(), "name"),
        ("state.json", b'{"at": 1, "status": "flying"}', "status"),
        ("state.json", b"[" * 100_000, "cannot be read"),
        ("state.json", b" " * (17 << 20), "at most"),
        ("attempts.json", b'[{"token": 1}]', "is damaged"),
        (
            "attempts.json",
            b'[{"token": "t", "slot": "s", "generation": 1, "at": NaN, "outcome": "sent", "pools": []}]',
            "none",
        ),
        ("ledger/00000000.json", b'{"kind": "Gift", "at": 1}', "no known kind|kind 'Gift'"),
        ("ledger/00000000.json", b'["Note"]', "no JSON object"),
        ("ledger/00000000.json", b'{"kind": "NodeEnded", "at": NaN, "node": "n"}', "at = nan"),
        ("ledger/00000000.json", b'{"kind": "NodeEnded", "at": "soon", "node": "n"}', "at = 'soon'"),
        ("ledger/00000000.json", b'{"kind": "Charge", "at": 1, "what": "gift", "usd": -1e3}', "usd = -1000"),
        ("ledger/00000000.json", b'{"kind": "PriceChanged", "at": 1, "node": "n", "usd_per_hour": Infinity}', "inf"),
        ("steps/0.json", b"[1", "delete it"),
        ("wanted.json", b'{"max_usd": NaN, "deadline": 2e9}', "max_usd"),
        ("wanted.json", b'{"max_usd": 1, "deadline": 1e308}', "deadline"),
    ],
)
def test_what_cannot_be_read_is_said_in_one_line(name: str, text: bytes, says: str, tmp_path: Path) -> None:
    store = RunStore(str(tmp_path / "run"))
    path = tmp_path / "run" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    read: dict[str, Callable[[], object]] = {
        "run.json": store.record, "state.json": store.state, "attempts.json": store.attempts,
        "wanted.json": store.wanted, "steps/0.json": store.finished,
    }  # fmt: skip
    with pytest.raises(FormatError, match=says) as caught:
        read.get(name, store.ledger)()
    assert "\n" not in str(caught.value)


def test_names_are_fit_for_tags_and_keep_their_order() -> None:
    names = [new_name("First Map!", at) for at in (0.0, 86_400.0)]
    assert names == ["first-map-19700101-000000", "first-map-19700102-000000"]
    assert new_name(None, 0.0) == new_name("", 0.0) == new_name("§§", 0.0) == "run-19700101-000000"
    RunRecord(**{**record().model_dump(), "name": new_name("x" * 500, 0.0)})


def test_only_the_last_states_are_over() -> None:
    over = [RunState(at=0, status=status).over for status in ("starting", "running", "draining", "stopping")]
    assert not any(over)
    assert all(RunState(at=0, status=status).over for status in ("done", "stopped", "failed"))
