"""The preference data keeps its rules: one side is the output, the tones are balanced, and no dumb rule tells them apart."""

import copy
import json
import re
from collections import Counter
from functools import cache
from pathlib import Path
from statistics import mean

import pytest

FOLDER = Path(__file__).resolve().parent.parent
KEYS = ["instruction", "input", "output", "chosen", "rejected"]
TRAIN, TEST = 935, 110  # by position, then 55 for validation
MOST_WORDS = 30  # that a rewrite may add
MOST_RIGHT = 0.75  # of the test pairs, by a classifier that counts words and word pairs


@cache
def stored():
    return json.loads((FOLDER / "instruction-data-with-preference.json").read_text(encoding="utf-8"))


@pytest.fixture
def pairs():
    return copy.deepcopy(stored())


# ---- the rules ----


def tone_and_rewrite(pair):
    """("polite", rewrite) where the rewrite is preferred, else ("rude", rewrite)."""
    return ("polite", pair["chosen"]) if pair["rejected"] == pair["output"] else ("rude", pair["rejected"])


def form_faults(pairs):
    if len(pairs) != 1100:
        yield f"{len(pairs)} pairs"
    for number, pair in enumerate(pairs):
        if list(pair) != KEYS or not all(isinstance(text, str) for text in pair.values()):
            yield f"{number}: fields {list(pair)}"
        elif not all(pair[key].strip() == pair[key] != "" for key in KEYS if key != "input"):
            yield f"{number}: an empty text or a space around it"
        elif (pair["chosen"] == pair["output"]) == (pair["rejected"] == pair["output"]):
            yield f"{number}: not exactly one of chosen and rejected is the output"


def fact_faults(pairs):
    """Numbers, quoted pieces, lines of lists, and JSON of the output stand in the rewrite too, and it does not ramble."""
    for number, pair in enumerate(pairs):
        output, (_, rewrite) = pair["output"], tone_and_rewrite(pair)
        if Counter(re.findall(r"\d+(?:[.,:]\d+)*", output)) - Counter(re.findall(r"\d+(?:[.,:]\d+)*", rewrite)):
            yield f"{number}: lost number"
        for form in (r"(?m)^(?:- |\d\. )", r"(?m)^\|.*\|$", r"(?m)^[{\[].*[}\]]$"):
            if len(re.findall(form, rewrite)) < len(re.findall(form, output)):
                yield f"{number}: lost line or JSON"
        if words_added(pair) > MOST_WORDS:
            yield f"{number}: {words_added(pair)} words added"
        if re.search(r"  |[\u201c\u201d\u2018\u2019]|\s[,;?!]", rewrite) or rewrite.count('"') % 2:
            yield f"{number}: typing"


def words_added(pair):
    return len(tone_and_rewrite(pair)[1].split()) - len(pair["output"].split())


def place_of_tone(pair):
    """Where the tone stands: in front of the whole output, behind it, or inside: woven in, or on both sides."""
    output, rewrite = (
        [word.strip(".,!?:;\"'") for word in text.casefold().split()] for text in (pair["output"], tone_and_rewrite(pair)[1])
    )
    return "front" if rewrite[-len(output) :] == output else "behind" if rewrite[: len(output)] == output else "inside"


def share(pairs, what):
    """{tone: share of its pairs for which `what` holds}."""
    tones = [(tone_and_rewrite(pair)[0], bool(what(pair))) for pair in pairs]
    return {
        tone: sum(holds for each, holds in tones if each == tone) / sum(each == tone for each, _ in tones) for tone in ("polite", "rude")
    }


def balance_faults(pairs):
    """Half of each tone in every split; position, exclamation marks and lengths as often in one as in the other."""
    for name, part in (("train", pairs[:TRAIN]), ("test", pairs[TRAIN : TRAIN + TEST]), ("val", pairs[TRAIN + TEST :])):
        polite = sum(tone_and_rewrite(pair)[0] == "polite" for pair in part) / len(part)
        if not 0.4 <= polite <= 0.6 or name == "train" and not 0.47 <= polite <= 0.53:
            yield f"tone: {polite:.0%} polite in {name}"
    tests = {
        "in front": (lambda pair: place_of_tone(pair) == "front", 0.3),
        "behind": (lambda pair: place_of_tone(pair) == "behind", 0.3),
        "with an exclamation mark": (lambda pair: "!" in tone_and_rewrite(pair)[1], 1),
    }
    for name, (what, most) in tests.items():
        shares = share(pairs, what)
        if abs(shares["polite"] - shares["rude"]) > 0.05 or max(shares.values()) > most:
            yield f"balance: {name} are {shares['polite']:.0%} of the polite and {shares['rude']:.0%} of the rude rewrites"
    added = {tone: mean(words_added(pair) for pair in pairs if tone_and_rewrite(pair)[0] == tone) for tone in ("polite", "rude")}
    if abs(added["polite"] - added["rude"]) > 1:
        yield f"balance: polite rewrites add {added['polite']:.1f} words, rude ones {added['rude']:.1f}"
    if min(share(pairs, lambda pair: place_of_tone(pair) == "inside").values()) < 0.4:
        yield "balance: less than 40 % are rewritten inside"


