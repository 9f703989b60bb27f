"""The rules that the instruction data keeps: each broken rule is one line that names the place.

`find_faults(book)` runs all rules on {"sources": ..., "preferences": ..., "data": ..., "families": ..., "test": ...}: the written
items and rewrites by family, the 1,100 entries and their rows, the verifiable test. The tests call it on the real files, which
must be clean, and on copies with planted faults, which must not. Tone and balance of the preference data have rules of their own,
in its folder.
"""

import codecs
import re
from collections import Counter
from decimal import Decimal

from instruction_data_checks import FIELDS, SPLITS, question_of, verify, well_formed
from instruction_data_verifiers import numbers_in, plain
from make_data_card import THRESHOLD, compared, nearest, normal
from make_instruction_data import OPEN, SEEN, TEST, TRAIN, UNSEEN, VAL, VERIFIABLE, verifiable_entry, words_in

NUMBERS = ("larger_number", "sort_numbers", "arithmetic")
LABELS = {
    "sentiment": {"positive", "negative"},
    "category": {"animal", "food", "tool", "clothing", "vehicle"},
    "part_of_speech": {"noun", "verb", "adjective", "adverb"},
}
PRIVATE = {
    "an e-mail address": r"[\w.+-]+@[\w-]+\.\w+",
    "a web address": r"https?://|\bwww\.|\b[\w-]+\.(?:com|org|net|io)\b",
    "a telephone number": r"\(?\b\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b|\+\d{1,3}[ -]?\d{2,}[ -]?\d{3,}",
}
_RUDE = codecs.decode("shpx|fuvg|qnza|penc|ovgpu|onfgneq|nffubyr|cvff|juber|fyhg|vqvbg|zbeba|fghcvq|qhzo", "rot13")
RUDE = re.compile(rf"\b(?:{_RUDE})(?:s|ed|ing|y|ly)?\b", re.IGNORECASE)
FUNCTION_WORDS = set(
    "a about above across after again all along already also always am an and another any anyone around as at away back because before "
    "behind below beside between both but by can cannot could down during each either else ever every everyone everything few for from "
    "had has have he her here hers herself him himself his how if in inside into it its itself just last let lot many may me might mine "
    "more most much must my myself near never next no nobody none not nothing now of off often on once one only or other our ours out "
    "outside over own past per quite rather really same shall she should since so some someone something sometimes soon still such than "
    "that the their them then there these they this those through to together too toward two under until up upon us very we what when "
    "where which while who whose why will with without would yesterday yet you your do does did done don doesn didn isn aren wasn "
    "weren hasn haven hadn won couldn wouldn shouldn i be am is are was were been being "
    "today tomorrow tonight three four five six seven eight nine ten".split()
)
IRREGULAR = (
    "go goes went gone|run ran|eat ate eaten|see saw seen|take took taken|give gave given|write wrote written|"
    "drive drove driven|ride rode ridden|break broke broken|speak spoke spoken|wear wore worn|tear tore torn|sing sang sung|swim swam swum|"
    "drink drank drunk|begin began begun|ring rang rung|sit sat|stand stood|find found|hold held|tell told|sell sold|make made|buy bought|"
    "bring brought|catch caught|teach taught|think thought|fight fought|feel felt|keep kept|sleep slept|leave left|lose lost|meet met|"
    "pay paid|say said|send sent|spend spent|build built|lend lent|win won|hear heard|know knew known|grow grew grown|throw threw thrown|"
    "fly flew flown|blow blew blown|draw drew drawn|fall fell fallen|forget forgot forgotten|choose chose chosen|steal stole stolen|"
    "freeze froze frozen|wake woke woken|hide hid hidden|bite bit bitten|shake shook shaken|rise rose risen|come came|become became|"
    "get got gotten|lead led|feed fed|shine shone|dig dug|hang hung|stick stuck|shoot shot|lie lay lain|man men|woman women|child children|"
    "foot feet|tooth teeth|mouse mice|goose geese|knife knives|leaf leaves|wolf wolves|life lives|wife wives|loaf loaves|shelf shelves|"
    "good better best|bad worse worst"
)
ROOTS = {word: group.split()[0] for group in IRREGULAR.split("|") for word in group.split()}
ENDINGS = dict.fromkeys(("ies", "ied", "ier", "iest", "ily"), "y") | dict.fromkeys(("ing", "ed", "est", "er", "es", "s", "ly", "e"), "")


def split_of(number):
    """Name of the split that the entry at a position belongs to."""
    return "train" if number < SPLITS["train"] else "test" if number < SPLITS["train"] + SPLITS["test"] else "val"


