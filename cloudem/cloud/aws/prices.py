"""Today's prices, asked of AWS: on-demand prices, 90 days of spot prices, and what the machines are.

Every part is kept as soon as it has come; what AWS did not tell stays as it was, and is said. Needs permission for
``pricing:GetProducts``, ``ec2:DescribeSpotPriceHistory``, ``ec2:DescribeInstanceTypes``,
``ec2:DescribeInstanceTypeOfferings`` and ``ec2:DescribeAvailabilityZones``, which all answer for nothing.
"""

from __future__ import annotations

import fnmatch
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cloudem.cloud.aws.calls import Calls
from cloudem.cloud.catalogue import (
    LOCAL,
    Catalogue,
    Document,
    PriceRecord,
    Rates,
    cache_file,
    document,
    read_document,
    region_of,
)
from cloudem.cloud.nodes import InstanceType, Pool
from cloudem.errors import FormatError, ParameterError, ProviderError

if TYPE_CHECKING:
    from rich.table import Table

DAYS = 90
"""How far back AWS keeps spot prices."""

QUANTILES = (0.05, 0.95)
"""Of the history of a spot price, weighted by how long each price held, what is kept as its range."""

_PRICING_REGION = "us-east-1"
_QUOTAS = {"g": "G", "p": "P", "v": "G"}
_GIB = 2**30


def refresh(
    regions: Sequence[str],
    types: Sequence[str] = (),
    say: Callable[[str], None] = print,
    *,
    path: Path | None = None,
    calls: Callable[[str], Calls] = Calls,
    now: datetime | None = None,
) -> Path:
    """Ask AWS for prices and keep them where `Catalogue.load` finds them.

    Parameters
    ----------
    regions
        Such as ``us-east-1``.
    types
        Machines; none: all that the catalogue knows.
    say
        Is told what was refreshed, and what was not and why.
    path
        Where they are kept; default `cache_file`.
    calls
        Makes what asks AWS in a region.
    now
        For tests.

    Returns
    -------
    Path
        The file that was written, in one step.

    Raises
    ------
    ParameterError
        No region was named, or ``local``, which has no prices to ask for.
    ProviderError
        AWS told nothing at all.
    """
    if not regions or LOCAL in regions:
        raise ParameterError("prices are asked for regions of AWS such as us-east-1; name one")
    path = path if path is not None else cache_file()
    now = now if now is not None else datetime.now(UTC)
    wanted = sorted(name for name in set(types) or Catalogue.load(path).types if not name.startswith(f"{LOCAL}."))
    try:
        content = read_document(path)
    except FileNotFoundError:
        content = Document({}, (), {})
    failed = 0
    pricing = calls(_PRICING_REGION)
    for region in dict.fromkeys(regions):
        asked = _Region(region, wanted, calls(region), pricing, now)
        for what, ask in asked.parts():
            try:
                content, count = ask(content)
            except (ProviderError, ArithmeticError, LookupError, TypeError, ValueError) as error:
                if not isinstance(error, ProviderError):
                    error = ProviderError(
                        f"AWS's answer has not the form that is known ({type(error).__name__}: {error})"
                    )
                failed += 1
                say(f"{region}: {what} not refreshed, those there stay: {error}")
            else:
                say(f"{region}: {count} {what}")
    if failed == len(asked.parts()) * len(set(regions)):
        raise ProviderError("no prices were refreshed, see above; those there stay")
    _write(path, content)
    return path


