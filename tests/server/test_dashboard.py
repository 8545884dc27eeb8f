"""The operator's page, in a real browser: what it shows, and what nobody can make it do."""

import dataclasses
import itertools
import json
import logging
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import pytest
from fedtune_server.dashboard import dashboard
from fedtune_server.project import Project, revoke
from selenium.webdriver import Chrome, ChromeOptions, ChromeService
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from fedtune.cli.serving import until_stopped
from fedtune.serving.served import Served
from tests.server.conftest import HOSTILE, LOSSES, Runs, failure, report

FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)
CONTRASTS = (Path(__file__).parent / "contrasts.js").read_text()


@pytest.fixture(scope="module")
def chrome(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    programs = [shutil.which(name) for name in ("chromium", "chromedriver")]
    if None in programs:
        why = "no chromium and chromedriver: apt-get install chromium chromium-driver"
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(why)
    options = ChromeOptions()
    options.binary_location = str(programs[0])
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('chromium')}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = Chrome(options, ChromeService(str(programs[1])))
    yield driver
    driver.quit()


@dataclass(frozen=True)
class Page:
    """The dashboard of a project, and a browser that looks at it."""

    chrome: Chrome
    url: str

    def open(self, query: str = "?refresh=off", width: int = 1280, scheme: str = "light") -> str:
        """Show it; give what is to be read."""
        self.chrome.get("about:blank")
        for log in ("browser", "performance"):
            self.chrome.get_log(log)
        self.chrome.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False},
        )
        wanted = [{"name": "prefers-color-scheme", "value": scheme}]
        self.chrome.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": wanted})
        self.chrome.get(self.url + query)
        return self.text()

    def text(self) -> str:
        return self.chrome.find_element(By.TAG_NAME, "body").text

    def all(self, css: str) -> list[Any]:
        return self.chrome.find_elements(By.CSS_SELECTOR, css)

    def requested(self) -> list[str]:
        """The addresses of all that the browser has asked for since `open`."""
        events = [json.loads(e["message"])["message"] for e in self.chrome.get_log("performance")]
        asked = [e["params"] for e in events if e["method"] == "Network.requestWillBeSent"]
        return [params["request"]["url"] for params in asked]

    def complaints(self) -> list[str]:
        """What the browser's console says."""
        return [entry["message"] for entry in self.chrome.get_log("browser")]


@pytest.fixture
def url(project: Project) -> Iterator[str]:
    served = Served(dashboard(project), "127.0.0.1")
    yield f"http://127.0.0.1:{served.start()}/"
    served.stop()


@pytest.fixture
def page(chrome: Chrome, url: str) -> Page:
    return Page(chrome, url)


@pytest.fixture
def busy(runs: Runs) -> Runs:
    """A finished run, a running private one, and one that failed with refusals."""
    rounds = [report(number) for number in range(1, 7)]
    rounds[3] = report(4, silos=["north", "south"], failures=[failure("west", "late", "")])
    runs.run("finished", "finished", rounds)
    runs.run(
        "private",
        "running",
        [report(n, loss=None, seconds=None) for n in (1, 2)],
        settings={"privacy": {"mode": "local", "target_epsilon": 4.0, "unit": "patient"}},
    )
    refused = [failure("north", detail="refused by the silo's policy"), failure("south")]
    given_up = report(1, silos=["west"], failures=refused)
    runs.run(
        "failed",
        "failed",
        [],
        reason=f"round 1: 1 good replies\n  south: client_error: {HOSTILE}",
        given_up=dataclasses.asdict(given_up),
    )
    return runs


def rows(page: Page, section: str) -> list[str]:
    return [row.text for row in page.all(f"section[aria-labelledby={section}] tbody tr")]


def test_a_finished_run_is_shown_with_its_losses(page: Page, busy: Runs):
    text = page.open("?refresh=off&run=finished")
    assert "Run finished finished" in text
    assert [row.split()[:2] for row in rows(page, "run")] == [
        [str(number), f"{LOSSES[number - 1]:.4f}"] for number in range(6, 0, -1)
    ]
    assert "2 north, south west 937.0 kB 1.9 MB 3.2" in rows(page, "run")[2]
    (picture,) = page.all("figure img")
    assert picture.get_property("naturalWidth") > 600
    assert "No differential privacy" in text
    assert "west unknown 5 of 6 round 4: late" in " ".join(rows(page, "silos"))


def test_a_private_run_shows_its_promise_and_neither_losses_nor_seconds(page: Page, busy: Runs):
    text = page.open()  # what is at work comes first
    assert "Run private running when last heard of" in text
    assert "at most 4 for all 6 rounds together" in text
    assert "one patient of a silo" in text
    assert "Charged in each silo's own ledger" in text
    assert "north, south, west" in text
    assert "No losses to draw" in text
    assert page.all("figure") == []
    heads = [head.text for head in page.all("section[aria-labelledby=run] thead th")]
    assert "Bytes up" in heads
    assert "Seconds" not in heads


def test_a_failed_run_shows_who_refused_and_runs_none_of_their_words(page: Page, busy: Runs):
    text = page.open("?refresh=off&run=failed")
    assert page.chrome.title == "Trial: fedtune coordinator"
    assert page.all("main script") == []
    assert text.count(HOSTILE) == 2  # as the run's reason, and in the list
    found = [row for row in rows(page, "refusals") if row.startswith("failed")]
    assert found == [
        "failed 1 north client_error refused by the silo's policy",
        f"failed 1 south client_error {HOSTILE}",
    ]


def test_an_empty_project_says_how_to_begin(page: Page):
    text = page.open()
    assert "No run yet. Begin one with fedtune server run" in text
    assert "Is not heard." in text
    assert "No reply is missing from any round." in text
    assert rows(page, "silos")[0].startswith("north unknown -")
    assert page.complaints() == []