def all_entries(book):
    """(name, entry, family, check) of the 1,100 and of the verifiable test."""
    for number, (entry, row) in enumerate(zip(book["data"], book["families"])):
        yield f"entry {number} ({split_of(number)}, {row['family']})", entry, row["family"], row["check"]
    for number, entry in enumerate(book["test"]):
        yield f"verifiable test {number} ({entry['group']}, {entry['family']})", entry, entry["family"], entry["check"]


# ---- form ----


def schema_faults(book):
    """Three text fields, no empty output or instruction, known where there is a check, the full count, fields in order."""
    if len(book["data"]) != sum(SPLITS.values()) or len(book["families"]) != len(book["data"]):
        yield f"count: {len(book['data'])} entries and {len(book['families'])} rows instead of {sum(SPLITS.values())}"
    rows = [(f"entry {number}", entry, FIELDS) for number, entry in enumerate(book["data"])]
    rows += [
        (f"verifiable test {number}", entry, (*FIELDS, "group", "family", "check", "known")) for number, entry in enumerate(book["test"])
    ]
    for name, entry, fields in rows:
        if tuple(entry) != fields or not all(isinstance(entry[field], str) for field in FIELDS):
            yield f"schema: {name} has fields {list(entry)}"
        elif not entry["instruction"].strip() or not entry["output"].strip():
            yield f"empty: {name}"
    for number, row in enumerate(book["families"]):
        if list(row) != ["family", "check", "known"][: 3 if row.get("check") else 2]:
            yield f"schema: family {number} has fields {list(row)}"


def family_faults(book):
    """Each family in each split and group, as often as planned."""
    counts = Counter((split_of(number), row["family"]) for number, row in enumerate(book["families"]))
    counts.update((entry["group"], entry["family"]) for entry in book["test"] if entry["group"] != "rephrased")
    planned = {(part, family): n for family in VERIFIABLE for part, n in zip([*SPLITS, "unseen", "seen"], (TRAIN, TEST, VAL, UNSEEN, SEEN))}
    planned |= {(part, family): n for family, numbers in OPEN.items() for part, n in zip(SPLITS, numbers)}
    for part, family in sorted(planned.keys() | counts.keys()):
        if counts[part, family] != planned.get((part, family), 0):
            yield f"family: {family} is in {part} {counts[part, family]} times instead of {planned.get((part, family), 0)}"
    rephrased = Counter(entry["family"] for entry in book["test"] if entry["group"] == "rephrased")
    if sum(rephrased.values()) != 40 or set(rephrased) != set(VERIFIABLE):
        yield f"family: {sum(rephrased.values())} rephrased questions of {len(rephrased)} families"


def text_faults(text):
    """What is typographically wrong with one text."""
    if "  " in text or "\t" in text:
        yield "double space"
    if text != text.strip() or re.search(r" \n|\n ", text):
        yield "space at the end"
    if re.search(r"\s[,;?!]|\s\.(?!\d|\.\.)", text):
        yield "space before a mark"
    if re.search("[\u201c\u201d\u2018\u2019\u00ab\u00bb\u201e`\u00b4]", text):
        yield "curly quote"
    if text.count('"') % 2 or any(text.count(a) != text.count(b) for a, b in ("()", "[]", "{}")):
        yield "unbalanced quotes or brackets"
    if re.search(r"[\x00-\x09\x0b-\x1f\u200b\ufeff\xa0]", text):
        yield "strange character"
    if RUDE.search(text):
        yield "rude word"
    yield from (f"private: {what}" for what, pattern in PRIVATE.items() if re.search(pattern, text))


def typing_faults(book):
    """Clean typing, nothing rude or private, a mark at the end of an instruction that stands alone, short texts."""
    for name, entry, family, _ in all_entries(book):
        for field in FIELDS:
            for fault in text_faults(entry[field]):
                yield f"{fault}: {name}, {field} {entry[field]!r}"
        ends_with_mark = entry["instruction"].rstrip("\"')").endswith((".", "?", ":", "!"))
        if not ends_with_mark and ": " not in entry["instruction"] and "rephrased" not in name:
            yield f"final mark: {name}, instruction {entry['instruction']!r}"
        for field, most in (("instruction", 30), ("output", 60)):
            if len(entry[field].split()) > most:
                yield f"length: {name}, {field} has {len(entry[field].split())} words"


# ---- repeats, phrasings, leaks ----


def duplicate_faults(book):
    """No two entries ask the same, however they are punctuated and capitalized."""
    seen = {}
    for name, entry, _, _ in all_entries(book):
        key = normal(entry["instruction"]), entry["input"].lower()
        if key in seen:
            yield f"duplicate: {name} repeats {seen[key]}"
        seen.setdefault(key, name)


def pattern_of(phrasing):
    return re.compile(".+".join(map(re.escape, re.split(r"\{\d?\}", phrasing))), re.DOTALL)


