"""The report in headless Chromium: a clean console, nothing wider than a phone, sliders that change the drawing."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import report_example as example
from batchnorm.study import report

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(
    BROWSER is None, reason="no chromium on PATH: apt-get install chromium, to look at the page"
)
PHONE = 390
SCROLL_BAR = 15  # pixels that a desktop's takes of the phone's width
# A window has a least width, a frame has none; and a page in a frame of its own may be moved and measured from outside.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">
<style>:root {{ color-scheme: light dark }}</style>
<iframe id="frame" width="{width}" height="844" style="border: 0" srcdoc="{page}"></iframe><pre id="measured"></pre>
<script>addEventListener("load", () => {{
  const page = document.getElementById("frame").contentDocument, view = page.defaultView;
  const find = (id) => page.getElementById(id);
  const move = (id, value, event) => {{ find(id).value = value; find(id).dispatchEvent(new view.Event(event)); }};
  const measured = (() => {{ {script} }})();
  document.getElementById("measured").textContent = JSON.stringify(measured);
}})</script>"""
WIDTHS = """
  for (const folded of page.querySelectorAll("details")) folded.open = true;
  const svg = page.querySelector("svg").getBoundingClientRect();
  return { inner: view.innerWidth, scroll: page.documentElement.scrollWidth, picture: svg.width };
"""
COLOURS = """
  const style = (name) => view.getComputedStyle(page.querySelector(name));
  return { ground: style("body").backgroundColor, ink: style("body").color, label: style("svg text").fill };
"""
SLIDERS = """
  const state = () => ({
    curves: [...page.querySelectorAll("#rates-chart .line")].map((line) => line.getAttribute("d")),
    said: find("rates-said").textContent, rate: find("rates-value").textContent,
    spoken: find("rates-slider").getAttribute("aria-valuetext"),
    words: [...page.querySelectorAll("#rates-chart :is(text, tspan)")].map((text) => text.textContent),
    sizes: find("sizes-said").textContent, size: find("sizes-value").textContent,
    dots: [...page.querySelectorAll("#sizes-chart circle.chosen")].map((dot) => dot.getAttribute("cx")),
  });
  const states = [state()];
  move("rates-slider", 0, "input"); move("sizes-slider", 1, "input"); states.push(state());
  move("rates-slider", 5, "input"); move("sizes-slider", 0, "input"); states.push(state());
  move("rates-slider", 6, "input"); states.push(state());
  move("rates-network", 1, "change"); states.push(state());
  return states;
"""
FOLDED = """
  const count = (query) => page.querySelectorAll(query).length;
  const state = () => ({ open: count("details[open]"), closed: count("details:not([open])"),
    controls: [...page.querySelectorAll(".scripted")].filter((e) => e.checkVisibility()).length });
  const states = [state()];
  for (const event of ["beforeprint", "afterprint"]) {
    view.dispatchEvent(new view.Event(event));
    states.push(state());
  }
  return states;
"""


@pytest.fixture(scope="module")
def page() -> str:
    return report.render(example.results(), {})


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


def browse(folder: Path, content: str, *flags: str) -> tuple[str, list[str]]:
    """Return what headless Chromium makes of a page, and the lines of its console."""
    path = folder / "page.html"
    path.write_text(content, encoding="utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    log = ["--no-first-run", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    command = [str(BROWSER), *quiet, *log, *flags, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def ask(folder: Path, content: str, script: str, *flags: str, width: int = PHONE) -> Any:
    """Return what a script finds out about a page that is so wide; its console must stay empty."""
    probe = PROBE.format(width=width, page=html.escape(content), script=script)
    dom, console = browse(folder, probe, *flags)
    assert console == []
    measured = re.search(r'<pre id="measured">(.*?)</pre>', dom, flags=re.DOTALL)
    assert measured is not None
    return json.loads(html.unescape(measured[1]))


def test_the_console_stays_empty(folder: Path, page: str) -> None:
    dom, console = browse(folder, page)
    assert 'class="line before"' in dom  # which only the script draws
    assert console == []
    for results in (example.regression(), example.bare()):
        assert browse(folder, report.render(results, {}))[1] == []


def test_the_policy_lets_no_other_script_or_picture_in(folder: Path, page: str) -> None:
    foreign = '<img src="https://example.invalid/x.png"><script>document.title = "foreign"</script></body>'
    dom, console = browse(folder, page.replace("</body>", foreign))
    assert len(console) == 2
    assert "<title>foreign" not in dom


@pytest.mark.parametrize("results", [example.results(), example.regression()], ids=["classes", "values"])
def test_nothing_scrolls_sideways_on_a_phone(folder: Path, results: dict[str, Any]) -> None:
    page = report.render(results, {})
    measured = ask(folder, page, WIDTHS)
    assert measured["inner"] == PHONE
    assert measured["scroll"] <= PHONE
    assert measured["picture"] >= PHONE - 3 * SCROLL_BAR - 2
    wide = page.replace("</main>", '<p style="width: 600px">wide</p></main>')
    assert ask(folder, wide, WIDTHS)["scroll"] > PHONE


def test_the_page_is_dark_where_the_reader_is(folder: Path, page: str) -> None:
    for scheme, dark in ((0, True), (1, False)):
        shown = ask(folder, page, COLOURS, f"--blink-settings=preferredColorScheme={scheme}")
        ground, ink, label = (sum(map(int, re.findall(r"\d+", shown[name])[:3])) for name in ("ground", "ink", "label"))
        assert (ground < 200, ink > 600) == (dark, dark)
        assert label == ink


def test_sliders_change_the_drawing_and_say_what_it_shows(folder: Path, page: str) -> None:
    first, low, diverging, lonely, paper = ask(folder, page, SLIDERS)
    assert [state["rate"] for state in (first, low, diverging, lonely)] == ["1", "0.01", "3.2", "10"]
    assert first["spoken"] == "1"
    assert "the goal is reached at step 36" in first["said"]
    assert "ReLU network, learning rate 0.01" in low["said"]
    assert first["curves"] != low["curves"]
    assert len(low["curves"]) == 2
    assert {"goal 0.95", "guessing 0.102", "with:", "without:", "never there"} <= set(low["words"])
    assert "without batch normalization, the median run diverges" in diverging["said"]
    assert "this rate was not run" in lonely["said"]
    assert len(lonely["curves"]) == 1
    assert paper["said"].startswith("sigmoid network")
    assert "NaN" not in str([first, low, diverging, lonely, paper])
    assert (first["size"], low["size"]) == ("120", "15")
    assert first["dots"] != low["dots"]
    assert "Least time: 31 ms with batches of 120" in first["sizes"]
    assert "Batches of 15: 160 steps to the goal, which take 71 ms." in low["sizes"]
    assert "Batches of 8: the median run does not reach the goal." in diverging["sizes"]
    assert diverging["dots"] == []


def test_an_axis_of_low_scores_is_cut_with_a_mark(folder: Path) -> None:
    script = 'return [...page.querySelectorAll("#rates-chart text")].map((text) => text.textContent);'
    words = ask(folder, report.render(example.regression(), {}), script)
    assert "▼ axis cut at −0.25" in words
    assert not any(word.startswith("−1") for word in words)


def test_details_are_open_in_print_and_tables_stand_in_for_the_script(folder: Path, page: str) -> None:
    shown, printed, after = ask(folder, page, FOLDED)
    assert shown["controls"] == 2  # the copy buttons are folded away with the scripts
    assert printed["closed"] == 0
    assert after == shown
    silent = re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL)
    without = ask(folder, silent, FOLDED)[0]
    assert without["controls"] == 0
    assert without["open"] == shown["open"] + 2
