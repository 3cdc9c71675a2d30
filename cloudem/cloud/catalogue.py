"""What machines there are, and what they cost: the shipped snapshot, under what the user has refreshed.

Zones of AWS are named by their ids (``use1-az1``), which mean the same zone for every account; the names
(``us-east-1a``) do not. Prices are US dollars and without tax. Everything here works offline.
"""

from __future__ import annotations

import csv
import json
import math
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from datetime import UTC, date, datetime
from importlib import resources
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple, get_args

from cloudem.cloud.nodes import InstanceType, Market, Pool
from cloudem.errors import FormatError, parsing

STALE_DAYS = 30
"""Prices older than this are said to be stale."""

LARGEST_FILE = 32 << 20
LOCAL = "local"
LOCAL_SOURCE = "rehearsal price, nothing is charged"
_LOCAL_TYPES = (InstanceType("local.1", 1, 1, 2.0), InstanceType("local.2", 2, 2, 4.0))
_LOCAL_PRICES = {"local.1": {"on-demand": 0.10, "spot": 0.03}, "local.2": {"on-demand": 0.20, "spot": 0.06}}
_LOCAL_ZONES = ("local-a", "local-b")
_DIRECTIONS = {"n": "north", "s": "south", "e": "east", "w": "west", "c": "central"}
_DIRECTIONS |= {a + b: _DIRECTIONS[a] + _DIRECTIONS[b] for a in "ns" for b in "ew"}
_ZONE_ID = re.compile(r"([a-z]{2})(g?)(ne|nw|se|sw|n|s|e|w|c)(\d{1,2})-az\d{1,2}")
_ZONE_NAME = re.compile(r"([a-z]{2}(?:-[a-z]+)+-\d{1,2})[a-z]")
_NAME = re.compile(r"[a-z0-9][a-z0-9.-]{0,39}")


class Price(NamedTuple):
    """What a machine costs.

    Attributes
    ----------
    usd_per_hour
        Dollars for an hour; spot prices are those of the day `as_of`.
    as_of
        When it was that; where the day is not exactly known, the earliest that it can be.
    source
        Who said so.
    """

    usd_per_hour: float
    as_of: date
    source: str


@dataclass(frozen=True)
class Rates:
    """What else is charged for, dollars.

    Attributes
    ----------
    disk_usd_per_GiB_month
        Network disks (gp3).
    storage_usd_per_GiB_month, put_usd_per_1000, get_usd_per_1000
        Object storage: what is kept, a thousand requests that write or list, a thousand that read.
    egress_usd_per_GiB
        Sent to the internet, first 10 TB of a month.
    between_zones_usd_per_GiB
        Sent from one zone to another of the same region, both ends together.
    public_ipv4_usd_per_hour
        A public address.
    """

    disk_usd_per_GiB_month: float
    storage_usd_per_GiB_month: float
    put_usd_per_1000: float
    get_usd_per_1000: float
    egress_usd_per_GiB: float
    between_zones_usd_per_GiB: float
    public_ipv4_usd_per_hour: float
    as_of: date
    source: str


_RATES = tuple(f.name for f in fields(Rates) if f.name not in ("as_of", "source"))


class PriceRecord(NamedTuple):
    """A price as it is kept in files; `low` and `high` are quantiles of a spot price's recorded history."""

    instance_type: str
    zone: str
    market: Market
    usd_per_hour: float
    low: float | None
    high: float | None
    as_of: date
    source: str


class Interruptions(NamedTuple):
    """How often spot machines of a kind were taken, per machine and hour; `region` is "" where it holds for any."""

    kind: str
    region: str
    per_hour: float
    source: str


def region_of(zone: str) -> str:
    """Return the region of a zone, given by its id (``use1-az1``), its name (``us-east-1a``), or ``local-a``."""
    if zone in _LOCAL_ZONES:
        return LOCAL
    if match := _ZONE_ID.fullmatch(zone):
        area, government, direction, number = match.groups()
        return f"{area}-{'gov-' if government else ''}{_DIRECTIONS[direction]}-{number}"
    if match := _ZONE_NAME.fullmatch(zone):
        return match[1]
    raise FormatError(f"{zone!r:.60} names no zone; zones look like use1-az1, us-east-1a or local-a")


def cache_file() -> Path:
    """Return where refreshed prices are kept: $CLOUDEM_CACHE/prices.json, or that of ~/.cache/cloudem."""
    folder = os.environ.get("CLOUDEM_CACHE")
    return (Path(folder) if folder else Path.home() / ".cache" / "cloudem") / "prices.json"


