"""Verifiers: a program decides whether an answer is right, so that no judge is needed.

A check lies beside each entry that a program can verify, for example {"kind": "word", "accept": ["cold", "chilly"]}: the
answers that a reasonable person takes. The four kinds differ in what may stand around them: `text` (a whole sentence),
`word` (bare, or in one short sentence that says it), `number` (in digits or words, the sum repeated or not) and `list`
(numbers or words in order). Quotes, bold type, capitals, a missing period, "Sure!" and "The answer is ..." are forgiven;
a second guess, a denial, an echo of the question and anything added are not. Standard library only. Chapter 7.
"""

import re
import unicodedata
from decimal import Decimal

CONTRACTIONS = {
    "won't": "will not", "can't": "can not", "cannot": "can not", "n't": " not", "'ll": " will", "'re": " are", "'ve": " have",
}  # fmt: skip
SMALL_TALK = re.compile(
    r"^(?:sure|of course|certainly|absolutely|gladly|yes|okay|ok|(?:good|great) question|here (?:you are|you go|it is))"
    r"(?: thing)?(?:[!.]\s+|,\s+|:\s+)",
    re.IGNORECASE,
)
LINKS = r"(?:is|are|was|becomes?|be|called|means|spelled|written|says?|to|as|equals|makes|gives)"
SAYS_LAST, SAYS_FIRST = re.compile(rf"(?:\b{LINKS}|:|'s)$"), re.compile(r" (?:is|are|means) ")
DENIAL = re.compile(r"\b(?:not|or|neither|nor|never|maybe|perhaps|either|but|wrong|incorrect|instead|unlike|versus)\b|n't\b", re.IGNORECASE)
# What may stand around a bare answer besides words of the question.
SMALL_WORDS = set(
    "a an the this that these it its i you we they my your is are was were be would should will can of in on as for to from by "
    "with and between than more so here both two one answer result solution word words number numbers sentence phrase text letters "
    "question label category class kind type group sort part speech form version correct right proper correctly properly corrected "
    "rewritten spelling spelled spelt written write plural singular opposite antonym capital city country translation translated "
    "translates language english spanish french german means meaning called says say said belongs sentiment review feeling "
    "expresses shows last final ends larger largest bigger biggest greater greatest higher sum total difference product half "
    "double doubled equals equal makes gives becomes gets comes passive active voice past tense uppercase follows".split()
)
ONES = (
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen nineteen"
).split()
TENS = "twenty thirty forty fifty sixty seventy eighty ninety".split()
SPOKEN = {word: number for number, word in enumerate(ONES)} | {word: 20 + 10 * i for i, word in enumerate(TENS)}
SPOKEN |= {f"{tens}{dash}{ones}": 20 + 10 * i + j for i, tens in enumerate(TENS) for j, ones in enumerate(ONES[1:10], 1) for dash in "- "}
SPOKEN |= {"one hundred": 100, "a hundred": 100, "hundred": 100}
DIGITS = r"(?<![\w.])-?\d{1,3}(?:,\d{3})+(?:\.\d+)?(?![\w])|(?<![\w.])-?\d+(?:\.\d+)?(?!\w)"
NUMBER = re.compile(rf"{DIGITS}|\b(?:{'|'.join(sorted(SPOKEN, key=len, reverse=True))})\b", re.IGNORECASE)
MOST_WORDS = 15  # in a sentence around a word or a number


# ---- reading an answer ----


def clean(text: str) -> str:
    """Return the text with straight quotes, without bold type, and without small talk in front."""
    text = unicodedata.normalize("NFC", text).translate({0x2018: "'", 0x2019: "'", 0x201C: '"', 0x201D: '"', 0x2212: "-"})
    text = re.sub(r"\*\*|__|`", "", text).strip()
    return SMALL_TALK.sub("", text)


def unwrapped(text: str) -> str:
    """Return the text without quotes around it and without its final period or exclamation mark; a question mark stays."""
    text = text.strip()
    while True:
        shorter = text.rstrip(".!").strip()
        if len(shorter) > 1 and shorter[0] == shorter[-1] and shorter[0] in "\"'" and shorter[0] not in shorter[1:-1]:
            shorter = shorter[1:-1].strip()
        if shorter == text:
            return text
        text = shorter


