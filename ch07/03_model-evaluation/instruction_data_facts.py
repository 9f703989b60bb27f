# Generated from ch07/01_main-chapter-code/instruction_data_facts.py by `make copies`; do not edit.
"""Verifiers that look something up: calendar and clock, parts of speech, chemistry, capitals.

They have the form that `instruction_data_verifiers.py` describes. The calendar is Python's own; elements, compounds and
capitals come from `instruction_data_tables.py`. Chapter 7, the course's own data.
"""

import calendar
import re
from datetime import date, timedelta
from fractions import Fraction

from instruction_data_reading import MONTHS, WEEKDAYS, dates, durations, fold, hedges, named, quoted, statements, times, unquoted
from instruction_data_tables import (
    CAPITALS,
    COMPOUNDS,
    COUNTRY_SPELLINGS,
    ELEMENT_SPELLINGS,
    ELEMENTS,
    SYMBOLS_THAT_ARE_WORDS,
    WORD_CLASSES,
)
from instruction_data_verifiers import states_number

# ---- calendar and clock ----


def names_only(answer: str, names: list[str], expected: str, given: str) -> bool:
    """True if the answer names `expected` and no other of the names but the one the question gave."""
    found = named(answer, names, exact=True)
    return expected in found and set(found) <= {expected, given} and not hedges(answer, expected)


def verify_weekday(check: dict, answer: str, question: str) -> bool:
    """A weekday of a date, or some days after another weekday."""
    if check["operation"] == "weekday":
        return names_only(answer, WEEKDAYS, WEEKDAYS[date.fromisoformat(check["date"]).weekday()], "")
    start = check["weekday"]
    return names_only(answer, WEEKDAYS, WEEKDAYS[(WEEKDAYS.index(start) + check["days"]) % 7], start)


def verify_month_after(check: dict, answer: str, question: str) -> bool:
    """A month some months after another one."""
    start = check["month"]
    return names_only(answer, MONTHS, MONTHS[(MONTHS.index(start) + check["months"]) % 12], start)


def verify_add_days(check: dict, answer: str, question: str) -> bool:
    """A date some days after another; a weekday named beside it must be the right one."""
    start = date.fromisoformat(check["date"])
    end = start + timedelta(days=check["days"])
    found, rest = dates(answer, end.year)
    days = {WEEKDAYS[day.weekday()] for day in (start, end)}
    return found - {start} == {end} and set(named(rest, WEEKDAYS)) <= days and not re.search(r"\bor\b", rest)


def verify_number_of_days(check: dict, answer: str, question: str) -> bool:
    """Days between two dates, the number of a day in its year, or the length of a month."""
    operation = check["operation"]
    if operation == "month_length":
        exact, year = calendar.monthrange(check["year"], check["month"])[1], check["year"]
    else:
        start = date.fromisoformat(check["date"])
        year = start.year
        exact = (date.fromisoformat(check["to"]) - start).days if operation == "days_between" else start.timetuple().tm_yday
    text = dates(answer, year)[1]
    known = {Fraction(year)} - {Fraction(exact)}
    return states_number(text, Fraction(exact), known, ordinals=operation == "day_of_year")


