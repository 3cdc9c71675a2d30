"""Micrographs on the page of a job: table, pictures, details, and what limits, lists and edited picks become."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import shlex
import shutil
import time
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pytest
from PIL import Image

from cloudem.errors import ParameterError
from cloudem.io.micrographs.images import thumbnail_of
from cloudem.io.micrographs.tables import read_micrograph_table
from cloudem.io.storage.groups import delete_group, read_group, write_group
from cloudem.jobs.live import LIVE_FILE, Live
from cloudem.jobs.report import write_report
from cloudem.jobs.select_micrographs import LIMITS, SelectMicrographs
from cloudem.jobs.toml import step_toml, value_toml
from cloudem.model.table import TEXT
from cloudem.report.micrograph_columns import LISTED
from cloudem.runs.workflow import read_workflow
from cloudem.serve.choosing import WATCHED_FILE
from cloudem.serve.edited_picks import HEADING
from cloudem.serve.micrograph_pages import rows_of
from cloudem.serve.micrograph_pictures import picture_of, without_noise
from cloudem.serve.pages import Pages
from tests.jobs.conftest import run
from tests.serve.browser import browser, needs_chromium
from tests.serve.conftest import TOKEN, Site, served
from tests.serve.sessions import make_session

COUNT, ROWS, COLUMNS = 60, 160, 200
TABLE = "/job/ctf/-/micrographs"


def made(folder: Path) -> Path:
    random = np.random.default_rng(1)
    images = [random.normal(100, 20, (ROWS, COLUMNS)).astype(np.float32) for _ in range(3)]
    make_session(folder, COUNT, images, pixel_size=14.0, spectra=3)
    return folder


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project that nobody may change."""
    folder = made(tmp_path_factory.mktemp("session") / "it's one")
    lists = folder / "bad.txt"
    names = read_micrograph_table(folder / "ctf")["micrograph"].tolist()
    lists.write_text(f"{names[4]}\n")
    run(
        SelectMicrographs(
            micrographs=str(folder / "ctf"), max_motion_A=22.0, remove=str(lists), out=str(folder / "good")
        )
    )
    return folder


@pytest.fixture(scope="module")
def looked(session: Path) -> Iterator[Site]:
    with served(session) as found:
        yield found


@pytest.fixture
def writing(tmp_path: Path) -> Iterator[Site]:
    with served(made(tmp_path / "project"), allow_writing=True) as found:
        yield found


def answered(site: Site, address: str, **given: Any) -> Any:
    answer = site.get(address, **given)
    assert answer.status == 200, answer.text
    return json.loads(answer.body)


def names_in(project: Path) -> list[str]:
    found: list[str] = read_micrograph_table(project / "ctf")["micrograph"].tolist()
    return found


def test_the_table_says_all_numbers_in_the_units_that_are_shown(looked: Site, session: Path) -> None:
    found, table = answered(looked, TABLE), read_micrograph_table(session / "ctf")
    assert found["names"] == table["micrograph"].tolist()
    columns = {column["key"]: column for column in found["columns"]}
    assert columns["defocus"]["unit"] == "µm"
    mean = 0.5e-4 * (table["defocus_u"] + table["defocus_v"])
    known = [number for number, value in enumerate(columns["defocus"]["values"]) if value is not None]
    assert len(known) == COUNT - 1
    assert np.abs(np.array(columns["defocus"]["values"])[known].astype(float) - mean[known]).max() < 0.006
    assert columns["defocus"]["options"] == {"least": "min_defocus_A", "most": "max_defocus_A"}
    assert columns["motion_total"]["options"] == {"most": "max_motion_A"}
    assert found["problems"] == {"50": "has 12 of 40 frames only"}
    assert columns["bits"]["values"][50] is not None
    assert answered(looked, "/job/picks/-/micrographs")["columns"][5]["key"] == "pick_count"


def test_every_limit_of_the_selection_is_of_a_column_that_is_shown() -> None:
    assert {name for name, _, _ in LIMITS.values()} <= {column.name for column in LISTED}


