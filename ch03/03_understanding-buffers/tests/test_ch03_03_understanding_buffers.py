"""The notebook's two classes: equal to chapter 3's, the line that fails, what files keep; and the numbers of the texts."""

import re
import traceback
from pathlib import Path

import nbformat
import pytest
import torch
import torch.nn as nn
from previous_chapters import CausalAttention, check_attention_input

FOLDER = Path(__file__).resolve().parent.parent
CELLS = nbformat.read(FOLDER / "understanding-buffers.ipynb", as_version=4).cells
CODE = "\n".join(cell.source for cell in CELLS if cell.cell_type == "code")
PROSE = "\n".join(cell.source for cell in CELLS if cell.cell_type == "markdown")
PAGE = (FOLDER / "README.md").read_text(encoding="utf-8")
SIZES = {"d_in": 5, "d_out": 4, "context_length": 9, "dropout": 0.0}


def defined(name: str):
    """The class or function `name` from the notebook's cell, with its imports alone, and the lines of that cell."""
    source = next(cell.source for cell in CELLS if re.search(rf"^(class|def) {name}\b", cell.source, re.MULTILINE))
    definition = re.search(rf"^(class|def) {name}\b.*?(?=^\S|\Z)", source + "\n", re.MULTILINE | re.DOTALL)[0]
    names = {"torch": torch, "nn": nn, "check_attention_input": check_attention_input}
    exec(compile(definition, name, "exec"), names)
    return names[name], definition.splitlines()


PLAIN, PLAIN_LINES = defined("CausalAttentionWithoutBuffers")
BUFFERED, _ = defined("CausalAttentionWithBuffer")


def seeded(layer_class, **changes):
    torch.manual_seed(5)
    return layer_class(**{**SIZES, **changes})


@pytest.mark.parametrize("qkv_bias", [False, True])
@pytest.mark.parametrize("layer_class", [PLAIN, BUFFERED])
def test_outputs_and_gradients_are_those_of_chapter_3(layer_class, qkv_bias):
    theirs, mine, x = seeded(CausalAttention, qkv_bias=qkv_bias), seeded(layer_class, qkv_bias=qkv_bias), torch.randn(2, 7, 5)
    assert list(dict(mine.named_parameters())) == list(theirs.state_dict())
    torch.testing.assert_close(mine(x), theirs(x))
    for layer in (mine, theirs):
        layer(x).square().sum().backward()
    for own, other in zip(mine.parameters(), theirs.parameters()):
        torch.testing.assert_close(own.grad, other.grad)
    with pytest.raises(ValueError, match="10 tokens are more than the context_length 9"):
        mine(torch.randn(1, 10, 5))


def test_the_mask_left_behind_fails_in_masked_fill():
    x = torch.randn(2, 7, 5, device="meta")
    assert BUFFERED(**SIZES).to("meta")(x).shape == CausalAttention(**SIZES).to("meta")(x).shape == (2, 7, 4)
    with pytest.raises(RuntimeError, match="device") as caught:
        PLAIN(**SIZES).to("meta")(x)
    lines = [PLAIN_LINES[frame.lineno - 1] for frame in traceback.extract_tb(caught.tb) if frame.filename == PLAIN.__name__]
    assert len(lines) == 1 and "masked_fill" in lines[0]


def test_what_is_registered_and_what_is_saved():
    weights = ["W_query.weight", "W_key.weight", "W_value.weight"]
    for layer_class, buffers, saved in ((PLAIN, [], False), (BUFFERED, ["mask"], True), (CausalAttention, ["mask"], False)):
        layer = layer_class(**SIZES)
        assert list(dict(layer.named_parameters())) == weights and list(dict(layer.named_buffers())) == buffers
        assert ("mask" in layer.state_dict()) == saved and not layer.mask.requires_grad
    mask = BUFFERED(**SIZES).mask
    assert mask.dtype == torch.float32 and torch.equal(mask, torch.ones(9, 9).triu(1))


@pytest.mark.parametrize(("layer_class", "kept"), [(PLAIN, False), (BUFFERED, True)])
def test_a_changed_mask_survives_saving_only_as_a_buffer(layer_class, kept, tmp_path):
    layer = layer_class(**SIZES)
    layer.mask[3, 1] = 1
    torch.save(layer.state_dict(), tmp_path / "layer.pth")
    new = layer_class(**SIZES)
    new.load_state_dict(torch.load(tmp_path / "layer.pth", map_location="cpu", weights_only=True))
    assert torch.equal(new.mask, layer.mask) == kept


def test_strict_loading_reports_the_mask():
    with pytest.raises(RuntimeError, match='Missing key.*"mask"'):
        BUFFERED(**SIZES).load_state_dict(PLAIN(**SIZES).state_dict())
    with pytest.raises(RuntimeError, match='Unexpected key.*"mask"'):
        CausalAttention(**SIZES).load_state_dict(BUFFERED(**SIZES).state_dict())
    with pytest.raises(RuntimeError, match="size mismatch for mask"):
        BUFFERED(**{**SIZES, "context_length": 8}).load_state_dict(BUFFERED(**SIZES).state_dict())


def test_numbers_of_the_texts():
    saved_mask_bytes, _ = defined("saved_mask_bytes")
    layers = nn.ModuleList([BUFFERED(8, 8, 64, 0.0) for _ in range(3)])
    assert sum(t.nbytes for name, t in layers.state_dict().items() if "mask" in name) == saved_mask_bytes(64, 3)
    weights = 4 * 124_439_808
    assert saved_mask_bytes(1024, 12) == 48 * 2**20 and round(weights / 2**20) == 475 and 0.09 < 48 / 475 < 0.11
    assert "48 MiB to the 475 MiB" in PAGE and "48 MiB, a tenth of the weights" in PROSE
    assert f"{(weights / saved_mask_bytes(1, 12)) ** 0.5:,.0f} tokens" == "3,220 tokens" and "3,220 tokens" in PAGE
    assert saved_mask_bytes(131_072, 1, 1) == 16 * 2**30 and "one boolean mask takes 16 GiB" in PROSE
    assert torch.tensor(257.0).bfloat16() == 256 and "257 in bfloat16 is 256" in PROSE
    table = re.search(r"\| stored as .*?\n\n", PROSE, re.DOTALL)[0]
    assert table in PAGE


def test_files_are_read_safely_and_leave_nothing_behind():
    loads = re.findall(r"torch\.load\(.*", CODE)
    assert loads and all("weights_only=True" in line and "map_location" in line for line in loads)
    assert CODE.count("torch.save(") == 1 and CODE.index("TemporaryDirectory()") < CODE.index("torch.save(")
