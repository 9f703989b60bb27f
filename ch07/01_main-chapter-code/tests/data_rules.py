"""The rules that the instruction data and the preference data keep: each broken rule is one line that names the entry.

`find_faults(data, families)` and `find_preference_faults(data, preferences, tones)` return lists of such lines, empty for
good data. The tests call them on the real files, which must be clean, and on copies with planted faults, which must not.
"""

import codecs
import re
from collections import Counter
from statistics import median

from instruction_data_checks import SPLITS, question_of, verify
from instruction_data_reading import quoted
from instruction_data_tables import CAPITALS, ELEMENTS
from make_data_card import THRESHOLD, nearest, normal, opening

FIELDS = {"instruction", "input", "output"}
MOST_OPENINGS = 0.04  # share of the instructions that may begin with the same three words
PRIVATE = {
    "an e-mail address": r"[\w.+-]+@[\w-]+\.\w+",
    "a web address": r"https?://|\bwww\.|\b[\w-]+\.(?:com|org|net|io)\b",
    "a telephone number": r"\(?\b\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b|\+\d{1,3}[ -]?\d{2,}[ -]?\d{3,}",
}
_RUDE = codecs.decode("shpx|fuvg|qnza|penc|ovgpu|onfgneq|nffubyr|cvff|juber|fyhg|vqvbg|zbeba|fghcvq|qhzo", "rot13")
RUDE = re.compile(rf"\b(?:{_RUDE})(?:s|ed|ing|y|ly)?\b", re.IGNORECASE)
TITLE_WORDS = 0.6  # a line with more capitalized words than this is a title, not a sentence


def split_of(number):
    """Name of the split that the entry at a position belongs to."""
    return "train" if number < SPLITS["train"] else "test" if number < SPLITS["train"] + SPLITS["test"] else "val"


def name(number):
    return f"entry {number} ({split_of(number)})"


# ---- form ----


def schema_faults(data, families):
    """Three text fields, no empty output or instruction, as many rows of families as entries, the full count."""
    if len(data) != sum(SPLITS.values()):
        yield f"count: {len(data)} entries instead of {sum(SPLITS.values())}"
    if len(data) != len(families):
        yield f"count: {len(families)} families for {len(data)} entries"
    for number, entry in enumerate(data):
        if set(entry) != FIELDS or not all(isinstance(text, str) for text in entry.values()):
            yield f"schema: {name(number)} has fields {sorted(entry)}"
        for field in ("instruction", "output"):
            if not entry.get(field, "").strip():
                yield f"empty {field}: {name(number)}"
    for number, row in enumerate(families):
        if set(row) != {"family", "check"}:
            yield f"schema: family {number} has fields {sorted(row)}"


def family_faults(data, families):
    """Each family in each split, and at least 400 entries that a program can verify."""
    counts = Counter((row["family"], split_of(number)) for number, row in enumerate(families))
    for family in sorted({row["family"] for row in families}):
        for part in SPLITS:
            if not counts[family, part]:
                yield f"missing family: {family} is not in {part}"
    verifiable = sum(row["check"] is not None for row in families)
    if verifiable < 400:
        yield f"verifiable: only {verifiable} entries"


def hygiene_faults(data, families):
    """Clean white space, straight and balanced quotes, balanced brackets, a final mark behind every sentence."""
    for number, entry in enumerate(data):
        for field in FIELDS:
            for fault in text_faults(entry[field]):
                yield f"{fault}: {name(number)}, {field} {entry[field]!r}"
        if not entry["instruction"].rstrip("\"')").endswith((".", "?", ":", "!")):
            yield f"final punctuation: {name(number)}, instruction {entry['instruction']!r}"
        if is_sentence(entry["output"]) and not re.search(r"[.!?][\"')]*$", entry["output"]):
            yield f"final punctuation: {name(number)}, output {entry['output']!r}"


def text_faults(text):
    """What is typographically wrong with one text."""
    if "  " in text or "\t" in text:
        yield "double space"
    if text != text.strip() or re.search(r" \n|\n ", text):
        yield "space at the end"
    if re.search(r"\s[,;?!]|\s\.(?!\d|\.\.)", text):
        yield "space before a mark"
    if re.search("[“”‘’«»„`´]", text):
        yield "curly quote"
    if text.count('"') % 2 or not single_quotes_pair(text):
        yield "unbalanced quotes"
    if not brackets_pair(text):
        yield "unbalanced brackets"
    if re.search(r"[\x00-\x09\x0b-\x1f\u200b\ufeff\xa0]", text):
        yield "strange character"