class Catalogue:
    """Machines and prices.

    Attributes
    ----------
    types
        Machines by name.
    rows
        All prices.
    is_shipped
        Whether nothing was refreshed: all is of the snapshot that comes with cloudem.
    """

    def __init__(
        self,
        types: Mapping[str, InstanceType],
        rows: Iterable[PriceRecord],
        rates: Mapping[str, Rates],
        interruptions: Iterable[Interruptions] = (),
        is_shipped: bool = False,
    ) -> None:
        self.types: Mapping[str, InstanceType] = MappingProxyType({**types, **{t.name: t for t in _LOCAL_TYPES}})
        self.rows = tuple(rows)
        self.is_shipped = is_shipped
        self._rates = dict(rates)
        self._interruptions = tuple(interruptions)
        self._by_pool = {Pool(r.instance_type, r.zone, r.market): r for r in (*self.rows, *_local_rows())}
        zones: dict[str, set[str]] = {}
        for pool in self._by_pool:
            zones.setdefault(region_of(pool.zone), set()).add(pool.zone)
        self._zones = {region: tuple(sorted(of)) for region, of in sorted(zones.items())}

    @staticmethod
    def shipped() -> Catalogue:
        """Return the catalogue that comes with cloudem."""
        return _shipped()

    @staticmethod
    def load(path: Path | None = None) -> Catalogue:
        """Return the shipped catalogue under what was refreshed into `path` (default: `cache_file`), if there is one.

        Raises
        ------
        FormatError
            The file is not what ``cloudem prices update`` writes.
        """
        return _shipped().refreshed_by(path if path is not None else cache_file())

    def refreshed_by(self, path: Path) -> Catalogue:
        """Return this catalogue with newer prices from a file; itself where there is no such file."""
        try:
            content = read_document(path)
        except FileNotFoundError:
            return self
        newer = {(r.instance_type, region_of(r.zone), r.market) for r in content.rows}
        kept = [r for r in self.rows if (r.instance_type, region_of(r.zone), r.market) not in newer]
        types = {**self.types, **content.types}
        return Catalogue(types, [*kept, *content.rows], {**self._rates, **content.rates}, self._interruptions)

    def regions(self) -> tuple[str, ...]:
        """Return the regions that have prices; ``local`` is one of them."""
        return tuple(self._zones)

    def zones(self, region: str) -> tuple[str, ...]:
        """Return the zones of a region that have prices; none where the region is not known."""
        return self._zones.get(region, ())

    def price(self, pool: Pool) -> Price | None:
        """Return what a machine of a pool costs; None where that is not known, or none is sold there."""
        row = self._by_pool.get(pool)
        return None if row is None else Price(row.usd_per_hour, row.as_of, row.source)

    def spot_range(self, instance_type: str, zone: str) -> tuple[float, float] | None:
        """Return a low and a high spot price, dollars per hour, of the recorded history; None without a history."""
        row = self._by_pool.get(Pool(instance_type, zone, "spot"))
        return None if row is None or row.low is None or row.high is None else (row.low, row.high)

    def interruption_rate(self, instance_type: str, region: str) -> float | None:
        """Return how often a spot machine is taken, per hour; None where no record of such machines is known."""
        found = self.interruptions(instance_type, region)
        return None if found is None else found.per_hour

    def interruptions(self, instance_type: str, region: str) -> Interruptions | None:
        """Return the record behind `interruption_rate`: of the type in the region, of the type, of its kind."""
        known = self.types.get(instance_type)
        kinds = (instance_type, known.gpu or "CPU") if known else (instance_type,)
        for kind in kinds:
            for where in (region, ""):
                for record in self._interruptions:
                    if record.kind == kind and record.region == where:
                        return record
        return None

    @property
    def rates(self) -> Rates:
        """What else is charged for in us-east-1; see `rates_in`."""
        return self.rates_in("us-east-1")

    def rates_in(self, region: str) -> Rates:
        """Return what else is charged for in a region; the dearest of all known where that region's are not known."""
        if region == LOCAL:
            return _rates(dict.fromkeys(_RATES, 0.0), datetime.now(UTC).date(), LOCAL_SOURCE)
        known = self._rates.get(region)
        return known if known is not None else max(self._rates.values(), key=lambda r: r.disk_usd_per_GiB_month)

    def span(self, region: str | None = None) -> tuple[date, date] | None:
        """Return the oldest and newest day of a region's prices, or of all; None where there are none."""
        days = [r.as_of for r in self.rows if region is None or region_of(r.zone) == region]
        return (min(days), max(days)) if days else None

    def age_days(self, now: float, region: str | None = None) -> float:
        """Return the age of the oldest price of a region, or of all, in days; 0 where there are none.

        Parameters
        ----------
        now
            Seconds since 1970.
        region
            None: all.
        """
        span = self.span(region)
        if span is None:
            return 0.0
        then = datetime(span[0].year, span[0].month, span[0].day, tzinfo=UTC).timestamp()
        return max(0.0, (now - then) / 86400)

    def stale(self, now: float, region: str | None = None) -> bool:
        """Return whether a region's prices, or any, are older than `STALE_DAYS`."""
        return self.age_days(now, region) > STALE_DAYS

    def about(self, now: float, region: str | None = None) -> str:
        """Return a sentence for people: where the prices are from, how old they are, what to do about it."""
        span = self.span(region)
        if span is None:
            return f"no prices of {region or 'any region'} but {LOCAL_SOURCE}" if region != LOCAL else LOCAL_SOURCE
        days = f"{span[0]}" if span[0] == span[1] else f"{span[0]} to {span[1]}"
        text = f"prices of {days}" if not self.is_shipped else f"shipped snapshot of {days} at the earliest"
        if self.stale(now, region):
            text += (
                f", up to {self.age_days(now, region):.0f} days old: stale; 'cloudem prices update' asks for today's"
            )
        return text


