"""The comparison: what is trained, splits without a common text, a log that goes on where it stopped, tables that repeat the log."""

import copy
import json
import re
import subprocess
import sys
import warnings
from pathlib import Path
from statistics import mean

import compare_lora
import lora_report
import pytest
import torch
import torch.nn as nn
from compare_lora import LOG_FILE, MAIN, RATES, SEEDS, SIZES, WAYS, best_rate, prepare, read_log, split_loaders, update
from lora import LoRALayer
from previous_chapters import GPTModel

FOLDER = Path(compare_lora.__file__).parent
TINY = {"vocab_size": 50257, "context_length": 260, "emb_dim": 70, "n_layers": 2, "n_heads": 2, "drop_rate": 0.0, "qkv_bias": True}
BATCH = [torch.arange(20).reshape(2, 10), torch.tensor([0, 1])]  # (2, 10), (2)


@pytest.fixture(scope="module")
def base():
    torch.manual_seed(5)
    return GPTModel(TINY)


def moved_by_updates(base: GPTModel, way: str) -> set[str]:
    """Names of the parameters that two updates change, `.linear` of the wrappers left out."""
    model = prepare(copy.deepcopy(base), way, 1).train()
    before = copy.deepcopy(model.state_dict())
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    for _ in range(2):
        update(model, optimizer, BATCH)
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("way", WAYS)
def test_two_updates_move_what_the_way_trains_and_nothing_else(base, way):
    moved, model = moved_by_updates(base, way), prepare(copy.deepcopy(base), way, 1)
    names = {name for name, _ in model.named_parameters()}
    unread = {"pos_emb.weight", "tok_emb.weight"}  # rows that the batch does not read decay all the same
    if way == "last block":
        expected = {name for name in names if name.startswith(("trf_blocks.1.", "final_norm.", "out_head."))}
    elif way == "all layers":
        expected = names
    else:
        expected = {name for name in names if name.endswith((".lora.A", ".lora.B"))}
    without_gradient = {name for name in expected if name.endswith("W_key.bias")}  # a constant shift of all scores is no change
    assert expected - without_gradient - unread <= moved <= expected
    assert compare_lora.count_trained(model) == sum(p.numel() for name, p in model.named_parameters() if name in expected)


def test_ways_are_named_for_what_they_do(base):
    for way in WAYS:
        adapters = [module for module in prepare(copy.deepcopy(base), way, 1).modules() if isinstance(module, LoRALayer)]
        wanted = re.search(r"rank (\d+), alpha (\d+)", way)
        if wanted:
            assert {(layer.rank, layer.alpha) for layer in adapters} == {(int(wanted[1]), int(wanted[2]))}
        count = {"last block": 0, "all layers": 0, "LoRA, attention": 8, "LoRA, feed-forward": 4, "LoRA, head": 1}.get(way, 13)
        assert len(adapters) == count


def test_one_seed_is_one_head_for_all_ways(base):
    heads = []
    for way in MAIN:
        head = prepare(copy.deepcopy(base), way, 7).out_head
        heads.append((head.linear if way == "LoRA" else head).weight)
    assert torch.equal(heads[0], heads[1]) and torch.equal(heads[0], heads[2])
    assert not torch.equal(heads[0], prepare(copy.deepcopy(base), "last block", 8).out_head.weight)


def test_no_text_is_in_two_parts_and_another_seed_is_another_split():
    tests = []
    for seed in (7, 8, 7):
        parts = [{" ".join(text.lower().split()) for text in loader.dataset.data["Text"]} for loader in split_loaders(seed, 256)]
        assert [len(part) for part in parts] == [785, 112, 225] and len(set.union(*parts)) == 1122
        tests.append(parts[2])
    assert tests[0] == tests[2] != tests[1]


def test_the_rate_with_the_lowest_loss_is_chosen_and_lora_lends_its_own():
    lines = [{"job": "result", "way": "LoRA", "learning_rate": 9.0, "validation_loss": 0.0}]
    lines += [
        {"job": "search", "way": "LoRA", "learning_rate": rate, "validation_loss": loss} for rate, loss in ((0.1, 3), (0.2, 1), (0.3, 2))
    ]
    assert best_rate(lines, "LoRA") == best_rate(lines, "LoRA, attention") == 0.2
    with pytest.raises(ValueError, match="'last block' has no learning rate yet"):
        best_rate(lines, "last block")