def single_quotes_pair(text):
    """True if every single quote that opens is closed; apostrophes inside words and behind a plural s are free."""
    is_open = False
    for match in re.finditer("'", text):
        before, after = text[match.start() - 1 : match.start()], text[match.end() : match.end() + 1]
        if before.isalnum() and after.isalnum():
            continue  # don't
        if is_open and not after.isalnum():
            is_open = False
        elif not is_open and not before.isalnum() and after and not after.isspace():
            is_open = True
        elif not (before == "s" and not is_open):  # the dogs' bowls
            return False
    return not is_open


def brackets_pair(text):
    """True if brackets close in the order in which they open."""
    stack = []
    for c in text:
        if c in "([{":
            stack.append({"(": ")", "[": "]", "{": "}"}[c])
        elif c in ")]}" and (not stack or stack.pop() != c):
            return False
    return not stack


def is_sentence(text):
    """True for one line of five words or more that begins with a capital and is neither a title nor a list."""
    words = text.split()
    if "\n" in text or len(words) < 5 or not text.lstrip("\"'(")[:1].isupper():
        return False
    capitals = sum(word.lstrip("\"'(")[:1].isupper() for word in words)
    pieces = re.split(r"[,;:] ", text)
    is_list = len(pieces) > 2 and all(len(piece.split()) <= 3 for piece in pieces)
    return capitals / len(words) <= TITLE_WORDS and not is_list


# ---- content ----


def length_faults(data, families):
    """Instructions and outputs are short, and about seven in ten need no input."""
    for field, (low, high), most in (("instruction", (5, 10), 25), ("output", (4, 12), 60)):
        lengths = [len(entry[field].split()) for entry in data]
        if not low <= median(lengths) <= high:
            yield f"length: median of {field} is {median(lengths):g} words"
        for number, length in enumerate(lengths):
            if length > most:
                yield f"length: {name(number)}, {field} has {length} words"
    share = sum(not entry["input"] for entry in data) / len(data)
    if not 0.6 <= share <= 0.8:
        yield f"input: empty in {share:.0%}"


def opening_faults(data, families):
    """No three words open more than 4 % of the instructions."""
    for words, count in Counter(map(opening, data)).items():
        if count > MOST_OPENINGS * len(data):
            yield f"opening: {count} instructions begin with '{words}'"


def content_faults(data, families):
    """Nothing rude, nothing private."""
    for number, entry in enumerate(data):
        text = "\n".join(entry.values())
        if RUDE.search(text):
            yield f"rude word: {name(number)}"
        for what, pattern in PRIVATE.items():
            if re.search(pattern, text):
                yield f"private: {name(number)} has {what}"


def answer_faults(data, families):
    """Every output passes the verifier of its entry."""
    for number, (entry, row) in enumerate(zip(data, families)):
        if row["check"] is not None and not verify(row["check"], entry["output"], question_of(entry)):
            yield f"wrong answer: {name(number)}, {question_of(entry)!r} -> {entry['output']!r}"


def given_in(check):
    """The pieces of a check that the question has to hold, each as a list of forms one of which is enough."""
    yield from ([str(value)] for value in [*check.get("items", []), *(check[key] for key in ("text", "word", "value") if key in check)])
    if check["kind"] == "capital":
        yield [check["country"], CAPITALS[check["country"]]]
    elif check["kind"] == "element":
        yield [check["element"], *map(str, ELEMENTS[check["element"]])]
    elif check["kind"] == "compound":
        yield [check["name"], check["formula"]]


def check_faults(data, families):
    """A check restates the question: what it holds stands there, so that it cannot have been made from the output."""
    for number, (entry, row) in enumerate(zip(data, families)):
        question = question_of(entry).replace(",000", "000").lower()
        for forms in given_in(row["check"]) if row["check"] else ():
            if not any(form.lower() in question for form in forms):
                yield f"check: {name(number)}, {forms} is not in the question {question!r}"


# ---- repeats and leaks ----


def duplicate_faults(data, families):
    """No two entries ask the same, however they are punctuated and capitalized."""
    seen = {}
    for number, entry in enumerate(data):
        key = normal(entry["instruction"]), normal(entry["input"])
        if key in seen:
            yield f"duplicate: {name(number)} repeats {name(seen[key])}"
        seen.setdefault(key, number)


