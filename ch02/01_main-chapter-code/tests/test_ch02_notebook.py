"""Facts that the prose of ch02.ipynb states, computed anew, and the promises of the folder's pages."""

import re
from pathlib import Path

import dataloader
import nbformat
import pytest
import torch

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

# What the prose must say, with numbers computed here -> what must be true besides.
STATED = {
    f"The ids run from 0 to {len(set(TOKENS)) - 1}": True,
    f"{len(TOKENS):,} tokens for {len(STORY):,} characters is about four": 3.5 < len(STORY) / len(TOKENS) < 4.5,
    f"{len(TOKENS):,} against {IDS:,} tokens": True,
    f"how many of the {len(set(TOKENS))} tokens occur exactly once": True,
    "More than every fifth token": sum(not t[0].isalnum() for t in TOKENS) * 5 > len(TOKENS),
    "More than one token in seven": 1 / 7 < sum(t not in set(TOKENS[:HALF]) for t in TOKENS[HALF:]) / (len(TOKENS) - HALF) < 1 / 6,
    '`" tide"`, with its space, is a single token': len(TOKENIZER.encode(" tide")) == 1 and len(TOKENIZER.encode("tide")) > 1,
    "256 bytes and one special token this makes 50,257": 256 + 50_000 + 1 == TOKENIZER.n_vocab,
    f"{IDS:,} divided by 4 is {IDS / 4:,.2f}": True,
    f"{IDS - 4:,} / 4 = {(IDS - 4) / 4:,.2f}": True,
    f"there are {len(dataloader.GPTDatasetV1(STORY, TOKENIZER, 4, 4)):,} windows": True,
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


def test_learner_meets_every_section_in_order():
    titles = re.findall(r"(?m)^## (2\.\d)", "\n".join(cell.source for cell in NOTEBOOK.cells))
    assert titles == [f"2.{number}" for number in range(1, 9)]


def test_each_section_asks_to_try_something_and_six_predictions_are_asked():
    assert PROSE.count("**Try it:**") == 8 and PROSE.count("**Predict") >= 6


def test_six_to_eight_questions_with_folded_answers():
    tail = next(cell.source for cell in NOTEBOOK.cells if "### Check yourself" in cell.source)
    assert 6 <= len(re.findall(r"(?m)^\d\. ", tail)) == tail.count("<details>") == tail.count("</details>") <= 8


def test_the_map_puts_nothing_into_the_text_files_folder():
    ids = TOKENIZER.encode("Nell sang.")
    assert "45 695\\n25889 13" in (FOLDER / "figures.py").read_text(encoding="utf-8") and ids == [45, 695, 25889, 13]


def test_one_hot_product_of_section_2_7_also_has_the_same_gradient():
    lookup, product = torch.randn(6, 4, requires_grad=True), torch.empty(6, 4)
    product = lookup.detach().clone().requires_grad_()
    ids = torch.tensor([2, 3, 3])
    lookup[ids].square().sum().backward()
    (torch.nn.functional.one_hot(ids, 6).float() @ product).square().sum().backward()
    assert torch.allclose(lookup.grad, product.grad)


def test_the_summary_notebook_imports_the_module_and_defines_nothing():
    cells = [cell.source for cell in nbformat.read(FOLDER / "dataloader.ipynb", as_version=4).cells if cell.cell_type == "code"]
    assert "from dataloader import" in "\n".join(cells)
    assert not [source for source in cells if re.search(r"^(def|class) ", source, flags=re.M)]