def plain(text: str, case: bool = False) -> str:
    """Return the form in which two texts are compared: no quotes or final period, one space, contractions written out.

    Without `case`, also lower case and no commas.
    """
    text = " ".join(unwrapped(text).split())
    if case:
        return text
    text = text.casefold()
    for short, long in CONTRACTIONS.items():
        text = re.sub(rf"{short}\b", long, text)
    return " ".join(re.sub(r"[,;]", " ", text).split())


def words_of(text: str) -> list[str]:
    """The words of a text in lower case, without the marks around them; "it's" counts as two."""
    return re.findall(r"[\w-]+", text.casefold().replace("'s", " is"))


def echoes(answer: str, question: str) -> bool:
    """True if the answer is a piece of the question."""
    return f" {' '.join(words_of(answer))} " in f" {' '.join(words_of(question))} "


def says_more(rest: str, question: str) -> bool:
    """True if what stands beside the answer has words that are neither the question's nor small words."""
    return bool(question) and bool(set(words_of(rest)) - set(words_of(question)) - SMALL_WORDS)


def numbers_in(text: str) -> list[tuple[Decimal, int, int]]:
    """Return (value, start, end) of each number, in digits (1,250 or 1250) or in words up to a hundred."""
    found = []
    for match in NUMBER.finditer(text):
        word = match.group().lower()
        found.append((Decimal(SPOKEN[word]) if word in SPOKEN else Decimal(word.replace(",", "")), *match.span()))
    return found


# ---- the four kinds ----


def verify_text(check: dict, answer: str, question: str) -> bool:
    """One of the accepted sentences and nothing else, except a lead-in such as "The corrected sentence is:"."""
    case = check.get("case", False)
    wanted = [(plain(text, case).rstrip("?"), mark) for text in check["accept"] for mark in marks(text)]
    readings = without_lead_ins(clean(answer), question)
    return any((plain(reading, case).rstrip("?"), mark) in wanted for reading in readings for mark in marks(reading))


def marks(text: str) -> str:
    """What kind of sentence a text can be, a question or not; without a final mark it can be both."""
    last = text.strip().rstrip("\"'")[-1:]
    return "?" if last == "?" else "." if last in ".!" else "?."


def without_lead_ins(text: str, question: str) -> list[str]:
    """The text as it is, and what stands behind a colon, or behind "is" before a capital or a quote."""
    readings = [text]
    for match in re.finditer(r":\s+|\s(?:is|reads|becomes|would be)\s+(?=[\"'A-Z])", text[:90]):
        said = text[: match.start()]
        if not DENIAL.search(said) and not says_more(said, question):
            readings.append(text[match.end() :])
    return readings


def verify_word(check: dict, answer: str, question: str) -> bool:
    """An accepted word, bare or with an article, or in one short sentence that says it first or last: "It is a tool."."""
    text = clean(answer)
    wanted = {bare(plain(word)) for word in check["accept"]}
    if any("?" not in reading and bare(plain(reading)) in wanted for reading in without_lead_ins(text, question)):
        return True
    text = re.sub(
        r"\"([^\"]*)\"", lambda quoted: quoted[1] if len(quoted[1].split()) < 3 else "", unwrapped(text)
    )  # a quoted sentence is not read
    if rambles(text) or echoes(text, question):
        return False
    return any(says_word(plain(text), word, question) for word in wanted)


def bare(text: str) -> str:
    """The text without an article in front."""
    return re.sub(r"^(?:a|an|the) ", "", text)


def rambles(text: str) -> bool:
    """True for a question, several lines, or more words than one short sentence has."""
    return "?" in text or "\n" in text or len(text.split()) > MOST_WORDS