def test_a_selection_shows_what_it_has_put_aside_and_how(looked: Site, session: Path) -> None:
    found, names = answered(looked, "/job/good/-/micrographs"), names_in(session)
    assert found["names"] == names
    assert (found["limits"], found["remove"], found["keep"]) == ({"max_motion_A": 22.0}, [4], [])
    kept = read_micrograph_table(session / "good")
    chosen = answered(looked, "/job/good/-/micrographs/choice?max_motion_A=22&remove=4")
    assert (chosen["stay"], chosen["count"]) == (len(kept), COUNT)
    aside = answered(looked, f"/job/good/-/micrograph/details/{quote(names[4])}")["aside"]
    assert aside == "is in the list --remove"


@pytest.mark.parametrize("kind", ["small", "large", "smooth", "spectrum"])
def test_pictures_are_jpegs_with_the_first_row_at_the_top(looked: Site, session: Path, kind: str) -> None:
    name = names_in(session)[1]
    answer = looked.get(f"/job/picks/-/micrograph/{kind}/{name}")
    assert (answer.status, answer.headers["Content-Type"]) == (200, "image/jpeg")
    picture = np.asarray(Image.open(io.BytesIO(answer.body))).astype(float)
    if kind == "spectrum":
        stored = read_group(session / "ctf", f"spectra/{name}")[0]["picture"][::-1].astype(float)
        assert np.abs(picture - stored).mean() < 12
    elif kind == "large":
        image, _ = read_group(read_micrograph_table(session / "ctf")["image"][1], "")
        assert np.corrcoef(picture.ravel(), thumbnail_of(image["sum"].astype(np.float32)).ravel())[0, 1] > 0.95


def test_what_a_page_shows_of_one_micrograph_comes_from_the_jobs_before(looked: Site, session: Path) -> None:
    name = names_in(session)[2]
    found = answered(looked, f"/job/picks/-/micrograph/details/{name}")
    numbers = {heading: text for heading, text, _ in found["numbers"]}
    assert numbers["defocus"].endswith(" µm")
    assert numbers["picks"] == str(len(found["picks"]["at"]))
    assert found["picks"]["diameter_A"] == 130
    assert (found["shape"], found["pixel_size_A"]) == ([ROWS, COLUMNS], 14.0)
    assert found["spectrum"]["highest"] == pytest.approx(1 / 3)
    assert len(found["spectrum"]["data"]) == 256
    tracks, _ = read_group(session / "motion", "result")
    track = np.stack([tracks["each_x"], tracks["each_y"]], 1)[2 * 40 : 3 * 40]
    np.testing.assert_allclose(found["track"], track - track[0], atol=0.006)
    motion = answered(looked, f"/job/motion/-/micrograph/details/{name}")
    assert motion["picks"] is None
    assert motion["spectrum"] is None


@pytest.mark.parametrize(
    "address",
    [
        "/job/picks/-/micrograph/small/nobody",
        "/job/picks/-/micrograph/small/..%2F..%2Fmotion",
        "/job/picks/-/micrograph/details/nobody",
        "/job/picks/-/micrograph/other/nobody",
        "/job/nothing/-/micrographs",
        "/job/nothing/-/micrographs/choice?max_motion_A=1",
    ],
)
def test_what_there_is_not_is_not_found(looked: Site, address: str) -> None:
    assert looked.get(address).status == 404


def test_a_picture_that_is_lost_or_elsewhere_is_refused_in_words(looked: Site, tmp_path: Path) -> None:
    for place in ("https://example.org/a.mrc", "s3://bucket/images/a", str(tmp_path / "a.mrc")):
        with pytest.raises((ParameterError, FileNotFoundError)):
            picture_of(place, 1.0, "small", str(tmp_path))


def test_where_an_image_is_lost_the_page_says_why(tmp_path: Path) -> None:
    project = made(tmp_path / "project")
    shutil.rmtree(project / "motion" / "images" / "image-1")
    with served(project) as site:
        answer = site.get(f"/job/ctf/-/micrograph/small/{names_in(project)[1]}")
        assert answer.status == 404
        assert "image-1" in answer.text
        assert site.get(f"/job/ctf/-/micrograph/small/{names_in(project)[2]}").status == 200


