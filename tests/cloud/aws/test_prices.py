"""Refreshing prices: answers of AWS in AWS's form, put in place of the wire, so that botocore reads, pages, retries."""

import gzip
import json
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from urllib.parse import parse_qs

import pytest
from rich.console import Console

from cloudem.cloud.aws.prices import DAYS, machine, on_demand_prices, refresh, show, weighted_quantiles
from cloudem.cloud.catalogue import Catalogue
from cloudem.cloud.nodes import Pool
from cloudem.errors import FormatError, ParameterError, ProviderError

boto3 = pytest.importorskip("boto3", reason="the aws extra is not installed")
from botocore.awsrequest import AWSResponse  # noqa: E402

from cloudem.cloud.aws.calls import Calls  # noqa: E402

NOW = datetime(2026, 11, 21, 6, 0, tzinfo=UTC)
PAST = NOW - timedelta(days=DAYS)
XMLNS = 'xmlns="http://ec2.amazonaws.com/doc/2016-11-15/"'

ZONES = f"""<DescribeAvailabilityZonesResponse {XMLNS}><requestId>r</requestId><availabilityZoneInfo>
<item><zoneName>us-east-1a</zoneName><zoneId>use1-az4</zoneId><zoneType>availability-zone</zoneType></item>
<item><zoneName>us-east-1b</zoneName><zoneId>use1-az6</zoneId><zoneType>availability-zone</zoneType></item>
<item><zoneName>us-east-1-bos-1a</zoneName><zoneId>use1-bos1-az1</zoneId><zoneType>local-zone</zoneType></item>
</availabilityZoneInfo></DescribeAvailabilityZonesResponse>"""

TYPES = f"""<DescribeInstanceTypesResponse {XMLNS}><requestId>r</requestId><instanceTypeSet><item>
<instanceType>g9.xlarge</instanceType>
<processorInfo><supportedArchitectures><item>x86_64</item></supportedArchitectures></processorInfo>
<vCpuInfo><defaultVCpus>8</defaultVCpus><defaultCores>4</defaultCores></vCpuInfo>
<memoryInfo><sizeInMiB>32768</sizeInMiB></memoryInfo>
<instanceStorageInfo><totalSizeInGB>250</totalSizeInGB></instanceStorageInfo>
<gpuInfo><gpus><item><name>X1</name><count>2</count><memoryInfo><sizeInMiB>24576</sizeInMiB></memoryInfo></item></gpus></gpuInfo>
<networkInfo><defaultNetworkCardIndex>0</defaultNetworkCardIndex><networkCards><item>
<networkCardIndex>0</networkCardIndex><baselineBandwidthInGbps>2.5</baselineBandwidthInGbps></item></networkCards>
</networkInfo></item></instanceTypeSet></DescribeInstanceTypesResponse>"""


def offerings(*pairs):
    items = "".join(
        f"<item><instanceType>{name}</instanceType><locationType>availability-zone-id</locationType>"
        f"<location>{zone}</location></item>"
        for name, zone in pairs
    )
    return (
        f"<DescribeInstanceTypeOfferingsResponse {XMLNS}><requestId>r</requestId><instanceTypeOfferingSet>{items}"
        "</instanceTypeOfferingSet></DescribeInstanceTypeOfferingsResponse>"
    )


def history(entries, token=""):
    items = "".join(
        f"<item><instanceType>{name}</instanceType><productDescription>Linux/UNIX</productDescription>"
        f"<spotPrice>{usd}</spotPrice><timestamp>{when:%Y-%m-%dT%H:%M:%S.000Z}</timestamp>"
        f"<availabilityZone>{zone}</availabilityZone></item>"
        for name, zone, usd, when in entries
    )
    return (
        f"<DescribeSpotPriceHistoryResponse {XMLNS}><requestId>r</requestId><spotPriceHistorySet>{items}"
        f"</spotPriceHistorySet><nextToken>{token}</nextToken></DescribeSpotPriceHistoryResponse>"
    )


