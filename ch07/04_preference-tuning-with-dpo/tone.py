"""Polite, plain or curt? A program judges the manner of an answer, and what else changed with it: rightness, length, ending.

The judge of manner is a table: how often a word, or a pair of neighboring words, stands in the polite, plain and curt answers of
the training pairs. It is right about four times in five, so every figure stands beside its accuracy on pairs that it never saw.

Look into the table:  python tone.py
Judge a text:         python tone.py --text "Gladly: the answer is 73, and do ask for more."
"""

import math
import re
import sys
from collections import Counter
from itertools import pairwise

from instructions import LONGEST, load_families, plain, question_of, split_data, verify
from preference_batches import PAIRS_FILE, load_pairs
from previous_chapters import OneLineParser

TONES = ("polite", "plain", "curt")
CHOICES = [
    {"noun", "verb", "adjective", "adverb"},
    {"animal", "food", "tool", "clothing", "vehicle"},
    {"positive", "negative"},
]
DENIED = {"not", "never", "neither", "nor"}
MOST_ADDED, MOST_BETWEEN = 30, 8  # words around an accepted answer, and inside a sentence


# ---- manner ----


def tone_features(text: str) -> set[str]:
    """Return the words of a text, its marks !, ? and ",", and all pairs of neighbors; ^ and $ stand for beginning and end. Section 6."""
    words = ["^", *re.findall(r"[\w']+|[!?,]", text.casefold()), "$"]
    return set(words) | {f"{first} {second}" for first, second in pairwise(words)}


def toned_texts(pairs: list[dict]) -> list[tuple[str, str]]:
    """Return (text, tone) of both answers of each pair: the output is plain, a better one polite, a worse one curt. Section 6."""
    texts = []
    for pair in pairs:
        for side, tone in (("chosen", "polite"), ("rejected", "curt")):
            texts.append((pair[side], "plain" if pair[side] == pair["output"] else tone))
    return texts


def learn_tones(pairs: list[dict]) -> dict[str, dict[str, float]]:
    """Return {feature: {tone: log of its share among all features of such texts}}, from training pairs alone. Section 6."""
    counts = {tone: Counter() for tone in TONES}
    for text, tone in toned_texts(pairs):
        counts[tone].update(tone_features(text))
    features = set().union(*counts.values())
    table = {feature: {} for feature in features}
    for tone in TONES:
        total = sum(counts[tone].values())
        for feature in features:
            table[feature][tone] = math.log((counts[tone][feature] + 0.5) / (total + 0.5 * len(features)))  # none is impossible
    return table


def tone_scores(text: str, table: dict) -> dict[str, float]:
    """Return the evidence for each tone: the sum over the text's features in the table. Section 6."""
    known = [table[feature] for feature in tone_features(text) if feature in table]
    return {tone: sum(row[tone] for row in known) for tone in TONES}


def tone_of(text: str, table: dict) -> str:
    """Return the tone for which the text has most evidence; an empty text is plain. Section 6."""
    scores = tone_scores(text, table)
    return max(TONES, key=lambda tone: (scores[tone], tone == "plain"))


def tone_accuracy(pairs: list[dict], table: dict) -> dict[str, tuple[int, int]]:
    """Return {tone: (recognized, of)} over both answers of each pair. Section 6."""
    of, right = Counter(), Counter()
    for text, tone in toned_texts(pairs):
        of[tone] += 1
        right[tone] += tone_of(text, table) == tone
    return {tone: (right[tone], of[tone]) for tone in TONES}


def telling_features(table: dict, tone: str, number: int = 10) -> list[tuple[str, float]]:
    """Return the features that speak most for a tone, each with its lead over the next likely one (in nats). Section 6."""
    leads = {feature: row[tone] - max(row[other] for other in TONES if other != tone) for feature, row in table.items()}
    return sorted(leads.items(), key=lambda pair: (-pair[1], pair[0]))[:number]


# ---- right, in whatever manner ----


def right_in_any_tone(check: dict, answer: str, question: str) -> bool:
    """True if `verify` takes the answer, or if an accepted answer stands in it among at most 30 other words. Section 6.

    `verify` refuses whatever is added to an answer, so it calls every courtesy a mistake. Here words may be added, but not a
    "not" just before the answer, another of the choices that the question names, or a number that is not the question's; and a
    piece of the question is no answer.
    """
    if verify(check, answer, question):
        return True
    said, asked = normal(answer), normal(question)
    if len(answer.split()) > LONGEST or any(other in said for other in wrong_choices(check, asked)):
        return False
    if check.get("case"):
        return any(text.rstrip(".!?") in answer for text in check["accept"])
    if check["kind"] == "text":
        return any(spread_out(words_of(text), words_of(answer)) for text in check["accept"])
    if check["kind"] in ("number", "list") and not only_known_numbers(check, said, asked):
        return False
    return any(stands_in(normal(text), said, asked) for text in check["accept"])


def words_of(text: str) -> list[str]:
    """Return the words and numbers of a text in lower case, contractions written out. Section 6."""
    return re.findall(r"[\w-]+", plain(text))


