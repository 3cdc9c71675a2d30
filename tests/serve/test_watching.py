"""One poller for all who watch, news for each of them, and no polling when nobody does."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from cloudem.serve import watching
from cloudem.serve.watching import Watched, Watches


def counting(values: list[str]) -> tuple[Callable[[], Awaitable[str]], list[int]]:
    looks = [0]

    async def look() -> str:
        looks[0] += 1
        found = values[min(looks[0], len(values)) - 1]
        if found == "trouble":
            raise OSError("the store does not answer")
        return found

    return look, looks


async def heard(watch: Watched, count: int) -> list[str]:
    found = []
    async for text in watch.news():
        if text:
            found.append(text)
        if len(found) == count:
            break
    return found


def test_all_hear_what_one_poller_sees() -> None:
    async def run() -> None:
        look, looks = counting(["a", "a", "trouble", "b"])
        watch = Watched(look, 0.02)
        found = await asyncio.gather(*(heard(watch, 2) for _ in range(20)))
        assert found == [["a", "b"]] * 20
        assert looks[0] < 10
        await asyncio.sleep(0.05)
        before = looks[0]
        await asyncio.sleep(0.1)
        assert looks[0] == before
        assert watch.listeners == 0

    asyncio.run(run())


def test_who_comes_later_hears_the_last_news_at_once() -> None:
    async def run() -> None:
        watch = Watched(counting(["a"])[0], 0.01)
        first = asyncio.create_task(heard(watch, 2))
        await asyncio.sleep(0.05)
        assert await asyncio.wait_for(heard(watch, 1), 1) == ["a"]
        first.cancel()

    asyncio.run(run())


def test_a_slow_listener_hears_the_newest_only() -> None:
    async def run() -> None:
        watch = Watched(counting([str(number) for number in range(100)])[0], 0.005)
        news = watch.news()
        await anext(news)
        await asyncio.sleep(0.2)
        assert int(await anext(news)) > 10
        await news.aclose()

    asyncio.run(run())


def test_silence_is_broken_by_a_sign_of_life(monkeypatch) -> None:
    monkeypatch.setattr(watching, "BEAT_S", 0.05)

    async def run() -> None:
        news = Watched(counting(["a"])[0], 10).news()
        assert [await anext(news), await anext(news)] == ["a", ""]
        await news.aclose()

    asyncio.run(run())


def test_too_many_are_told_to_ask_instead(monkeypatch) -> None:
    monkeypatch.setattr(watching, "MOST_WATCHERS", 2)

    async def run() -> None:
        watches, (look, _) = Watches(), counting(["a"])
        news = []
        for _ in range(2):
            watch = watches.of("job", look, 1.0)
            assert watch is not None
            news.append(watch.news())
            await anext(news[-1])
        assert watches.of("job", look, 1.0) is None
        await news[0].aclose()
        assert watches.of("other", look, 1.0) is not None
        await news[1].aclose()

    asyncio.run(run())