class _Region:
    """The questions about one region; each answers with the document that has the answers in it, and how many."""

    def __init__(self, region: str, types: Sequence[str], ec2: Calls, pricing: Calls, now: datetime) -> None:
        self.region, self.types, self.ec2, self.pricing, self.now = region, types, ec2, pricing, now
        self._zone_ids: dict[str, str] = {}

    def parts(self) -> tuple[tuple[str, Callable[[Document], tuple[Document, int]]], ...]:
        return (
            ("machines", self.machines),
            ("on-demand prices", self.on_demand),
            ("spot prices", self.spot),
            ("price of disks", self.disks),
        )

    def machines(self, content: Document) -> tuple[Document, int]:
        wanted = [{"Name": "instance-type", "Values": list(self.types)}]
        found = [
            machine(of) for of in self.ec2.pages("ec2", "describe_instance_types", "InstanceTypes", Filters=wanted)
        ]
        return content._replace(types={**content.types, **{t.name: t for t in found}}), len(found)

    def on_demand(self, content: Document) -> tuple[Document, int]:
        wanted = [{"Name": "instance-type", "Values": list(self.types)}]
        zones: dict[str, list[str]] = {}
        for offer in self.ec2.pages(
            "ec2",
            "describe_instance_type_offerings",
            "InstanceTypeOfferings",
            LocationType="availability-zone-id",
            Filters=wanted,
        ):
            zones.setdefault(offer["InstanceType"], []).append(offer["Location"])
        rows = []
        for name, of in sorted(zones.items()):
            usd = self._hourly(name)
            if usd is not None:
                rows += [
                    PriceRecord(name, zone, "on-demand", usd, None, None, self.now.date(), "AWS price list")
                    for zone in sorted(of)
                    if _is_zone(zone)
                ]
        return self._with(content, rows), len(rows)

    def _hourly(self, name: str) -> float | None:
        filters = {
            "instanceType": name,
            "regionCode": self.region,
            "operatingSystem": "Linux",
            "preInstalledSw": "NA",
            "tenancy": "Shared",
            "capacitystatus": "Used",
        }
        prices = [usd for usd, unit in self._products(filters) if unit == "Hrs"]
        return min(prices) if prices else None

    def _products(self, filters: Mapping[str, str]) -> Iterator[tuple[float, str]]:
        match = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in filters.items()]
        for product in self.pricing.pages(
            "pricing", "get_products", "PriceList", ServiceCode="AmazonEC2", Filters=match
        ):
            yield from on_demand_prices(product)

    def spot(self, content: Document) -> tuple[Document, int]:
        changes: dict[tuple[str, str], list[tuple[datetime, float]]] = {}
        for entry in self.ec2.pages(
            "ec2",
            "describe_spot_price_history",
            "SpotPriceHistory",
            InstanceTypes=list(self.types),
            ProductDescriptions=["Linux/UNIX"],
            StartTime=self.now - timedelta(days=DAYS),
            EndTime=self.now,
        ):
            zone = entry.get("AvailabilityZoneId") or self._zone_id(entry["AvailabilityZone"])
            if _is_zone(zone):
                change = (entry["Timestamp"], _positive(entry["SpotPrice"]))
                changes.setdefault((entry["InstanceType"], zone), []).append(change)
        source = f"AWS spot price history, {DAYS} days"
        rows = []
        for (name, zone), of in sorted(changes.items()):
            low, high = weighted_quantiles(of, self.now - timedelta(days=DAYS), self.now)
            rows.append(PriceRecord(name, zone, "spot", max(of)[1], low, high, self.now.date(), source))
        return self._with(content, rows), len(rows)

    def _zone_id(self, name: str) -> str:
        if not self._zone_ids:
            answer = self.ec2.call("ec2", "describe_availability_zones")
            self._zone_ids = {zone["ZoneName"]: zone["ZoneId"] for zone in answer["AvailabilityZones"]}
        return self._zone_ids.get(name, "")

    def disks(self, content: Document) -> tuple[Document, int]:
        """Ask for what disks cost; the other rates stay those of the catalogue."""
        filters = {"regionCode": self.region, "productFamily": "Storage", "volumeApiName": "gp3"}
        prices = [usd for usd, unit in self._products(filters) if unit == "GB-Mo"]
        if not prices:
            return content, 0
        known = content.rates.get(self.region) or Catalogue.shipped().rates_in(self.region)
        source = known.source.removeprefix("disks: AWS price list; else: ")
        rates: Rates = replace(
            known, disk_usd_per_GiB_month=min(prices), source=f"disks: AWS price list; else: {source}"
        )
        return content._replace(rates={**content.rates, self.region: rates}), 1

    def _with(self, content: Document, rows: Sequence[PriceRecord]) -> Document:
        newer = {(r.instance_type, r.market) for r in rows}
        kept = [r for r in content.rows if (r.instance_type, r.market) not in newer or region_of(r.zone) != self.region]
        return content._replace(rows=(*kept, *rows))


def machine(raw: Mapping[str, Any]) -> InstanceType:
    """Return a machine as EC2's DescribeInstanceTypes tells of it; its network is that of its default card."""
    name = str(raw["InstanceType"])
    gpus = raw.get("GpuInfo", {}).get("Gpus", [])
    network = raw["NetworkInfo"]
    card = network["NetworkCards"][network.get("DefaultNetworkCardIndex", 0)]
    return InstanceType(
        name=name,
        vcpus=int(raw["VCpuInfo"]["DefaultVCpus"]),
        cores=int(raw["VCpuInfo"]["DefaultCores"]),
        memory_GiB=raw["MemoryInfo"]["SizeInMiB"] / 1024,
        gpu=str(gpus[0]["Name"]) if gpus else "",
        gpus=sum(g["Count"] for g in gpus) or len(gpus),  # for p5.4xlarge EC2 has told 0
        gpu_memory_GiB=gpus[0]["MemoryInfo"]["SizeInMiB"] / 1024 if gpus else 0.0,
        network_Gbps=float(card.get("BaselineBandwidthInGbps", 0.0)),
        nvme_GiB=raw.get("InstanceStorageInfo", {}).get("TotalSizeInGB", 0) * 1e9 / _GIB,
        architecture="x86_64" if "x86_64" in raw["ProcessorInfo"]["SupportedArchitectures"] else "arm64",
        quota=_QUOTAS.get(name[0], "standard"),
    )


