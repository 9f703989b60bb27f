"""Batches count the answer and one end token, answers are the same alone and together, the script trains, saves and explains itself."""

import ast
import json
import math
import subprocess
import sys
import warnings
from pathlib import Path

import gpt_instruction_finetuning as finetuning
import instruction_batches as batches
import pytest
import torch
from instruction_data_checks import load_data
from previous_chapters import GPTModel, generate, gpt2_tokenizer
from torch import nn
from torch.utils.data import DataLoader

END, FOLDER = 50256, Path(finetuning.__file__).resolve().parent
TINY = {"vocab_size": 50257, "context_length": 120, "emb_dim": 16, "n_layers": 2, "n_heads": 2, "drop_rate": 0.0, "qkv_bias": True}
TOY = [[0, 1, 2, 3, 4], [5, 6], [7, 8, 9]]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tokenizer():
    return gpt2_tokenizer()


def tiny_gpt(seed: int = 123, **changes) -> GPTModel:
    torch.manual_seed(seed)
    return GPTModel({**TINY, **changes}).eval()


def an_entry(instruction: str = "Say it.", output: str = "cold", given: str = "") -> dict:
    return {"instruction": instruction, "input": given, "output": output}


# ---- prompts ----


def test_the_prompt_is_the_published_form_and_ends_without_a_newline():
    text = batches.format_input(an_entry("Give the opposite.", given="hot"))
    assert text.splitlines()[0] == (
        "Below is an instruction that describes a task. Write a response that appropriately completes the request."
    )
    assert text.splitlines()[1:] == ["", "### Instruction:", "Give the opposite.", "", "### Input:", "hot"] and text[-1] == "t"
    assert "Input" not in batches.format_input(an_entry()) and batches.RESPONSE_HEADER == "\n\n### Response:\n"


@pytest.mark.parametrize("field", ["instruction", "input"])
def test_a_missing_field_is_named_with_its_entry(field):
    entry = an_entry("Unusual words.")
    del entry[field]
    with pytest.raises(ValueError, match=f"'{field}'.*cold"):
        batches.format_input(entry)


@pytest.mark.parametrize("last", [" ", "7", "\n", "\n\n", "  \t", ":", "<|endoftext|>", "12 ", "\u00e9"])
@pytest.mark.parametrize("answer", ["cold", " cold", "\nline\nline", "7", "<|endoftext|> is text", ""])
def test_what_is_trained_is_the_answer_and_one_end_whatever_the_prompt_ends_with(tokenizer, last, answer):
    for entry in (an_entry(f"Repeat{last}", answer), an_entry("Repeat.", answer, f"this{last}")):
        dataset = batches.InstructionDatasetWithMasking([entry, an_entry("A much longer instruction than the other one.")], tokenizer)
        inputs, targets = batches.custom_collate_with_masking_fn([dataset[0], dataset[1]])
        kept = targets[0][targets[0] != -100].tolist()
        assert kept[-1] == END and END not in kept[:-1] and tokenizer.decode(kept[:-1]) == answer
        assert inputs[0, : dataset[0][0]].tolist() == batches.encode_prompt(entry, tokenizer)


def test_every_training_text_keeps_its_answer_and_one_end(tokenizer):
    for part in batches.split_data(load_data()):
        dataset = batches.InstructionDatasetWithMasking(part, tokenizer)
        for start in range(0, len(part), 8):
            rows = range(start, min(start + 8, len(part)))
            _, targets = batches.custom_collate_with_masking_fn([dataset[row] for row in rows])
            for row, target in zip(rows, targets):
                assert tokenizer.decode(target[target != -100].tolist()) == part[row]["output"] + "<|endoftext|>"


def test_prompts_in_training_are_the_prompts_in_use(tokenizer):
    part = load_data()[:200]
    dataset = batches.InstructionDatasetWithMasking(part, tokenizer)
    for entry, (length, ids) in zip(part, dataset):
        assert ids[:length] == batches.encode_prompt(entry, tokenizer)
        assert tokenizer.decode(ids[:length]) == batches.format_input(entry) + batches.RESPONSE_HEADER
        assert tokenizer.decode(ids) == batches.format_input(entry) + batches.RESPONSE_HEADER + entry["output"]