# ---- the committed log ----


def test_the_committed_log_holds_every_run_once_with_the_best_rate():
    machine, lines = read_log(LOG_FILE)
    assert {"processor", "threads", "torch"} <= machine.keys()
    of = {job: [line for line in lines if line["job"] == job] for job in compare_lora.JOBS}
    assert sorted((line["way"], line["seed"]) for line in of["result"]) == sorted((way, seed) for way in WAYS for seed in SEEDS)
    assert sorted((line["way"], line["learning_rate"]) for line in of["search"]) == sorted(
        (way, rate) for way in RATES for rate in RATES[way]
    )
    assert sorted((line["size"], line["way"]) for line in of["memory"]) == sorted((size, way) for size in SIZES for way in MAIN)
    assert sorted(line["size"] for line in of["time"]) == sorted(SIZES) and len(lines) == sum(map(len, of.values()))
    for line in of["result"]:
        assert line["learning_rate"] == best_rate(lines, line["way"]) and line["num_epochs"] == 3 and line["test"]["texts"] == 225
    for way in ("last block", "all layers", "LoRA", "LoRA, head"):  # no best rate is at the end of what was tried
        assert min(RATES[way]) < best_rate(lines, way) < max(RATES[way])


def test_the_log_says_what_the_text_says():
    _, lines = read_log(LOG_FILE)
    ahead = [line["test"]["right"] for line in lines if line["job"] == "result" and line["way"] == "all layers"]
    lora = [line["test"]["right"] for line in lines if line["job"] == "result" and line["way"] == "LoRA"]
    assert sorted(a - b for a, b in zip(ahead, lora)) == [2, 3, 5]
    test = {way: mean(lora_report.split_accuracies(lines, way)) for way in WAYS}
    assert abs(test["LoRA"] - test["last block"]) < 0.0005
    assert max(lora_report.split_accuracies(lines, "LoRA, rank 1, alpha 16")) < 0.76 and test["LoRA, rank 1, alpha 1"] > 0.93
    cost = {(size, way): lora_report.costs(lines, size, way) for size in SIZES for way in MAIN}
    assert 0.6 < cost["124M", "LoRA"]["time"] < 0.75 and 0.3 < cost["124M", "last block"]["time"] < 0.45
    assert cost["mini", "LoRA"]["trained"] == 334_880 and cost["124M", "LoRA"]["trained"] == 2_666_528
    assert round(cost["124M", "LoRA"]["training_mb"]) == 32 == round(12 * 2_666_528 / 1e6)


def test_the_readme_has_the_tables_of_the_log():
    _, lines = read_log(LOG_FILE)
    page = (FOLDER / "README.md").read_text(encoding="utf-8")
    for table in (lora_report.accuracy_table(lines, MAIN), lora_report.cost_table(lines), lora_report.search_table(lines)):
        assert table in page


# ---- the command lines ----


@pytest.fixture
def small_world(base, monkeypatch):
    """A tiny GPT and forty training messages, so that a run takes a second."""
    monkeypatch.setattr(compare_lora, "model_of_size", lambda size: copy.deepcopy(base))
    whole = split_loaders(7, 256)
    for loader in whole:
        loader.dataset.encoded_texts = [ids[:20] for ids in loader.dataset.encoded_texts[:40]]
        loader.dataset.labels = loader.dataset.labels[:40]
        loader.dataset.data = loader.dataset.data[:40]
    monkeypatch.setattr(type(whole[0].dataset), "__len__", lambda self: len(self.labels))
    monkeypatch.setattr(compare_lora, "split_loaders", lambda seed, context_length: whole)