def test_damaged_files_hide_nothing_else(page: Page, busy: Runs):
    for name, text in (("status.json", "[1]"), ("config.yaml", "a: ["), ("metrics.jsonl", "{\n")):
        (busy.project.runs / "private" / name).write_text(text)
    text = page.open("?refresh=off&run=private")
    assert "its status.json can't be read" in text
    assert "nothing can be said of its privacy" in text
    assert len(rows(page, "runs")) == 3
    busy.project.roster_file.write_text("{}")
    assert "The roster can't be read." in page.open()


def test_calls_turned_away_at_the_door_are_listed(page: Page, project: Project):
    with until_stopped(project.logs / "coordinator.log"):
        log = logging.getLogger("fedtune_server.door")
        log.warning("refused: silo %s at %s: %s", "north", "10.0.0.7", f"may not call {HOSTILE!r}")
        log.warning("the SuperLink doesn't answer")
    page.open()
    (row,) = rows(page, "refusals")
    assert "UTC north 10.0.0.7 may not call" in row
    assert HOSTILE[:8] in row


def test_a_revoked_silo_is_told_from_one_that_is_offline(page: Page, project: Project):
    revoke(project, "south")
    text = page.open()
    assert "south revoked" in text
    assert "? of 2" in text.replace("\n", " ")


def test_the_page_reloads_by_itself_unless_told_not_to(page: Page, busy: Runs):
    page.open("")
    busy.run("private", "finished", [report(n, loss=None, seconds=None) for n in (1, 2, 3)])
    WebDriverWait(page.chrome, 20).until(lambda _: "3 of 6" in page.text())
    page.chrome.find_element(By.LINK_TEXT, "pause").click()
    WebDriverWait(page.chrome, 20).until(lambda _: "paused" in page.text())
    assert page.all("meta[http-equiv=refresh]") == []
    page.chrome.find_element(By.LINK_TEXT, "failed").click()
    WebDriverWait(page.chrome, 20).until(lambda _: "Run failed" in page.text())
    assert "paused" in page.text()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [400, 1280])
def test_it_can_be_read_in_any_window(page: Page, busy: Runs, width: int, scheme: str):
    page.open("?refresh=off&run=finished", width, scheme)
    root = "document.documentElement"
    assert page.chrome.execute_script(f"return {root}.scrollWidth <= {root}.clientWidth")
    low = page.chrome.execute_script(CONTRASTS)
    assert low == [], "text with a contrast below 4.5 to 1"
    source = page.all("figure img")[0].get_property("currentSrc")
    assert f"theme={scheme}" in source
    assert ("size=narrow" in source) == (width == 400)
    assert page.complaints() == []


def test_nothing_is_asked_of_anybody_else_and_the_console_is_silent(page: Page, busy: Runs):
    page.open("?refresh=off&run=finished")
    asked = [address for address in page.requested() if not address.startswith("about:")]
    assert {urlsplit(address).netloc for address in asked} == {urlsplit(page.url).netloc}
    paths = {urlsplit(address).path for address in asked}
    assert {"/", "/dashboard.css", "/chart.svg"} <= paths <= {*paths, "/icon.svg"}
    assert page.complaints() == []


def test_a_keyboard_and_a_screen_reader_find_their_way(page: Page, busy: Runs):
    page.open("?refresh=off&run=finished")
    levels = [int(head.tag_name[1]) for head in page.all("h1, h2, h3")]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(head.get_attribute("scope") for head in page.all("th"))
    assert all(picture.get_attribute("alt") for picture in page.all("img"))
    assert all(box.get_attribute("aria-label") for box in page.all("[role=region]"))
    page.chrome.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
    first = page.chrome.switch_to.active_element
    assert first.text == "Skip to the figures"
    first.send_keys(Keys.ENTER)
    assert page.chrome.current_url.endswith("#main")


@pytest.mark.parametrize("path", ["/", "/chart.svg?run=finished", "/dashboard.css", "/nowhere"])
def test_nothing_but_get_is_answered(url: str, path: str):
    for method in ("POST", "PUT", "PATCH", "DELETE", "OPTIONS", "HEAD"):
        assert httpx.request(method, url + path[1:], content=b"x").status_code == 405


@pytest.mark.parametrize(
    "host", ["rebound.example", "127.0.0.1.rebound.example", "10.0.0.1", "localhost@x.example", ""]
)
def test_another_name_for_this_machine_is_refused(url: str, host: str):
    answer = httpx.get(url, headers={"Host": host})
    assert answer.status_code == 403
    assert "Trial" not in answer.text
    port = urlsplit(url).port
    for own in (f"127.0.0.1:{port}", f"localhost:{port}", f"[::1]:{port}"):
        assert httpx.get(url, headers={"Host": own}).status_code == 200


def test_the_browser_is_told_to_load_nothing_from_elsewhere(url: str):
    answer = httpx.get(url)
    policy = answer.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "script-src" not in policy
    assert "frame-ancestors 'none'" in policy
    assert "access-control-allow-origin" not in answer.headers
    assert "<script" not in answer.text
    assert " style=" not in answer.text


@pytest.mark.parametrize(
    "query", ["run=nobody", "run=../finished", "run=private", "", "run=finished&theme=x"]
)
def test_there_is_no_picture_of_what_is_not_there(url: str, busy: Runs, query: str):
    assert httpx.get(f"{url}chart.svg?{query}").status_code == 404


def test_looking_changes_nothing(url: str, busy: Runs):
    def tree() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in busy.project.folder.rglob("*")}

    before = tree()
    for query in ("", "?run=failed", "chart.svg?run=finished"):
        assert httpx.get(url + query, timeout=30).status_code == 200
    assert tree() == before