def says_word(text: str, word: str, question: str) -> bool:
    """True if a sentence says the word behind "is", a colon or the like, or begins with it ("X is the plural of ...")."""
    text = bare(" ".join(re.sub(r"(?<!\w)'|'(?!\w)", "", text).split()))
    if text.endswith(f" {word}"):
        rest = re.sub(r" (?:a|an|the)$", "", text.removesuffix(f" {word}"))
        says = SAYS_LAST.search(rest)
    else:
        rest = text.removeprefix(word)
        says = text.startswith(word) and SAYS_FIRST.match(rest)
    if not says or f" {word} " in f" {rest} " or re.search(r"[.!]", rest):
        return False
    return not DENIAL.search(rest) and not says_more(rest, question)


def verify_number(check: dict, answer: str, question: str) -> bool:
    """The number, alone, last ("48 + 25 = 73", "The larger one is 173") or first ("173 is larger than 48")."""
    text = clean(answer)
    wanted = {number for accepted in check["accept"] for number, _, _ in numbers_in(accepted)}
    if rambles(text) or DENIAL.search(text) or says_more(NUMBER.sub(" ", text), question):
        return False
    found = numbers_in(text)
    found = [number for number in found if not text[number[1]].isalpha()] or found  # "the larger one is 173"
    if len(found) < 2:
        return bool(found) and found[0][0] in wanted
    known = wanted | {number for number, _, _ in numbers_in(question)}
    if question and any(number not in known for number, _, _ in found):
        return False
    (first, _, end), (last, start, _) = found[0], found[-1]
    if last in wanted and re.search(rf"(?:=|<|:|\b{LINKS})$", text[:start].rstrip("\"' "), re.IGNORECASE):
        return True
    return first in wanted and bool(re.match(r"\s*(?:>|(?:is|=)\s.*\b(?:than|of|plus|minus|times)\b)", text[end:]))


def verify_list(check: dict, answer: str, question: str) -> bool:
    """Exactly the items in the order asked for, with commas, "and", "<", arrows, spaces or line ends between them."""
    text = clean(answer)
    lead_in = re.match(r"^[^:\n\d]{1,90}?(?::|\b(?:is|are))\s+(?=[\d\[\"-])", text)
    if lead_in and not DENIAL.search(lead_in.group()):
        text = text[lead_in.end() :]
    lines = text.split("\n")
    if len(lines) > 1:
        text = "\n".join(re.sub(r"^\s*(?:\d+[.)]|[-*])\s+", "", line) for line in lines)
    text = unwrapped(text).strip("[]()")
    readings = [text, re.sub(r"(?<=\d),(?=\d{3}(?:\D|$))", "", text)]  # 1,250 may be one number
    return any(items(reading) in [items(accepted) for accepted in check["accept"]] for reading in readings)


def items(text: str) -> list:
    """The pieces of a list in lower case, numbers by their value."""
    pieces = re.split(r"\s*(?:,\s*and\b|,\s*then\b|\band\b|\bthen\b|->|\u2192|[,;<\n])\s*|\s+", text.casefold().strip())
    return [Decimal(piece) if re.fullmatch(r"-?\d+(?:\.\d+)?", piece) else piece for piece in pieces if piece]


VERIFIERS = {"text": verify_text, "word": verify_word, "number": verify_number, "list": verify_list}


# ---- form ----


def right_form(check: dict | None, answer: str) -> bool:
    """True if an answer has the form its task asks for, whatever it says; `well_formed` calls it with a stripped answer."""
    if check is None:
        return len(answer.split()) <= 80
    if check["kind"] == "list":
        return len(items(unwrapped(answer))) >= 2 and bool(re.search(r"[,;<\n]|->|\u2192|\band\b", answer))
    if "\n" in answer:
        return False
    if check["kind"] == "word":
        return len(answer.split()) <= 10
    if check["kind"] == "number":
        return len(numbers_in(re.sub(r"^.*(?:=|\bis\b)", "", answer))) == 1
    if check.get("case"):
        return answer == answer.upper() and answer != answer.lower()
    first = answer.lstrip("\"'")[:1]
    return (first.isupper() or first.isdigit()) and bool(re.search(r"[.?!][\"']?$", answer))
