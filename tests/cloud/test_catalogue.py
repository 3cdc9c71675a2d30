"""The catalogue: what is shipped is sound, what was refreshed wins, hostile files are refused with one line."""

import json
import math
from datetime import UTC, date, datetime
from itertools import pairwise

import pytest

from cloudem.cloud.catalogue import STALE_DAYS, Catalogue, Document, PriceRecord, cache_file, document, region_of
from cloudem.cloud.nodes import InstanceType, Pool
from cloudem.errors import FormatError

DAY = 86400.0


@pytest.fixture(scope="module")
def shipped():
    return Catalogue.shipped()


def at(year, month, day):
    return datetime(year, month, day, tzinfo=UTC).timestamp()


def write(path, **changes):
    rows = (
        PriceRecord(
            "g5.xlarge", "use1-az1", "spot", 0.4, 0.3, 0.6, date(2026, 11, 20), "AWS spot price history, 90 days"
        ),
        PriceRecord("g5.xlarge", "use1-az1", "on-demand", 1.0, None, None, date(2026, 11, 20), "AWS price list"),
    )
    raw = document(Document({"x9.new": InstanceType("x9.new", 8, 4, 16.0)}, rows, {}))
    path.write_text(json.dumps({**raw, **changes}))
    return path


@pytest.mark.parametrize(
    ("zone", "region"),
    [
        ("use1-az1", "us-east-1"),
        ("usw2-az4", "us-west-2"),
        ("euc1-az3", "eu-central-1"),
        ("apse2-az3", "ap-southeast-2"),
        ("eun1-az1", "eu-north-1"),
        ("cac1-az4", "ca-central-1"),
        ("usgw1-az2", "us-gov-west-1"),
        ("us-east-1a", "us-east-1"),
        ("local-b", "local"),
    ],
)
def test_region_of_a_zone(zone, region):
    assert region_of(zone) == region


@pytest.mark.parametrize("zone", ["", "us-east-1", "use1", "use1-bos1-az1", "../../etc", "local-z"])
def test_no_region_of_what_is_no_zone(zone):
    with pytest.raises(FormatError, match="no zone"):
        region_of(zone)


def test_every_shipped_row_is_of_a_known_machine_and_spot_is_never_dearer(shipped):
    assert len(shipped.rows) > 500
    for row in shipped.rows:
        assert row.instance_type in shipped.types
        assert math.isfinite(row.usd_per_hour)
        assert 0 < row.usd_per_hour < 1000
        assert len(row.source) > 20
        paid = shipped.price(Pool(row.instance_type, row.zone, "on-demand"))
        assert paid is not None
        assert row.usd_per_hour <= paid.usd_per_hour * 1.0001


def test_shipped_on_demand_prices_are_one_per_region_and_grow_with_the_size(shipped):
    per_region = {}
    for row in shipped.rows:
        if row.market == "on-demand":
            per_region.setdefault((row.instance_type, region_of(row.zone)), set()).add(row.usd_per_hour)
    assert all(len(prices) == 1 for prices in per_region.values())
    per_core = {
        min(per_region[name, "us-east-1"]) / shipped.types[name].vcpus
        for name in shipped.types
        if name.startswith("c7a.")
    }
    assert max(per_core) == pytest.approx(min(per_core), rel=1e-6)


def test_shipped_regions_have_three_zones(shipped):
    assert {"us-east-1", "us-west-2", "eu-central-1", "eu-west-1", "local"} <= set(shipped.regions())
    for region in ("us-east-1", "us-west-2", "eu-central-1"):
        assert len(shipped.zones(region)) >= 3
        assert {region_of(zone) for zone in shipped.zones(region)} == {region}
    assert shipped.zones("mars-north-1") == ()


def test_shipped_machines_are_those_of_aws(shipped):
    g5, c7a, p5 = shipped.types["g5.xlarge"], shipped.types["c7a.8xlarge"], shipped.types["p5.4xlarge"]
    assert (g5.gpu, g5.gpus, g5.quota, g5.network_Gbps) == ("A10G", 1, "G", 2.5)
    assert 22 < g5.gpu_memory_GiB < 24
    assert (c7a.cores, c7a.vcpus, c7a.gpu, c7a.memory_GiB, c7a.quota) == (32, 32, "", 64, "standard")
    assert (p5.gpu, p5.gpus, p5.quota, p5.gpu_memory_GiB) == ("H100", 1, "P", 80)


