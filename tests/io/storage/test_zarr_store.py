"""Zarr's own tests of stores, on a folder and on S3."""

import asyncio
import functools
import inspect
import pickle
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

import obstore
import pytest
from zarr.abc.buffer import Buffer
from zarr.buffer import cpu
from zarr.testing.store import StoreTests

from cloudem.io.storage.location import object_store
from cloudem.io.storage.zarr_store import ObjectsForZarr


def _blocking(test: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(test)
    def run(*given: Any, **named: Any) -> None:
        asyncio.run(test(*given, **named))

    return run


class _Ours(StoreTests[ObjectsForZarr, cpu.Buffer]):
    """Zarr's tests, each in an event loop of its own."""

    store_cls = ObjectsForZarr
    buffer_cls = cpu.Buffer

    @pytest.fixture
    def store(self, open_kwargs: dict[str, Any]) -> ObjectsForZarr:
        return asyncio.run(ObjectsForZarr.open(**open_kwargs))

    @pytest.fixture
    def store_not_open(self, store_kwargs: dict[str, Any]) -> ObjectsForZarr:
        return ObjectsForZarr(**store_kwargs)

    async def set(self, store: ObjectsForZarr, key: str, value: Buffer) -> None:
        obstore.put(store._store, key, value.to_bytes())

    async def get(self, store: ObjectsForZarr, key: str) -> Buffer:
        return self.buffer_cls.from_bytes(bytes(obstore.get(store._store, key).bytes()))

    def test_store_repr(self, store: ObjectsForZarr) -> None:
        assert "ObjectsForZarr" in repr(store)

    def test_store_supports_writes(self, store: ObjectsForZarr) -> None:
        assert store.supports_writes

    def test_store_supports_listing(self, store: ObjectsForZarr) -> None:
        assert store.supports_listing

    def test_serializable_store(self, store: ObjectsForZarr) -> None:
        with pytest.raises(TypeError, match="pass its URL"):  # it may hold keys
            pickle.dumps(store)


for _name, _test in inspect.getmembers(StoreTests, inspect.iscoroutinefunction):
    if _name.startswith("test_") and _name not in vars(_Ours):
        setattr(_Ours, _name, _blocking(_test))


class TestFolder(_Ours):
    @pytest.fixture
    def store_kwargs(self, tmp_path: Path) -> dict[str, Any]:
        return {"store": object_store(tmp_path / "zarr", create=True)}


class TestS3(_Ours):
    @pytest.fixture
    def store_kwargs(self, bucket: str) -> dict[str, Any]:
        return {"store": object_store(f"s3://{bucket}/{secrets.token_hex(6)}")}