# ---- collate functions ----


def test_draft_1_pads_to_the_longest_of_the_batch():
    assert batches.custom_collate_draft_1(TOY).tolist() == [[0, 1, 2, 3, 4], [5, 6, END, END, END], [7, 8, 9, END, END]]


def test_draft_2_shifts_by_one():
    inputs, targets = batches.custom_collate_draft_2(TOY)
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, END, END, END], [7, 8, 9, END, END]]
    assert targets.tolist() == [[1, 2, 3, 4, END], [6, END, END, END, END], [8, 9, END, END, END]]


def test_padding_is_ignored_but_for_the_first_end():
    inputs, targets = batches.custom_collate_fn(TOY)
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, END, END, END], [7, 8, 9, END, END]]
    assert targets.tolist() == [[1, 2, 3, 4, END], [6, END, -100, -100, -100], [8, 9, END, -100, -100]]


def test_a_text_that_contains_the_padding_id_keeps_it():
    _, targets = batches.custom_collate_fn([[1, END, 2], [3, 4, 5, 6, 7]])
    assert targets[0].tolist() == [END, 2, END, -100, -100]


def test_the_prompt_is_ignored_up_to_the_first_answer_id():
    _, targets = batches.custom_collate_with_masking_fn([(3, [0, 1, 2, 3, 4]), (1, [5, 6]), (3, [7, 8, 9])])
    assert targets.tolist() == [[-100, -100, 3, 4, END], [6, END, -100, -100, -100], [-100, -100, END, -100, -100]]


@pytest.mark.parametrize("pad, ignore", [(50256, -1), (9, -100), (1, -7)])
def test_pad_and_ignore_index_are_honored(pad, ignore):
    items = [(2, [20, 21, 22, 23]), (1, [24, 25])]
    _, targets = batches.custom_collate_with_masking_fn(items, pad_token_id=pad, ignore_index=ignore)
    assert targets.tolist() == [[ignore, 22, 23, pad], [25, pad, ignore, ignore]]
    _, targets = batches.custom_collate_fn([ids for _, ids in items], pad_token_id=pad, ignore_index=ignore)
    assert targets.tolist() == [[21, 22, 23, pad], [25, pad, ignore, ignore]]


def test_masking_leaves_inputs_and_items_alone():
    items = [(3, [0, 1, 2, 3, 4]), (1, [5, 6])]
    inputs, _ = batches.custom_collate_with_masking_fn(items)
    assert inputs.tolist() == [[0, 1, 2, 3, 4], [5, 6, END, END, END]] and items == [(3, [0, 1, 2, 3, 4]), (1, [5, 6])]


def test_drafts_do_not_share_memory():
    inputs, targets = batches.custom_collate_draft_2(TOY)
    targets[:] = -100
    assert inputs.min() >= 0


@pytest.mark.parametrize("collate", [batches.custom_collate_fn, batches.custom_collate_with_masking_fn])
def test_an_empty_batch_is_refused_in_words(collate):
    with pytest.raises(ValueError, match="at least one text"):
        collate([])


def test_a_cut_text_is_announced_and_an_uncut_one_is_not():
    with pytest.warns(UserWarning, match="1 of 3 texts were cut to 4 tokens"):
        inputs, targets = batches.custom_collate_fn(TOY, allowed_max_length=4)
    assert inputs.shape == targets.shape == (3, 4) and END not in targets[0]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        batches.custom_collate_fn(TOY, allowed_max_length=5)


def test_the_split_is_by_position():
    train, test, val = batches.split_data(list(range(1100)))
    assert (train, test, val) == (list(range(935)), list(range(935, 1045)), list(range(1045, 1100)))
    with pytest.raises(ValueError, match="too few"):
        batches.split_data([1, 2, 3])