def normal(text: str) -> list[str]:
    """As words_of, without articles, and without what joins a list. Section 6."""
    return [word for word in words_of(text) if word not in ("a", "an", "the", "and", "then")]


def wrong_choices(check: dict, asked: list[str]) -> set[str]:
    """Return the choices of the question that are no accepted answer, such as "verb" where "noun" is right. Section 6."""
    accepted = {word for text in check["accept"] for word in normal(text)}
    for choices in CHOICES:
        if accepted & choices and len(choices & set(asked)) > 1:
            return choices - accepted
    return set()


def spread_out(wanted: list[str], said: list[str]) -> bool:
    """True if the wanted words are said in this order, with at most MOST_BETWEEN words between them and MOST_ADDED in all. Section 6."""
    if len(said) > len(wanted) + MOST_ADDED:
        return False
    for start, word in enumerate(said):
        if word == wanted[0]:
            rest = iter(said[start : start + len(wanted) + MOST_BETWEEN])
            if all(word in rest for word in wanted):  # `in` reads the iterator up to the word
                return True
    return False


def only_known_numbers(check: dict, said: list[str], asked: list[str]) -> bool:
    """True if all numbers of the answer are accepted or the question's; where that names the accepted one, no other at all. Section 6."""
    accepted = {word for text in check["accept"] for word in normal(text)}
    known = accepted if accepted & set(asked) else accepted | set(asked)
    return all(word in known for word in said if word.isdigit())


def stands_in(wanted: list[str], said: list[str], asked: list[str]) -> bool:
    """True if the wanted words stand in the answer side by side, neither denied nor with the question's words before them. Section 6."""
    size = len(wanted)
    for start in range(len(said) - size + 1):
        if said[start : start + size] == wanted:
            before = said[max(0, start - 2) : start]
            quoted = len(before) == 2 and " ".join([*before, *wanted]) in " ".join(asked)
            if not quoted and not DENIED & set(before):
                return True
    return False


# ---- what changed ----


def with_checks(data: list[dict]) -> list[dict]:
    """Return the 1,100 entries, each with its `check`: None where no program can tell whether an answer is right. Section 6."""
    return [{**entry, "check": row["check"]} for entry, row in zip(data, load_families(), strict=True)]


def tone_report(entries: list[dict], answers: list[str], ended: list[bool], table: dict) -> dict:
    """Count what a change of manner may cost: shares of tones, right answers in any tone and bare, words, answers that ended. Section 6.

    `right` and `right_bare` are (number, of how many); an answer that did not end counts as wrong.
    """
    tones = Counter(tone_of(answer, table) for answer in answers)
    checked = [(entry, answer) for entry, answer, done in zip(entries, answers, ended) if entry.get("check") and done]
    of = sum(bool(entry.get("check")) for entry in entries)
    rights = [sum(judge(entry["check"], answer, question_of(entry)) for entry, answer in checked) for judge in (right_in_any_tone, verify)]
    return {
        **{tone: tones[tone] / len(answers) for tone in TONES},
        "right": (rights[0], of),
        "right_bare": (rights[1], of),
        "words": sum(len(answer.split()) for answer in answers) / len(answers),
        "ended": sum(ended) / len(answers),
    }


def report_lines(reports: dict[str, dict], accuracy: dict[str, tuple[int, int]]) -> str:
    """Return a table of reports, a column each, with the accuracy of the judge beside the tones. Section 6."""
    lines = [f"{'':24}" + "".join(f"{name:>12}" for name in reports)]
    for tone in TONES:
        right, of = accuracy[tone]
        beside = f"    (of {of} {tone} answers of the test pairs, the judge recognizes {right / of:.0%})" if of else ""
        lines.append(f"{tone:24}" + "".join(f"{report[tone]:12.0%}" for report in reports.values()) + beside)
    for key, name in (("right", "right in any tone"), ("right_bare", "right and bare")):
        lines.append(f"{name:24}" + "".join(f"{f'{report[key][0]} of {report[key][1]}':>12}" for report in reports.values()))
    lines.append(f"{'words in an answer':24}" + "".join(f"{report['words']:12.1f}" for report in reports.values()))
    lines.append(f"{'ended by itself':24}" + "".join(f"{report['ended']:12.0%}" for report in reports.values()))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> int:
    """Print the table's accuracy and its most telling entries, or judge one text; exit code 2 and one line on bad input."""
    parser = OneLineParser("Judge the manner of a text: polite, plain or curt.")
    parser.add_argument("--data", default=str(PAIRS_FILE), help="JSON list of entries with chosen and rejected answers")
    parser.add_argument("--text", help="judge this text; without it, show what the table knows")
    args = parser.parse_args(argv)
    try:
        train, test, _ = split_data(load_pairs(args.data))
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    table = learn_tones(train)
    if args.text is not None:
        print(tone_of(args.text, table), {tone: round(score, 1) for tone, score in tone_scores(args.text, table).items()})
        return 0
    for tone, (right, of) in tone_accuracy(test, table).items():
        print(f"{tone}: {right} of {of} answers of the test pairs recognized; it speaks through")
        print("   ", ", ".join(f"{feature!r} {lead:.1f}" for feature, lead in telling_features(table, tone)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
