"""The report: one page that asks nothing of the network, escapes every name and reads on a phone and in the dark."""

import html
import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from batchnorm.study import pictures, report

HOSTILE = "<script>alert(1)</script>\"'&$x$ \x01{{ 7 * 7 }}"
SPEED = "http://www.w3.org/2000/svg"


def effect(value: float | None, verdict: str, **changed: Any) -> dict[str, Any]:
    around = {"low": None if value is None else value * 0.8, "high": None if value is None else value * 1.2}
    samples = [value, None, value]
    name = f"steps to {HOSTILE} 0.95, without ÷ with"
    plain = {"name": name, "unit": "×", "threshold": 1.5, "side": "above", "decides": True, "bounded": ""}
    return {**plain, "value": value, **around, "samples": samples, "verdict": verdict, **changed}


def claim(name: str, verdict: str, *effects: dict[str, Any], **changed: Any) -> dict[str, Any]:
    words = {
        "statement": f"Training is faster: {name}.",
        "source": "Ioffe & Szegedy 2015",
        "method": "The same network.",
    }
    more = {"caption": f"Score of {HOSTILE}.", "summary": "It needs 9 times fewer steps.", "verdict": verdict}
    rest = {"notes": [f"Column {HOSTILE}"], "skipped": "", "rerun": f"batchnorm study --claims {name}", "numbers": {}}
    return {"id": name, **words, **more, "effects": list(effects), **rest, **changed}


def sample() -> dict[str, Any]:
    beside = effect(0.2, "does not hold", decides=False, side="below", unit=" decades", bounded="1 of 5 seeds: a bound")
    return {
        "version": "0.1.0",
        "command": f"batchnorm study table.csv --target '{HOSTILE}'",
        "versions": {"python": "3.11.7", "torch": "2.13.0"},
        "settings": {"seeds": 5, "steps": 1000, "batch_size": 60, "quick": True, "model": None, "grid": {"low": 0.1}},
        "data": {
            "name": HOSTILE, "source": f"300 rows of {HOSTILE}.csv", "rows": 300, "features": 12, "score": "accuracy",
            "task": "classification", "classes": [HOSTILE, *map(str, range(40))], "goals": [0.9, 0.95],
            "notes": [f"column {HOSTILE} dropped: constant"],
        },
        "answer": ["Yes.", f"Put it before the activation of {HOSTILE}.", "It buys 9 times fewer steps."],
        "code": {"PyTorch": "model = nn.Sequential(\n    nn.Linear(64, 100),\n)  # <b>\n", "Keras": "x = 1\n"},
        "claims": [
            claim("speed", "holds", beside, effect(9.123, "holds")),
            claim("learning-rate", "does not hold", effect(0.2, "does not hold")),
            claim("placement", "undecided", effect(None, "undecided")),
            claim("initialization", "not measured", skipped="a model of your own", caption="", summary=""),
        ],
        "timings": {"seconds": 87.24, "step_seconds": {"none": 0.0012, "before": 0.0014}},
    }  # fmt: skip


def drawing(key: str) -> str:
    """Draw as the claims do: outside the style's context, with names from the data."""
    made, panels = pictures.figure(2, share_y=True)
    for axes in panels:
        axes.plot([1, 10, 1000], [0.1, 0.5, 0.9], color=pictures.NORMALISED, label=pictures.literal(HOSTILE))
        axes.plot([1, 10, 1000], [0.1, 0.2, 0.8], color=pictures.PLAIN, label=pictures.literal("年収 $a$ and $b"))
        axes.axhline(0.95, color=pictures.INK, linestyle=":")
        axes.set(xscale="log", xlabel="training steps", title="sigmoid")
    panels[0].set_ylabel("test accuracy")
    panels[0].legend(loc="lower right")
    return pictures.inline(made, key, f"Score of {HOSTILE}", f"Curves of {HOSTILE}")


@pytest.fixture(scope="module")
def page() -> str:
    results = sample()
    return report.render(results, {c["id"]: drawing(c["id"]) for c in results["claims"] if not c["skipped"]})