def test_loaders_shuffle_training_alone_and_drop_its_rest(tokenizer):
    part = [an_entry(f"Say number {i}.", str(i)) for i in range(21)]
    torch.manual_seed(1)
    train, val = batches.create_loaders(part, part, tokenizer, 4, 120)
    first, second = ([targets[targets != -100].tolist() for _, targets in train] for _ in range(2))
    assert len(train) == 5 and len(val) == 6 and first != second
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(val, val))


def test_download_and_load_file_asks_nobody_when_the_file_is_there(tmp_path):
    (tmp_path / "list.json").write_text('[{"a": 1}]', encoding="utf-8")
    assert batches.download_and_load_file(tmp_path / "list.json", "http://localhost:9/none") == [{"a": 1}]
    (tmp_path / "dict.json").write_text('{"a": 1}', encoding="utf-8")
    with pytest.raises(ValueError, match="dict, not a list"):
        batches.download_and_load_file(tmp_path / "dict.json", "http://localhost:9/none")


# ---- loss ----


def a_batch(tokenizer, entries=None):
    entries = entries or [an_entry(), an_entry("Say more than that, please.", "two words"), an_entry("Name it.", "a long answer, this one")]
    dataset = batches.InstructionDatasetWithMasking(entries, tokenizer)
    return batches.custom_collate_with_masking_fn([dataset[i] for i in range(len(dataset))])


def test_logits_at_are_rows_of_all_logits_and_the_output_layer_is_back(tokenizer):
    model, (inputs, targets) = tiny_gpt(), a_batch(tokenizer)
    everything = model(inputs)
    chosen = finetuning.logits_at(model, inputs, targets != -100)
    assert torch.allclose(chosen, everything[targets != -100], atol=1e-5) and model(inputs).shape == everything.shape
    with pytest.raises(ValueError):
        finetuning.logits_at(model, inputs + 50257, targets != -100)
    assert isinstance(model.out_head, torch.nn.Linear)


def test_the_loss_is_that_of_cross_entropy_over_all_positions(tokenizer):
    model, (inputs, targets) = tiny_gpt(), a_batch(tokenizer)
    whole = nn.functional.cross_entropy(model(inputs).flatten(0, 1), targets.flatten())
    assert torch.allclose(finetuning.calc_answer_loss(model, inputs, targets), whole, atol=1e-5)
    other = targets.masked_fill(targets == -100, -5)
    assert torch.allclose(finetuning.calc_answer_loss(model, inputs, other, ignore_index=-5), whole, atol=1e-5)


def test_a_loader_s_loss_weighs_every_answer_id_alike(tokenizer):
    model, entries = tiny_gpt(), [an_entry("Say it.", "word " * n) for n in (1, 2, 12, 3, 30)]
    dataset = batches.InstructionDatasetWithMasking(entries, tokenizer)
    losses = [
        finetuning.calc_answer_loss_loader(model, DataLoader(dataset, size, collate_fn=batches.custom_collate_with_masking_fn))
        for size in (1, 2, 5)
    ]
    assert all(math.isclose(loss, losses[0], rel_tol=1e-5) for loss in losses)
    loader = DataLoader(dataset, 2, collate_fn=batches.custom_collate_with_masking_fn)
    first = finetuning.calc_answer_loss(model, *next(iter(loader))).item()
    assert math.isclose(finetuning.calc_answer_loss_loader(model, loader, num_batches=1), first, rel_tol=1e-5)


def test_training_learns_few_answers_by_heart_and_ends_them(tokenizer, capsys):
    entries = [an_entry(f"Color of the {thing}?", color) for thing, color in (("sky", "blue"), ("grass", "green"), ("snow", "white"))]
    torch.manual_seed(123)
    loaders = batches.create_loaders(entries, entries, tokenizer, 3, 120)
    model, calls = tiny_gpt(n_layers=1), []
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    found = finetuning.train_on_answers(
        model, *loaders, optimizer, 60, 15, 5, lambda: calls.append("step"), lambda: calls.append(model.training)
    )
    assert [len(values) for values in found] == [4, 4, 4] and found[0][-1] < 0.1 < found[0][0] and found[2] == sorted(found[2])
    assert calls.count("step") == 60 and calls.count(False) == 60 and capsys.readouterr().out.count("train loss") == 4
    assert finetuning.answer_entries(model, entries, tokenizer, CPU) == (["blue", "green", "white"], [True] * 3)


