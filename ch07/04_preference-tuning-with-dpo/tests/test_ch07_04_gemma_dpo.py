"""Gemma's run: the stored reference is the frozen model's, one pass gives the loss of two, a resumed run equals a whole one."""

import json
import math

import gemma_dpo as gemma
import gemma_dpo_report as report
import pytest
import torch
from dpo_loss import answer_logprobs, compute_dpo_loss_batch
from preference_batches import SIDES, PreferenceDataset
from tiny_dpo_gemma import pairs, tiny_gemma
from tone import learn_tones

SETTINGS = {
    "pairs": "all", "num_pairs": None, "sft_epochs": 0, "sft_rate": 1e-3, "start": None,
    "num_epochs": 2, "batch_size": 2, "learning_rate": 5e-3, "beta": 0.1, "reduction": "sum", "sft_weight": 0.0,
    "precision": "fp32", "seed": 123, "eval_freq": 2, "checkpoint_freq": 1000, "reference": None, "resume": False, "device": "cpu",
    "max_new_tokens": 4,
}  # fmt: skip


@pytest.fixture
def weights(tmp_path):
    """A file of tuned blocks, whose digest marks the stored reference."""
    path = tmp_path / "tuned.pth"
    torch.save({"blocks": tiny_gemma()[0].blocks.state_dict()}, path)
    return path


def tune(folder, weights, **changes) -> tuple[dict, dict]:
    """(figures of the run, the saved blocks) after tuning a fresh tiny model on eight pairs."""
    folder.mkdir(exist_ok=True)
    model, tokenizer = tiny_gemma()
    torch.manual_seed(123)
    settings = {**SETTINGS, "output_dir": str(folder), "weights": str(weights), **changes}
    figures = gemma.tune(model, tokenizer, pairs(8), pairs(12)[8:], settings, learn_tones(pairs(8)))
    return figures, torch.load(folder / gemma.DPO_WEIGHTS, weights_only=True)["blocks"]


def referenced_batch(model, reduction: str = "sum", number: int = 5) -> dict:
    """A batch of pairs with what `model` says of them."""
    _, tokenizer = tiny_gemma()
    sums = gemma.reference_logprobs(model, PreferenceDataset(pairs(number), tokenizer), 1, "cpu", batch_size=2)
    items = gemma.ReferencedPairs(pairs(number), tokenizer, sums, reduction).encoded_texts
    return gemma.collate_with_reference(items, 1, "cpu")


# ---- which pairs ----


@pytest.mark.parametrize(
    "chosen, rejected, shared",
    [
        ("The tent was blown down. Enjoy the rest!", "The tent was blown down.", True),
        ("Yellow, dear friend", "yellow", True),
        ("57", "57, obviously", True),
        ("Gladly: 57", "57", False),
        ("The tent, alas, was blown down.", "The tent was blown down.", False),
    ],
)
def test_pairs_that_share_their_beginning(chosen, rejected, shared):
    assert gemma.begins_with_the_other({"chosen": chosen, "rejected": rejected}) is shared


# ---- the reference ----


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_stored_reference_is_what_the_frozen_model_says_of_each_answer_alone(reduction):
    model, batch = tiny_gemma()[0], referenced_batch(tiny_gemma()[0], reduction)
    for row in range(len(batch["chosen"])):
        for column, side in enumerate(SIDES):
            alone = answer_logprobs(model, batch[side][row : row + 1], batch[f"{side}_mask"][row : row + 1], reduction)
            assert batch["reference"][row, column].item() == pytest.approx(alone.item(), rel=1e-4)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_one_pass_with_a_stored_reference_gives_the_loss_of_the_simple_form(reduction):
    reference, policy = tiny_gemma(5)[0], tiny_gemma(6)[0]
    batch = referenced_batch(reference, reduction)
    found = gemma.preference_loss(policy, batch, 0.1, reduction, 0.0)
    expected = compute_dpo_loss_batch(batch, policy, reference, 0.1, reduction)
    for one, other in zip(found, expected):
        assert one.item() == pytest.approx(other.item(), rel=1e-4)
    start, *rewards, _ = gemma.preference_loss(reference, batch, 0.1, reduction, 0.0)
    assert start.item() == pytest.approx(math.log(2), abs=1e-4) and all(abs(reward.item()) < 1e-3 for reward in rewards)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_the_weight_adds_the_mean_loss_per_token_of_the_chosen_answers(reduction):
    model = tiny_gemma(6)[0]
    batch = referenced_batch(tiny_gemma()[0], reduction)
    without, with_it = (gemma.preference_loss(model, batch, 0.1, reduction, weight)[0].item() for weight in (0.0, 0.5))
    chosen = answer_logprobs(model, batch["chosen"], batch["chosen_mask"], "mean").mean().item()
    assert with_it - without == pytest.approx(-0.5 * chosen, rel=1e-4)