class Outline(HTMLParser):
    """What the tests ask of a page: its elements with their attributes, and the text of each kind of element."""

    VOID = frozenset({"meta", "link", "br", "img", "input", "hr"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.text: list[tuple[str, str]] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self.open)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append((self.open[-1] if self.open else "", data))

    def named(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]

    def words(self, *tags: str) -> str:
        return " ".join(" ".join(data for tag, data in self.text if not tags or tag in tags).split())


@pytest.fixture(scope="module")
def outline(page: str) -> Outline:
    return Outline(page)


def test_every_element_is_closed_and_ids_are_unique(outline: Outline) -> None:
    ids = [attributes["id"] for _, attributes, _ in outline.elements if "id" in attributes]
    assert outline.open == []
    assert len(ids) > 100
    assert sorted(set(ids), key=str) == sorted(ids, key=str)


def test_every_reference_within_the_page_has_its_target(outline: Outline) -> None:
    ids = {attributes.get("id") for _, attributes, _ in outline.elements}
    wanted: list[str] = []
    for _, attributes, _ in outline.elements:
        for name, value in attributes.items():
            wanted += re.findall(r"url\(#([^)]+)\)", value or "")
            if name == "href" and value and value.startswith("#"):
                wanted.append(value[1:])
            if name in ("aria-labelledby", "aria-describedby"):
                wanted += (value or "").split()
    assert len(wanted) > 20
    assert set(wanted) <= ids


def test_every_picture_has_a_title_and_alternative_text(page: str, outline: Outline) -> None:
    drawn = outline.named("svg")
    assert len(drawn) == 3
    for attributes in drawn:
        assert attributes["role"] == "img"
        assert "viewbox" in attributes
        assert not {"width", "height"} & set(attributes)
    for inside in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert re.match(r"<svg[^>]*><title id=[^>]*>[^<]+</title><desc id=[^>]*>[^<]+</desc>", inside)
    assert len(outline.named("figcaption")) == 3


def test_nothing_is_asked_of_the_network(page: str, outline: Outline) -> None:
    assert set(re.findall(r"https?://[^\"' <]*", page)) == {SPEED}
    assert {name for name, _, _ in outline.elements} & {"script", "iframe", "object", "img", "base", "form"} == set()
    assert [a["href"] for a in outline.named("link")] == ["data:,"]
    assert all(not name.startswith("on") and name != "src" for _, a, _ in outline.elements for name in a)
    assert "@import" not in page


def test_names_from_the_data_are_text(page: str, outline: Outline) -> None:
    assert "<script" not in page
    assert "{{ 7 * 7 }}" in outline.words("h1")
    for tag in ("h1", "dd", "li", "figcaption", "code", "title", "desc", "text"):
        assert "<script>alert(1)</script>" in outline.words(tag), tag


def test_headings_are_in_order(outline: Outline) -> None:
    levels = [int(name[1]) for name, _, _ in outline.elements if re.fullmatch(r"h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels))
    order = ["The answer", "The setting to use", "Verdicts", "The claims", "The data", "Settings and versions"]
    assert [word for tag, word in outline.text if tag == "h2"] == order
    assert outline.named("html")[0]["lang"] == "en"


@pytest.mark.parametrize("verdict", report.SYMBOLS)
def test_verdicts_are_told_by_word_and_symbol(page: str, verdict: str) -> None:
    shown = re.findall(r'<span class="verdict ([^"]*)"><span aria-hidden="true">(.)</span> ([^<]*)</span>', page)
    assert (verdict.replace(" ", "-"), report.SYMBOLS[verdict], verdict) in shown


def test_numbers_are_rounded_and_their_absence_explained(outline: Outline) -> None:
    words = outline.words()
    for shown in ("9.12×", "7.3 to 10.9×", "> 1.5×", "< 1.5 decades", "9.12, –, 9.12", "in 87 s", "1.2 ms", "1,000"):
        assert shown in words, shown
    assert "No interval: too few seeds gave a value." in words
    assert "Not measured: a model of your own" in words
    assert not re.search(r"\b(None|nan|null|inf|Undefined|True|False)\b", words)
    assert "and 21 more" in words


def test_what_decides_comes_first(page: str) -> None:
    table = page.split('<table class="effects"')[1]
    assert table.index("9.12×") < table.index("0.2 decades") < table.index("Beside, not deciding")


def test_a_study_without_timings_or_code_is_a_report_too() -> None:
    results = {**sample(), "code": {}, "claims": []}
    del results["timings"]
    assert "The setting to use" not in report.render(results, {})


def test_write_leaves_one_file_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report" / "index.html"
    report.write(path, sample(), {})
    whole = path.read_text(encoding="utf-8")
    assert whole == report.render(sample(), {})
    with pytest.raises(Exception, match="answer"):
        report.write(path, {k: v for k, v in sample().items() if k != "answer"}, {})
    assert path.read_text(encoding="utf-8") == whole
    assert list(path.parent.iterdir()) == [path]


def test_a_picture_is_the_same_text_every_time() -> None:
    made, (axes,) = pictures.figure()
    axes.plot([1, 2], [1, 2], label="x")
    axes.legend()
    first = pictures.inline(made, "speed", "T", "D")
    assert pictures.inline(made, "speed", "T", "D") == first
    assert drawing("speed") == drawing("speed")
    other = pictures.inline(made, "other", "T", "D")
    assert not set(re.findall(r'\bid="([^"]*)"', first)) & set(re.findall(r'\bid="([^"]*)"', other))


def test_pictures_take_the_colours_and_the_font_of_the_page() -> None:
    svg = drawing("speed")
    assert pictures.INK not in svg
    assert pictures.FAINT not in svg
    assert "<style" not in svg
    texts = re.findall(r'<text style="([^"]*)"', svg)
    assert len(texts) > 10
    for style in texts:
        assert "fill: var(--ink)" in style
        assert "font-family: var(--font, sans-serif)" in style
        assert pictures.SMALLEST <= float(re.findall(r"font-size: ([\d.]+)px", style)[0]) <= pictures.LARGEST


def test_labels_of_a_picture_say_what_the_names_say() -> None:
    svg = drawing("speed")
    labels = [html.unescape(label) for label in re.findall(r"<text[^>]*>([^<]*)</text>", svg)]
    assert "年収 $a$ and $b" in labels
    assert any(label.startswith("<script>alert(1)</script>") and label.endswith("…") for label in labels)
    assert labels.count("test accuracy") == 2  # beside both panels that share y
    assert {"1", "10", "100", "1,000"} <= set(labels)


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_colours_are_told_from_the_page(page: str, scheme: int) -> None:
    variables = dict(re.findall(r"--(\w+): (#\w{6});", page.split(":root {")[scheme + 1].split("}")[0]))
    for name in ("ink", "soft", "link", "holds", "fails", "open"):
        for ground in ("page", "panel"):
            assert contrast(variables[name], variables[ground]) >= 4.5, name
    for colour in pictures.COLOURS:
        assert contrast(colour, variables["page"]) >= 3, colour
    assert contrast("#ffffff", "#000000") == pytest.approx(21)


BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
needs_browser = pytest.mark.skipif(
    BROWSER is None, reason="no chromium on PATH: apt-get install chromium, to look at the page"
)
# A window has a least width, a frame has none; and in a frame of its own the page may be measured from outside.
PROBE = """<!DOCTYPE html><meta charset="utf-8"><link rel="icon" href="data:,">
<style>:root {{ color-scheme: light dark }}</style>
<iframe id="frame" width="{width}" height="844" style="border: 0" srcdoc="{page}"></iframe><pre id="measured"></pre>
<script>addEventListener("load", () => {{
  const page = document.getElementById("frame").contentDocument, root = page.documentElement;
  const style = (name) => getComputedStyle(page.querySelector(name));
  const measured = {{
    inner: page.defaultView.innerWidth, scroll: root.scrollWidth,
    ground: style("body").backgroundColor, ink: style("body").color, label: style("svg text").fill,
    picture: page.querySelector("svg").getBoundingClientRect().width,
  }};
  document.getElementById("measured").textContent = JSON.stringify(measured);
}})</script>"""


def browse(folder: Path, content: str, *flags: str) -> tuple[str, list[str]]:
    """Return what headless Chromium makes of a page, and the lines of its console."""
    path = folder / "page.html"
    path.write_text(content, encoding="utf-8")
    quiet = ["--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-sync"]
    log = ["--no-first-run", f"--user-data-dir={folder / 'profile'}", "--enable-logging=stderr", "--v=0", "--dump-dom"]
    command = [str(BROWSER), *quiet, *log, *flags, path.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def measure(folder: Path, content: str, *flags: str, width: int = 390) -> dict[str, Any]:
    probe = PROBE.format(width=width, page=html.escape(content))
    dom, console = browse(folder, probe, *flags)
    assert console == []
    found = re.search(r'<pre id="measured">(.*?)</pre>', dom, flags=re.DOTALL)
    assert found is not None
    return json.loads(html.unescape(found[1]))


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    shutil.rmtree(tmp_path, ignore_errors=True)


@needs_browser
def test_the_console_stays_empty(folder: Path, page: str) -> None:
    dom, console = browse(folder, page)
    assert "The answer" in dom
    assert console == []
    broken = page.replace("</body>", '<img src="https://example.invalid/x.png"></body>')
    assert len(browse(folder, broken)[1]) == 1  # what the page's own policy refuses does show


@needs_browser
def test_nothing_scrolls_sideways_on_a_phone(folder: Path, page: str) -> None:
    found = measure(folder, page)
    assert found["inner"] == 390
    assert found["scroll"] <= 390
    assert found["picture"] >= 330  # a desktop's scroll bar takes 15 of 390
    wide = page.replace("</main>", '<p style="width: 600px">wide</p></main>')
    assert measure(folder, wide)["scroll"] > 390


@needs_browser
def test_the_page_is_dark_where_the_reader_is(folder: Path, page: str) -> None:
    for scheme, dark in ((0, True), (1, False)):
        found = measure(folder, page, f"--blink-settings=preferredColorScheme={scheme}")
        ground, ink, label = (sum(map(int, re.findall(r"\d+", found[name])[:3])) for name in ("ground", "ink", "label"))
        assert (ground < 200, ink > 600) == (dark, dark)
        assert label == ink
