"""Workers that leave in time: what they compute is finished, and what they hold is moved to others, before they go.

A worker that just goes costs all that it held and was computing: it is computed again. One that leaves gets no new
tasks, finishes those that run, and hands its results to the workers that stay; those that still waited in its queue
are run by others. Run as a process, it lets the workers leave that keep their files in a folder::

    python -m cloudem.execution.dask.draining tls://10.0.0.1:8786 CERTIFICATES FOLDER SECONDS

which exits with 0 if all of them have left, and with 1 if there was nobody to take over, or too little time.
"""

from __future__ import annotations

import asyncio
import sys
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from cloudem.errors import CloudemError, WorkerLostError
from cloudem.execution.dask.security import security_for

LOOK_S = 0.1
"""How often to look whether a leaving worker has finished what it was computing, seconds."""

SCRATCH = "dask-scratch-space"
"""Folder that Dask makes in the one that a worker was given."""


def workers_of(scheduler: str, certificates: str | None, timeout_s: float = 10.0) -> Mapping[str, str]:
    """Return the workers that take tasks: address -> name of the folder in which they keep their files.

    On rented machines that folder has the name of the node (`cloudem.runs.agent`).

    Raises
    ------
    WorkerLostError
        The scheduler does not answer.
    """
    return asyncio.run(_in_time(_names(scheduler, certificates, timeout_s), scheduler, timeout_s))


def retire(scheduler: str, certificates: str | None, addresses: Sequence[str], limit_s: float = 100.0) -> list[str]:
    """Let workers finish what they compute, move what they hold to others, and end them.

    Parameters
    ----------
    scheduler, certificates
        Address of the scheduler, and folder of its certificates.
    addresses
        Of the workers; those that are gone are left already.
    limit_s
        How long that may take, seconds. While no other worker takes tasks, these go on working.

    Returns
    -------
    list of str
        Those that are still there: nobody could take over what they hold, or time was too short.

    Raises
    ------
    WorkerLostError
        The scheduler does not answer.
    """
    work = _retire(scheduler, certificates, addresses, limit_s)
    return asyncio.run(_in_time(work, scheduler, limit_s + 5.0))


async def _retire(scheduler: str, certificates: str | None, addresses: Sequence[str], limit_s: float) -> list[str]:
    end = time.monotonic() + limit_s
    async with _connected(scheduler, certificates, min(limit_s, 10.0)) as client:
        while staying := await _present(client, addresses):
            remaining = end - time.monotonic()
            if remaining <= 0:
                break
            try:
                async with asyncio.timeout(remaining):
                    if await _others(client, staying):
                        await _leave(client, staying)
                        continue
            except TimeoutError:
                break
            await asyncio.sleep(LOOK_S * 5)
        return await _present(client, addresses)


async def _leave(client: Any, addresses: Sequence[str]) -> None:
    """Let workers go; those that find nobody to take over stay and work on."""
    options = {"workers": list(addresses), "remove": False, "close_workers": False}
    emptied = list(await client.retire_workers(**options))  # from here on they get no tasks
    while emptied and await _computing(client, emptied):
        await asyncio.sleep(LOOK_S)
    if emptied:
        await client.retire_workers(workers=emptied, remove=True, close_workers=True)  # with what they finished since


async def _computing(client: Any, addresses: Sequence[str]) -> int:
    """Return how many tasks run on workers; those that died run none."""
    found = await client.run(_running_tasks, workers=await _present(client, addresses), on_error="ignore")
    return sum(found.values())


def _running_tasks(dask_worker: Any) -> int:
    return len(dask_worker.state.executing)


async def _present(client: Any, addresses: Sequence[str]) -> list[str]:
    known = await client.scheduler.ncores()
    return [address for address in addresses if address in known]


async def _others(client: Any, addresses: Sequence[str]) -> bool:
    """Say whether workers take tasks that are not among these."""
    return bool(set(await client.scheduler.ncores_running()) - set(addresses))


async def _names(scheduler: str, certificates: str | None, timeout_s: float) -> dict[str, str]:
    async with _connected(scheduler, certificates, timeout_s) as client:
        found = (await client.scheduler.identity(n_workers=-1))["workers"]
    return {address: _folder(each).name for address, each in found.items() if each["status"] == "running"}


async def _in_folder(scheduler: str, certificates: str | None, folder: Path) -> list[str]:
    async with _connected(scheduler, certificates, 10.0) as client:
        found = (await client.scheduler.identity(n_workers=-1))["workers"]
    return [address for address, each in found.items() if _folder(each) == folder]


def _folder(worker: Mapping[str, Any]) -> Path:
    place = Path(worker["local_directory"])
    return next((parent.parent for parent in place.parents if parent.name == SCRATCH), place)


@asynccontextmanager
async def _connected(scheduler: str, certificates: str | None, timeout_s: float) -> AsyncIterator[Any]:
    from distributed import Client

    security = security_for(scheduler, certificates)
    async with Client(scheduler, security=security, timeout=timeout_s, asynchronous=True, set_as_default=False) as one:
        yield one


async def _in_time(work: Any, scheduler: str, limit_s: float) -> Any:
    try:
        async with asyncio.timeout(limit_s):
            return await work
    except (OSError, TimeoutError) as error:
        cause = str(error) or type(error).__name__
        raise WorkerLostError(f"the scheduler at {scheduler} does not answer ({cause})") from None


def main(scheduler: str, certificates: str, folder: str, limit_s: str) -> int:
    """Let the workers of a folder leave; return the exit code. No certificates are for a scheduler of this machine."""
    end = time.monotonic() + float(limit_s)
    try:
        addresses = asyncio.run(_in_time(_in_folder(scheduler, certificates or None, Path(folder)), scheduler, 10.0))
        left = retire(scheduler, certificates or None, addresses, max(end - time.monotonic(), 1.0))
    except CloudemError as error:
        print(error, flush=True)
        return 1
    for address in left:
        print(f"worker {address} stays: nobody could take over what it holds in {limit_s} s", flush=True)
    return 1 if left else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