def test_a_picture_without_noise_shows_what_is_of_the_size_of_particles() -> None:
    y, x = np.mgrid[:256, :256]
    discs = sum(np.exp(-((x - 128 + a) ** 2 + (y - 128) ** 2) / 200) for a in (-60, 0, 60))
    noisy = discs + np.random.default_rng(0).normal(0, 0.4, (256, 256)) + x / 100
    before, after = (np.corrcoef(each.ravel(), discs.ravel())[0, 1] for each in (noisy, without_noise(noisy, 4.0)))
    assert after > max(2 * before, 0.5)


def test_limits_and_lists_become_a_command_and_a_step_that_do_what_the_page_said(
    looked: Site, session: Path, tmp_path: Path
) -> None:
    found = answered(looked, f"{TABLE}/choice?max_motion_A=21.5&max_ctf_resolution_A=6&remove=3,7-9&keep=0")
    words = shlex.split(found["command"])
    assert words[:3] == ["cloudem", "select-micrographs", f"{session}/ctf"]
    assert words[words.index("--max-motion-A") + 1] == "21.5"
    names = names_in(session)
    lists = {"good-2-remove.txt": [names[n] for n in (3, 7, 8, 9)], "good-2-keep.txt": [names[0]]}
    assert {file: text.split() for file, text in found["lists"].items()} == lists
    step = tomllib.loads(found["step"])["step"][0]
    assert step == {
        "job": "select_micrographs", "name": "good-2", "micrographs": "ctf", "max_motion_A": 21.5,
        "max_ctf_resolution_A": 6, "keep": "good-2-keep.txt", "remove": "good-2-remove.txt",
    }  # fmt: skip
    for file, text in found["lists"].items():
        (tmp_path / file).write_text(text)
    given = {name: str(tmp_path / f"good-2-{name}.txt") for name in ("keep", "remove")}
    job = SelectMicrographs(micrographs=str(session / "ctf"), max_motion_A=21.5, max_ctf_resolution_A=6.0,
                            **given, out=str(tmp_path / "out"))  # fmt: skip
    run(job)
    assert len(read_micrograph_table(tmp_path / "out")) == found["stay"]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ("max_motion_A=x", "needs a number"),
        ("max_motion_A=nan", "is no limit"),
        ("max_motion_A=-1", "max-motion-A"),
        ("remove=60", "is no row of 60 micrographs"),
        ("remove=1;2", "is no row"),
        ("version=before&max_motion_A=3", "have changed meanwhile"),
    ],
)
def test_what_makes_no_sense_is_refused_in_words(looked: Site, asked: str, said: str) -> None:
    answer = looked.get(f"{TABLE}/choice?{asked}")
    assert answer.status == 400
    assert said in json.loads(answer.body)["problem"]


def test_rows_are_read_as_ranges() -> None:
    assert list(rows_of("0,5-7,9", 10)) == [0, 5, 6, 7, 9]
    assert list(rows_of("", 10)) == []


def test_nothing_is_written_unless_that_was_allowed(looked: Site, session: Path) -> None:
    before = sorted(path.name for path in session.iterdir())
    assert looked.get(f"{TABLE}/choice?max_motion_A=30", method="POST").status == 405
    assert looked.get(f"{TABLE}/picks", method="POST").status in (404, 405)
    assert looked.pages.micrographs.write_choice("ctf", {"max_motion_A": "30"}) is None
    assert looked.pages.micrographs.write_picks("picks", b"{}") is None
    assert sorted(path.name for path in session.iterdir()) == before


def test_what_is_written_is_a_workflow_that_runs(writing: Site, tmp_path: Path) -> None:
    project = tmp_path / "project"
    found = answered(writing, f"{TABLE}/choice?max_motion_A=21.5&remove=3", method="POST")
    assert found["written"] == f"{project}/good.toml"
    (step,) = read_workflow(found["written"]).steps
    run(step.job)
    assert len(read_micrograph_table(project / "good")) == found["stay"]
    assert names_in(project)[3] not in read_micrograph_table(project / "good")["micrograph"].tolist()
    cookie = writing.get(f"/?token={TOKEN}", token="").headers["Set-Cookie"].split(";")[0]
    for address in (f"{TABLE}/choice?max_motion_A=3", f"{TABLE}/picks"):
        assert writing.get(address, token="", method="POST", Cookie=cookie).status == 403
        assert writing.get(address, token="", method="POST").status == 401


