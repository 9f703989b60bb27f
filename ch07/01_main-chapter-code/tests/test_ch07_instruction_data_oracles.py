"""The truth that the verifiers work out agrees with a second way of working it out."""

import calendar
import random
from collections import Counter
from datetime import date, timedelta
from decimal import Decimal

import instruction_data_checks as checks
import instruction_data_facts as facts
import instruction_data_reading as reading
import instruction_data_tables as tables
import instruction_data_verifiers as verifiers
import pytest


def test_units_agree_with_definitions_worked_out_another_way():
    inch, pound, gallon = Decimal("2.54"), Decimal("0.45359237"), Decimal(231) * Decimal("2.54") ** 3 / 1000
    known = [
        (1, "mi", "km", 63360 * inch / 100000), (1, "yd", "m", 36 * inch / 100), (3, "ft", "in", 36), (1, "gal", "l", gallon),
        (1, "cup", "tbsp", 16), (1, "tbsp", "tsp", 3), (1, "qt", "cup", 4), (2, "pt", "qt", 1), (1, "floz", "ml", gallon * 1000 / 128),
        (16, "oz", "lb", 1), (1, "t", "lb", 1000 / pound), (1, "acre", "ft2", 43560), (1, "ha", "m2", 10000), (1, "week", "min", 10080),
        (1, "mph", "km/h", 63360 * inch / 100000), (1, "kn", "km/h", Decimal("1.852")), (1, "kWh", "kJ", 3600),
        (1, "atm", "kPa", Decimal("101.325")),
        (1, "bar", "Pa", 100000), (2, "GB", "bit", 16 * 10**9), (180, "deg", "rad", Decimal("3.14159265358979")), (-40, "C", "F", -40),
        (0, "K", "C", Decimal("-273.15")), (212, "F", "K", Decimal("373.15")), (72, "piece", "dozen", 6),
        (1, "kcal", "kJ", Decimal("4.184")),
    ]  # fmt: skip
    for value, source, target, expected in known:
        found = verifiers.converted(value, source, target)
        assert float(found) == pytest.approx(float(expected), rel=1e-12), (value, source, target)
        assert float(verifiers.converted(float(expected), target, source)) == pytest.approx(value, rel=1e-9, abs=1e-9)


def test_units_of_different_kinds_are_an_error():
    with pytest.raises(ValueError, match="length.*mass"):
        verifiers.converted(1, "m", "kg")


def test_arithmetic_agrees_with_python_on_random_expressions():
    generator = random.Random(3)
    for _ in range(300):
        a, b, c = (generator.randint(1, 60) for _ in range(3))
        forms = ["{}+{}*{}", "({}-{})*{}", "{}/4+{}-{}", "{}%{}+{}", "{}//{}+{}", "{}**2-{}+{}", "-{}+{}*{}"]
        expression = generator.choice(forms).format(a, b, c)
        exact = eval(expression)
        check = {"kind": "arithmetic", "expression": expression}
        assert checks.verify(check, f"The result is {exact:g}." if abs(exact) < 1e5 else str(exact)), expression
        assert not checks.verify(check, f"The result is {exact + 1:g}."), expression


@pytest.mark.parametrize("expression", ["__import__('os')", "2**9999", "a+1", "len('x')", "'2'*3", "True+1"])
def test_only_arithmetic_is_evaluated(expression):
    with pytest.raises(ValueError):
        checks.verify({"kind": "arithmetic", "expression": expression}, "4")


def test_rounding_must_be_right_in_the_last_digit():
    third = {"kind": "arithmetic", "expression": "20/3"}
    assert [t for t in ("6.67", "6.7", "6.666667", "6.66", "6.6", "7", "6.668") if checks.verify(third, t)] == ["6.67", "6.7", "6.666667"]
    long = {"kind": "convert", "value": 26.2, "from": "mi", "to": "m"}  # 42164.8128
    stated = ("42165", "42160", "42200", "42,164.8", "42000", "42170")
    assert [text for text in stated if checks.verify(long, text)] == ["42165", "42160", "42200", "42,164.8"]


def test_counts_agree_with_loops_over_characters():
    text = "Old bells ring: 3 at noon, 12 at night! Do the boats hear the bells?"
    words, inside = 0, False
    for c in text:
        words += not c.isspace() and not inside
        inside = not c.isspace()
    tally = Counter(text.lower())
    vowels = sum(tally[v] for v in "aeiou")
    letters = sum(n for c, n in tally.items() if "a" <= c <= "z")
    expected = {"words": words, "vowels": vowels, "letters": letters, "consonants": letters - vowels, "digits": 3, "sentences": 2}
    expected |= {"letter:b": tally["b"], "word:the": 2, "word:bells": 2}
    for what, number in expected.items():
        assert verifiers.counted(what, text) == number, what
    assert verifiers.counted("items", "oak, ash, elm and fir") == 4


