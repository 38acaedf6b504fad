"""Every test belongs to one part and is either fast or slow, and every part has fast tests."""

import re
import subprocess
import sys

import pytest

import parts
import suite

# The parts of suite.py whose names are none of parts.py, or whose tests come from more than one.
TRIED_BY = {"definition": {"core", "kernels"}, "core": {"core", "kernels"}}


def test_every_file_belongs_to_a_part() -> None:
    assert {parts.part_of(file) for file in parts.files()} == set(parts.PARTS)


def test_a_file_that_belongs_to_none_is_found() -> None:
    with pytest.raises(LookupError, match=r"test_unheard_of\.py must belong to one part"):
        parts.part_of("tests/test_unheard_of.py")


def test_every_file_is_collected_for_a_part_or_on_each_backend_of_keras() -> None:
    found = [file for part in parts.PARTS for file in parts.collected(part)]
    assert len(set(found)) == len(found)
    left = [file for file in parts.files() if file not in found]
    assert all(file.startswith(parts.OF_KERAS) for file in left if not file.startswith("docs/"))


def test_contributors_are_told_the_parts() -> None:
    text = (parts.ROOT / "CONTRIBUTING.md").read_text("utf-8")
    listed = re.search(r"The parts are (.*?)\.", text, re.DOTALL)
    assert listed is not None
    assert re.findall(r"`(\w+)`", listed[1]) == list(parts.PARTS)


@pytest.mark.parametrize("part", [part for part in parts.PARTS if part != "mutants"])
def test_every_part_has_fast_tests(part: str) -> None:
    assert [file for file in parts.collected(part) if "/test_" in file and not parts.is_slow(file)]


@pytest.mark.parametrize("start", [*parts.SLOW, *parts.SAMPLED])
def test_what_is_slow_exists(start: str) -> None:
    file, name = re.fullmatch(r"([^:]+)(?:::(\w+))?.*", start).groups(default="")  # type: ignore[union-attr]
    text = (parts.ROOT / "tests" / file).read_text("utf-8")
    assert re.search(rf"^(async def|def|class) {name}", text, re.MULTILINE)


def test_one_in_so_many_is_fast() -> None:
    for start, of in parts.SAMPLED.items():
        names = [f"tests/{start}[{i}]" for i in range(1000)]
        assert sum(not parts.is_slow(name) for name in names) == pytest.approx(1000 / of, rel=0.3)


def test_a_part_that_there_is_not_is_one_line() -> None:
    done = subprocess.run([sys.executable, parts.__file__, "tensorflow"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == f"PART=tensorflow is no part: the parts are {', '.join(parts.PARTS)}\n"


@pytest.mark.parametrize("part", suite.PARTS)
def test_faults_are_rejected_by_the_tests_of_the_part(part: str) -> None:
    own = part.partition("-")[0]
    files = [f"tests/{name}.py" if "/" in name else f"tests/test_{name}.py" for name in suite.PARTS[part]]
    assert {parts.part_of(file) for file in files} <= TRIED_BY.get(own, {own})