def test_the_workflow_of_a_session_that_is_watched_takes_the_limits(writing: Site, tmp_path: Path) -> None:
    project = tmp_path / "project"
    step = step_toml("select_micrographs", "good", {"micrographs": "ctf", "max_motion_A": 60, "min_ctf_score": 0.1})
    text = f'# mine\nproject = {value_toml(str(project))}\n\n{step}\n[[step]]\njob = "mask"  # stays\n'
    (project / WATCHED_FILE).write_text(text)
    found = answered(writing, f"{TABLE}/choice?max_motion_A=25&max_ice=2", method="POST")
    assert (found["file"], found["said"]) == (WATCHED_FILE, "step good of live.toml takes these limits and lists then")
    assert found["then"].startswith("cloudem watch --workflow ")
    after = (project / WATCHED_FILE).read_text()
    lines = [set(each.splitlines()) for each in (text, after)]
    assert lines[0] - lines[1] == {"max_motion_A = 60", "min_ctf_score = 0.1"}
    assert lines[1] - lines[0] == {"max_motion_A = 25", "max_ice = 2"}


def test_edited_picks_become_a_file_and_the_step_that_reads_it(writing: Site, tmp_path: Path) -> None:
    project, names = tmp_path / "project", names_in(tmp_path / "project")
    version = answered(writing, "/job/picks/-/micrographs")["version"]
    before = writing.get("/job/picks/-/micrographs/picks.star").text
    body = {"version": version, "picks": {"1": [[10.5, 20, None], [30, 40.25, 0.5]], "2": []}}
    found = writing.pages.micrographs.write_picks("picks", json.dumps(body).encode())
    assert found is not None
    assert found["written"] == f"{project}/picks-edited.star"
    text = (project / "picks-edited.star").read_text()
    assert text.startswith(HEADING)
    rows = [line.split() for line in text.removeprefix(HEADING).splitlines()]
    assert [row[1:] for row in rows if row[0] == names[1]] == [["10.50", "20.00", "0"], ["30.00", "40.25", "0.5"]]
    assert not any(row[0] == names[2] for row in rows)
    others = [line for line in before.splitlines() if not line.startswith((f"{names[1]} ", f"{names[2]} "))]
    assert [line for line in text.splitlines() if not line.startswith(f"{names[1]} ")] == others
    step = tomllib.loads((project / "picks-edited.toml").read_text())["step"][0]
    assert step == {
        "job": "import_coordinates", "name": "picks-edited", "micrographs": "picks", "coordinates": "picks-edited.star"
    }  # fmt: skip
    again = writing.pages.micrographs.write_picks(
        "ctf", json.dumps({**body, "version": answered(writing, TABLE)["version"]}).encode()
    )
    assert again is not None
    assert again["star_file"] == "picks-edited-2.star"


def test_only_whoever_may_write_sends_more_than_a_line(writing: Site, tmp_path: Path) -> None:
    version = answered(writing, "/job/picks/-/micrographs")["version"]
    body = json.dumps({"version": version, "picks": {"1": [[n, n, None] for n in range(400)]}})

    def send(body: str, **headers: str) -> int:
        connection = http.client.HTTPConnection("127.0.0.1", writing.port, timeout=20)
        try:
            connection.request("POST", "/job/picks/-/micrographs/picks", body, headers)
            return connection.getresponse().status
        except OSError:
            return 0  # hung up on
        finally:
            connection.close()

    assert len(body) > 4096
    assert send(body) in (0, 401)
    assert not (tmp_path / "project/picks-edited.star").exists()
    assert send(body, Authorization=f"token {TOKEN}") == 200
    assert (tmp_path / "project/picks-edited.star").read_text().count(f"{names_in(tmp_path / 'project')[1]} ") == 400
    assert send(" " * (2 << 20), Authorization=f"token {TOKEN}") in (0, 400)