def test_measuring_does_not_change_the_training(tokenizer):
    entries = [an_entry(f"Number {i}?", str(i)) for i in range(8)]
    weights = []
    for eval_freq in (1, 100):
        torch.manual_seed(5)
        loaders, model = batches.create_loaders(entries, entries, tokenizer, 4, 120), tiny_gpt(drop_rate=0.1)
        torch.manual_seed(6)
        finetuning.train_on_answers(model, *loaders, torch.optim.AdamW(model.parameters(), lr=1e-3), 2, eval_freq, 1)
        weights.append(model.state_dict())
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


# ---- answers ----


def test_batched_answers_are_single_answers_and_those_of_generate(tokenizer):
    model = tiny_gpt(7)
    with torch.no_grad():
        model.out_head.weight[END] = model.out_head.weight.mean(dim=0) + 0.35 * torch.randn(16)  # some answers end early
    entries = [an_entry(f"{word} it{'!' * (number % 3)}", "") for number, word in enumerate("Say Do Take Find Hold Keep Show Name".split())]
    answers, ended = finetuning.answer_entries(model, entries, tokenizer, CPU, 12)
    for entry, answer, over in zip(entries, answers, ended):
        assert finetuning.answer_entries(model, [entry], tokenizer, CPU, 12) == ([answer], [over])
        ids = torch.tensor([batches.encode_prompt(entry, tokenizer)])
        new = generate(model, ids, 12, 120, eos_id=END)[0, ids.shape[1] :].tolist()
        assert tokenizer.decode(new).strip() == answer and over == (len(new) < 12)


class EndsAtLength(nn.Module):
    """Says "x" until a text has `length` tokens, then ends."""

    def __init__(self, length: int):
        super().__init__()
        self.length, self.pos_emb, self.out_head = length, nn.Embedding(120, 1), nn.Identity()
        self.out_head.weight = nn.Parameter(torch.zeros(1))

    def forward(self, ids):
        logits = torch.zeros(*ids.shape, 50257)
        logits[..., 87 if ids.shape[1] < self.length else END] = 1
        return self.out_head(logits)


def test_an_answer_that_ends_is_told_from_one_that_is_cut(tokenizer):
    entries = [an_entry("Go."), an_entry("Go on and on.")]
    lengths = [len(batches.encode_prompt(entry, tokenizer)) for entry in entries]
    model = EndsAtLength(max(lengths) + 2)
    assert finetuning.answer_entries(model, entries, tokenizer, CPU, 50)[1] == [True, True]
    answers, ended = finetuning.answer_entries(model, entries, tokenizer, CPU, 3)
    assert ended == [False, True] and answers == ["xxx", "xx"]
    assert finetuning.answer_entries(EndsAtLength(500), entries, tokenizer, CPU, 500) == (["x" * (120 - n) for n in lengths], [False] * 2)
    with pytest.raises(ValueError, match="no room"):
        finetuning.answer_entries(model, [an_entry("word " * 200)], tokenizer, CPU)


def test_an_untrained_model_of_one_layer_answers_an_empty_list_with_one(tokenizer):
    assert finetuning.answer_entries(tiny_gpt(), [], tokenizer, CPU) == ([], [])


def test_only_the_prompt_and_one_header_go():
    prompt = batches.format_input(an_entry())
    header = batches.RESPONSE_HEADER
    assert finetuning.extract_response(prompt + header + "cold\n", prompt) == "cold"
    assert finetuning.extract_response(prompt + header + f"Write{header}here", prompt) == f"Write{header}here"
    assert finetuning.extract_response(prompt + "cold", prompt) == "cold" and finetuning.extract_response(prompt, prompt) == ""
    with pytest.raises(ValueError, match="does not begin"):
        finetuning.extract_response("cold", prompt)


# ---- files and command line ----