class Document(NamedTuple):
    """What a file of prices holds."""

    types: Mapping[str, InstanceType]
    rows: tuple[PriceRecord, ...]
    rates: Mapping[str, Rates]


def read_document(path: Path) -> Document:
    """Read a file of refreshed prices.

    Raises
    ------
    FileNotFoundError
        There is none.
    FormatError
        It is not what `write_document` writes.
    """
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise FormatError(f"{path}: {size >> 20} MiB are no file of prices; delete it")
        content = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise FormatError(f"{path} cannot be read ({error.strerror}); set CLOUDEM_CACHE to a folder of yours") from None
    with parsing(f"{path} is no file of prices", "delete it, then 'cloudem prices update'"):
        raw = json.loads(content)
        if not isinstance(raw, dict) or raw.get("format") != 1:
            raise ValueError("its format is not 1")
        types = dict(_types(raw["types"]))
        rows = tuple(PriceRecord(*_row(r[:6]), _day(r[6]), _text(r[7])) for r in raw["prices"])
        rates = {
            _name(region): _rates(of, _day(of["as_of"]), _text(of["source"])) for region, of in raw["rates"].items()
        }
    return Document(types, rows, rates)


def document(content: Document) -> dict[str, Any]:
    """Return what a file of prices contains, for JSON."""
    rates = {region: {**asdict(of), "as_of": str(of.as_of)} for region, of in content.rates.items()}
    types = {n: {f.name: getattr(t, f.name) for f in fields(t) if f.name != "name"} for n, t in content.types.items()}
    prices = [[*row[:6], str(row.as_of), row.source] for row in content.rows]
    return {"format": 1, "types": types, "prices": prices, "rates": rates}


def _shipped() -> Catalogue:
    folder = resources.files("cloudem.cloud") / "data"
    about = json.loads((folder / "snapshot.json").read_text())
    types = dict(_types(json.loads((folder / "types.json").read_text())))
    day, source = _day(about["as_of"]), _text(about["source"])
    lines = csv.reader((folder / "prices.csv").read_text().splitlines())
    next(lines)
    rows = [PriceRecord(*_row([*line, None, None][:6]), day, source) for line in lines]  # most rows have no range
    rates_day, rates_source = _day(about["rates_as_of"]), _text(about["rates_source"])
    rates = {region: _rates(of, rates_day, rates_source) for region, of in about["rates"].items()}
    return Catalogue(types, rows, rates, [Interruptions(**i) for i in about["interruptions"]], is_shipped=True)


def _local_rows() -> Iterator[PriceRecord]:
    today = datetime.now(UTC).date()
    for name, markets in _LOCAL_PRICES.items():
        for zone in _LOCAL_ZONES:
            for market in get_args(Market):
                usd = markets[market]
                yield PriceRecord(name, zone, market, usd, usd, usd, today, LOCAL_SOURCE)


def _types(raw: Mapping[str, Mapping[str, Any]]) -> Iterator[tuple[str, InstanceType]]:
    for name, of in raw.items():
        what: dict[str, Any] = {k: _text(of[k]) for k in ("gpu", "architecture", "quota")}
        what |= {k: _number(of[k], 0, 1e6) for k in ("memory_GiB", "gpu_memory_GiB", "network_Gbps", "nvme_GiB")}
        what |= {k: int(_number(of[k], 0 if k == "gpus" else 1, 1e4)) for k in ("vcpus", "cores", "gpus")}
        yield _name(name), InstanceType(name=name, **what)


def _row(raw: list[Any]) -> tuple[str, str, Market, float, float | None, float | None]:
    name, zone, market, usd, low, high = raw
    if market not in get_args(Market):
        raise FormatError(f"{market!r:.40} is no market")
    region_of(zone)
    low = None if low is None else _number(low, 1e-6, 1e4)
    return (
        _name(name),
        zone,
        market,
        _number(usd, 1e-6, 1e4),
        low,
        None if high is None else _number(high, low or 0, 1e4),
    )


def _rates(raw: Mapping[str, Any], day: date, source: str) -> Rates:
    what: dict[str, Any] = {name: _number(raw[name], 0, 100) for name in _RATES}
    return Rates(**what, as_of=day, source=source)


def _number(raw: Any, low: float, high: float) -> float:
    value = float(raw)
    if not math.isfinite(value) or not low <= value <= high or isinstance(raw, bool):
        raise FormatError(f"{raw!r:.40} is not a number from {low:g} to {high:g}")
    return value


def _name(raw: Any) -> str:
    if not isinstance(raw, str) or not _NAME.fullmatch(raw):
        raise FormatError(f"{raw!r:.60} is no name")
    return raw


def _text(raw: Any) -> str:
    if not isinstance(raw, str) or len(raw) > 1000 or not raw.isprintable():
        raise FormatError(f"{raw!r:.60} is no text of at most 1,000 characters")
    return raw


def _day(raw: Any) -> date:
    return date.fromisoformat(raw)