def test_local_prices_are_marked_as_rehearsal_and_never_stale(shipped):
    assert shipped.zones("local") == ("local-a", "local-b")
    price = shipped.price(Pool("local.2", "local-b", "spot"))
    assert price.usd_per_hour == 0.06
    assert price.source == "rehearsal price, nothing is charged"
    assert not shipped.stale(at(2040, 1, 1), "local")
    assert "nothing is charged" in shipped.about(at(2040, 1, 1), "local")
    assert shipped.rates_in("local").egress_usd_per_GiB == 0


def test_what_is_not_sold_has_no_price(shipped):
    assert shipped.price(Pool("p5.4xlarge", "use1-az1", "spot")) is None
    assert shipped.price(Pool("p5.48xlarge", "euc1-az1", "on-demand")) is None
    assert shipped.price(Pool("no.such", "use1-az1", "spot")) is None


def test_stale_after_thirty_days_and_says_so(shipped):
    oldest, _ = shipped.span("us-east-1")
    then = at(oldest.year, oldest.month, oldest.day)
    assert not shipped.stale(then + STALE_DAYS * DAY)
    assert "stale" not in shipped.about(then + STALE_DAYS * DAY)
    assert shipped.stale(then + (STALE_DAYS + 1) * DAY)
    text = shipped.about(then + (STALE_DAYS + 1) * DAY)
    assert text.startswith(f"shipped snapshot of {oldest}")
    assert "stale" in text
    assert "cloudem prices update" in text


def test_refreshed_prices_win_in_their_region_and_market_alone(shipped, tmp_path):
    both = Catalogue.load(write(tmp_path / "prices.json"))
    assert both.price(Pool("g5.xlarge", "use1-az1", "spot")).usd_per_hour == 0.4
    assert both.spot_range("g5.xlarge", "use1-az1") == (0.3, 0.6)
    # Not offered there any longer: the shipped price of another zone of that region is gone, too.
    assert both.price(Pool("g5.xlarge", "use1-az2", "spot")) is None
    other = Pool("g5.xlarge", "usw2-az1", "spot")
    assert both.price(other) == shipped.price(other)
    assert both.types["x9.new"].cores == 4
    assert not both.is_shipped
    assert shipped.is_shipped
    assert "shipped" not in both.about(at(2026, 11, 21))


def test_without_a_refreshed_file_the_snapshot_is_used(tmp_path, monkeypatch):
    monkeypatch.setenv("CLOUDEM_CACHE", str(tmp_path / "none"))
    assert cache_file() == tmp_path / "none" / "prices.json"
    assert Catalogue.load().is_shipped