def product(usd, unit="Hrs", **attributes):
    term = {"6YS6EN2CT7": {"unit": unit, "beginRange": "0", "endRange": "Inf", "pricePerUnit": {"USD": usd}}}
    return json.dumps(
        {
            "product": {"productFamily": "Compute Instance", "attributes": attributes, "sku": "SKU1"},
            "serviceCode": "AmazonEC2",
            "terms": {"OnDemand": {"SKU1.JRTCKXETXF": {"sku": "SKU1", "priceDimensions": term}}},
            "version": "20261120000000",
        }
    )


class Wire:
    """What is there instead of AWS; all tests share a session, since botocore takes long to read its models."""

    session = None
    current = None

    def __init__(self):
        if Wire.session is None:
            Wire.session = boto3.session.Session("AKIAIOSFODNN7EXAMPLE", "secret", region_name="us-east-1")
            Wire.session.events.register("before-send", lambda **given: Wire.current._answer(**given))
        Wire.current = self
        self.asked = Counter()
        self.fail = {}  # operation -> (HTTP status, code, how often)
        self.offers = [("g5.xlarge", "use1-az4"), ("g5.xlarge", "use1-az6"), ("g5.xlarge", "use1-bos1-az1")]
        self.pages = [
            history([("g5.xlarge", "us-east-1a", "0.500000", PAST - timedelta(days=1))], "more"),
            history(
                [
                    ("g5.xlarge", "us-east-1a", "0.900000", NOW - timedelta(hours=1)),
                    ("g5.xlarge", "us-east-1a", "0.400000", NOW - timedelta(days=45)),
                    ("g5.xlarge", "us-east-1-bos-1a", "0.100000", NOW - timedelta(days=45)),
                ]
            ),
        ]

    def calls(self, region):
        return Calls(region, session=self.session)

    def _answer(self, request, event_name="", **_):
        _, service, operation = event_name.split(".")
        self.asked[operation] += 1
        status, code, times = self.fail.get(operation, (200, "", 0))
        if times:
            self.fail[operation] = (status, code, times - 1)
            body = json.dumps({"__type": code, "message": "no"})
            if service == "ec2":
                body = f"<Response><Errors><Error><Code>{code}</Code><Message>no</Message></Error></Errors></Response>"
        else:
            status, body = 200, getattr(self, operation)(request)
        raw = SimpleNamespace(stream=lambda: iter([body.encode()]), read=lambda: body.encode())
        return AWSResponse(request.url, status, {"Content-Type": "text/xml"}, raw)

    def DescribeAvailabilityZones(self, _):  # noqa: N802
        return ZONES

    def DescribeInstanceTypes(self, _):  # noqa: N802
        return TYPES

    def DescribeInstanceTypeOfferings(self, request):  # noqa: N802
        assert parse_qs(request.body)["LocationType"] == ["availability-zone-id"]
        return offerings(*self.offers)

    def DescribeSpotPriceHistory(self, request):  # noqa: N802
        asked = parse_qs(request.body)
        assert asked["ProductDescription.1"] == ["Linux/UNIX"]
        return self.pages[1 if asked.get("NextToken") == ["more"] else 0]

    def GetProducts(self, request):  # noqa: N802
        assert request.url.startswith("https://api.pricing.us-east-1.")
        asked = json.loads(request.body)
        filters = {f["Field"]: f["Value"] for f in asked["Filters"]}
        if "volumeApiName" in filters:
            return json.dumps({"FormatVersion": "aws_v1", "PriceList": [product("0.0800000000", "GB-Mo", **filters)]})
        free = product("0.0000000000", **filters)  # a reservation of capacity that is used costs nothing more
        if "NextToken" not in asked:
            return json.dumps({"FormatVersion": "aws_v1", "PriceList": [free], "NextToken": "2"})
        return json.dumps({"FormatVersion": "aws_v1", "PriceList": [product("1.0060000000", **filters)]})


@pytest.fixture
def wire(monkeypatch):
    monkeypatch.setattr("botocore.endpoint.time.sleep", lambda seconds: None)
    return Wire()


