"""Facts that the prose of ch02.ipynb states, computed anew, and the promises of the folder's pages."""

import ast
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

# What the prose says -> the same number or truth, computed here.
STATED = {
    "The ids run from 0 to 932": max(range(len(set(TOKENS)))) == 932,
    "5,005 tokens for 20,285 characters is about four": (len(TOKENS), len(STORY)) == (5005, 20285),
    "5,005 against 5,295 tokens": len(TOKENIZER.encode(STORY)) == 5295,
    "how many of the 933 tokens occur exactly once": len(set(TOKENS)) == 933,
    "More than every fifth token": sum(not t[0].isalnum() for t in TOKENS) * 5 > len(TOKENS),
    "More than one token in seven": 1 / 7 < sum(t not in set(TOKENS[:HALF]) for t in TOKENS[HALF:]) / (len(TOKENS) - HALF) < 1 / 6,
    '`" tide"`, with its space, is a single token': len(TOKENIZER.encode(" tide")) == 1 and len(TOKENIZER.encode("tide")) > 1,
    "these thirteen characters": len("<|endoftext|>") == 13,
    "256 bytes and one special token this makes 50,257": 256 + 50_000 + 1 == TOKENIZER.n_vocab,
    "5,295 divided by 4 is 1,323.75": 5295 / 4 == 1323.75,
    "5,291 / 4 = 1,322.75": (5295 - 4) / 4 == 1322.75,
    "there are 1,323 windows": len(dataloader.GPTDatasetV1(STORY, TOKENIZER, 4, 4)) == 1323,
    "464, 31105, 21328, 198, 198": TOKENIZER.encode(STORY)[:5] == [464, 31105, 21328, 198, 198],
    "Token 198 is a line break": TOKENIZER.decode([198]) == "\n",
    "more than 38 million parameters, nearly a third of the 124 million": 38e6 < 50257 * 768 < 124e6 / 3,
    "6 x 4 = 24": 6 * 4 == 24,
    "of which 50,256 are zero": TOKENIZER.n_vocab - 1 == 50256,
    "(1000 - 100) / 100 = 9": len(range(0, 1000 - 100, 100)) == 9,
    "Eight exercises wait": len(list(re.finditer(r"(?m)^## Exercise 2", (FOLDER / "exercise-solutions.ipynb").read_text()))) in (0, 8),
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


def test_no_comparison_stands_alone_in_the_tests():
    for path in sorted((FOLDER / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.Expr) and isinstance(node.value, ast.Compare)), f"{path.name}:{node.lineno} asserts nothing"


def test_readme_lists_every_file_of_the_folder_and_no_other():
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    listed = set(re.findall(r"\[`?([\w.-]+?)/?`?\]\(", readme))
    there = {path.name for path in FOLDER.iterdir() if not path.name.startswith((".", "__")) and path.name != "README.md"}
    assert there <= listed and all((FOLDER / name).exists() for name in listed if "." in name)


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