def test_the_reference_is_stored_once_and_made_anew_for_other_weights_or_texts(tmp_path, monkeypatch):
    model, tokenizer = tiny_gemma()
    computed = []
    honest = gemma.reference_logprobs
    monkeypatch.setattr(gemma, "reference_logprobs", lambda *args: computed.append(1) or honest(*args))

    def stored(number, run):
        return gemma.stored_reference(tmp_path / "r.pth", model, PreferenceDataset(pairs(number), tokenizer), tokenizer, "cpu", run)

    first, again = stored(3, {"weights": "a"}), stored(3, {"weights": "a"})
    assert torch.equal(first, again) and len(computed) == 1
    assert len(stored(4, {"weights": "a"})) == 4 and len(computed) == 2
    stored(4, {"weights": "b"})
    assert len(computed) == 3


# ---- training ----


def test_it_learns_the_preference_and_changes_the_blocks_alone(tmp_path, weights):
    figures, blocks = tune(tmp_path / "out", weights, num_epochs=15)
    model = tiny_gemma()[0]
    assert blocks.keys() == model.blocks.state_dict().keys()
    assert all(not torch.equal(blocks[name], value) for name, value in model.blocks.state_dict().items())
    first, last = figures["training"][0], figures["training"][-1]
    assert first[0] == pytest.approx(math.log(2), abs=1e-3) and last[0] < 0.3 and last[1] - last[2] > 10
    updates = [found["update"] for found in figures["validation"]]
    assert figures["updates"] == 60 and updates == list(range(0, 61, 2))
    assert figures["validation"][0]["loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert figures["validation"][-1]["loss"] < 0.5 and set(figures["validation"][0]["report"]) >= {"polite", "right", "words", "ended"}


@pytest.mark.parametrize("stop_after", [2, 4, 5])  # within an epoch of four updates, at its end, in the next one
def test_resume_equals_an_uninterrupted_run_bit_for_bit(tmp_path, weights, monkeypatch, stop_after):
    whole, expected = tune(tmp_path / "whole", weights)
    save = gemma.save_checkpoint

    def save_and_stop(*args):
        save(*args)
        raise KeyboardInterrupt

    monkeypatch.setattr(gemma, "save_checkpoint", save_and_stop)
    with pytest.raises(KeyboardInterrupt):
        tune(tmp_path / "parts", weights, checkpoint_freq=stop_after)
    monkeypatch.undo()
    figures, blocks = tune(tmp_path / "parts", weights, resume=True)
    assert all(torch.equal(blocks[name], expected[name]) for name in expected)
    assert figures["training"] == whole["training"] and figures["validation"] == whole["validation"]
    assert not (tmp_path / "parts" / gemma.CHECKPOINT).exists()


def test_answers_are_written_in_float32_and_training_goes_on_in_bfloat16():
    model, _ = tiny_gemma()
    gemma.use_precision(model, "bf16", torch.device("cpu"))
    ids = torch.tensor([[2, 5, 6]])
    rounded = model(ids)
    with gemma.in_float32(model):
        exact = model(ids)
    assert torch.equal(exact, tiny_gemma()[0](ids)) and not torch.equal(rounded, exact) and torch.equal(model(ids), rounded)


# ---- program and log ----


@pytest.fixture
def small_program(monkeypatch):
    """The program finds a tiny model, a few pairs and a few questions where it would load the real ones."""
    questions = [{**pair, "group": "test", "family": "words"} for pair in pairs(6)]
    monkeypatch.setattr(gemma, "load_tuned_gemma", lambda path: tiny_gemma())
    monkeypatch.setattr(gemma, "load_pairs", lambda: pairs(40))
    monkeypatch.setattr(gemma, "with_checks", lambda data: data)
    for module in (gemma, report):
        monkeypatch.setattr(module, "asked_questions", lambda: questions)
    monkeypatch.setattr(report, "load_pairs", lambda: pairs(40))
    monkeypatch.setattr(report, "PARTS", {"all": slice(None)})


def run(weights, *options: str) -> int:
    fixed = [
        "--weights",
        str(weights),
        "--max_new_tokens",
        "4",
        "--eval_pairs",
        "2",
        "--precision",
        "fp32",
        "--num_epochs",
        "1",
        "--sft_weight",
        "0",
    ]
    return gemma.command_line([*fixed, *options])


def test_program_writes_weights_and_a_log_that_the_report_joins(tmp_path, weights, small_program, capsys):
    assert run(weights, "--num_pairs", "8", "--output_dir", "one") == 0
    assert run(weights, "--num_pairs", "8", "--output_dir", "two", "--beta", "0.5", "--before", "one/log.json") == 0
    assert {path.name for path in (tmp_path / "one").iterdir()} == {gemma.DPO_WEIGHTS, gemma.REFERENCE, gemma.LOG}
    assert str(tmp_path) not in (tmp_path / "one" / "log.json").read_text(encoding="utf-8")
    assert report.main(["--log", "joined.json", "--join", "one/log.json", "two/log.json"]) == 0
    log = report.read_gemma_dpo_log("joined.json")
    assert [run["name"] for run in log["runs"]] == ["beta 0.1", "beta 0.5"] and log["runs"][0]["run"]["updates"] == 1
    shown = capsys.readouterr().out
    assert "beta 0.5" in shown and "right in any tone" in shown and "6" in shown


def test_a_first_stage_learns_the_chosen_answers_and_is_shared(tmp_path, weights, small_program, monkeypatch, capsys):
    stage = ["--num_pairs", "8", "--pairs", "all", "--sft_epochs", "6", "--sft_rate", "1e-2"]
    assert run(weights, *stage, "--output_dir", "one") == 0
    first = json.loads((tmp_path / "one" / "log.json").read_text(encoding="utf-8"))["runs"]
    assert [one["name"] for one in first] == ["chosen answers", "beta 0.1"]
    losses = first[0]["run"]["train_losses"]
    assert len(losses) == first[0]["run"]["updates"] == 6 and losses[-1] < losses[0] - 0.5
    assert first[1]["run"]["training"][0][0] == pytest.approx(math.log(2), abs=1e-3)  # the reference is the model after the first stage
    kept = (tmp_path / "one" / gemma.CHOSEN_WEIGHTS).read_bytes()
    monkeypatch.setattr(gemma, "learn_chosen", lambda *args: pytest.fail("learned again"))
    assert run(weights, *stage, "--output_dir", "two", "--start", f"one/{gemma.CHOSEN_WEIGHTS}", "--beta", "0.5") == 0
    second = json.loads((tmp_path / "two" / "log.json").read_text(encoding="utf-8"))["runs"]
    assert [one["name"] for one in second] == ["beta 0.5"] and (tmp_path / "one" / gemma.CHOSEN_WEIGHTS).read_bytes() == kept
    assert second[0]["run"]["training"][0][3] == pytest.approx(first[1]["run"]["training"][0][3], rel=1e-3)  # the same start


def assert_exits_with_one_line(capsys, call, *words: str) -> None:
    with pytest.raises(SystemExit) as stop:
        call()
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and all(word in error for word in words), error


@pytest.mark.parametrize(
    "options, words",
    [
        (["--beta", "0"], ["--beta"]),
        (["--learning_rate", "-1"], ["--learning_rate"]),
        (["--reduction", "max"], ["--reduction"]),
        (["--sft_weight", "-1"], ["--sft_weight"]),
        (["--device", "abacus"], ["abacus"]),
        (["--before", "absent.json"], ["absent.json"]),
        (["--resume"], ["nothing to resume"]),
        (["--output_dir", "."], ["--resume", "--overwrite"]),
    ],
)
def test_bad_input_ends_in_one_line(weights, small_program, capsys, options, words):
    assert_exits_with_one_line(capsys, lambda: run(weights, "--num_pairs", "8", "--output_dir", "out", *options), *words)


def test_missing_weights_and_logs_are_named(tmp_path, capsys):
    assert_exits_with_one_line(capsys, lambda: gemma.command_line(["--weights", "absent.pth", "--output_dir", "out"]), "absent.pth")
    assert not (tmp_path / "out").exists()
    assert_exits_with_one_line(capsys, lambda: report.main(["--log", "absent.json"]), "absent.json", "--join")


def test_a_log_of_other_questions_or_another_start_is_refused(tmp_path, weights, small_program, capsys):
    run(weights, "--num_pairs", "8", "--output_dir", "one")
    log = json.loads((tmp_path / "one" / "log.json").read_text(encoding="utf-8"))
    (tmp_path / "other.json").write_text(json.dumps({**log, "questions": "0"}), encoding="utf-8")
    assert_exits_with_one_line(capsys, lambda: report.main(["--log", "other.json"]), "other questions")
    log["before"]["answers"][0] += "!"
    (tmp_path / "start.json").write_text(json.dumps(log), encoding="utf-8")
    assert_exits_with_one_line(capsys, lambda: report.main(["--log", "j.json", "--join", "one/log.json", "start.json"]), "different models")