def verify_century(check: dict, answer: str, question: str) -> bool:
    """The century of a year: 1789 belongs to the 18th."""
    exact = Fraction((check["year"] + 99) // 100)
    return states_number(answer, exact, {Fraction(check["year"])}, ordinals=True)


def verify_leap_year(check: dict, answer: str, question: str) -> bool:
    """Yes or no, or a sentence that says it: "2028 is a leap year"."""
    text = re.sub(r"\bno (?:problem|doubt|wonder|trouble)\b|\bnot (?:sure|certain|known|clear)\b", "", answer.lower())
    yes, no = bool(re.search(r"\byes\b", text)), bool(re.search(r"\bno\b", text))
    says_not = bool(re.search(r"\b(?:is|was|will|would|does|did|has)(?: not|n't)\b|\bwon't\b|\bcommon year\b", text))
    says_so = "leap year" in text and not says_not
    if yes and no or yes and says_not or no and says_so or not (yes or no or says_so or says_not):
        return False
    return (yes or (says_so and not no)) == calendar.isleap(check["year"])


def _minutes(time: str) -> int:
    hours, minutes = time.split(":")
    return int(hours) * 60 + int(minutes)


def verify_add_minutes(check: dict, answer: str, question: str) -> bool:
    """A time some minutes after another, on a 24-hour clock or with a.m. or p.m."""
    start = _minutes(check["time"])
    found = {minutes for minutes, _ in times(answer)[0]}
    end = (start + check["minutes"]) % 1440
    return found - ({start} - {end}) == {end} and not re.search(r"\bor\b", answer)


def verify_minutes_between(check: dict, answer: str, question: str) -> bool:
    """The time from one moment to another, in minutes or in hours and minutes."""
    exact = (_minutes(check["to"]) - _minutes(check["time"])) % 1440
    text = times(answer)[1]
    return durations(text) == {exact} or (not durations(text) and states_number(text, Fraction(exact)))


def verify_clock(check: dict, answer: str, question: str) -> bool:
    """A time changed into the other way of writing it; the given way may stand beside it."""
    wanted = check["operation"] == "to_12h"
    found = times(answer)[0]
    return (_minutes(check["time"]), wanted) in found and {minutes for minutes, _ in found} == {_minutes(check["time"])}


DATE_VERIFIERS = {
    "weekday": verify_weekday,
    "weekday_after": verify_weekday,
    "month_after": verify_month_after,
    "add_days": verify_add_days,
    "days_between": verify_number_of_days,
    "day_of_year": verify_number_of_days,
    "month_length": verify_number_of_days,
    "century": verify_century,
    "leap_year": verify_leap_year,
    "add_minutes": verify_add_minutes,
    "minutes_between": verify_minutes_between,
    "to_24h": verify_clock,
    "to_12h": verify_clock,
}


def verify_date(check: dict, answer: str, question: str) -> bool:
    """Calendar and clock: one verifier per operation."""
    return DATE_VERIFIERS[check["operation"]](check, statements(answer), question)


# ---- parts of speech ----


def bare_words(text: str) -> list[str]:
    """The words of a text in lower case, without punctuation."""
    return re.findall(r"[^\W\d_]+(?:['-][^\W\d_]+)*", text.lower())


def verify_pos(check: dict, answer: str, question: str) -> bool:
    """The tag of one word, or all words of a tag and no others: in quotes, as a list, or around "is" or "are"."""
    answer = statements(answer)
    if "word" in check:
        outside = unquoted(answer)
        return set(named(outside, list(WORD_CLASSES))) == {check["tag"]} and not hedges(outside, check["tag"])
    wanted = {word.lower() for word in check["words"]}
    sentence = bare_words(check["text"])
    pieces = [words for words in map(bare_words, quoted(answer)) if len(words) < max(3, len(sentence))]
    if pieces:
        return {word for words in pieces for word in words} == wanted
    first = re.split(r"(?<=[.!])\s", answer)[0]
    around = [first, *re.split(r":|\b(?:is|are|was|were)\b", first)]
    linking = {"and", "the", "a", "an"} - wanted
    return any(set(bare_words(part)) - linking == wanted for part in around)


# ---- chemistry ----


def verify_element(check: dict, answer: str, question: str) -> bool:
    """Symbol (exact case), name, or atomic number of an element; no second element beside it."""
    answer = statements(answer)
    symbol, number = ELEMENTS[check["element"]]
    if check["want"] == "number":
        return states_number(answer, Fraction(number))
    if check["want"] == "name":
        found = {ELEMENT_SPELLINGS.get(name, name) for name in named(answer, [*ELEMENTS, *ELEMENT_SPELLINGS])}
        return found == {check["element"]} and not hedges(answer, check["element"])
    everything = [known for known, _ in ELEMENTS.values()]
    found = [known for known in named(answer, everything, exact=True) if known == symbol or known not in SYMBOLS_THAT_ARE_WORDS]
    stated = rf"(?:^|:\s|\b(?:is|as|by|to|letters?|symbol)\s)[\"']?{symbol}[\"']?(?:[.!,;]|$)"
    if symbol in SYMBOLS_THAT_ARE_WORDS and not (symbol in quoted(answer) or re.search(stated, answer.strip())):
        return False
    bare = re.search(rf"(?<!\w){symbol}(?!\w)", answer)
    return bool(bare) and set(found) == {symbol} and not re.search(rf"(?<!\w){symbol}[\"']?,? or\b|\bor [\"']?{symbol}(?!\w)", answer)


def atoms(formula: str) -> dict[str, int]:
    """Count the atoms in a formula without brackets: {"H": 2, "O": 1} for "H2O"."""
    counts = {}
    for symbol, amount in re.findall(r"([A-Z][a-z]?)(\d*)", formula):
        counts[symbol] = counts.get(symbol, 0) + int(amount or 1)
    return counts


def verify_compound(check: dict, answer: str, question: str) -> bool:
    """Formula (exact case; H₂O equals H2O), name, or number of atoms of a compound in the table."""
    answer = statements(answer).translate(str.maketrans("₀₁₂₃₄₅₆₇₈₉", "0123456789"))
    formula = COMPOUNDS[check["name"]]
    if check["want"] == "atoms":
        parts = atoms(formula)
        return states_number(answer, Fraction(sum(parts.values())), {Fraction(amount) for amount in parts.values()})
    if check["want"] == "name":
        found = set(named(answer, list(COMPOUNDS)))
        return check["name"] in found and {COMPOUNDS[name] for name in found} == {formula} and not hedges(answer, check["name"])
    symbols = "|".join(sorted((symbol for symbol, _ in ELEMENTS.values()), key=len, reverse=True))
    found = re.findall(rf"(?<!\w)(?=\w*[A-Z]\w*[A-Z\d])(?:(?:{symbols})\d*)+(?!\w)", answer)
    return set(found) == {formula} and not re.search(r"\bor\b", answer)


# ---- capitals ----


def verify_capital(check: dict, answer: str, question: str) -> bool:
    """The capital of a country, or the country of a capital; accents may be missing; no other place beside it."""
    answer = statements(answer)
    country, capital = check["country"], CAPITALS[check["country"]]
    places = named(answer, [*CAPITALS, *CAPITALS.values(), *COUNTRY_SPELLINGS])
    found = {COUNTRY_SPELLINGS.get(place, place) for place in places}
    expected = capital if check["want"] == "capital" else country
    if expected not in found or not found <= {country, capital}:
        return False
    return not hedges(answer, expected) and not in_a_row(answer, expected, {country, capital})


def in_a_row(answer: str, expected: str, known: set[str]) -> bool:
    """True if `expected` stands in a row with other capitalized words, as in a list of guesses: "Cusco, Lima, Arequipa"."""
    start = fold(answer).find(fold(expected))
    behind = re.match(r"[\"']?(?:,| and)\s+([A-Z][\w-]+)", answer[start + len(expected) :])
    before = re.search(r"([A-Z][\w-]+)(?:,| and)\s+[\"']?$", answer[:start])
    own = {fold(word) for place in known for word in place.split()} | {"d"}
    neighbors = [fold(match[1]) for match in (behind, before) if match]
    opening = r"sure|certainly|yes|well|right|okay|hello|\w+ly"  # "Happily, Lima"
    return any(word not in own and not re.fullmatch(opening, word) for word in neighbors)