def test_runs_are_logged_and_not_repeated(small_world, tmp_path):
    args = ["--jobs", "search", "result", "--ways", "LoRA, head", "--seeds", "5", "6", "--num_epochs", "1"]
    args += ["--output", str(tmp_path / "log.jsonl")]
    assert compare_lora.main(args) == 0
    content = (tmp_path / "log.jsonl").read_text(encoding="utf-8")
    _, lines = read_log(tmp_path / "log.jsonl")
    assert [line["job"] for line in lines] == ["search"] * 3 + ["result"] * 2 and "processor" in json.loads(content.splitlines()[0])
    assert all(0 <= line["test"]["right"] <= line["test"]["texts"] == 40 for line in lines)
    assert compare_lora.main(args) == 0 and (tmp_path / "log.jsonl").read_text(encoding="utf-8") == content
    (tmp_path / "log.jsonl").write_text(content.rsplit("\n", 2)[0] + "\n", encoding="utf-8")  # stopped before the last run
    assert compare_lora.main(args) == 0 and (tmp_path / "log.jsonl").read_text(encoding="utf-8") == content


def test_time_is_measured_for_all_ways(small_world):
    result = compare_lora.measure_time("mini", 2)
    assert result["rounds"] == 2 and result["seconds"].keys() == set(MAIN) and min(result["seconds"].values()) > 0


def test_memory_counts_gradients_and_means(small_world):
    for way in MAIN:
        result = compare_lora.measure_memory("mini", way)
        assert result["gradients_mb"] == pytest.approx(4 * result["trained"] / 1e6, abs=0.006)
        assert result["means_mb"] == pytest.approx(8 * result["trained"] / 1e6, abs=0.006) and result["peak_gb"] > 0.05


@pytest.mark.slow
def test_the_memory_job_uses_a_process_of_its_own(tmp_path):
    # A new program inherits the peak of the one that starts it; these tests' own is large, so one program lies between.
    arguments = ["--jobs", "memory", "--sizes", "mini", "--output", str(tmp_path / "log.jsonl")]
    subprocess.run([sys.executable, compare_lora.__file__, *arguments], check=True, capture_output=True)
    _, lines = read_log(tmp_path / "log.jsonl")
    peak = {line["way"]: line["peak_gb"] for line in lines}
    assert peak["last block"] < peak["all layers"] < 2 and peak["last block"] <= peak["LoRA"] <= peak["all layers"]


@pytest.mark.parametrize(
    "args", [["--ways", "magic"], ["--num_epochs", "0"], ["--jobs", "result", "--ways", "LoRA"], ["--output", "no/such/folder/log.jsonl"]]
)
def test_bad_input_is_one_line(args, capsys, tmp_path, monkeypatch, small_world):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        compare_lora.main(["--output", str(tmp_path / "log.jsonl"), *args])
    said = [line for line in capsys.readouterr().err.splitlines() if line and "runs" not in line]
    assert stop.value.code == 2 and len(said) == 1


def test_report_writes_tables_and_picture(tmp_path, capsys):
    marks = "".join(f"<!-- {name}:start -->old<!-- {name}:end -->\n" for name in ("accuracies", "costs", "search"))
    (tmp_path / "page.md").write_text("before\n" + marks + "after\n", encoding="utf-8")
    args = ["--readme", str(tmp_path / "page.md"), "--picture", str(tmp_path / "picture.png")]
    assert lora_report.main(args) == 0
    page = (tmp_path / "page.md").read_text(encoding="utf-8")
    assert "old" not in page and page.startswith("before\n") and page.endswith("after\n") and "| LoRA | 334,880 |" in page
    assert (tmp_path / "picture.png").stat().st_size > 5000
    assert lora_report.main(args) == 0 and (tmp_path / "page.md").read_text(encoding="utf-8") == page
    (tmp_path / "page.md").write_text("no marks\n", encoding="utf-8")
    for bad in (args, ["--log", str(tmp_path / "none.jsonl"), *args]):
        with pytest.raises(SystemExit) as stop:
            lora_report.main(bad)
        assert stop.value.code == 2 and capsys.readouterr().err.count("\n") == 1
    assert (tmp_path / "page.md").read_text(encoding="utf-8") == "no marks\n"


def test_the_readme_prints_commands_whose_options_exist():
    text = (FOLDER / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^python (\w+\.py)(.*)$", text, flags=re.M)
    assert {name for name, _ in commands} == {"compare_lora.py", "lora_report.py"}
    for name, options in commands:
        source = (FOLDER / name).read_text(encoding="utf-8")
        assert all(f'"{option}"' in source for option in re.findall(r"--\w+", options))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert isinstance(prepare(GPTModel({**TINY, "n_layers": 1}), "LoRA, head", 1), nn.Module)