@pytest.mark.parametrize(
    "changes",
    [
        {"format": 2},
        {"types": []},
        {"types": {"../x": {}}},
        {"prices": [["g5.xlarge", "use1-az1", "spot", float("nan"), None, None, "2026-01-01", "x"]]},
        {"prices": [["g5.xlarge", "use1-az1", "spot", -1, None, None, "2026-01-01", "x"]]},
        {"prices": [["g5.xlarge", "use1-az1", "spot", 0, None, None, "2026-01-01", "x"]]},
        {"prices": [["g5.xlarge", "use1-az1", "spot", True, None, None, "2026-01-01", "x"]]},
        {"prices": [["g5.xlarge", "use1-az1", "spot", 1e9, None, None, "2026-01-01", "x"]]},
        {"prices": [["g5.xlarge", "use1-az1", "spot", 1, 2, 1, "2026-01-01", "x"]]},
        {"prices": [["g5.xlarge", "use1-az1", "gift", 1, None, None, "2026-01-01", "x"]]},
        {"prices": [["g5.xlarge", "nowhere", "spot", 1, None, None, "2026-01-01", "x"]]},
        {"prices": [["g5.xlarge", ["use1-az1"], "spot", 1, None, None, "2026-01-01", "x"]]},
        {"prices": [["g5.xlarge", "use1-az1", "spot", 1, None, None, "yesterday", "x"]]},
        {"prices": [["g5.xlarge", "use1-az1", "spot", 1, None, None, "2026-01-01", "a\x1b[2Jb"]]},
        {"prices": [["g5.xlarge", "use1-az1", "spot"]]},
        {"prices": [7]},
        {"rates": {"us-east-1": {}}},
    ],
)
def test_hostile_files_are_one_clear_error(tmp_path, changes):
    with pytest.raises(FormatError, match="is no file of prices") as caught:
        Catalogue.load(write(tmp_path / "prices.json", **changes))
    assert len(str(caught.value).splitlines()) == 1
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff\xfe", b"{" * 10_000, b'{"format": 1}', b"[" * 100_000])
def test_files_that_are_no_json_are_one_clear_error(tmp_path, content):
    path = tmp_path / "prices.json"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"prices\.json"):
        Catalogue.load(path)


def test_a_huge_file_is_not_read(tmp_path):
    path = tmp_path / "prices.json"
    with path.open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(FormatError, match="MiB"):
        Catalogue.load(path)


def test_rates_of_an_unknown_region_are_not_the_cheapest(shipped):
    assert shipped.rates == shipped.rates_in("us-east-1")
    assert shipped.rates_in("mars-north-1").disk_usd_per_GiB_month >= shipped.rates.disk_usd_per_GiB_month
    assert shipped.rates.source


def test_shipped_interruption_rates_are_those_of_the_recordings(shipped):
    recorded = pytest.importorskip("benchmarks.traces", reason="the recordings lie beside the package, not in it")
    rates = recorded.interruption_rates()
    assert set(rates) == {"K80", "T4", "V100"}
    assert shipped.interruption_rate("g4dn.xlarge", "us-east-1") == pytest.approx(rates["T4"], abs=5e-4)
    assert "recordings" in shipped.interruptions("g4dn.4xlarge", "eu-west-1").source
    for unknown in ("g6e.xlarge", "c7a.8xlarge", "local.1", "no.such"):
        assert shipped.interruption_rate(unknown, "us-east-1") is None


def test_recordings_are_consistent():
    recorded = pytest.importorskip("benchmarks.traces", reason="the recordings lie beside the package, not in it")
    for trace in recorded.traces().values():
        alive = 0
        for event, following in zip(trace.events, (*trace.events[1:], None), strict=True):
            alive += event.came - event.taken
            assert alive >= 0
            assert event.came + event.taken > 0
            assert following is None or following.at >= event.at
            assert not trace.wanted or alive <= trace.wanted
        assert len(trace.lifetimes_s) in (0, trace.interruptions)
        assert all(life > 0 for life in trace.lifetimes_s)
        once, month = trace.losses(), trace.losses(30 * DAY)
        assert all(0 < share <= 1 for _, share in once)
        assert month[: len(once)] == once
        assert 29 * DAY < month[-1][0] < 30 * DAY
        assert list(month) == sorted(month)


def test_spot_ranges_of_the_snapshot_are_the_recorded_prices(shipped):
    recorded = pytest.importorskip("benchmarks.traces", reason="the recordings lie beside the package, not in it")
    for (name, zone), (earlier, later) in recorded.spot_prices().items():
        assert shipped.price(Pool(name, zone, "spot")).usd_per_hour == later
        assert shipped.spot_range(name, zone) == (min(earlier, later), max(earlier, later))
    assert shipped.spot_range("p4d.24xlarge", "use1-az1") is None


def test_the_recorded_price_history_is_a_history():
    recorded = pytest.importorskip("benchmarks.traces", reason="the recordings lie beside the package, not in it")
    history = recorded.spot_history()
    assert len(history) == 5
    assert sum(map(len, history.values())) == 441
    for changes in history.values():
        assert list(changes) == sorted(changes)
        assert 24 * DAY < changes[-1][0] - changes[0][0] < 25 * DAY
        for (_, before), (_, after) in pairwise(changes):
            assert before != after
            assert abs(after / before - 1) < 0.03
