"""The one-file GPT: each part against an oracle, and the program on good and bad input.

Run it:  pytest ch05/18_character-level-gpt/tests
"""

import math
from collections import Counter
from pathlib import Path

import char_gpt
import pytest
import torch
from char_gpt import CONTEXT, EMB_DIM, CharGPT, Head, OneHead, Table, get_batch, loss_on, main, train, write
from previous_chapters import STORY_FILE
from torch.nn import functional as F

MODELS = {"table": Table, "one head": OneHead, "blocks": lambda vocab_size: CharGPT(vocab_size, 2)}


def story_ids():
    text = STORY_FILE.read_text(encoding="utf-8")
    characters = sorted(set(text))
    return torch.tensor([characters.index(character) for character in text]), len(characters)


def test_the_whole_thing_fits_in_one_short_file_without_the_course():
    lines = Path(char_gpt.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 200
    packages = {line.split()[1].split(".")[0] for line in lines if line.startswith(("import ", "from "))}
    assert packages == {"argparse", "math", "sys", "time", "pathlib", "torch", "tqdm"}


def test_a_head_is_scaled_dot_product_attention():
    torch.manual_seed(0)
    head, x = Head(16), torch.randn(2, 9, EMB_DIM)
    expected = F.scaled_dot_product_attention(head.query(x), head.key(x), head.value(x), is_causal=True)
    assert torch.allclose(head(x), expected, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_no_model_sees_the_future_and_all_but_the_table_see_the_past(name):
    torch.manual_seed(0)
    model, ids = MODELS[name](11).eval(), torch.randint(11, (1, CONTEXT))
    changed = ids.clone()
    changed[0, 20] = (ids[0, 20] + 1) % 11
    differs = (model(ids) - model(changed)).abs().amax(dim=-1)[0] > 1e-7  # (num_tokens)
    assert not differs[:20].any() and differs[20]
    assert differs[21:].all() == (name != "table")


def test_targets_are_the_inputs_one_character_further():
    torch.manual_seed(0)
    inputs, targets = get_batch(torch.arange(500), 100)
    assert inputs.shape == targets.shape == (100, CONTEXT) and torch.equal(targets, inputs + 1)
    torch.manual_seed(0)
    starts = {int(row[0]) for _ in range(30) for row in get_batch(torch.arange(CONTEXT + 3))[0]}
    assert starts == {0, 1, 2}  # the last character is a target, too


def test_the_loss_of_a_text_is_the_mean_of_its_windows():
    torch.manual_seed(0)
    model, ids = OneHead(7), torch.randint(7, (3 * CONTEXT + 5,))
    losses = []
    for start in range(0, 3 * CONTEXT, CONTEXT):
        probas = torch.softmax(model(ids[start : start + CONTEXT][None]), dim=-1)[0].tolist()
        losses += [-math.log(probas[place][ids[start + place + 1]]) for place in range(CONTEXT)]
    assert abs(loss_on(model, ids) - sum(losses) / len(losses)) < 1e-5


def test_the_trained_table_knows_what_counting_pairs_tells():
    ids, vocab_size = story_ids()
    torch.manual_seed(0)
    model = Table(vocab_size)
    train(model, ids, 300, 0.1)
    pairs, firsts = Counter(zip(ids.tolist(), ids[1:].tolist())), Counter(ids[:-1].tolist())
    entropy = -sum(count * math.log(count / firsts[first]) for (first, _), count in pairs.items()) / (len(ids) - 1)
    assert entropy < loss_on(model, ids) + 0.02 < entropy + 0.12  # no table can be better than the counts


def test_a_gpt_learns_what_no_table_of_pairs_can():
    ids = torch.tensor([0, 0, 1, 1] * 200)  # after a 0 comes a 0 or a 1: the one before decides
    losses = {}
    for name in ("table", "blocks"):
        torch.manual_seed(0)
        model = MODELS[name](2)
        train(model, ids, 60, 3e-3 if name == "blocks" else 0.1)
        losses[name] = loss_on(model, ids)
    assert abs(losses["table"] - math.log(2)) < 0.02 and losses["blocks"] < 0.15


def test_what_is_written_begins_with_the_prompt_and_may_exceed_the_context():
    torch.manual_seed(0)
    written = write(OneHead(5), [1, 2, 3], CONTEXT + 10)
    assert written[:3] == [1, 2, 3] and len(written) == CONTEXT + 13 and set(written) <= set(range(5))


def test_equal_probabilities_are_drawn_equally_often():
    torch.manual_seed(0)
    model = Table(4)
    model.scores.weight.data.zero_()
    counts = Counter(write(model, [0], 2000)[1:])
    assert all(abs(counts[number] - 500) < 80 for number in range(4))


def test_the_program_shows_four_steps_and_their_losses(capsys):
    main(["--shorten", "100", "--length", "20", "--prompt", "Nell"])
    out = capsys.readouterr().out
    assert "20,285 characters, 62 different ones" in out and f"{math.log(62):.2f}" in out
    assert out.count("held out") == 4 and out.count("\nNell") == 4


@pytest.mark.parametrize(
    "arguments, line",
    [
        (["--text", "missing.txt"], "cannot read missing.txt"),
        (["--text", "short.txt"], "has 3 characters"),
        (["--text", "binary.bin"], "is not a UTF-8 text file"),
        (["--prompt", "日"], "the text has no '日'"),
        (["--prompt", ""], "at least one character"),
        (["--shorten", "0"], "at least 1"),
    ],
)
def test_bad_input_is_one_line(arguments, line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "short.txt").write_text("abc")
    (tmp_path / "binary.bin").write_bytes(b"\xff\xfe\x00" * 900)
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    message = capsys.readouterr().err
    assert stop.value.code == 2 and line in message and message.count("\n") == 1
