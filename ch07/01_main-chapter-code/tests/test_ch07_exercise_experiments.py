"""The exercises as trainings: losses as in the chapter, files by the names of the runs, marks that add up, a log for the notebook.

Run it:  pytest ch07/01_main-chapter-code/tests/test_ch07_exercise_experiments.py
"""

import json

import exercise_experiments
import pytest
import torch
from exercise_experiments import (
    LOG_FILE,
    SOLUTIONS,
    InstructionDatasetPhi,
    add_lora,
    command_line,
    create_loaders,
    encode_prompt_phi,
    format_input_phi,
    load_alpaca,
    main,
    mark,
    read_log,
)
from gpt_instruction_finetuning import TEST_CONFIG, answer_entries, calc_answer_loss, load_tuned_gpt
from instruction_batches import InstructionDataset, InstructionDatasetWithMasking, split_data
from instruction_data_checks import load_data, load_verifiable_test
from previous_chapters import GPTModel, calc_loss_batch, generate, gpt2_tokenizer

END_ID = 50256
ENTRY = {"instruction": "Put it in the past tense.", "input": "She sings.", "output": "She sang."}


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Every run once, in test mode: (what it returned, the folder)."""
    folder = tmp_path_factory.mktemp("runs")
    settings = {"test_mode": True, "output_dir": str(folder)}
    return {name: main(**flags, settings=settings) for name, (flags, _) in SOLUTIONS.items()}, folder


def test_the_prompt_in_the_style_of_phi3_and_its_answer():
    assert format_input_phi(ENTRY) == "<|user|>\nPut it in the past tense.\nShe sings."
    assert format_input_phi({**ENTRY, "input": ""}) == "<|user|>\nPut it in the past tense."
    tokenizer = gpt2_tokenizer()
    assert len(tokenizer.encode("<|user|>")) == 5
    (ids,) = InstructionDatasetPhi([ENTRY], tokenizer)
    assert tokenizer.decode(ids) == "<|user|>\nPut it in the past tense.\nShe sings.\n<|assistant|>:\nShe sang."
    prompt = encode_prompt_phi(ENTRY, tokenizer)
    assert ids[: len(prompt)] == prompt and tokenizer.decode(ids[len(prompt) :]) == "She sang."


@pytest.mark.parametrize("mask_instructions", [True, False])
def test_the_loss_is_the_chapter_s_although_the_output_layer_sees_counted_targets_only(mask_instructions):
    tokenizer, entries = gpt2_tokenizer(), load_data()[:9]
    kind = InstructionDatasetWithMasking if mask_instructions else InstructionDataset
    datasets = [kind(entries, tokenizer)] * 2
    _, loader = create_loaders(datasets, mask_instructions, 4, 120, "cpu")
    model = GPTModel(TEST_CONFIG)
    for inputs, targets in loader:
        kept = (targets != -100).sum().item()
        losses = [function(*args) for function, args in (
            (calc_answer_loss, (model, inputs, targets)), (calc_loss_batch, (inputs, targets, model, torch.device("cpu")))
        )]  # fmt: skip
        assert torch.allclose(*losses, atol=1e-5) and 0 < kept <= targets.numel()
        counted = [tokenizer.decode(row[row != -100].tolist()) for row in targets]
        assert all(text.endswith("<|endoftext|>") and text.count("<|endoftext|>") == 1 for text in counted)
        assert all(text.startswith("Below") or text.startswith(" is an") for text in counted) != mask_instructions


def test_answers_to_another_prompt_are_those_of_each_one_alone():
    torch.manual_seed(5)
    model, tokenizer, entries = GPTModel(TEST_CONFIG).eval(), gpt2_tokenizer(), load_data()[:6]
    prompts = [torch.tensor([encode_prompt_phi(entry, tokenizer)]) for entry in entries]
    with torch.no_grad():  # the end token takes the place of the third token of the first answer
        third = generate(model, prompts[0], 3, 120)[0, -1]
        model.out_head.weight[END_ID] = 1.01 * model.out_head.weight[third]
    answers, ended = answer_entries(model, entries, tokenizer, "cpu", 7, encode=encode_prompt_phi)
    alone = [generate(model, prompt, 7, 120, eos_id=END_ID)[0, prompt.shape[1] :].tolist() for prompt in prompts]
    assert answers == [tokenizer.decode(ids).strip() for ids in alone]
    assert ended == [len(ids) < 7 for ids in alone] and ended[0] and not all(ended)


def test_marks_add_up_and_right_answers_are_right():
    questions = load_verifiable_test()
    marks = mark(questions, [question["output"] for question in questions], [True] * len(questions))
    assert sum(counts["of"] for counts in marks.values()) == len(questions)
    for counts in marks.values():
        assert counts["right"] == counts["ended"] == counts["of"] and counts["well_formed"] > 0.9 * counts["of"]
    empty = mark(questions, [""] * len(questions), [False] * len(questions))
    assert all(counts[kind] == 0 for counts in empty.values() for kind in ("right", "well_formed", "ended"))


def test_each_run_writes_three_files_with_its_ending(results):
    _, folder = results
    expected = set()
    for _, suffix in SOLUTIONS.values():
        expected |= {f"loss-plot{suffix}.pdf", f"instruction-data-with-response{suffix}.json", f"small-test-model-sft{suffix}.pth"}
    assert {path.name for path in folder.iterdir()} == expected
    for _, suffix in SOLUTIONS.values():
        answered = json.loads((folder / f"instruction-data-with-response{suffix}.json").read_text(encoding="utf-8"))
        assert len(answered) == 10 and all(set(entry) == {"instruction", "input", "output", "model_response"} for entry in answered)


def test_what_the_log_keeps_says_what_was_changed(results):
    runs, _ = results
    assert [run["run"] for run in runs.values()] == [suffix[1:] for _, suffix in SOLUTIONS.values()]
    assert runs["phi3_prompt"]["tokens_trained"] < runs["baseline"]["tokens_trained"] == runs["mask_instructions"]["tokens_trained"]
    assert runs["lora"]["trainable"] < runs["baseline"]["trainable"]
    assert runs["alpaca_52k"]["updates"] > runs["baseline"]["updates"]  # smaller batches
    assert runs["mask_instructions"]["train_losses"] != runs["baseline"]["train_losses"]


def test_adapters_are_merged_before_the_model_is_saved(results):
    _, folder = results
    plain, _ = load_tuned_gpt(folder / "small-test-model-sft-baseline.pth")
    adapted, _ = load_tuned_gpt(folder / "small-test-model-sft-lora.pth")
    assert plain.state_dict().keys() == adapted.state_dict().keys()
    start = GPTModel(TEST_CONFIG)
    assert not torch.equal(adapted.out_head.weight, start.out_head.weight)


def test_only_adapters_learn():
    model = GPTModel(TEST_CONFIG)
    total, learning = add_lora(model, 4, 8)
    linear = 4 * [(12, 12)] + [(12, 48), (48, 12), (12, 50257)]
    assert total == sum(p.numel() for name, p in model.named_parameters() if ".lora." not in name)
    assert learning == sum(4 * (d_in + d_out) for d_in, d_out in linear)
    assert all(parameter.requires_grad == (".lora." in name) for name, parameter in model.named_parameters())
    assert model.out_head.lora.alpha / model.out_head.lora.rank == 2


def test_masking_and_the_phi3_prompt_together_are_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be combined"):
        main(mask_instructions=True, phi3_prompt=True, settings={"test_mode": True, "output_dir": str(tmp_path)})


def test_alpaca_has_a_file_of_its_own_and_is_counted(tmp_path):
    assert exercise_experiments.ALPACA_FILE.name not in ("instruction-data.json", "alpaca_data.json")
    path = tmp_path / "alpaca.json"
    path.write_text(json.dumps([ENTRY] * 10), encoding="utf-8")
    with pytest.raises(ValueError, match="has 10 entries, Stanford Alpaca has 52,002"):
        load_alpaca(path)
    path.write_text(json.dumps([ENTRY] * 52_002), encoding="utf-8")
    assert [len(part) for part in split_data(load_alpaca(path))] == [44_201, 5_200, 2_601]


def test_without_a_network_alpaca_is_one_line(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(exercise_experiments, "ALPACA_FILE", tmp_path / "none.json")
    monkeypatch.setattr(exercise_experiments.load_alpaca, "__defaults__", (tmp_path / "none.json", "http://127.0.0.1:9/alpaca.json"))
    with pytest.raises(SystemExit) as stop:
        command_line(["--exercise_solution", "alpaca_52k", "--output_dir", str(tmp_path / "out")])
    assert stop.value.code == 2 and "none.json" in capsys.readouterr().err.splitlines()[-1]


def test_results_are_not_replaced_unasked(results, capsys):
    _, folder = results
    args = ["--exercise_solution", "baseline", "--test_mode", "--output_dir", str(folder)]
    with pytest.raises(SystemExit) as stop:
        command_line(args)
    assert stop.value.code == 2 and "--overwrite" in capsys.readouterr().err
    assert command_line([*args, "--overwrite", "--log", str(folder.parent / "log.jsonl")]) == 0
    assert read_log(folder.parent / "log.jsonl").keys() == {"baseline"}


@pytest.mark.parametrize(
    "args",
    [
        [],
        ["--exercise_solution", "magic"],
        ["--exercise_solution", "lora", "--num_epochs", "0"],
        ["--exercise_solution", "lora", "--learning_rate", "-1"],
        ["--exercise_solution", "lora", "--log", "no/such/folder/log.jsonl"],
    ],
)
def test_bad_input_is_one_line(args, capsys):
    with pytest.raises(SystemExit) as stop:
        command_line([*args, "--test_mode"])
    assert stop.value.code == 2 and capsys.readouterr().err.count("error:") == 1


def test_the_choices_stand_in_their_order_in_the_help(capsys):
    with pytest.raises(SystemExit):
        command_line(["--help"])
    assert "{baseline,mask_instructions,alpaca_52k,phi3_prompt,lora}" in "".join(capsys.readouterr().out.split())


def test_the_committed_log_holds_the_runs_that_need_no_network():
    runs = read_log(LOG_FILE)
    assert sorted(runs) == ["baseline", "lora", "mask-instructions", "phi3-prompt"]
    for run in runs.values():
        assert run["model"] == "gpt2-mini" and run["entries"] == 935 and run["num_epochs"] == 3 and run["updates"] == 348
        assert [run["marks"][group]["of"] for group in ("unseen", "seen", "rephrased")] == [340, 102, 40]
        assert run["train_losses"][-1] < run["train_losses"][0]
    assert runs["phi3-prompt"]["tokens_trained"] < 0.8 * runs["baseline"]["tokens_trained"]
    assert runs["lora"]["trainable"] < 0.1 * runs["baseline"]["trainable"]