@pytest.mark.parametrize(
    "body",
    [
        b"", b"[]", b'{"version": "other", "picks": {"0": [[1, 2, 3]]}}', b'{"version": "%s", "picks": {}}',
        b'{"version": "%s", "picks": {"60": [[1, 2, 3]]}}', b'{"version": "%s", "picks": {"0": [[1, 2]]}}',
        b'{"version": "%s", "picks": {"0": [[1, 1e99, 3]]}}', b'{"version": "%s", "picks": {"a": [[1, 1, 3]]}}',
    ],
)  # fmt: skip
def test_what_is_no_list_of_picks_is_refused(session: Path, body: bytes) -> None:
    pages = Pages(str(session))
    pages.writes = True
    version = json.loads(pages.micrographs.table("picks") or "")["version"]
    with pytest.raises(ParameterError):
        pages.micrographs.write_picks("picks", body.replace(b"%s", version.encode()))
    assert not (session / "picks-edited.star").exists()


def test_a_page_hears_that_there_are_more_micrographs(tmp_path: Path) -> None:
    project = made(tmp_path / "project")
    pages = Pages(str(project))
    before = pages.job_news("ctf") or {}
    assert before["micrographs"]
    assert (pages.job_news("ctf") or {})["micrographs"] == before["micrographs"]
    make_session(project, COUNT + 5, [np.random.default_rng(0).random((ROWS, COLUMNS)).astype(np.float32)], spectra=0)
    write_group(project / "ctf", "result", {}, {"micrograph_count": COUNT + 5})
    after = pages.job_news("ctf") or {}
    assert after["micrographs"] != before["micrographs"]
    assert len(json.loads(pages.micrographs.table("ctf") or "")["names"]) == COUNT + 5


def test_micrographs_of_a_job_that_runs_come_as_they_are_done(tmp_path: Path) -> None:
    project = made(tmp_path / "project")
    table = read_micrograph_table(project / "ctf")
    for group in ("micrographs", "result"):
        delete_group(str(project / "ctf"), group)
    live = Live(job="estimate_ctf", began=time.time(), updated=time.time() + 1e5, stage="micrographs")
    (project / "ctf" / LIVE_FILE).write_text(live.model_dump_json())
    pages = Pages(str(project))
    pages.micrographs.reading_share = 1e9
    assert (pages.job_news("ctf") or {})["micrographs"] == ""
    assert pages.micrographs.table("ctf") is None
    versions = set()
    for number, rows in enumerate(([7, 3], [11])):
        part = {name: table[name][rows] for name in ("defocus_u", "defocus_v", "ctf_fit_resolution", "problem")}
        key = np.array([f"{table['micrograph'][row]} 0123abc" for row in rows], TEXT)
        write_group(project / "ctf", f"parts/{number}", {"key": key, **part}, {})
        versions.add((pages.job_news("ctf") or {})["micrographs"])
        found = json.loads(pages.micrographs.table("ctf") or "")
        assert found["names"] == [str(table["micrograph"][row]) for row in ([7, 3], [7, 3, 11])[number]]
        columns = {column["key"]: column for column in found["columns"]}
        assert columns["motion_total"]["values"][0] == pytest.approx(table["motion_total"][7], abs=0.01)
        assert columns["ctf_fit_resolution"]["values"][1] == pytest.approx(table["ctf_fit_resolution"][3], abs=0.01)
    assert len(versions) == 2
    name = found["names"][0]
    assert json.loads(pages.micrographs.details("ctf", name) or "")["track"]
    assert pages.micrographs.picture("ctf", "small", name)


def test_extracted_particles_link_to_the_page_of_their_micrographs(session: Path, tmp_path: Path) -> None:
    project = made(tmp_path / "project")
    said = {
        "kind": "result",
        "job": "extract",
        "parameters": {"micrographs": str(project / "picks"), "out": str(project / "particles")},
    }
    write_group(project / "particles", "", {}, said)
    write_group(project / "particles", "result", {}, {})
    page = Pages(str(project)).job("particles") or ""
    assert '<a href="../job/picks">the page of picks</a>' in page
    assert 'data-micrographs=""' in page


