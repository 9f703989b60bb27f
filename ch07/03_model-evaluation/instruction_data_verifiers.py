# Generated from ch07/01_main-chapter-code/instruction_data_verifiers.py by `make copies`; do not edit.
"""Verifiers that compute: conversions, arithmetic, counts, lists, strings, spellings.

A check is a small dictionary beside an entry of `instruction-data.json`, for example {"kind": "convert", "value": 5,
"from": "km", "to": "m"}. It holds the question in a form a program can solve, never the answer. A verifier takes the
check, the answer, and the question's text (what the question says may be repeated), and returns True or False.
`instruction_data_checks.py` calls them through the table VERIFIERS; `instruction_data_facts.py` has the rest. Chapter 7,
the course's own data.
"""

import ast
import operator
import re
from collections.abc import Callable, Iterable
from difflib import SequenceMatcher
from fractions import Fraction

from instruction_data_reading import dates, fold, hedges, named, numbers, quoted, statements, unquoted
from instruction_data_tables import UNIT_NAMES, UNITS

OPERATORS = {
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul, ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod, ast.Pow: operator.pow,
}  # fmt: skip
VOWELS = "aeiou"

# ---- numbers ----


def states_number(answer: str, exact: Fraction, known: Iterable[Fraction] = (), least: int = 3, ordinals: bool = False) -> bool:
    """True if the answer states `exact` and no number besides it but `known` ones, without offering a choice."""
    found = [number for number in numbers(answer) if ordinals or not number.ordinal]
    known = set(known)
    new = [number for number in found if number.value not in known]
    if not all(number.rounds(exact, least) for number in new):
        return False
    if not new and not (found and found[-1].rounds(exact, least)):
        return False  # everything was given: then the result has to stand last
    gaps = [answer[left.end : right.start] for left, right in zip(found, found[1:])]
    return not any(re.search(r"\bor\b", gap) for gap in gaps)


def number_after_all(text: str) -> set[Fraction]:
    """The values a question gives, which an answer may repeat."""
    return {number.value for number in numbers(text)}


def converted(value: float | int, source: str, target: str) -> Fraction:
    """Return `value` in the target unit; temperatures go through kelvins."""
    value = Fraction(str(value))
    if source in "CFK":
        kelvin = {"C": value + Fraction("273.15"), "F": (value - 32) * 5 / 9 + Fraction("273.15"), "K": value}[source]
        celsius = kelvin - Fraction("273.15")
        return {"C": celsius, "F": celsius * 9 / 5 + 32, "K": kelvin}[target]
    (kind, factor), (other_kind, divisor) = UNITS[source], UNITS[target]
    if kind != other_kind:
        raise ValueError(f"{source} measures {kind}, {target} measures {other_kind}")
    return value * factor / divisor


def unit_behind(text: str) -> str | None:
    """Return the code of the unit that a text begins with, or None."""
    best, length = None, 0
    for code, names in UNIT_NAMES.items():
        for name in names.split():
            spoken = re.escape(name.replace("_", " "))
            match = re.match(rf"[\s-]*(?:US |decimal |°)?{spoken}e?s?(?![\w/²])", text, re.I if len(name) > 2 else 0)
            if match and match.end() > length:
                best, length = code, match.end()
    return best


def verify_convert(check: dict, answer: str, question: str) -> bool:
    """Right number, and if a known unit stands behind it, the one asked for. "5 km is 5,000 m" is right."""
    exact = converted(check["value"], check["from"], check["to"])
    text = statements(answer)
    given = {Fraction(str(check["value"]))} | number_after_all(question)
    units = [unit_behind(text[number.end :]) for number in numbers(text) if number.rounds(exact) and number.value not in given]
    return states_number(text, exact, given) and all(unit in (None, check["to"]) for unit in units)