def template(entry):
    """A question with its particulars masked: numbers, quoted pieces, capitalized words inside a sentence."""
    text = question_of(entry)
    text = re.sub(r"\"[^\"]+\"|(?<!\w)'.+?'(?!\w)", "X", text)
    text = re.sub(r"(?<=[\w,;:] )[A-Z][\w'-]*(?: [A-Z][\w'-]*)*", "X", text)
    text = re.sub(r"\d+(?:[.,:/-]\d+)*", "0", text)
    return " ".join(text.lower().split())


def shared_faults(data, families):
    """No instruction and no template in two splits."""
    for what, key in (("instruction", lambda entry: normal(entry["instruction"])), ("template", template)):
        first = {}
        for number, entry in enumerate(data):
            place = first.setdefault(key(entry), number)
            if split_of(place) != split_of(number):
                yield f"shared {what}: {name(number)} and {name(place)}, {key(entry)!r}"


def leak_faults(data, families):
    """No test or validation question, nor its instruction alone, is like one of the training set, nor validation like test."""
    train, test = SPLITS["train"], SPLITS["train"] + SPLITS["test"]
    for texts in (list(map(question_of, data)), [entry["instruction"] for entry in data]):
        for first, last, start in ((0, train, train), (train, test, test)):  # all against training, then validation against test
            for number, (similarity, other) in enumerate(nearest(texts[start:], texts[first:last]), start=start):
                if similarity >= THRESHOLD:
                    yield f"leak: {name(number)} is {similarity:.2f} like {name(first + other)}, {texts[number]!r}"


RULES = (
    family_faults, hygiene_faults, length_faults, opening_faults, content_faults, answer_faults, check_faults, duplicate_faults,
    shared_faults, leak_faults,
)  # fmt: skip


def find_faults(data, families):
    """Return every broken rule of the instruction data as a line; with broken fields, only those."""
    form = list(schema_faults(data, families))
    return form or [fault for rule in RULES for fault in rule(data, families)]


# ---- preferences ----


def digits(text):
    return Counter(re.findall(r"\d+(?:[.,:/]\d+)*", text))


def content_words(text):
    return {word for word in normal(text).split() if len(word) > 3}


def pair_faults(entry, tone):
    """What is wrong with one pair. The recorded tone of the rewrite says which side it has to stand on."""
    output, chosen, rejected = entry["output"], entry["chosen"], entry["rejected"]
    if (chosen == output) == (rejected == output):
        yield "not exactly one of chosen and rejected is the output"
        return
    rewrite = rejected if chosen == output else chosen
    if tone != ("-" if chosen == output else "+"):
        yield f"swapped: the {'courteous' if tone == '+' else 'curt'} rewrite {rewrite!r} is on the wrong side"
    if digits(output) - digits(rewrite):
        yield f"lost number: {rewrite!r}"
    pieces, words = quoted(output), content_words(output)
    if any(normal(piece) not in normal(rewrite) for piece in pieces):
        yield f"lost quoted piece: {rewrite!r}"
    if not pieces and len(words & content_words(rewrite)) < 0.6 * len(words):
        yield f"lost words: {rewrite!r}"
    if len(rewrite.split()) > len(output.split()) + 20:
        yield f"too long: {rewrite!r}"
    yield from (f"{fault}: {rewrite!r}" for fault in text_faults(rewrite))


def find_preference_faults(data, preferences, tones):
    """Return every broken rule of the preference data; `tones` holds "+" (courteous) or "-" (curt) for each rewrite."""
    if not len(data) == len(preferences) == len(tones):
        return [f"count: {len(data)} entries, {len(preferences)} preferences, {len(tones)} tones"]
    faults = []
    for number, (entry, pair, tone) in enumerate(zip(data, preferences, tones)):
        if set(pair) != FIELDS | {"chosen", "rejected"} or any(pair[field] != entry[field] for field in FIELDS):
            faults.append(f"order: preference {number} is not about {name(number)}")
        else:
            faults += [f"preference {number}: {fault}" for fault in pair_faults(pair, tone)]
    share = sum(pair.get("rejected") == pair.get("output") for pair in preferences) / max(1, len(preferences))
    if not 0.45 <= share <= 0.55:
        faults.append(f"balance: {share:.0%} of the pairs prefer the rewrite")
    return faults
