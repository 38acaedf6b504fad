"""How the numbers of a column are written: decimal comma, thousands, percent and currency signs, units."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pandas as pd

MISSING_TEXTS = frozenset({"", "?", "na", "n/a", "nan", "<na>", "null", "#n/a", "nat"})  # whatever the column holds
MISSING_NUMBERS = MISSING_TEXTS | {  # where numbers belong
    "-", "--", "---", "–", "—", ".", "..", "...", "*", "x", "none", "nil", "unknown", "unkn", "missing", "undefined",
    "not available", "not known", "n.a.", "n.d.", "nd", "tbd", "(null)", "#div/0!", "#value!", "#ref!", "inf", "-inf",
    "+inf", "infinity", "-infinity",
}  # fmt: skip
MOSTLY = 0.8  # the share of numbers from which the other words of a column are read as missing
MOST_WORDS = 5  # named in a note

SIGNS = "$€£¥₹₽₩₺₿¢"
CODES = ("USD", "EUR", "GBP", "CHF", "JPY", "CNY", "INR", "CAD", "AUD")
GROUPS = " '’\u00a0\u202f"  # between thousands, beside the comma and the point
MAGNITUDES = {"k": "e3", "K": "e3", "M": "e6", "mn": "e6", "Mio": "e6", "B": "e9", "bn": "e9"}  # 1.5M
_NUMBER = re.compile(
    rf"""(?P<open>\()?(?P<sign>[-+−]\s?)?(?P<before>[{SIGNS}]|{"|".join(CODES)})?\s?(?P<inner>[-+−])?
    (?P<body>\d[\d.,{GROUPS}]*|[.,]\d+)(?P<exponent>[eE][-+]?\d+)?
    \s?(?P<after>%|[{SIGNS}]|[A-Za-zµμ°²³]+(?:/[A-Za-zµμ°²³]+)?)?(?P<close>\))?""",
    re.VERBOSE,
)
_POINT = re.compile(rf"\d+(\.\d*)?|\.\d+|[1-9]\d{{0,2}}(?:(,\d{{3}})+|([{GROUPS}]\d{{3}})+)(\.\d+)?")
_COMMA = re.compile(rf"\d+(,\d*)?|,\d+|[1-9]\d{{0,2}}(?:(\.\d{{3}})+|([{GROUPS}]\d{{3}})+)(,\d+)?")


@dataclass(frozen=True)
class Spelling:
    """How the numbers of a column are written.

    Attributes:
        parse: The same in words, "plain" for what `float` reads.
        replace: What has to be replaced in a cell, in order, before `float` reads it.
        words: Cells that are no numbers, with how often they come: the frequent ones first.
        missing: Those of the words that have to be named, since they would be read as numbers without it.
    """

    parse: str
    replace: tuple[tuple[str, str], ...]
    words: tuple[tuple[str, int], ...]
    missing: tuple[str, ...]


def looks_numeric(text: str) -> bool:
    """Return whether one cell, by itself, is a number in any of the ways of writing one."""
    match = _NUMBER.fullmatch(text.strip())
    if match is None:
        return False
    body = match["body"].strip(GROUPS)
    return bool(_POINT.fullmatch(body) or _COMMA.fullmatch(body))


def spelling(counts: Mapping[str, int], comma: bool = False) -> Spelling | None:
    """Return how the numbers of a column are written, None if it does not hold mostly numbers.

    Args:
        counts: How often each text comes in the column.
        comma: Whether other columns of the file have decimal commas, which decides "1.234" and "1,234".
    """
    present = {text: count for text, count in counts.items() if text.lower() not in MISSING_NUMBERS}
    if not present:
        return None
    plain = pd.to_numeric(pd.Series(list(present), dtype=object), errors="coerce").notna()
    if plain.all() and not (comma and _grouped_by_points(present)):
        return _spelled(counts, present, "plain", ())
    return _written(counts, present, comma)


def _grouped_by_points(present: Iterable[str]) -> bool:
    """Return whether every number is whole or has its thousands apart by points: 1.234 and 999, but not 0.5."""
    return all(re.fullmatch(r"-?([1-9]\d{0,2}(\.\d{3})+|\d{1,3})", text) for text in present)


def _written(counts: Mapping[str, int], present: Mapping[str, int], comma: bool) -> Spelling | None:
    matches = {text: match for text in present if (match := _NUMBER.fullmatch(text)) is not None}
    total = sum(present.values())
    if sum(present[text] for text in matches) < MOSTLY * total:
        return None
    unit, forms = _unit(matches, present)
    after = {"", "%", *SIGNS, *CODES, *MAGNITUDES, *forms}
    matches = {text: match for text, match in matches.items() if (match["after"] or "") in after and _closed(match)}
    point = {text for text, match in matches.items() if _POINT.fullmatch(match["body"].strip(GROUPS))}
    comma_style = {text for text, match in matches.items() if _COMMA.fullmatch(match["body"].strip(GROUPS))}
    only_point, only_comma = (sum(present[t] for t in texts) for texts in (point - comma_style, comma_style - point))
    decimal_comma = only_comma > only_point or (only_comma == only_point and comma)
    numeric = comma_style if decimal_comma else point
    if sum(present[text] for text in numeric) < MOSTLY * total:
        return None
    parse, replace = _replacements([matches[text] for text in numeric], forms, decimal_comma)
    words = [*parse, f"unit {unit}"] if unit else parse
    return _spelled(counts, {text: present[text] for text in numeric}, ", ".join(words) or "plain", replace)


def _closed(match: re.Match[str]) -> bool:
    return bool(match["open"]) == bool(match["close"])


def _unit(matches: Mapping[str, re.Match[str]], present: Mapping[str, int]) -> tuple[str, tuple[str, ...]]:
    """Return the unit that most numbers have after them, and the forms it comes in: year and years, longest first."""
    forms: Counter[str] = Counter()
    for text, match in matches.items():
        if match["after"] and match["after"] not in ("%", *SIGNS, *CODES, *MAGNITUDES):
            forms[match["after"]] += present[text]
    stems: Counter[str] = Counter()
    for form, count in forms.items():
        stems[form.rstrip("s")] += count
    if not stems:
        return "", ()
    stem, count = stems.most_common(1)[0]
    if count < MOSTLY * sum(present[text] for text in matches) or stem in ("e", "E"):
        return "", ()
    own = sorted((form for form in forms if form.rstrip("s") == stem), key=lambda form: (-len(form), form))
    return own[0], tuple(own)


def _replacements(
    matches: Iterable[re.Match[str]], forms: tuple[str, ...], decimal_comma: bool
) -> tuple[list[str], tuple[tuple[str, str], ...]]:
    """Return what the numbers hold beside digits, in words, and what has to be replaced in them."""
    matches = list(matches)
    text = "\n".join(match.group() for match in matches)
    bodies = "\n".join(match["body"] for match in _NUMBER.finditer(text))
    currency = [sign for sign in (*CODES, *SIGNS) if sign in text]
    grouping, decimal = (".", ",") if decimal_comma else (",", ".")
    names: list[str] = []
    replace = [(form, "") for form in forms]
    if "%" in text:
        names, replace = [*names, "percent"], [*replace, ("%", "")]
    if currency:
        names, replace = [*names, "currency"], [*replace, *((sign, "") for sign in currency)]
    powers = sorted({match["after"] for match in matches} & MAGNITUDES.keys(), key=lambda form: (-len(form), form))
    if powers:
        names, replace = (
            [*names, f"powers of ten ({', '.join(powers)})"],
            [*replace, *((p, MAGNITUDES[p]) for p in powers)],
        )
    spaces = [space for space in GROUPS if space in text]
    if grouping in bodies or re.search(rf"\d[{GROUPS}]\d", bodies):
        names += ["thousands separators"]
    replace += [(space, "") for space in spaces] + ([(grouping, "")] if grouping in bodies else [])
    if decimal_comma and decimal in bodies:
        names, replace = [*names, "decimal comma"], [*replace, (decimal, ".")]
    replace += [(old, new) for old, new in (("−", "-"), ("(", "-"), (")", "")) if old in text]
    return names, tuple(replace)


def plain_spelling(words: Mapping[str, int]) -> Spelling:
    """Return how numbers are written that `float` reads, with the words among them."""
    return _spelled(words, {}, "plain", ())


def _spelled(
    counts: Mapping[str, int], numeric: Mapping[str, int], parse: str, replace: tuple[tuple[str, str], ...]
) -> Spelling:
    words = sorted(((t, n) for t, n in counts.items() if t and t not in numeric), key=lambda word: (-word[1], word[0]))
    cells = pd.Series([text for text, _ in words], dtype=object)
    for old, new in replace:
        cells = cells.str.replace(old, new, regex=False)
    misread = pd.to_numeric(cells, errors="coerce").notna() if words else []
    named = [text for (text, _), also in zip(words, misread, strict=True) if also]
    frequent = [text for text, _ in words[:MOST_WORDS]]
    return Spelling(parse, replace, tuple(words), tuple(dict.fromkeys([*frequent, *named])))