def phrasing_faults(book):
    """Each phrasing of a family stands equally often in training, and at least once in test or validation."""
    for family in VERIFIABLE:
        phrasings = sorted(book["sources"][family]["phrasings"], key=lambda phrasing: "{" in phrasing)  # the exact ones first
        counts = Counter()
        for number, (entry, row) in enumerate(zip(book["data"], book["families"])):
            if row["family"] == family:
                used = [phrasing for phrasing in phrasings if pattern_of(phrasing).fullmatch(entry["instruction"])]
                if not used:
                    yield f"phrasing: entry {number} is in none of the phrasings of {family}, {entry['instruction']!r}"
                counts.update((split_of(number) == "train", phrasing) for phrasing in used[:1])
        for phrasing in phrasings:
            if abs(counts[True, phrasing] - TRAIN / len(phrasings)) > 1 or not counts[False, phrasing]:
                trained, held_out = counts[True, phrasing], counts[False, phrasing]
                yield f"phrasing: {family} {phrasing!r} stands {trained} times in train, {held_out} times held out"


def stem(word):
    """A word without its ending, so that inflected forms agree: "carries" and "carried", "bigger" and "big"."""
    word = ROOTS.get(word, word)
    for ending, other in ENDINGS.items():
        if word.endswith(ending) and len(word) - len(ending) + len(other) >= (4 if ending == "ly" else 3) and not word.endswith("ss"):
            word = word[: len(word) - len(ending)] + other
            break
    return word[:-1] if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "ls" else word.rstrip("e") if len(word) > 3 else word


def content_stems(text):
    """{stem: word} of the words that carry meaning."""
    words = re.findall(r"[^\W\d_]+", re.sub(r"'\w+", "", text.lower()))
    return {stem(word): word for word in words if word not in FUNCTION_WORDS}


def asked_words(family, item):
    """{stem: word} of an item's input, in families of single words with its answer, except labels."""
    asked, answer, *_ = item
    texts = [words_in(asked)[0]] + ([answer] if family in ("opposites", "plurals", "spelling", "translation", "capitals") else [])
    return {root: word for text in texts for root, word in content_stems(text).items()}


def word_faults(book):
    """Within a family no content word of a held-out input, in any form, stands in a training input, so a right answer is no memory."""
    for family in set(VERIFIABLE) - set(NUMBERS):
        trained = {root: item[0] for item in book["sources"][family]["train"] for root in asked_words(family, item)}
        for number, item in enumerate(book["sources"][family]["held_out"]):
            for root, word in asked_words(family, item).items():
                if root in trained:
                    yield f"shared word: {family} held out {number}, {word!r} of {item[0]!r} stands in {trained[root]!r}"


def number_key(family, asked):
    """What a question about numbers asks, whatever the order of the numbers."""
    words = " ".join(words_in(asked)).replace("plus", "+").replace("times", "*").replace("minus", "-")
    signs = re.sub(r"[\d.,\s]", "", words)
    numbers = re.findall(r"\d+(?:\.\d+)?", words)
    return signs, tuple(numbers if "-" in signs else sorted(numbers, key=Decimal))


def repeat_faults(book):
    """No item twice in a family; a + b is b + a."""
    for family in VERIFIABLE:
        key = (
            (lambda asked, family=family: number_key(family, asked))
            if family in NUMBERS
            else (lambda asked: normal(" ".join(words_in(asked))))
        )
        found = Counter(key(item[0]) for part in ("train", "held_out") for item in book["sources"][family][part])
        yield from (f"repeated item: {family} {asked}" for asked, times in found.items() if times > 1)


def leak_faults(book):
    """No held-out item is nearly one of training: sentences of one family among themselves, all open entries together."""
    for group, (texts, others) in compared(book["sources"]).items():
        for number, (similarity, other) in enumerate(nearest(texts, others)):
            if similarity >= THRESHOLD:
                yield f"leak: {group} held out {number}, {texts[number]!r}, is {similarity:.2f} like {others[other]!r}"


# ---- answers ----


def answer_faults(book):
    """Every output is right and well formed, and wrong as the answer to its neighbor's question."""
    last = {}
    for name, entry, family, check in all_entries(book):
        if check is None:
            if not well_formed(None, entry["output"]):
                yield f"form: {name}, {entry['output']!r}"
            continue
        question = question_of(entry)
        if not verify(check, entry["output"], question):
            yield f"wrong answer: {name}, {question!r} -> {entry['output']!r}"
        if not well_formed(check, entry["output"]):
            yield f"form: {name}, {entry['output']!r}"
        if entry["input"] != entry["output"] and any(
            verify(check, echo, question) for echo in (question, entry["instruction"], entry["input"])
        ):
            yield f"echo: {name}, the question passes as its answer"
        accepted = {plain(text) for text in check["accept"]}
        other = last.get(family)
        if other and not accepted & {plain(text) for text in other["accept"]} and verify(check, other["output"], question):
            yield f"too lenient: {name} takes {other['output']!r}"
        last[family] = {"accept": check["accept"], "output": entry["output"]}


