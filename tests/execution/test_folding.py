"""The tree over items and who works on them, without any Dask."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from cloudem.execution.folding import Forest, Node, Roster, copied_from, grown, in_groups, merged, runs


def joined(earlier: str, later: str) -> str:
    return f"({earlier}{later})"


def serial(count: int, keyed: set[int]) -> str:
    """The tree as the serial executor grows it, with nothing where an item lacks the key."""

    def merge(earlier: str, later: str) -> str:
        return joined(earlier, later) if earlier and later else earlier or later

    forest: Forest[str] = Forest(count, merge)
    for item in range(count):
        forest.add(Node(0, item), f"{item}," if item in keyed else "")
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
        forest.add(Node(0, item), (f"{item}," if item in keyed else "", place[item]))
    parts = {node: text for node, (text, _) in forest.nodes().items() if text}
    assert merged(parts, joined) == serial(count, keyed)
    halves = [grown(dict(some), joined) for some in in_groups(list(parts.items()), 3)]
    assert merged({node: text for half in halves for node, text in half.items()}, joined) == serial(count, keyed)


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
)
def test_a_roster_hands_out_each_item_once_whoever_asks(count: int, threads: list[int], asked: list[int]) -> None:
    roster = Roster(count, dict(enumerate(threads)))
    taken = [item for worker in asked if (item := roster.take(worker)) is not None]
    while (item := roster.take(99)) is not None:  # a worker that came later
        taken.append(item)
    assert sorted(taken) == list(range(count))
    assert len(roster) == 0


@given(count=st.integers(1, 100), most=st.integers(1, 12))
def test_groups_are_consecutive_and_even(count: int, most: int) -> None:
    groups = in_groups(range(count), most)
    assert [thing for group in groups for thing in group] == list(range(count))
    assert max(map(len, groups)) - min(map(len, groups)) <= 1
    assert max(map(len, groups)) <= most


def test_a_copy_is_handed_on_twice_at_most() -> None:
    sources = [copied_from(n) for n in range(1, 63)]
    assert max(sources.count(n) for n in sources) == 2
    depth = {0: 0}
    for n, source in enumerate(sources, start=1):
        depth[n] = depth[source] + 1
    assert max(depth.values()) == 5