def script(*args):
    command = [sys.executable, str(FOLDER / "gpt_instruction_finetuning.py"), *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)


@pytest.mark.slow
def test_test_mode_trains_answers_and_comes_back(tmp_path):
    done = script("--test_mode", "--output_dir", tmp_path / "run")
    assert done.returncode == 0, done.stderr
    wanted = {
        "log.txt",
        "loss-plot-standalone.pdf",
        "instruction-data-with-response-standalone.json",
        "small-test-model-sft-standalone.pth",
    }
    assert {path.name for path in (tmp_path / "run").iterdir()} == wanted
    lines = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8").splitlines()
    losses = [float(line.split("train loss ")[1].split(",")[0]) for line in lines if "train loss" in line]
    assert losses[-1] < losses[0]
    answered = json.loads((tmp_path / "run" / "instruction-data-with-response-standalone.json").read_text(encoding="utf-8"))
    assert [{**entry, "model_response": answer["model_response"]} for entry, answer in zip(load_data()[935:945], answered)] == answered
    model, cfg = finetuning.load_tuned_gpt(tmp_path / "run" / "small-test-model-sft-standalone.pth")
    assert not model.training and cfg == finetuning.TEST_CONFIG
    again = script("--test_mode", "--output_dir", tmp_path / "run")
    assert again.returncode == 2 and "--overwrite" in again.stderr.splitlines()[-1] and "Traceback" not in again.stderr


def test_own_instructions_with_everything_awkward(tmp_path):
    entries = [an_entry(f"Say <|endoftext|> {i}", f"{i}\n\u00e9 ", "  ") for i in range(20)]
    (tmp_path / "mine.json").write_text(json.dumps(entries), encoding="utf-8")
    done = script("--test_mode", "--data", tmp_path / "mine.json", "--output_dir", tmp_path / "run", "--num_epochs", 1)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "content, message",
    [
        ("[]", "too few"),
        ("{}", "not a JSON list"),
        ("[1]", "not a JSON list"),
        ("[", "not a JSON"),
        ('[{"instruction": "x"}]', "no text field"),
    ],
)
def test_bad_data_is_one_line(tmp_path, content, message):
    (tmp_path / "bad.json").write_text(content, encoding="utf-8")
    with pytest.raises(ValueError, match=message):
        finetuning.main(True, {"data": str(tmp_path / "bad.json"), "output_dir": str(tmp_path / "run")})
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "args, message",
    [
        (["--num_epochs", "0"], "num_epochs"), (["--batch_size", "x"], "batch_size"), (["--learning_rate", "-1"], "learning_rate"),
        (["--size", "huge"], "laptop"), (["--data", "nowhere.json"], "nowhere.json"), (["--device", "tpu"], "tpu"),
        (["--siz", "full"], "--siz"),
    ],
)  # fmt: skip
def test_bad_options_end_in_one_line_and_code_2(tmp_path, args, message):
    done = script("--output_dir", tmp_path / "run", *args)
    assert done.returncode == 2 and message in done.stderr.splitlines()[-1] and "Traceback" not in done.stderr
    assert len(done.stderr.strip().replace("device: cpu\n", "").splitlines()) == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("content", [None, b"no checkpoint"])
def test_a_missing_or_damaged_model_is_one_line(tmp_path, content):
    path = tmp_path / "model.pth"
    if content:
        path.write_bytes(content)
    with pytest.raises(ValueError, match="model.pth") as caught:
        finetuning.load_tuned_gpt(path)
    assert "\n" not in str(caught.value)


def test_the_notebook_s_dial_is_the_script_s():
    notebook = json.loads((FOLDER / "ch07.ipynb").read_text(encoding="utf-8"))
    cell = next(source for source in ("".join(cell["source"]) for cell in notebook["cells"]) if source.startswith("SIZE ="))
    dial = ast.literal_eval(cell.split("DIAL = ")[1].split("[SIZE]")[0])
    for size, values in finetuning.INSTRUCTION_SIZES.items():
        assert {key: dial[size][key] for key in values} == values