def on_demand_prices(product: str) -> Iterator[tuple[float, str]]:
    """Yield the prices above 0 of a product of the price list, and their units: ``Hrs``, ``GB-Mo``."""
    try:
        for term in json.loads(product)["terms"].get("OnDemand", {}).values():
            for dimension in term["priceDimensions"].values():
                usd = float(dimension["pricePerUnit"].get("USD", 0))
                if usd > 0:
                    yield usd, str(dimension["unit"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ProviderError(
            f"the price list is not of the form that is known ({type(error).__name__}: {error})"
        ) from None


def weighted_quantiles(
    changes: Iterable[tuple[datetime, float]], start: datetime, end: datetime
) -> tuple[float, float]:
    """Return the `QUANTILES` of a price that changed at some times, weighted by how long each price held."""
    ordered = sorted(changes)
    until = [*(at for at, _ in ordered[1:]), end]
    held = sorted(
        (usd, max(0.0, (to - max(at, start)).total_seconds())) for (at, usd), to in zip(ordered, until, strict=True)
    )
    total = sum(seconds for _, seconds in held)
    if total <= 0:
        return held[0][0], held[-1][0]
    found, past = [], 0.0
    wanted = [q * total for q in QUANTILES]
    for usd, seconds in held:
        past += seconds
        while wanted and past >= wanted[0]:
            found.append(usd)
            wanted.pop(0)
    return found[0], [*found, held[-1][0]][1]


def show(catalogue: Catalogue, region: str | None = None, pattern: str | None = None) -> Table:
    """Return a table of machines and prices for the terminal.

    Parameters
    ----------
    catalogue
        What there is.
    region
        Only its prices; None: of all regions.
    pattern
        Only machines whose name begins like this, such as ``g5`` or ``*.xlarge``; None: all.

    Raises
    ------
    ParameterError
        The region has no prices, or no machine fits.
    """
    from rich.table import Table

    regions = [region] if region else [r for r in catalogue.regions() if r != LOCAL]
    table = Table(title=catalogue.about(datetime.now(UTC).timestamp(), region))
    for header in ("Machine", "GPU"):
        table.add_column(header, no_wrap=True)
    for header in ("its GiB", "Cores", "GiB", "Gbit/s", "On demand", "Spot", ""):
        table.add_column(header, no_wrap=True, justify="right")
    for where in regions:
        if not catalogue.zones(where):
            raise ParameterError(f"no prices of {where}; there are those of {', '.join(catalogue.regions())}")
        ordered = sorted(catalogue.types.values(), key=lambda t: (t.name.partition(".")[0], t.vcpus, t.name))
        fitting = [of for of in ordered if fnmatch.fnmatchcase(of.name, f"{pattern or ''}*")]
        rows = [row for of in fitting if (row := _table_row(catalogue, where, of))]
        if rows and len(regions) > 1:
            table.add_section()
            table.add_row(where, style="bold")
        for row in rows:
            table.add_row(*row)
    if not table.rows:
        raise ParameterError(f"no machine with a price fits {pattern!r:.60}; try 'g5' or '*.xlarge'")
    return table


def _table_row(catalogue: Catalogue, region: str, of: InstanceType) -> tuple[str, ...]:
    zones = catalogue.zones(region)
    paid = [p.usd_per_hour for z in zones if (p := catalogue.price(Pool(of.name, z, "on-demand")))]
    spot = [p.usd_per_hour for z in zones if (p := catalogue.price(Pool(of.name, z, "spot")))]
    if not paid and not spot:
        return ()
    return (
        of.name,
        (f"{of.gpus} × {of.gpu}" if of.gpus > 1 else of.gpu) or "–",
        f"{of.gpu_memory_GiB:.0f}" if of.gpu else "–",
        str(of.cores),
        f"{of.memory_GiB:g}",
        f"{of.network_Gbps:g}",
        f"{min(paid):.3f}" if paid else "–",
        "–" if not spot else f"{min(spot):.3f}" + (f" … {max(spot):.3f}" if max(spot) > min(spot) else ""),
        f"{min(spot) / min(paid):.0%}" if paid and spot else "–",
    )


def _is_zone(zone: str) -> bool:
    """Local zones and wavelength zones (``use1-bos1-az1``) are not rented."""
    try:
        region_of(zone)
    except FormatError:
        return False
    return True


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e4:
        raise ProviderError(f"AWS told a spot price of {text!r:.40}")
    return value


def _write(path: Path, content: Document) -> None:
    """Write a file of prices in one step: a reader finds the old or the new, never half of one."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=path.name)
        try:
            with os.fdopen(handle, "w", encoding="utf-8") as file:
                json.dump(document(content), file, indent=None, separators=(",", ":"))
            read_document(Path(name))
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
    except FormatError as error:
        raise ProviderError(f"AWS told prices that cannot be: {error}") from None
    except OSError as error:
        raise ProviderError(f"prices cannot be kept in {path} ({error.strerror}); set CLOUDEM_CACHE") from None