def truth(family, asked):
    """What a computer knows of an answer, or None."""
    if family == "uppercase":
        return asked.upper()
    if family == "last_word":
        return re.sub(r"\W+$", "", asked).split()[-1]
    if family == "larger_number":
        return max(asked, key=Decimal)
    if family == "sort_numbers":
        return ", ".join(sorted(asked.split(", "), key=Decimal))
    if family == "arithmetic":
        text = words_in(asked)[0].replace("half of ", "0.5 * ").replace("double ", "2 * ")
        left, sign, right = text.replace("plus", "+").replace("minus", "-").replace("times", "*").replace("divided by", "/").split()
        a, b = Decimal(left), Decimal(right)
        return f"{({'+': a + b, '-': a - b, '*': a * b, '/': a / b}[sign]).normalize():f}"
    return None


def truth_faults(book):
    """Answers that can be computed are as computed; labels are among the labels; an answer changes its input."""
    for family in VERIFIABLE:
        source = book["sources"][family]
        for number, item in enumerate(source["train"] + source["held_out"]):
            asked, answer = item[:2]
            expected = truth(family, asked)
            if expected is not None and answer != expected:
                yield f"untrue: {family} {number}, {asked!r} -> {answer!r} instead of {expected!r}"
            if answer not in LABELS.get(family, {answer}):
                yield f"label: {family} {number}, {answer!r}"
            if family not in (*LABELS, "plurals") and asked in item[1:]:  # one sheep, two sheep
                yield f"unchanged: {family} {number}, {asked!r}"


def balance_faults(book):
    """Labels are balanced in training and held out, and the larger number stands first as often as last."""
    for family in (*LABELS, "larger_number"):
        for part in ("train", "held_out"):
            items = book["sources"][family][part]
            labels = Counter(asked.index(answer) if family == "larger_number" else answer for asked, answer, *_ in items)
            share = len(items) / len(labels if family == "larger_number" else LABELS[family])
            if any(abs(times - share) > 2 for times in labels.values()) or len(labels) < 2:
                yield f"balance: {family} {part} {dict(labels)}"


def still_right(check, rewrite):
    """True if a rewrite in another tone holds an accepted answer, in a sentence of most of its words."""
    if check.get("case"):
        return any(text.rstrip(".!?") in rewrite for text in check["accept"])
    if check["kind"] == "text":
        said = set(normal(plain(rewrite)).split())
        return any(len(words & said) >= 0.7 * len(words) for words in (set(normal(plain(text)).split()) for text in check["accept"]))
    if check["kind"] == "number":
        return bool({n for text in check["accept"] for n, _, _ in numbers_in(text)} & {n for n, _, _ in numbers_in(rewrite)})
    pattern = r"\W+(?:and |then )?" if check["kind"] == "list" else r"\W+"
    return any(re.search(rf"\b{pattern.join(map(re.escape, normal(text).split()))}\b", normal(rewrite)) for text in check["accept"])


def preference_faults(book):
    """A rewrite for each item of training, test and validation, half of them polite, with the answer kept."""
    for family, lines in book["preferences"].items():
        source = book["sources"][family]
        items = source["train"] + source["held_out"][: None if family in OPEN else TEST + VAL]
        polite = sum(tone == "polite" for tone, _ in lines)
        if len(lines) != len(items) or abs(polite - len(lines) / 2) > 1:
            yield f"preferences: {family} has {polite} polite ones of {len(lines)} for {len(items)} items"
        for number, (item, (_, rewrite)) in enumerate(zip(items, lines)):
            check = None if family in OPEN else verifiable_entry(source, item, source["phrasings"][0])["check"]
            if check and not still_right(check, rewrite):
                yield f"preferences: {family} {number}, the answer {item[1]!r} is not in {rewrite!r}"
            yield from (f"preferences: {family} {number}, {fault}: {rewrite!r}" for fault in text_faults(rewrite))


RULES = (
    family_faults, typing_faults, duplicate_faults, phrasing_faults, word_faults, repeat_faults, leak_faults, answer_faults, truth_faults,
    balance_faults, preference_faults,
)  # fmt: skip


def find_faults(book):
    """Return every broken rule as a line; with broken fields, only those."""
    form = list(schema_faults(book))
    return form or [fault for rule in RULES for fault in rule(book)]