def test_refresh_asks_for_everything_and_the_catalogue_has_it(wire, tmp_path):
    said = []
    path = tmp_path / "new" / "prices.json"
    types = ["g5.xlarge", "local.1"]
    assert refresh(["us-east-1"], types, said.append, path=path, calls=wire.calls, now=NOW) == path
    known = Catalogue.load(path)
    spot = known.price(Pool("g5.xlarge", "use1-az4", "spot"))
    assert spot.usd_per_hour == 0.9  # the newest of the history
    assert spot.as_of == date(2026, 11, 21)
    assert "history" in spot.source
    assert known.spot_range("g5.xlarge", "use1-az4") == (0.4, 0.5)  # an hour of 90 days is above the 95th percentile
    assert known.price(Pool("g5.xlarge", "use1-az6", "on-demand")) == (1.006, date(2026, 11, 21), "AWS price list")
    assert known.price(Pool("g5.xlarge", "use1-az1", "on-demand")) is None  # not offered there any longer
    assert known.types["g9.xlarge"].gpu_memory_GiB == 24
    assert known.rates_in("us-east-1").disk_usd_per_GiB_month == 0.08
    assert not known.stale(NOW.timestamp(), "us-west-2") or known.span("us-west-2")  # others stay those shipped
    assert said == [
        "us-east-1: 1 machines",
        "us-east-1: 2 on-demand prices",
        "us-east-1: 1 spot prices",
        "us-east-1: 1 price of disks",
    ]
    assert list(tmp_path.rglob("*")) == [path.parent, path]  # nothing of the writing is left


def test_zones_are_not_asked_for_where_the_history_has_their_ids(wire, tmp_path):
    one = history([("g5.xlarge", "us-east-1a", "0.5", NOW)])
    wire.pages[0] = one.replace(
        "<availabilityZone>", "<availabilityZoneId>use1-az6</availabilityZoneId><availabilityZone>"
    )
    path = refresh(["us-east-1"], ["g5.xlarge"], lambda s: None, path=tmp_path / "p.json", calls=wire.calls, now=NOW)
    assert Catalogue.load(path).price(Pool("g5.xlarge", "use1-az6", "spot")).usd_per_hour == 0.5
    assert wire.asked["DescribeAvailabilityZones"] == 0


def test_throttling_is_retried(wire, tmp_path):
    wire.fail = {
        "DescribeSpotPriceHistory": (503, "RequestLimitExceeded", 2),
        "GetProducts": (400, "ThrottlingException", 2),
    }
    said = []
    refresh(["us-east-1"], ["g5.xlarge"], said.append, path=tmp_path / "p.json", calls=wire.calls, now=NOW)
    assert wire.asked["DescribeSpotPriceHistory"] == 4  # two refused, two pages
    assert not [line for line in said if "not refreshed" in line]


@pytest.mark.parametrize(
    ("operation", "part"),
    [
        ("DescribeInstanceTypes", "machines"),
        ("DescribeInstanceTypeOfferings", "on-demand prices"),
        ("DescribeAvailabilityZones", "spot prices"),
        ("DescribeSpotPriceHistory", "spot prices"),
    ],
)
def test_what_was_refused_stays_and_is_said(wire, tmp_path, operation, part):
    path = tmp_path / "prices.json"
    refresh(["us-east-1"], ["g5.xlarge"], lambda line: None, path=path, calls=wire.calls, now=NOW)
    before = Catalogue.load(path)
    wire.fail = {operation: (403, "UnauthorizedOperation", 99)}
    said = []
    later = NOW + timedelta(days=3)
    refresh(["us-east-1"], ["g5.xlarge"], said.append, path=path, calls=wire.calls, now=later)
    after = Catalogue.load(path)
    refused = [line for line in said if "not refreshed" in line]
    assert len(refused) == 1
    assert refused[0].startswith(f"us-east-1: {part} not refreshed")
    assert "UnauthorizedOperation" in refused[0]
    for market, name in (("spot", "spot prices"), ("on-demand", "on-demand prices")):
        pool = Pool("g5.xlarge", "use1-az4", market)
        assert after.price(pool).as_of == (before.price(pool).as_of if part == name else later.date())


def test_where_nothing_was_told_nothing_is_written(wire, tmp_path):
    every = ("DescribeInstanceTypes", "DescribeInstanceTypeOfferings", "DescribeSpotPriceHistory", "GetProducts")
    wire.fail = dict.fromkeys(every, (403, "UnauthorizedOperation", 99))
    said = []
    with pytest.raises(ProviderError, match="no prices were refreshed"):
        refresh(["us-east-1"], ["g5.xlarge"], said.append, path=tmp_path / "p.json", calls=wire.calls, now=NOW)
    assert len(said) == 4
    assert not list(tmp_path.iterdir())


