"""The report: one page that asks nothing of the network, escapes every name and says what was found in words."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

import report_example as example
from batchnorm.study import answer_picture, bars, pictures, report
from batchnorm.study.glossary import GLOSSARY
from report_example import HOSTILE

SVG = "http://www.w3.org/2000/svg"
SECTIONS = [
    "The answer", "The setting to use", "Contents", "Verdicts", "Checks of the layer", "Other settings", "The claims",
    "The data", "Glossary", "Settings and versions",
]  # fmt: skip


def drawing(key: str) -> str:
    """Draw as the claims do: outside the style's context, with names from the data."""
    figure, panels = pictures.figure(2, share_y=True)
    for axes in panels:
        axes.plot([1, 10, 1000], [0.1, 0.5, 0.9], color=pictures.NORMALISED, label=pictures.literal(HOSTILE))
        axes.plot([1, 10, 1000], [0.1, 0.2, 0.8], color=pictures.PLAIN, label=pictures.literal("年収 $a$ and $b"))
        axes.axhline(0.95, color=pictures.INK, linestyle=":")
        axes.set(xscale="log", xlabel="training steps", title="sigmoid")
    panels[0].set_ylabel("test accuracy")
    panels[0].legend(loc="lower right")
    return pictures.inline(figure, key, f"Score of {HOSTILE}", f"Curves of {HOSTILE}")


@pytest.fixture(scope="module")
def page() -> str:
    results = example.results()
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
        parts = (data for tag, data in self.text if (tag in tags if tags else tag not in ("script", "style")))
        return " ".join(" ".join(parts).split())


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
            if name in ("aria-labelledby", "aria-describedby", "for", "data-copies"):
                wanted += (value or "").split()
    assert len(wanted) > 60
    assert set(wanted) <= ids


def test_every_picture_has_a_title_and_alternative_text(page: str, outline: Outline) -> None:
    drawn = outline.named("svg")
    measured = [c for c in example.claims() if not c["skipped"]]
    bars_shown = sum(effect["decides"] for claim in measured for effect in claim["effects"])
    assert len(drawn) == len(measured) + 1 + bars_shown + 3  # the answer, and three charts that the sliders draw
    for attributes in drawn:
        assert attributes["role"] == "img"
        assert "viewbox" in attributes
    for inside in re.findall(r"<svg.*?</svg>", page, flags=re.DOTALL):
        assert re.match(r"<svg[^>]*>\s*<title[^>]*>[^<]+</title>", inside)
        described = re.search(r"<desc id=[^>]*>[^<]+</desc>", inside) or 'class="bar"' in inside
        assert described or 'aria-describedby="' in inside
    assert len(outline.named("figcaption")) == len(measured) + 3


def test_nothing_is_asked_of_the_network(page: str, outline: Outline) -> None:
    assert set(re.findall(r"https?://[^\"' <]*", page)) == {SVG}
    assert {name for name, _, _ in outline.elements} & {"iframe", "object", "img", "base", "form"} == set()
    assert [a["href"] for a in outline.named("link")] == ["data:,"]
    assert all(not name.startswith("on") and name != "src" for _, a, _ in outline.elements for name in a)
    assert "@import" not in page


