"""Facts that the prose of ch02.ipynb states, computed anew, and the promises of the folder's pages."""

import re
from pathlib import Path

import dataloader
import nbformat
import pytest

FOLDER = Path(dataloader.__file__).parent
NOTEBOOK = nbformat.read(FOLDER / "ch02.ipynb", as_version=4)
PROSE = re.sub(r"\s+", " ", " ".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown"))
TOKENIZER = dataloader.gpt2_tokenizer()
STORY = dataloader.STORY_FILE.read_text(encoding="utf-8")
TOKENS = dataloader.split_text(STORY)
HALF = len(TOKENS) // 2

IDS = len(TOKENIZER.encode(STORY))
SOLUTIONS = nbformat.read(FOLDER / "exercise-solutions.ipynb", as_version=4)
EXERCISES = ["No", "One", "Two", "Three", "Four", "Five", "Six", "Seven", "Eight", "Nine"][
    sum(cell.source.startswith("## Exercise 2") for cell in SOLUTIONS.cells)
]

GREEK = "Το ρολόι δεν κάνει ποτέ λάθος. Η θάλασσα καμιά φορά αργεί."
ENGLISH = "The clock is never wrong. The sea is sometimes late."
GREEK_RATIO = (len(TOKENIZER.encode(GREEK)) / len(GREEK)) / (len(TOKENIZER.encode(ENGLISH)) / len(ENGLISH))

# What the prose must say, with numbers computed here -> what must be true besides.
STATED = {
    f"The ids run from 0 to {len(set(TOKENS)) - 1}": True,
    f"{len(TOKENS):,} tokens for {len(STORY):,} characters is about four": 3.5 < len(STORY) / len(TOKENS) < 4.5,
    f"{len(TOKENS):,} against {IDS:,} tokens": True,
    f"how many of the {len(set(TOKENS))} tokens occur exactly once": True,
    "One token in five is a mark": 0.19 < sum(not t[0].isalnum() for t in TOKENS) / len(TOKENS) < 0.21,
    f"Periods and commas alone are {TOKENS.count('.') + TOKENS.count(',')} of the {sum(not t[0].isalnum() for t in TOKENS):,}": True,
    f"quotation marks another {TOKENS.count(chr(34))}": True,
    "More than one token in seven": 1 / 7 < sum(t not in set(TOKENS[:HALF]) for t in TOKENS[HALF:]) / (len(TOKENS) - HALF) < 1 / 6,
    '`" tide"`, with its space, is a single token': len(TOKENIZER.encode(" tide")) == 1 and len(TOKENIZER.encode("tide")) > 1,
    "256 bytes and one special token this makes 50,257": 256 + 50_000 + 1 == TOKENIZER.n_vocab,
    f"a token of its own, {TOKENIZER.encode('clock ')[-1]}": TOKENIZER.decode([220]) == " ",
    "As plain text it is seven ordinary tokens, and look at the first: `.<`": [
        TOKENIZER.decode([i]) for i in TOKENIZER.encode("late.<|endoftext|>P", disallowed_special=())[1:-1]
    ]
    == [".<", "|", "end", "of", "text", "|", ">"],
    "Greek costs five times as many tokens per character as English": 4.5 < GREEK_RATIO < 5.5,
    "Our own training text contains no such mark": "<|endoftext|>" not in STORY,
    f"The story has {IDS:,} tokens": True,
    f"{IDS - 4:,} / 4 = {(IDS - 4) / 4:,.2f}, so {len(dataloader.GPTDatasetV1(STORY, TOKENIZER, 4, 4)):,}": True,
    ", ".join(map(str, TOKENIZER.encode(STORY)[:5])): True,
    "Token 198 is a line break": TOKENIZER.decode([198]) == "\n",
    "more than 38 million parameters, nearly a third of the 124 million": 38e6 < 50257 * 768 < 124e6 / 3,
    f"of which {TOKENIZER.n_vocab - 1:,} are zero": True,
    f"{EXERCISES} exercises wait": True,
}


@pytest.mark.parametrize("sentence", STATED)
def test_stated_fact_is_in_the_prose_and_true(sentence):
    assert sentence in PROSE, "the notebook no longer says this: change or remove the entry"
    assert STATED[sentence]


def test_she_never_follows_the():
    words = re.findall(r"[a-z]+", STORY.lower())
    assert ("the", "she") not in set(zip(words, words[1:]))


def test_core_sections_come_first_and_every_later_one_says_that_it_may_be_skipped():
    titles = re.findall(r"(?m)^## (.*)", "\n".join(cell.source for cell in NOTEBOOK.cells))
    assert [title[:4].strip() for title in titles[:8]] == [f"2.{number}" for number in range(1, 9)]
    assert titles[8].startswith("The whole path") and not [title for title in titles[:9] if "optional" in title]
    assert all("(*optional*" in title for title in titles[9:]) and len(titles) > 9


def test_the_core_is_at_most_three_fifths_of_the_words():
    parts = re.split(r"(?m)^(## .*)$", "\n".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown"))
    optional = sum(len(re.findall(r"\w+", words)) for title, words in zip(parts[1::2], parts[2::2]) if "optional" in title)
    everything = len(re.findall(r"\w+", "\n".join(parts[::2])))
    assert 1 - optional / everything <= 0.6


def test_something_is_tokenized_in_the_first_code_cell():
    first = next(cell for cell in NOTEBOOK.cells if cell.cell_type == "code")
    assert "encode(" in first.source and str(TOKENIZER.encode("The sea is sometimes late.")) in first.outputs[0].text


def test_each_core_section_asks_to_try_something_and_six_predictions_are_asked():
    assert PROSE.count("**Try it:**") == 8 == len(re.findall(r"\b2\.[1-8]: ", PROSE)) and PROSE.count("**Predict") >= 6


def test_six_to_eight_questions_with_folded_answers():
    tail = next(cell.source for cell in NOTEBOOK.cells if "## Check yourself" in cell.source)
    tail = tail[tail.index("## Check yourself") :]
    tail = tail.partition("## Answers to the Try-its")[0]
    assert 6 <= len(re.findall(r"(?m)^\d\. ", tail)) == tail.count("<details>") == tail.count("</details>") <= 8


def test_the_map_shows_the_ids_of_its_sentence():
    source = (FOLDER / "figures.py").read_text(encoding="utf-8")
    first, second, third, fourth = TOKENIZER.encode("Nell sang.")
    assert '"Nell sang."' in source and rf'"{first} {second}\n{third} {fourth}"' in source


def test_the_summary_notebook_imports_the_module_and_defines_nothing():
    cells = [cell.source for cell in nbformat.read(FOLDER / "dataloader.ipynb", as_version=4).cells if cell.cell_type == "code"]
    assert "from dataloader import" in "\n".join(cells)
    assert not [source for source in cells if re.search(r"^(def|class) ", source, flags=re.M)]


def test_the_answer_about_numbers_is_what_the_tokenizer_does():
    pieces = {number: [TOKENIZER.decode([i]) for i in TOKENIZER.encode(number)] for number in ("1999", "2026", "123456")}
    assert pieces == {"1999": ["1999"], "2026": ["20", "26"], "123456": ["123", "456"]}
    assert "`1999` stays in one piece, `2026` becomes `20` and `26`, `123456` becomes `123` and `456`" in PROSE
