"""The tree over items and who works on them, without any Dask."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from cloudem.execution.reduction_tree import (
    MOST_TOGETHER,
    Forest,
    Roster,
    Subtree,
    copied_from,
    merged,
    runs,
    together_for,
)


def joined(earlier: str, later: str) -> str:
    return f"({earlier}{later})"


def serial(count: int, keyed: set[int]) -> str:
    """The tree as the serial executor grows it, with nothing where an item lacks the key."""

    def merge(earlier: str, later: str) -> str:
        return joined(earlier, later) if earlier and later else earlier or later

    forest: Forest[str] = Forest(count, merge)
    for item in range(count):
        forest.add(Subtree(0, item), f"{item}," if item in keyed else "")
    (whole,) = forest.nodes().values()
    return whole


def test_the_tree_of_seven() -> None:
    assert serial(7, set(range(7))) == "(((0,1,)(2,3,))((4,5,)6,))"


@given(count=st.integers(1, 70), seed=st.integers(0, 1000), workers=st.integers(1, 9), data=st.data())
def test_any_division_among_workers_gives_the_same_tree(
    count: int, seed: int, workers: int, data: st.DataObject
) -> None:
    keyed = data.draw(st.sets(st.integers(0, count - 1), min_size=1))
    rng = random.Random(seed)
    place = {i: w for w, run in runs(count, {w: 1 + w % 3 for w in range(workers)}).items() for i in run}
    for item in rng.sample(range(count), count // 10):  # some ran elsewhere
        place[item] = rng.randrange(workers)
    order = list(range(count))
    rng.shuffle(order)

    Part = tuple[str, int]

    def merge(earlier: Part, later: Part) -> Part:
        text = joined(earlier[0], later[0]) if earlier[0] and later[0] else earlier[0] or later[0]
        return text, earlier[1]

    forest: Forest[Part] = Forest(count, merge, lambda earlier, later: earlier[1] == later[1])
    for item in order:
        forest.add(Subtree(0, item), (f"{item}," if item in keyed else "", place[item]))
    parts = {node: text for node, (text, _) in forest.nodes().items() if text}
    assert merged(parts, joined) == serial(count, keyed)
    arriving: Forest[str] = Forest(1 << 62, joined)  # bricks come in any order
    for node, text in rng.sample(list(parts.items()), len(parts)):
        arriving.add(node, text)
    assert merged(arriving.nodes(), joined) == serial(count, keyed)


@given(count=st.integers(0, 300), threads=st.lists(st.integers(1, 8), min_size=1, max_size=12))
def test_runs_cover_all_items_once_and_are_fair(count: int, threads: list[int]) -> None:
    given_out = runs(count, dict(enumerate(threads)))
    assert [i for run in given_out.values() for i in run] == list(range(count))
    for worker, run in given_out.items():
        share = count * threads[worker] / sum(threads)
        assert abs(len(run) - share) <= 2 + count / sum(threads) * max(threads) / 2


def test_runs_of_a_power_of_two_end_at_nodes() -> None:
    assert runs(64, dict.fromkeys("abcd", 1)) == {w: range(16 * i, 16 * i + 16) for i, w in enumerate("abcd")}
    assert [len(run) for run in runs(1024, dict.fromkeys("abc", 2)).values()] == [320, 352, 352]


@given(
    count=st.integers(0, 100),
    threads=st.lists(st.integers(1, 4), min_size=1, max_size=5),
    asked=st.lists(st.integers(0, 8)),
    together=st.integers(1, 9),
)
def test_a_roster_hands_out_each_item_once_whoever_asks(
    count: int, threads: list[int], asked: list[int], together: int
) -> None:
    roster = Roster(count, dict(enumerate(threads)))
    taken = [node for worker in asked if (node := roster.take(worker, together)) is not None]
    while (node := roster.take(99, together)) is not None:  # a worker that came later
        taken.append(node)
    assert sorted(item for node in taken for item in range(node.start, node.stop)) == list(range(count))
    assert all(node.stop - node.start <= together for node in taken)
    assert len(roster) == 0


def test_tasks_grow_smaller_towards_the_end_of_a_run() -> None:
    roster = Roster(64, {"a": 1, "b": 1})
    sizes = []
    while len(roster) > 32 and (node := roster.take("a", 8)) is not None:
        sizes.append(node.stop - node.start)
    assert sizes == [8, 8, 8, 4, 2, 1, 1]


def test_a_task_has_seconds_of_work() -> None:
    assert [together_for(s) for s in (1e3, 10.0, 4.0, 1.3, 0.01, 0.0)] == [1, 1, 2, 7, MOST_TOGETHER, MOST_TOGETHER]


def test_a_copy_is_handed_on_twice_at_most() -> None:
    sources = [copied_from(n) for n in range(1, 63)]
    assert max(sources.count(n) for n in sources) == 2
    depth = {0: 0}
    for n, source in enumerate(sources, start=1):
        depth[n] = depth[source] + 1
    assert max(depth.values()) == 5