def test_the_report_has_the_session_and_a_dozen_pictures(session: Path) -> None:
    write_report(str(session / "good"))
    page = (session / "good/report.html").read_text()
    assert "<h2>Session</h2>" in page
    assert page.count("data:image/jpeg") == 12
    assert "put aside: " in page
    assert "of 60 micrographs, evenly over the session" in page
    shown = Pages(str(session)).sections("good") or ""
    assert "<h2>Session</h2>" not in shown  # the page has its own


@needs_chromium
def test_a_session_is_looked_through_in_a_browser(writing: Site, tmp_path: Path) -> None:
    project = tmp_path / "project"

    async def look() -> None:
        async with browser() as tab:
            await tab.open(f"http://localhost:{writing.port}/job/picks?token={TOKEN}")
            await tab.until("document.getElementById('micrographs').dataset.ready === '1'")
            assert await tab.value("document.querySelectorAll('.session-plots figure').length") == 8
            assert await tab.value("document.querySelectorAll('.micrograph-list figure').length") == 24
            await tab.drag(".session-plots figure:nth-child(3) .handle .hold", 0, 40)
            await tab.until("document.querySelector('.choice pre').innerText.includes('--max-motion-A')")
            await tab.value("document.querySelector('.micrograph-list figure').focus()")
            await tab.value("document.activeElement.dispatchEvent(new KeyboardEvent('keydown', {key: 'x'}))")
            await tab.until("document.querySelector('.choice').innerText.includes('by hand')")
            await tab.until(
                "document.querySelector('.choice .write').innerText.startsWith('Write good.toml and good-')"
            )
            await tab.value("document.querySelector('.choice .write').click()")
            await tab.until("document.querySelector('.choice').innerText.includes('Written: ')")
            await tab.value("document.querySelectorAll('.micrograph-list figure')[1].click()")
            await tab.until("document.querySelectorAll('.over circle').length > 9")
            await tab.until(
                "document.querySelector('svg.curve .model') && document.querySelector('.track .frames') && true"
            )
            before = await tab.value("document.querySelector('.micrograph-view b').innerText")
            await press(tab, "ArrowRight")
            await tab.until("document.querySelectorAll('.over circle').length > 9")
            assert await tab.value("document.querySelector('.micrograph-view b').innerText") != before
            count = int(await tab.value("document.querySelectorAll('.over circle').length"))
            await tab.value("document.querySelectorAll('.view-image input')[2].click()")
            await tab.value(CLICK)
            await tab.until(f"document.querySelectorAll('.over circle').length === {count + 1}")
            await tab.value("document.querySelector('.micrograph-view').close()")
            await tab.value("document.querySelectorAll('.choice .write')[1].click()")
            await tab.until("document.querySelectorAll('.choice')[1].innerText.includes('Written: ')")
            assert (tab.complaints, tab.failures) == ([], [])

    asyncio.run(look())
    (step,) = read_workflow(str(project / "good.toml")).steps
    given = step.job.model_dump()
    assert given["max_motion_A"] > 0
    assert {"good-keep.txt", "good-remove.txt"} & {path.name for path in project.iterdir()}
    star = (project / "picks-edited.star").read_text()
    assert len(star.splitlines()) == len(writing.get("/job/picks/-/micrographs/picks.star").text.splitlines()) + 1


CLICK = """(() => {
  const over = document.querySelector('.over'), box = over.getBoundingClientRect();
  const { width, height } = over.viewBox.baseVal, keys = ['cx', 'cy', 'r'];
  const circles = [...over.querySelectorAll('circle')].map((each) => keys.map((key) => each[key].baseVal.value));
  for (let x = 2; x < width; x += 2) {
    for (let y = 2; y < height; y += 2) {
      if (circles.some(([a, b, r]) => Math.hypot(a - x, b - y) < r + 2)) { continue; }
      const at = { clientX: box.x + x / width * box.width, clientY: box.y + y / height * box.height };
      over.dispatchEvent(new MouseEvent('click', { ...at, bubbles: true }));
      return true;
    }
  }
})()"""
"""Clicks where there is no pick."""


async def press(tab: Any, key: str) -> None:
    given = f"{{key: '{key}', bubbles: true}}"
    await tab.value(f"document.querySelector('.micrograph-view').dispatchEvent(new KeyboardEvent('keydown', {given}))")