def evaluate(node: ast.AST, seen: set[Fraction]) -> Fraction:
    """Return the exact value of a parsed expression of numbers and + - * / // % **, and collect every intermediate value."""
    if isinstance(node, ast.Expression):
        return evaluate(node.body, seen)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        value = Fraction(str(node.value))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        value = -evaluate(node.operand, seen)
    elif isinstance(node, ast.BinOp) and type(node.op) in OPERATORS:
        left, right = evaluate(node.left, seen), evaluate(node.right, seen)
        if isinstance(node.op, ast.Pow) and abs(right) > 64:
            raise ValueError("the exponent is too large")
        if isinstance(node.op, ast.Mod):
            seen.add(Fraction(left // right))  # "5 times 6 with 2 left over"
        value = Fraction(OPERATORS[type(node.op)](left, right))
    else:
        raise ValueError(f"not arithmetic: {ast.dump(node)}")
    seen.add(value)
    return value


def verify_arithmetic(check: dict, answer: str, question: str) -> bool:
    """The value of the expression, exact or rightly rounded; numbers of the question and intermediate values may stand beside it."""
    known = number_after_all(question)
    exact = evaluate(ast.parse(check["expression"], mode="eval"), known)
    least = 99 if (exact * 1000).denominator == 1 else 2  # three decimals are written out, endless ones rounded
    return states_number(statements(answer), exact, known, least)


def counted(what: str, text: str) -> int:
    """Count letters, words, vowels, consonants, sentences, digits, items, one letter ("letter:x") or one word ("word:the")."""
    kind, _, wanted = what.partition(":")
    lower = text.lower()
    words = [word for word in text.split() if re.search(r"\w", word)]
    bare = [word.strip(".,;:!?\"'()") for word in lower.split()]
    amounts = {
        "letters": lambda: sum(c.isalpha() for c in text),
        "words": lambda: len(words),
        "vowels": lambda: sum(c in VOWELS for c in fold(text)),
        "consonants": lambda: sum(c.isalpha() and c not in VOWELS for c in fold(text)),
        "sentences": lambda: len(re.findall(r"[.!?]+(?=[\"')\s]|$)", text)),
        "digits": lambda: sum(c.isdigit() for c in text),
        "letter": lambda: lower.count(wanted.lower()),
        "word": lambda: bare.count(wanted.lower()),
        "items": lambda: len([piece for piece in re.split(r"[,;\n]| and ", text) if piece.strip()]),
    }
    return amounts[kind]()


def verify_count(check: dict, answer: str, question: str) -> bool:
    """The number of the things counted, in digits or words; text quoted in the answer is not read."""
    exact = Fraction(counted(check["what"], check["text"]))
    text = unquoted(statements(answer)).replace(check["text"], " ")
    text = re.sub(r"\bonce\b", "1 time", re.sub(r"\btwice\b", "2 times", text))
    if not numbers(text) and exact == 0:
        return bool(re.search(r"\b(?:no|none)\b", text, re.I))
    return states_number(text, exact, number_after_all(question) - {exact})


# ---- lists ----


def sort_key(key: str) -> Callable[[str], object]:
    """Return the function that `items` are sorted by."""
    return {
        "alphabet": fold,
        "number": lambda item: numbers(item)[0].value,
        "length": len,
        "last_letter": lambda item: fold(item)[-1],
        "date": lambda item: min(dates(item, 2000)[0]),
    }[key]


def ordered(check: dict) -> list[str]:
    """Return the items in the order asked for; a tie has no order."""
    key = sort_key(check["key"])
    keys = [key(item) for item in check["items"]]
    if len(set(keys)) < len(keys):
        raise ValueError("two items have the same rank")
    return sorted(check["items"], key=key, reverse=check.get("reverse", False))


def verify_sort(check: dict, answer: str, question: str) -> bool:
    """The items, each once, in the right order, with nothing but commas, "and", "then" or line ends between them."""
    items = ordered(check)
    answer = re.sub(r"(?m)^\s*(?:\d+[.)]|[-*•]) +", "", answer)
    gap = r"[\"']*\s*(?:[,;>\n]|->|→|,? and|,? then)+\s*(?:and |then )?[\"']*"
    chain = gap.join(re.escape(item) for item in items)
    found = re.findall(rf"(?:^|(?P<before>.*?))(?<![\w.-])[\"']*{chain}[\"']*(?P<after>(?![\w]|[.,]\d).*)", answer, re.I | re.S)
    if len(found) != 1 or sorted(map(fold, named(answer, items))) != sorted(map(fold, items)):
        return False
    before, after = found[0]
    if (before + after).count(",") > 2:
        return False  # a second list beside it
    goes_on = r"\s*(?:,\s*(?:and\s+)?[\w'\"-]+\s*(?:[.,;]|$)|(?:and|or)\b|,\s*\d)"
    return not re.search(r"(?:,| and| or)\s*[\"']*$", before) and not re.match(goes_on, after)


def verify_pick(check: dict, answer: str, question: str) -> bool:
    """The one item asked for, and no other item."""
    expected = ordered(check)[0 if check["which"] == "first" else -1]
    text = statements(answer)
    return set(named(text, check["items"])) == {expected} and not hedges(text, expected)


# ---- strings ----


def changed(operation: str, text: str) -> set[str]:
    """Return the results of a string operation; more than one where the wording leaves it open."""
    name, *arguments = operation.split(":")
    words = text.split()
    letters = [c for c in text if c.isalpha()]
    at = int(arguments[0]) - 1 if name.startswith("nth") else 0
    initials = [word[0].upper() for word in words]
    results = {
        "reverse": lambda: {text[::-1]},
        "upper": lambda: {text.upper()},
        "lower": lambda: {text.lower()},
        "title": lambda: {" ".join(word[:1].upper() + word[1:].lower() for word in words)},
        "initials": lambda: {"".join(initials), ".".join(initials) + ".", ". ".join(initials) + "."},
        "first_letter": lambda: {letters[0]},
        "last_letter": lambda: {letters[-1]},
        "remove_vowels": lambda: {"".join(c for c in text if c.lower() not in VOWELS)},
        "remove_spaces": lambda: {text.replace(" ", "")},
        "reverse_words": lambda: {" ".join(reversed(words))},
        "join": lambda: {arguments[0].join(words)},
        "replace": lambda: {text.replace(*arguments)},
        "nth_word": lambda: {words[at].strip(".,;:!?\"'")},
        "nth_letter": lambda: {letters[at]},
        "repeat": lambda: {text * int(arguments[0]), " ".join([text] * int(arguments[0]))},
        "swap_case": lambda: {text.swapcase()},
        "double_letters": lambda: {"".join(c * 2 if c.isalpha() else c for c in text)},
        "every_second_letter": lambda: {"".join(letters[::2]), "".join(letters[1::2])},
    }
    return results[name]()


def verify_string(check: dict, answer: str, question: str) -> bool:
    """The result with its exact case: in quotes, behind "is" or a colon, or as the whole answer."""
    results = changed(check["operation"], check["text"])
    for result in results:
        rest = answer.removeprefix(result) if answer.startswith(result) else None
        if rest in ("", ".", "!") or rest and re.match(r"(?:[.!]|, (?:although|though|and|but|which|as))(?: [\w'-]+,?){3,}", rest):
            return True  # the whole answer, or its first sentence before a remark
    given = {check["text"], *check["operation"].split(":")[1:], *quoted(question)} - results
    pieces = {piece if piece in results else piece.rstrip(".,!") for piece in quoted(answer)} - given
    if pieces:
        return len(pieces & results) == 1 and pieces <= results
    behind = r"(?:\b(?:is|are|becomes|gives|reads|spells|makes|say|says|get)|:)\s+"
    ends = rf"{behind}(?:{'|'.join(map(re.escape, results))})(?:[.!]|$)"
    return len(re.findall(ends, answer)) == 1 and not re.search(r"\bor\b", answer)


def words_of(text: str) -> list[str]:
    """The words of a text without quotes and punctuation around them."""
    return [word.strip("'") for word in re.findall(r"[\w'-]+", text) if word.strip("'")]


def verify_spelling(check: dict, answer: str, question: str) -> bool:
    """Every right form and no wrong one; an answer that repeats most of the text must be the whole text, corrected."""
    fixes, text = check["fixes"], check["text"]
    words, rights = words_of(answer), {right.lower() for right in fixes.values()}
    lower = {word.lower() for word in words}
    if not all(right in words or (right.islower() and right in lower) for right in fixes.values()):
        return False
    others = {word.lower() for word in words_of(text)} - {wrong.lower() for wrong in fixes}
    similar = {word for word in lower for right in rights if SequenceMatcher(None, word, right).ratio() > 0.8}
    single = {piece.lower().rstrip(".,!") for piece in quoted(answer) if " " not in piece}
    if (similar | single) - rights - others or len(words) > len(words_of(text)) + 20:
        return False  # a second guess
    if len(others) > 3 and len(others & lower) >= 0.6 * len(others):
        corrected = text
        for wrong, right in fixes.items():
            corrected = re.sub(rf"\b{re.escape(wrong)}\b", right, corrected)
        return corrected.rstrip(".!") in answer
    return not any(wrong.lower() in lower for wrong in fixes)