def test_an_answer_of_another_form_is_no_traceback(wire, tmp_path):
    wire.GetProducts = lambda request: json.dumps({"PriceList": ["{}"]})
    wire.DescribeInstanceTypes = lambda request: TYPES.replace("memoryInfo", "memory")
    said = []
    refresh(["us-east-1"], ["g5.xlarge"], said.append, path=tmp_path / "p.json", calls=wire.calls, now=NOW)
    assert sum("not refreshed" in line and "form" in line for line in said) == 3


def test_prices_that_cannot_be_are_not_kept(wire, tmp_path):
    wire.pages[0] = history([("g5.xlarge", "us-east-1a", "-3", NOW)])
    said = []
    refresh(["us-east-1"], ["g5.xlarge"], said.append, path=tmp_path / "p.json", calls=wire.calls, now=NOW)
    assert any("spot prices not refreshed" in line for line in said)


@pytest.mark.parametrize("regions", [[], ["local"]])
def test_a_region_must_be_named(wire, regions):
    with pytest.raises(ParameterError, match="us-east-1"):
        refresh(regions, [], calls=wire.calls)


def test_a_folder_that_cannot_be_read_or_written_is_one_line(wire, tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "p.json", Path("/proc/none/p.json")):
        with pytest.raises((FormatError, ProviderError), match="set CLOUDEM_CACHE"):
            refresh(["us-east-1"], ["g5.xlarge"], lambda s: None, path=path, calls=wire.calls, now=NOW)


def test_quantiles_are_weighted_by_time():
    assert weighted_quantiles([(PAST, 2.0)], PAST, NOW) == (2.0, 2.0)
    assert weighted_quantiles([(NOW, 1.0), (NOW, 3.0)], PAST, NOW) == (1.0, 3.0)
    changes = [(PAST + timedelta(days=d), 1.0 + d) for d in range(90)]
    low, high = weighted_quantiles(changes, PAST, NOW)
    assert (low, high) == (pytest.approx(1 + 0.05 * 90, abs=1.01), pytest.approx(1 + 0.95 * 90, abs=1.01))
    # What held before the window counts only from its start.
    assert weighted_quantiles([(PAST - timedelta(days=900), 9.0), (PAST + timedelta(days=1), 1.0)], PAST, NOW) == (
        1.0,
        1.0,
    )


def test_products_without_a_price_are_left_out():
    assert list(on_demand_prices(product("0.0000000000"))) == []
    assert list(on_demand_prices(product("2.5"))) == [(2.5, "Hrs")]
    with pytest.raises(ProviderError, match="form"):
        list(on_demand_prices("[1]"))


def test_shipped_machines_are_what_ec2_tells():
    path = pytest.importorskip("moto", reason="moto has AWS's own description of its machines").__path__[0]
    raw = json.loads(gzip.decompress((Path(path) / "ec2/resources/instance_types.json.gz").read_bytes()))
    shipped = Catalogue.shipped().types
    compared = 0
    for name in shipped.keys() & raw.keys():
        told, kept = machine(raw[name]), shipped[name]
        for key in ("vcpus", "cores", "memory_GiB", "gpu", "gpus", "network_Gbps", "architecture", "quota"):
            assert getattr(told, key) == getattr(kept, key), (name, key)
        assert told.nvme_GiB == pytest.approx(kept.nvme_GiB, abs=0.1)
        assert told.gpu_memory_GiB == pytest.approx(kept.gpu_memory_GiB, abs=0.01)
        compared += 1
    assert compared > 20


def test_the_table_shows_what_fits(capsys):
    console = Console(width=140)
    shipped = Catalogue.shipped()
    console.print(show(shipped, "us-east-1", "g5"))
    text = capsys.readouterr().out
    assert "g5.xlarge" in text
    assert "1.006" in text
    assert "c7a" not in text
    assert "shipped snapshot" in text
    with pytest.raises(ParameterError, match="fits"):
        show(shipped, "us-east-1", "zz")
    with pytest.raises(ParameterError, match="no prices of"):
        show(shipped, "mars-north-1")
    console.print(show(shipped, "local"))
    assert "nothing is charged" in capsys.readouterr().out