def told_apart(pairs):
    """Share of test pairs in which a classifier that counts words and word pairs, trained on the training pairs, finds the chosen side."""
    from scipy.sparse import vstack
    from sklearn.feature_extraction.text import CountVectorizer
    from sklearn.linear_model import LogisticRegression

    train, test = pairs[:TRAIN], pairs[TRAIN : TRAIN + TEST]
    counter = CountVectorizer(ngram_range=(1, 2), token_pattern=r"[\w']+|[!?]", binary=True)
    counter.fit([pair[side] for pair in train for side in ("chosen", "rejected")])
    # what one side has and the other has not, as +1 and -1
    train, test = (
        counter.transform([p["chosen"] for p in part]).astype(float) - counter.transform([p["rejected"] for p in part])
        for part in (train, test)
    )
    model = LogisticRegression(max_iter=2000, fit_intercept=False).fit(vstack([train, -train]), [1] * TRAIN + [0] * TRAIN)
    return float((model.decision_function(test) > 0).mean())


# ---- the data obeys them ----


def test_form_and_facts(pairs):
    assert list(form_faults(pairs)) == [] and list(fact_faults(pairs)) == []


def test_tones_are_balanced_in_number_place_punctuation_and_length(pairs):
    assert list(balance_faults(pairs)) == []


def test_counting_words_does_not_solve_it(pairs):
    assert told_apart(pairs) < MOST_RIGHT


def test_rewrites_differ_from_each_other(pairs):
    rewrites = Counter(tone_and_rewrite(pair)[1].casefold() for pair in pairs)
    openings = Counter((tone, " ".join(rewrite.split()[:3])) for tone, rewrite in map(tone_and_rewrite, pairs))
    assert max(rewrites.values()) <= 2 and max(openings.values()) <= 25, openings.most_common(3)


def test_the_cards_figures_are_those_of_the_file(pairs):
    card = (FOLDER / "README.md").read_text(encoding="utf-8")
    tones = Counter(tone_and_rewrite(pair)[0] for pair in pairs)
    assert f"In {tones['polite']} entries `rejected` is the plain answer" in card and f"in the other {tones['rude']} `chosen` is" in card
    for place in ("front", "behind", "inside"):
        shares = share(pairs, lambda pair, place=place: place_of_tone(pair) == place)
        assert f"| {place} | {shares['polite']:.0%} | {shares['rude']:.0%} |" in card
    marks = share(pairs, lambda pair: "!" in tone_and_rewrite(pair)[1])
    assert f"| with an exclamation mark | {marks['polite']:.0%} | {marks['rude']:.0%} |" in card
    assert f"{told_apart(pairs):.0%} of the test pairs" in card


# ---- and each rule sees a planted fault ----


def must_see(faults, text):
    assert any(text in fault for fault in faults), text


def test_broken_form_is_seen(pairs):
    pairs[3]["chosen"] = pairs[3]["rejected"] = pairs[3]["output"]
    pairs[4].update(chosen="x", rejected="y")
    pairs[5].pop("input")
    pairs[6]["chosen"] = ""
    faults = list(form_faults(pairs[:-1]))
    for text in ("1099 pairs", "3: not exactly one", "4: not exactly one", "5: fields", "6: an empty text"):
        must_see(faults, text)


@pytest.mark.parametrize(
    "output, rewrite, fault",
    [
        ("48 + 25 = 73", "Gladly, 48 + 25 = 37", "lost number"),
        ("- Saw\n- Drill", "A saw and a drill.", "lost line or JSON"),
        ('{"a": "b"}', "Here: a is b.", "lost line or JSON"),
        ("casa", "casa" + " really" * 31, "31 words added"),
        ("casa", "It is  casa.", "typing"),
    ],
)
def test_a_rewrite_that_loses_facts_or_rambles_is_seen(output, rewrite, fault):
    must_see(fact_faults([{"instruction": "x", "input": "", "output": output, "chosen": rewrite, "rejected": output}]), fault)


def planted(pairs, tone, change, count):
    """Change the first `count` rewrites of a tone."""
    for pair in [pair for pair in pairs if tone_and_rewrite(pair)[0] == tone][:count]:
        pair["chosen" if tone == "polite" else "rejected"] = change(pair)
    return pairs


def test_one_sided_tones_places_and_marks_are_seen(pairs):
    must_see(balance_faults(planted(copy.deepcopy(pairs), "polite", lambda pair: "Gladly: " + pair["output"], 500)), "in front")
    must_see(balance_faults(planted(copy.deepcopy(pairs), "rude", lambda pair: pair["output"] + " There", 300)), "behind")
    must_see(balance_faults(planted(copy.deepcopy(pairs), "polite", lambda pair: pair["chosen"] + "!", 200)), "exclamation")
    must_see(balance_faults(planted(copy.deepcopy(pairs), "rude", lambda pair: pair["rejected"] + " and so on", 400)), "rude ones")
    for pair in pairs[:300]:
        pair.update(chosen=tone_and_rewrite(pair)[1], rejected=pair["output"])
    must_see(balance_faults(pairs), "polite in train")


def test_a_tell_tale_word_is_seen(pairs):
    assert told_apart(planted(pairs, "polite", lambda pair: pair["chosen"] + " Thank you.", 550)) > MOST_RIGHT