def test_the_calendar_agrees_with_counting_day_by_day():
    generator = random.Random(11)
    for _ in range(40):
        start = date(generator.randint(1890, 2110), generator.randint(1, 12), generator.randint(1, 28))
        days, day = generator.randint(1, 400), start
        for _ in range(days):
            month_ends = day.day == calendar.monthrange(day.year, day.month)[1]
            day = date(day.year + (month_ends and day.month == 12), day.month % 12 + 1, 1) if month_ends else day.replace(day=day.day + 1)
        text = f"{reading.MONTHS[day.month - 1]} {day.day}, {day.year}"
        assert checks.verify({"kind": "date", "operation": "add_days", "date": str(start), "days": days}, text)
        assert checks.verify({"kind": "date", "operation": "days_between", "date": str(start), "to": str(day)}, f"{days} days")
        year = day.year - (day.month < 3)  # Sakamoto's rule, 0 is Sunday
        number = (year + year // 4 - year // 100 + year // 400 + (0, 3, 2, 5, 0, 3, 5, 1, 4, 6, 2, 4)[day.month - 1] + day.day) % 7
        assert checks.verify({"kind": "date", "operation": "weekday", "date": str(day)}, reading.WEEKDAYS[number - 1])
    for year in (1600, 1700, 1900, 1996, 2000, 2026, 2100):
        leap = (date(year, 3, 1) - date(year, 2, 1)).days == 29
        check = {"kind": "date", "operation": "leap_year", "year": year}
        assert checks.verify(check, "Yes.") == leap and checks.verify(check, "No.") != leap
    for year, century in ((1, "1st"), (100, "1st"), (101, "2nd"), (1900, "19th"), (1901, "20th"), (2000, "20th")):
        assert checks.verify({"kind": "date", "operation": "century", "year": year}, f"the {century} century"), year


def test_days_after_a_date_cross_new_year_and_leap_days():
    assert date(2027, 12, 20) + timedelta(days=75) == date(2028, 3, 4)
    check = {"kind": "date", "operation": "add_days", "date": "2027-12-20", "days": 75}
    assert checks.verify(check, "March 4, 2028") and not checks.verify(check, "March 5, 2028")


STRINGS = [
    ("reverse", "drawer", "reward"), ("upper", "tea at 4", "TEA AT 4"), ("lower", "RED", "red"), ("title", "mind the gap", "Mind The Gap"),
    ("initials", "Low Scarrow Choir", "LSC"), ("first_letter", "yacht", "y"), ("last_letter", "horizon", "n"),
    ("remove_vowels", "chives", "chvs"),
    ("remove_spaces", "ice cream van", "icecreamvan"), ("reverse_words", "cake before tea", "tea before cake"),
    ("join:-", "merry go round", "merry-go-round"),
    ("replace:a:o", "banana", "bonono"), ("nth_word:2", "Calm, seas follow.", "seas"), ("nth_letter:3", "compass", "m"),
    ("repeat:3", "ha", "hahaha"),
    ("swap_case", "LowTide", "lOWtIDE"), ("double_letters", "mint", "mmiinntt"), ("every_second_letter", "abcdef", "ace"),
]  # fmt: skip


@pytest.mark.parametrize("operation, text, result", STRINGS)
def test_string_operations_agree_with_results_written_by_hand(operation, text, result):
    check = {"kind": "string", "operation": operation, "text": text}
    assert checks.verify(check, result) and checks.verify(check, f"The result is '{result}'.")
    assert not checks.verify(check, result + "q") and not checks.verify(check, f"It is '{result}' or '{result}x'.")


def test_elements_are_complete_and_in_order():
    assert len(tables.ELEMENTS) == 118 and [number for _, number in tables.ELEMENTS.values()] == list(range(1, 119))
    assert len({symbol for symbol, _ in tables.ELEMENTS.values()}) == 118
    landmarks = {"helium": ("He", 2), "iron": ("Fe", 26), "silver": ("Ag", 47), "tungsten": ("W", 74), "gold": ("Au", 79)}
    assert {name: tables.ELEMENTS[name] for name in landmarks} == landmarks
    noble = [2, 10, 18, 36, 54, 86]  # shells fill up after 2, 8, 8, 18, 18, 32 more elements
    assert [tables.ELEMENTS[name][1] for name in "helium neon argon krypton xenon radon".split()] == noble


def test_formulas_are_made_of_known_elements():
    symbols = {symbol for symbol, _ in tables.ELEMENTS.values()}
    for name, formula in tables.COMPOUNDS.items():
        counts = facts.atoms(formula)
        assert set(counts) <= symbols and "".join(s + str(n) * (n > 1) for s, n in counts.items()) == formula, name


def test_every_country_and_capital_is_named_once():
    assert len(tables.CAPITALS) > 120 and len(set(tables.CAPITALS.values())) == len(tables.CAPITALS)
    assert all(name == name.strip() and name for pair in tables.CAPITALS.items() for name in pair)
    for country, capital in tables.CAPITALS.items():
        assert checks.verify({"kind": "capital", "country": country, "want": "capital"}, f"The capital of {country} is {capital}."), country
        assert checks.verify({"kind": "capital", "country": country, "want": "country"}, f"It is the capital of {country}."), country
