"""The two layers of the notebook agree for random sizes, and what its texts state is true."""

import ast
import re
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn.functional as F
from torch import nn

FOLDER = Path(__file__).resolve().parents[1]
NOTEBOOK = nbformat.read(FOLDER / "embeddings-and-linear-layers.ipynb", as_version=4)
CODE = [cell for cell in NOTEBOOK.cells if cell.cell_type == "code"]
PROSE = re.sub(r"\s+", " ", " ".join(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "markdown"))
README = re.sub(r"\s+", " ", (FOLDER / "README.md").read_text(encoding="utf-8"))


def definitions_of_the_notebook() -> dict:
    names = {"nn": nn, "F": F}
    for cell in CODE:
        for node in ast.parse(cell.source).body:
            if isinstance(node, ast.FunctionDef) and node.name in ("make_layers", "one_hot_product"):
                exec(ast.unparse(node), names)
    return names


make_layers, one_hot_product = (definitions_of_the_notebook()[name] for name in ("make_layers", "one_hot_product"))


@pytest.mark.parametrize(("vocab_size", "emb_dim", "shape"), [(6, 4, (2, 3)), (50, 7, (1, 9)), (1000, 16, (3, 1)), (2, 1, (4, 4))])
def test_lookup_and_product_give_equal_vectors_and_gradients(vocab_size, emb_dim, shape):
    embedding, linear = make_layers(vocab_size, emb_dim)
    for ids in (torch.randint(vocab_size, shape), torch.zeros(shape, dtype=torch.int64)):  # the second lacks the largest id
        looked_up, multiplied = embedding(ids), one_hot_product(ids, linear)
        assert looked_up.shape == multiplied.shape == (*shape, emb_dim)
        torch.testing.assert_close(multiplied, looked_up, rtol=0, atol=0)
        (looked_up * torch.arange(emb_dim)).sum().backward()
        (multiplied * torch.arange(emb_dim)).sum().backward()
        torch.testing.assert_close(embedding.weight.grad, linear.weight.grad.T)
        assert set(embedding.weight.grad.any(dim=1).nonzero().flatten().tolist()) <= set(ids.flatten().tolist())
        embedding.zero_grad()
        linear.zero_grad()


def test_both_layers_see_one_piece_of_memory():
    embedding, linear = make_layers(5, 3)
    with torch.no_grad():
        embedding.weight[2] = 7.0
    assert linear.weight[:, 2].tolist() == [7.0, 7.0, 7.0]


def test_one_hot_guesses_the_size_of_the_vocabulary_without_num_classes():
    assert F.one_hot(torch.tensor([2, 3, 1])).shape == (3, 4)
    calls = [
        node
        for cell in CODE
        for node in ast.walk(ast.parse(cell.source))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "one_hot"
    ]
    assert [not call.keywords for call in calls].count(True) == 1  # the cell that shows the trap


def test_adamw_refuses_sparse_gradients_and_moves_rows_without_a_gradient():
    sparse = nn.Embedding(4, 2, sparse=True)
    sparse(torch.tensor([1])).sum().backward()
    with pytest.raises(RuntimeError, match="sparse"):
        torch.optim.AdamW(sparse.parameters()).step()
    torch.optim.SGD(sparse.parameters(), lr=0.1).step()
    torch.optim.SparseAdam(list(sparse.parameters())).step()
    dense = nn.Embedding(4, 2)
    before = dense.weight.detach().clone()
    dense(torch.tensor([1])).sum().backward()
    torch.optim.AdamW(dense.parameters(), lr=0.1, weight_decay=0.1).step()
    assert (dense.weight != before).all()


def test_a_linear_layer_refuses_whole_numbers_in_the_words_that_the_table_quotes():
    with pytest.raises(RuntimeError, match="expected .* same dtype"):
        nn.Linear(3, 2, bias=False)(F.one_hot(torch.tensor([0]), num_classes=3))


def test_facts_of_the_texts():
    vocab_size, emb_dim = 50_257, 768
    assert f"{2 * vocab_size * emb_dim // 10**6} million operations" in PROSE
    assert f"{2 * vocab_size * emb_dim // 10**6} million operations and {4 * vocab_size // 1000} kB" in README
    one_hot = F.one_hot(torch.tensor([3]), num_classes=vocab_size)
    assert one_hot.nbytes == 8 * vocab_size and one_hot.float().nbytes == 4 * vocab_size
    assert f"3 MB instead of {4 * vocab_size * emb_dim // 10**6}" in PROSE and 1024 * (4 * emb_dim + 8) // 10**6 == 3
    assert 3 * 6 == 18 and (F.one_hot(torch.tensor([2, 3, 1]), num_classes=6) == 0).sum() == 15 and "15 of them are with 0" in PROSE


def test_what_the_stored_measurement_says_of_growth():
    printed = next(cell.outputs[0].text for cell in CODE if "def median_seconds" in cell.source)
    lines = re.findall(r"V +([\d,]+): lookup +(\d+) µs, product +(\d+) µs, +(\d+) times as long; +([\d,]+) bytes", printed)
    rows = [[int(number.replace(",", "")) for number in line] for line in lines]
    assert [row[0] for row in rows] == [2**power for power in range(8, 17)] and "from 256 to 65,536" in PROSE
    first, last = rows[0], rows[-1]
    assert last[0] / first[0] == last[4] / first[4] == 256
    assert last[1] <= 3 * first[1], "the lookup hardly noticed"
    assert 100 < last[2] / first[2] < 1000, "the product grows by the order of the vocabulary"