def test_the_only_script_that_may_run_is_the_page_s_own(page: str, outline: Outline) -> None:
    policy = next(a["content"] for a in outline.named("meta") if a.get("http-equiv") == "Content-Security-Policy")
    sources = re.findall(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert len(sources) == 1
    digest = base64.b64encode(hashlib.sha256(sources[0].encode()).digest()).decode()
    assert policy is not None
    assert "default-src 'none'" in policy
    assert re.findall(r"script-src ([^;]*)", policy) == [f"'sha256-{digest}'"]


def test_the_data_of_the_sliders_cannot_leave_its_element(outline: Outline) -> None:
    results = example.results()
    results["data"]["score"] = "</script><script>alert(1)</script>"
    results["explore"]["relu"]["name"] = "<!--<script>"
    page = report.render(results, {})
    assert [a.get("type") for a in Outline(page).named("script")] == ["application/json", None]
    embedded = re.findall(r'<script type="application/json" id="explored">(.*?)</script>', page, flags=re.DOTALL)
    data = json.loads(embedded[0])
    assert data["score"] == results["data"]["score"]
    assert data["networks"][0]["sides"]["none"]["3.2"]["median"][1] is None
    assert data["sizes"]["seconds"][4] == 0.031
    assert len(outline.named("script")) == 2


def test_names_from_the_data_are_text(page: str, outline: Outline) -> None:
    assert "<script>alert" not in page
    assert "{{ 7 * 7 }}" in outline.words("h1")
    for tag in ("h1", "dd", "li", "th", "code", "title", "desc", "text"):
        assert "<script>alert(1)</script>" in outline.words(tag), tag


def test_headings_are_in_order(outline: Outline) -> None:
    levels = [int(name[1]) for name, _, _ in outline.elements if re.fullmatch(r"h[1-6]", name)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(deeper - level <= 1 for level, deeper in pairwise(levels))
    assert [word for tag, word in outline.text if tag == "h2"] == SECTIONS
    assert outline.named("html")[0]["lang"] == "en"


@pytest.mark.parametrize("verdict", report.SYMBOLS)
def test_verdicts_are_told_by_word_and_symbol(page: str, verdict: str) -> None:
    shown = re.findall(
        r'<span class="verdict ([^"]*)"><span class="mark" aria-hidden="true">(.)</span> ([^<]*)</span>', page
    )
    assert (verdict.replace(" ", "-"), report.SYMBOLS[verdict], verdict) in shown


def test_a_claim_with_parts_has_a_row_for_each(page: str) -> None:
    table = page.split('<table class="verdicts"')[1].split("</table>")[0]
    first = table.split("<tbody")[1]
    rows = [Outline(row.split("</tr>")[0].split(">", 1)[1]).words() for row in first.split("<tr")[1:]]
    assert "Training is faster" in rows[0]
    assert rows[0].endswith("✓ holds")
    assert rows[1].startswith("ReLU network 4.6× (3.1 to 6.3)")
    assert rows[2].startswith("sigmoid network at least 42×")
    assert [row.label for row in report.deciding(example.claim("x", "X", "holds", example.NEVER))] == [""]
    twice = example.claim("x", "X", "holds", example.NEVER, example.NEVER)
    name = "sigmoid network: steps to the goal, without ÷ with"
    assert [row.label for row in report.deciding(twice)] == [name, name]


def test_checks_stand_apart_from_findings(page: str) -> None:
    found, checked = (part.split("</table>")[0] for part in page.split('<table class="verdicts"')[1:])
    assert "train-predict" in checked
    assert "train-predict" not in found
    assert "#speed" in found
    assert "#speed" not in checked


def test_numbers_are_rounded_and_their_absence_explained(outline: Outline) -> None:
    words = outline.words()
    wanted = (
        "> 1.5×", "< 0.5 points", "≥ 41.7", "≤ 61", "neither arrived", "in 87 s", "1.2 ms", "0.972", "and 21 more",
        "No interval: it needs at least 6 seeds.", "Not measured: needs the base network",
        "No verdict: the best learning rate lies at the edge of the grid, also after it was extended.",
        "Of 9 claims, chance alone decides", "3 values “?” read as missing",
    )  # fmt: skip
    for shown in wanted:
        assert shown in words, shown
    assert not re.search(r"\b(None|nan|null|inf|Undefined|True|False)\b", words)


def test_every_rate_and_size_is_there_without_the_script(outline: Outline) -> None:
    words = outline.words("td", "th", "caption")
    assert "ReLU network: step at which the median run reaches accuracy 0.95, and its last score" in words
    for shown in ("3.2 never diverged 15 0.985", "10 not run – 8 0.985", "8 never –", "120 52 31 ms"):
        assert shown in words, shown


def test_terms_are_explained(outline: Outline) -> None:
    assert [term.lower() for term, _ in GLOSSARY[:-1]] == sorted(term.lower() for term, _ in GLOSSARY[:-1])
    assert len(GLOSSARY) >= 20
    assert all(term in outline.words("dt") and meaning in outline.words("dd") for term, meaning in GLOSSARY)


@pytest.mark.parametrize("results", [example.bare(), example.regression()], ids=["bare", "regression"])
def test_what_is_missing_leaves_no_empty_place(results: dict[str, Any]) -> None:
    outline = Outline(report.render(results, {}))
    headings = [word for tag, word in outline.text if tag == "h2"]
    assert headings == [h for h in SECTIONS if h in headings]
    assert "The setting to use" not in headings
    assert "Checks of the layer" not in headings
    assert ("Other settings" in headings) == bool(results.get("explore"))
    assert ("sizes-slider" in {a.get("id") for a in outline.named("input")}) is False


def test_seconds_come_from_the_timings_where_the_sizes_have_none() -> None:
    results = example.results()
    results["explore_sizes"] = {"sizes": [8, 16], "steps": [100.0, None]}
    results["timings"]["step_seconds"]["before, 8 rows"] = 0.002
    assert "8 100 200 ms 16 never –" in Outline(report.render(results, {})).words("td", "th")
    del results["timings"]
    assert "8 100 – 16 never –" in Outline(report.render(results, {})).words("td", "th")


def test_write_leaves_one_file_or_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "report" / "index.html"
    report.write(path, example.results(), {})
    whole = path.read_text(encoding="utf-8")
    assert whole == report.render(example.results(), {})
    with pytest.raises(Exception, match="answer"):
        report.write(path, {k: v for k, v in example.results().items() if k != "answer"}, {})
    assert path.read_text(encoding="utf-8") == whole
    assert list(path.parent.iterdir()) == [path]


def test_a_notebook_shows_answer_picture_and_verdicts() -> None:
    shown = Outline(report.repr_html(example.results()))
    words = shown.words()
    assert shown.open == []
    assert example.results()["answer"][0] in words
    assert "ReLU network: 4.6× (3.1 to 6.3) sigmoid network: at least 42× (30× or more) ✓ holds" in words
    assert len(shown.named("svg")) == 1
    assert not shown.named("script")
    assert "<script>" in words
    assert not Outline(report.repr_html(example.bare())).named("svg")


def case(*effects: dict[str, Any], **chosen: dict[str, Any]) -> dict[str, Any]:
    """Return results in which the speed came to this, with other curves on either side."""
    results = example.results()
    results["claims"][0]["effects"] = list(effects)
    results["explore"]["relu"]["chosen"] |= chosen
    return results


FLAT = example.curve(300, 0.1, 0.5)
TITLES = [
    (case(example.effect("4.6×", 4.6, "holds")), "4.6 times fewer steps to accuracy 0.95 with"),
    (case(example.effect("0.25×", 0.25, "does not hold")), "4 times more steps to accuracy 0.95 with"),
    (case(example.effect("1.3×", 1.3, "undecided")), "Undecided: 1.3 times fewer steps to accuracy 0.95 with"),
    (case(example.effect("1×", 1.0, "does not hold")), "About as many steps to accuracy 0.95 with"),
    (case(example.NEVER, none=FLAT), "At least 42 times fewer steps to accuracy 0.95 with"),
    (case(example.OPEN, none=FLAT), "accuracy 0.95 is reached by one side only: not without"),
    (case(none=FLAT, before=FLAT), "accuracy 0.95 is reached neither with"),
    (example.regression(), "R² 0.45 is reached neither with batch normalization nor without (your model)"),
]


@pytest.mark.parametrize(("results", "words"), TITLES, ids=[words[:24] for _, words in TITLES])
def test_the_picture_of_the_answer_says_its_point(results: dict[str, Any], words: str) -> None:
    title, figure = answer_picture.title(results), answer_picture.draw(results)
    assert title.startswith(words)
    assert figure is not None
    assert figure.get_suptitle().replace("\n", " ") == title
    assert any(text.get_text().startswith("goal 0.") for text in figure.axes[0].texts)
    assert any(text.get_text().startswith("guessing") for text in figure.axes[0].texts)
    described = answer_picture.description(results)
    assert described.count("batch normalization, at learning rate") == 2


def test_a_bracket_stands_between_two_arrivals_or_goes_on() -> None:
    def texts(results: dict[str, Any]) -> list[str]:
        figure = answer_picture.draw(results)
        assert figure is not None
        return [text.get_text() for text in figure.axes[0].texts]

    assert "4.6×" in texts(case(example.effect("4.6×", 4.6, "holds")))
    never = texts(case(example.NEVER, none=FLAT))
    assert "≥ 42×" in never
    assert any("never" in text for text in never)
    assert not any("×" in text for text in texts(case(none=FLAT, before=FLAT)))
    assert "▼ axis cut: down to −13" in texts(example.regression())


def test_a_bar_shows_the_effect_beside_its_threshold() -> None:
    def shape(drawn: dict[str, Any], name: str) -> list[str]:
        return re.findall(rf'<(?:path|circle|rect) class="{name}" ([^>]*)/>', bars.bar(drawn))

    def across(drawn: dict[str, Any]) -> tuple[float, float]:
        start, stop = re.findall(r"M([\d.]+) [\d.]+H([\d.]+)", shape(drawn, "interval")[0])[0]
        return float(start), float(stop)

    holds = example.effect("4.6×", 4.6, "holds", low=3.1, high=6.3)
    assert bars.MIDDLE < across(holds)[0] < across(holds)[1] < bars.WIDTH
    assert shape(holds, "end") == []
    assert 'x="85"' in shape(holds, "claimed")[0]
    open_ended = across(example.NEVER)
    assert open_ended[1] == bars.WIDTH - bars.MARGIN
    assert len(shape(example.NEVER, "end")) == 1
    assert len(shape(example.OPEN, "end")) == 2
    assert shape(example.OPEN, "median") == []
    fewer = example.effect("−1", -1.0, "holds", side="below", threshold=0.0, low=-1.5, high=-0.5, unit=" points")
    assert across(fewer)[1] < bars.MIDDLE
    assert 'x="9"' in shape(fewer, "claimed")[0]
    few = example.effect("1.9×", 1.9, "undecided", low=None, high=None, samples=[[1.9, 1.9]] * 3)
    assert shape(few, "interval") == []
    assert len(shape(few, "median")) == 1
    hostile = example.effect("<b>", 1.0, "holds", unit="<i>")
    assert not re.search("<[bi]>", bars.bar(hostile))


def luminance(colour: str) -> float:
    channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(first: str, second: str) -> float:
    low, high = sorted((luminance(first), luminance(second)))
    return (high + 0.05) / (low + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_is_told_from_its_ground(page: str, scheme: int) -> None:
    variables = dict(re.findall(r"--(\w+): (#\w{6});", page.split(":root {")[scheme + 1].split("}")[0]))
    for name in ("ink", "soft", "link", "holds", "fails", "open"):
        for ground in ("page", "panel"):
            assert contrast(variables[name], variables[ground]) >= 4.5, (name, ground)
    for name in ("plain", "normalised", "other", "fourth"):  # lines, and the names at their ends
        assert contrast(variables[name], variables["page"]) >= 4.5, name
    assert contrast("#ffffff", "#000000") == pytest.approx(21)


def test_colours_of_saved_pictures_are_told_from_white() -> None:
    assert all(contrast(colour, "#ffffff") >= 4.5 for colour in pictures.COLOURS)
