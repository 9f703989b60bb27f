# Generated from ch07/01_main-chapter-code/instruction_data_reading.py by `make copies`; do not edit.
"""How a free answer is read: the numbers, dates, times, quoted pieces and known names in it.

An answer may be worded in any way ("84", "It is 84.", "Good question! The answer is eighty-four."), so these functions
find what it states, without a model. `instruction_data_verifiers.py` compares that with the truth. Chapter 7, the
course's own data.
"""

import re
import unicodedata
from datetime import date
from fractions import Fraction
from typing import NamedTuple

_ONES = """zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen
eighteen nineteen""".split()
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
_FIRST = """zeroth first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth
fifteenth sixteenth seventeenth eighteenth nineteenth twentieth twenty-first""".split()
WORDS = {word: number for number, word in enumerate(_ONES)}
WORDS |= {tens: 20 + 10 * i for i, tens in enumerate(_TENS)}
WORDS |= {f"{tens}-{ones}": 20 + 10 * i + j for i, tens in enumerate(_TENS) for j, ones in enumerate(_ONES[1:10], start=1)}
ORDINALS = {word: number for number, word in enumerate(_FIRST)}
GLYPHS = {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3", "⅕": "1/5", "⅛": "1/8"}
QUOTED = re.compile(r"\"([^\"]+)\"|(?<!\w)'(.+?)'(?!\w)")
SCALES = {"thousand": 1000, "million": 10**6, "billion": 10**9}
WEEKDAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
MONTHS = "January February March April May June July August September October November December".split()

_SPOKEN = "|".join(sorted([*WORDS, *ORDINALS], key=len, reverse=True))
_MINUS = r"(?:\A|(?<=\b(?:is|at|of|to|by) )|(?<=: ))minus "  # elsewhere "minus" means subtraction
NUMBER = re.compile(
    rf"(?P<sign>(?<![\d)] )(?<![\w).\]])[-−]|{_MINUS})?"
    r"(?<![\w.^])(?P<digits>\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
    r"(?P<part>/\d+|\s?[½¼¾⅓⅔⅕⅛]|\s\d+/\d+)?(?P<ordinal>(?:st|nd|rd|th)\b)?(?!\d|,\d{3})(?P<scale>\s(?:thousand|million|billion)\b)?"
    rf"|(?P<glyph>[½¼¾⅓⅔⅕⅛])|(?P<minus>{_MINUS})?\b(?P<word>{_SPOKEN})\b(?! (?:hundred|thousand|million))",
    re.IGNORECASE,
)


class Number(NamedTuple):
    """A number in a text: its value, the size of its last stated digit, its significant digits, its place."""

    value: Fraction
    step: Fraction
    significant: int
    start: int
    end: int
    ordinal: bool = False

    def rounds(self, exact: Fraction, least: int = 3) -> bool:
        """True if this states `exact`, exactly or rounded rightly to at least `least` significant digits."""
        if self.value == exact or abs(self.value - exact) < Fraction(1, 10**12):
            return True
        if exact.denominator == 1:
            return False  # a whole number needs no rounding: 1040 does not state 1039
        step, significant = self.step, self.significant
        while significant >= least and step:
            if abs(self.value - exact) <= step / 2:
                return True
            step, significant = step * 10, significant - 1
            if self.value % step:
                break  # the next digit is not a zero, so it was meant
        return False


def numbers(text: str) -> list[Number]:
    """Return the numbers in a text, in digits or in words; "one" and "zero" only if there is no other number ("the right one is 84")."""
    found = [(match, _number(match)) for match in NUMBER.finditer(text)]
    others = [number for match, number in found if (match["word"] or "").lower() not in ("one", "zero")]
    return others or [number for _, number in found]


def _number(match: re.Match) -> Number:
    start, end = match.span()
    if match["word"]:
        word = match["word"].lower()
        value = Fraction(WORDS.get(word, ORDINALS.get(word))) * (-1 if match["minus"] else 1)
        return Number(value, Fraction(0), 0, start, end, word in ORDINALS)
    if match["glyph"]:
        return Number(Fraction(GLYPHS[match["glyph"]]), Fraction(0), 0, start, end)
    digits = match["digits"].replace(",", "")
    scale = SCALES[match["scale"].strip().lower()] if match["scale"] else 1
    step = Fraction(scale, 10 ** len(digits.partition(".")[2]))
    value = Fraction(digits) * scale
    part = (match["part"] or "").strip()
    if part.startswith("/"):
        value, step = value / max(1, int(part[1:])), Fraction(0)
    elif part:
        value, step = value + Fraction(GLYPHS.get(part, part)), Fraction(0)
    significant = len(digits.replace(".", "").lstrip("0"))
    return Number(-value if match["sign"] else value, step, significant, start, end, bool(match["ordinal"]))


def quoted(text: str) -> list[str]:
    """Return the pieces in straight quotes; an apostrophe inside a word opens nothing."""
    return [match[1] or match[2] for match in QUOTED.finditer(text)]


def unquoted(text: str) -> str:
    """Return the text without the pieces in quotes."""
    return QUOTED.sub(" ", text)


def statements(answer: str) -> str:
    """Return the answer without its questions: what is asked is not stated."""
    sentences = re.split(r"(?<=[.!?])\s+|\n", answer.strip())
    return " ".join(sentence for sentence in sentences if not sentence.rstrip("\"')").endswith("?"))


def fold(text: str) -> str:
    """Return the text in lower case without accents, so that "Bogota" equals "Bogotá"."""
    return "".join(c for c in unicodedata.normalize("NFD", text.casefold()) if not unicodedata.combining(c))


def named(text: str, names: list[str], exact: bool = False) -> list[str]:
    """Return the names that occur in a text as whole words, in order; where two overlap, the longer one counts."""
    change = str if exact else fold
    back = {change(name): name for name in names}
    if not back:
        return []
    longest_first = "|".join(re.escape(name) for name in sorted(back, key=len, reverse=True))
    found = re.finditer(rf"(?<![\w.])(?<!\w-)(?:{longest_first})(?!\w|-\w|[.,]\d)", change(text))
    return [back[match.group()] for match in found]


def hedges(answer: str, name: str) -> bool:
    """True if the answer offers `name` as one of several: "Fe or Au", "Lima, Cusco, Arequipa"."""
    text, name = fold(answer), re.escape(fold(name))
    bare = rf"[\"']?\b{name}\b[\"']?"
    choice = rf"{bare}[,;]? or\b|\bor (?:\w+ )?{bare}|{bare} ?/ ?\w|\w ?/ ?{bare}|\b(?:maybe|perhaps|not) (?:\w+ )?{bare}"
    return bool(re.search(choice, text))


# ---- dates and times ----

_MONTH = "|".join(MONTHS)
_DATES = re.compile(
    rf"(?P<y>\d{{4}})-(?P<m>\d\d)-(?P<d>\d\d)|\b(?P<month>{_MONTH}) (?P<day>\d{{1,2}})(?:st|nd|rd|th)?(?:,? (?P<year>\d{{4}}))?\b"
    rf"|\b(?P<day2>\d{{1,2}})(?:st|nd|rd|th)?(?: of)? (?P<month2>{_MONTH})(?:,? (?P<year2>\d{{4}}))?\b"
)
_TIMES = re.compile(
    r"\b(?P<hour>\d{1,2})(?:[:.](?P<minute>\d\d))?\s?(?P<half>[ap])\.?m\b\.?|\b(?P<hour24>\d{1,2}):(?P<minute24>\d\d)\b|\b(?P<word>noon|midnight)\b",
    re.IGNORECASE,
)


def dates(text: str, year: int) -> tuple[set[date], str]:
    """Return the dates in a text (`year` where none is written) and the text without them; impossible dates are ignored."""
    found = set()
    for match in _DATES.finditer(text):
        part = match.groupdict()
        month = int(part["m"]) if part["m"] else MONTHS.index(part["month"] or part["month2"]) + 1
        try:
            found.add(date(int(part["y"] or part["year"] or part["year2"] or year), month, int(part["d"] or part["day"] or part["day2"])))
        except ValueError:
            continue
    return found, _DATES.sub(" ", text)


def times(text: str) -> tuple[list[tuple[int, bool]], str]:
    """Return [(minutes after midnight, is it written with a.m. or p.m.)] and the text without the times."""
    found = []
    for match in _TIMES.finditer(text):
        if match["word"]:
            found.append((720 if match["word"].lower() == "noon" else 0, True))
        elif match["half"]:
            hour, minute = int(match["hour"]), int(match["minute"] or 0)
            found.append((hour % 12 * 60 + minute + (720 if match["half"].lower() == "p" else 0), True))
        else:
            found.append((int(match["hour24"]) * 60 + int(match["minute24"]), False))
    return found, _TIMES.sub(" ", text)


def durations(text: str) -> set[int]:
    """Return the lengths of time in a text in minutes: "2 hours and 25 minutes" and "145 minutes" are both {145}."""
    text = re.sub(r"\bhalf an hour\b", "30 minutes", re.sub(r"\ban hour and a half\b", "90 minutes", text))
    text = re.sub(r"\b(?:an|one) hour\b", "1 hour", text)
    spoken = "|".join(sorted(WORDS, key=len, reverse=True))
    amount = rf"(\d+|{spoken})"
    hours, minutes = rf"{amount} ?(?:hours?|hrs?|h)\b", rf"{amount} ?(?:minutes?|min)\b"
    found = re.finditer(rf"\b{hours}(?:,? (?:and )?{minutes})?|\b{minutes}", text, re.I)
    return {60 * _count(match[1]) + _count(match[2] or match[3]) for match in found}


def _count(word: str | None) -> int:
    return 0 if word is None else int(word) if word.isdigit() else WORDS[word.lower()]
