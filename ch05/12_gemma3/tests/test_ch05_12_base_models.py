"""Losses, few-shot scores and transcripts: equal to plain computations on tiny models; the committed results fit together."""

import itertools
import json
import math
from pathlib import Path

import base_models
import pytest
import torch
import write_transcripts
from few_shot import NUM_ITEMS, PAIRS, QUESTIONS, SHOTS, few_shot_prompts, line_is_right, mentions, question_prompts, task_pairs
from gemma3 import FULL, GEMMA3_CONFIG_270M, SLIDING, Gemma3Model
from previous_chapters import STORY_FILE, GPTModel
from readers import CHUNK, Reader, continue_ids, load_reader, nats_by_position, nats_of_pass, nats_per_byte, token_nats

FOLDER = Path(__file__).resolve().parents[1]
TINY_GEMMA = {
    **GEMMA3_CONFIG_270M, "vocab_size": 258, "context_length": 700, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "hidden_dim": 24,
    "head_dim": 8, "sliding_window": 12, "layer_types": [SLIDING, FULL], "query_pre_attn_scalar": 8, "dtype": torch.float32,
}
TINY_GPT = {"vocab_size": 258, "context_length": 24, "emb_dim": 16, "n_heads": 2, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}


def tiny_reader(kind: str, name: str = "tiny") -> Reader:
    """A random model that reads bytes: id = byte, 256 begins and 257 ends a text."""
    torch.manual_seed(1)
    cached = kind == "gemma"
    model = Gemma3Model(TINY_GEMMA) if cached else GPTModel(TINY_GPT)
    for parameter in model.parameters():
        parameter.data = torch.randn_like(parameter) * 0.3
    return Reader(name, model.eval(), lambda text: list(text.encode()), lambda number: bytes([number]) if number < 256 else b"",
                  256, (257,), model.cfg["context_length"] if cached else TINY_GPT["context_length"], cached)


def plain_nats(reader, context: list[int], target: int) -> float:
    with torch.no_grad():
        return -torch.log_softmax(reader.model(torch.tensor([context]))[0, -1], dim=-1)[target].item()


# ---- losses ---------------------------------------------------------------------------------------------------------

def test_a_pass_in_chunks_gives_the_losses_of_a_pass_in_one_piece():
    reader, ids = tiny_reader("gemma"), torch.randint(0, 256, (2 * CHUNK + 9,)).tolist()
    with torch.no_grad():
        log_probabilities = torch.log_softmax(reader.model(torch.tensor([ids]))[0, :-1], dim=-1)
    expected = -log_probabilities[torch.arange(len(ids) - 1), torch.tensor(ids[1:])]
    assert torch.allclose(torch.tensor(nats_of_pass(reader, ids)), expected, atol=1e-4)


@pytest.mark.parametrize("kind", ["gemma", "gpt"])
@pytest.mark.parametrize("window", [2, 5, 8])
def test_each_token_of_a_window_has_at_least_half_a_window_before_it(kind, window):
    reader, ids = tiny_reader(kind), torch.randint(0, 256, (23,)).tolist()
    expected, scored = [], 0
    while scored < len(ids):  # the first window is scored whole, each further one in its new half
        end = min(scored + (window // 2 if scored else window - 1), len(ids))
        begin = max(0, end - (window - 1))
        assert scored == 0 or scored - begin >= window - 1 - window // 2
        for i in range(scored, end):
            expected.append(plain_nats(reader, [reader.start, *ids[begin:i]], ids[i]))
        scored = end
    assert token_nats(reader, ids, window) == pytest.approx(expected, abs=1e-4)


def test_without_a_window_every_token_sees_the_whole_text_before_it():
    reader, ids = tiny_reader("gemma"), torch.randint(0, 256, (20,)).tolist()
    expected = [plain_nats(reader, [reader.start, *ids[:i]], ids[i]) for i in range(20)]
    assert token_nats(reader, ids) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("kind", ["gemma", "gpt"])
def test_the_probabilities_of_all_texts_of_a_length_add_up_to_one(kind):
    reader = tiny_reader(kind)
    reader.model.cfg = {**TINY_GEMMA, "vocab_size": 258}
    total = sum(math.exp(-sum(token_nats(reader, [number]))) for number in range(258))
    assert total == pytest.approx(1, abs=1e-3)
    first = math.exp(-token_nats(reader, [65])[0])
    assert sum(math.exp(-sum(token_nats(reader, [65, number]))) for number in range(258)) == pytest.approx(first, rel=1e-3)


def test_a_window_beyond_the_context_is_one_line():
    for reader in (tiny_reader("gemma"), tiny_reader("gpt")):
        for window in (1, reader.context_length + 1):
            with pytest.raises(ValueError, match="reads at most"):
                token_nats(reader, [1, 2, 3], window)


def test_nats_per_byte_counts_bytes_and_not_characters():
    reader = tiny_reader("gemma")
    assert nats_per_byte(reader, "é") == pytest.approx(sum(token_nats(reader, list("é".encode()))) / 2)


@pytest.mark.parametrize("bin_bytes", [1, 3, 7, 100])
def test_the_curve_over_a_text_averages_to_the_whole(bin_bytes):
    reader = tiny_reader("gemma")
    ids = list(b"The tide clock.")
    nats = token_nats(reader, ids)
    curve = nats_by_position(reader, ids, nats, bin_bytes)
    sizes = [len(ids[begin : begin + bin_bytes]) for begin in range(0, len(ids), bin_bytes)]
    assert len(curve) == len(sizes)
    assert sum(value * size for value, size in zip(curve, sizes, strict=True)) == pytest.approx(sum(nats))


# ---- texts ----------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["gemma", "gpt"])
def test_a_batch_of_prompts_is_continued_as_each_alone(kind):
    reader = tiny_reader(kind)
    prompts = ["a", "bcdef", "The sea"]
    together = continue_ids(reader, [reader.prompt_ids(prompt) for prompt in prompts], 6)
    assert together == [continue_ids(reader, [reader.prompt_ids(prompt)], 6)[0] for prompt in prompts]
    for ids, prompt in zip(together, prompts, strict=True):
        context = reader.prompt_ids(prompt)
        for number in ids:
            with torch.no_grad():
                assert number == reader.model(torch.tensor([context]))[0, -1].argmax()
            context = [*context, number]


def test_an_answer_stops_before_the_token_that_ends_it():
    reader = tiny_reader("gemma")
    ids = continue_ids(reader, [reader.prompt_ids("a")], 6)[0]
    reader.ends = (ids[2],)
    assert continue_ids(reader, [reader.prompt_ids("a")], 6)[0] == ids[: ids.index(ids[2])]


def test_parameters_that_two_parts_share_count_once():
    reader = tiny_reader("gemma")
    separate = reader.num_parameters
    reader.model.out_head.weight = reader.model.tok_emb.weight
    assert separate - reader.num_parameters == 258 * 16


def test_an_unknown_model_is_one_line():
    with pytest.raises(ValueError, match="gpt2-mini, smollm2, gemma3"):
        load_reader("gpt5")


def test_the_small_model_of_this_course_is_read_as_in_chapter_5():
    reader = load_reader("gpt2-mini")
    assert reader.num_parameters == 12_368_064
    assert nats_per_byte(reader, "Once upon a time there was a king who had three daughters.", 256) == pytest.approx(0.902, abs=0.005)
    assert reader.decode(reader.encode("a 😀 b")) == "a 😀 b"


# ---- few-shot tasks -------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("task", QUESTIONS)
def test_a_task_has_24_different_questions_and_never_shows_its_own_answer(task):
    pairs = task_pairs(task)
    assert len(pairs) == NUM_ITEMS == len({question for question, _ in pairs}) and all(answer for _, answer in pairs)
    for num_shots in SHOTS:
        for prompt, (question, answer) in zip(few_shot_prompts(task, num_shots), pairs, strict=True):
            *examples, last = prompt.split("\n")
            assert last == f"{question}:" and len(examples) == num_shots == len(set(examples))
            assert all(tuple(example.split(": ")) in pairs and not example.startswith(f"{question}:") for example in examples)
    assert all(question in prompt for prompt, (question, _) in zip(question_prompts(task), pairs, strict=True))


def test_sums_are_right_and_drawn_with_the_seed():
    assert all(eval(question) == int(answer) for question, answer in task_pairs("sum"))
    assert task_pairs("sum", 1) == task_pairs("sum", 1) != task_pairs("sum", 2)
    assert few_shot_prompts("French", 4, 1) == few_shot_prompts("French", 4, 1) != few_shot_prompts("French", 4, 2)
    assert [a[: len(b)] for a, b in zip(few_shot_prompts("French", 4), few_shot_prompts("French", 0), strict=True)] != []


def test_an_answer_counts_only_if_the_line_is_the_answer():
    for text in (" Paris\nItaly: Rome", "Paris", " paris.", " Paris \n"):
        assert line_is_right(text, "Paris")
    for text in (" Paris, France\n", "\nParis", " The capital is Paris", "", " Pari"):
        assert not line_is_right(text, "Paris")
    assert mentions("The capital is Paris.", "paris") and not mentions("Parisian", "Paris") and not mentions("192", "19")


# ---- the programs ---------------------------------------------------------------------------------------------------

@pytest.fixture
def tiny_models(monkeypatch):
    """Both programs read tiny models in the place of the real ones."""
    def load(name):
        return tiny_reader("gpt" if name == "gpt2-mini" else "gemma", name)

    monkeypatch.setattr(base_models, "load_reader", load)
    monkeypatch.setattr(write_transcripts, "load_reader", load)


SMALL = ["--max_bytes", "120", "--windows", "8", "--num_items", "2", "--shots", "0", "1"]


def test_base_models_writes_what_it_measured(tiny_models, tmp_path):
    output = tmp_path / "log.json"
    base_models.main(["--output", str(output), "--tasks", "capital", "--models", "gemma3", "gpt2-mini", *SMALL])
    models = json.loads(output.read_text(encoding="utf-8"))["models"]
    assert list(models) == ["gemma3", "gpt2-mini"] and [path.name for path in tmp_path.iterdir()] == ["log.json"]
    reader, text = tiny_reader("gemma"), STORY_FILE.read_text(encoding="utf-8").encode()[:120].decode()
    story = models["gemma3"]["story"]
    windows = [[row["window"] for row in result["story"]["windows"]] for result in models.values()]
    assert windows == [[8, 121], [8, 24]]
    assert story["windows"][1]["nats_per_byte"] == pytest.approx(nats_per_byte(reader, text), abs=1e-4)
    assert set(models["gemma3"]["tasks"]["capital"]["right"]) == {"question", "0", "1"}


def test_write_transcripts_keeps_prompts_answers_and_the_terms(tiny_models, tmp_path):
    output = tmp_path / "page.md"
    write_transcripts.main(["--output", str(output), "--num_prompts", "2", "--max_new_tokens", "5"])
    page = output.read_text(encoding="utf-8")
    assert "https://ai.google.dev/gemma/terms" in page and page.count("## ") == 2 and page.count("**Gemma 3 270M, base:**") == 2
    assert all(prompt.split("\n")[0] in page for _, _, prompt in write_transcripts.PROMPTS[:2])


def test_a_fence_is_longer_than_any_in_the_text_and_lines_are_only_broken():
    text = "a ````b\n\n" + "word " * 40 + "\n    indented"
    fenced = write_transcripts.fenced(text)
    assert fenced.startswith("`````text\n") and fenced.endswith("\n`````")
    assert max(map(len, fenced.split("\n"))) <= write_transcripts.WIDTH
    inside = "\n".join(fenced.split("\n")[1:-1])
    assert inside.split() == text.split() and "    indented" in inside and "\n\n" in inside


@pytest.mark.parametrize("program", [base_models, write_transcripts])
def test_bad_options_end_in_one_line_before_anything_long_begins(program, tmp_path, capsys):
    (tmp_path / "there").write_text("kept", encoding="utf-8")
    for options in (["--output", str(tmp_path / "there")], ["--output", "no/such/folder/a"], ["--seed", "x"], ["--outpu", "a"]):
        with pytest.raises(SystemExit) as caught:
            program.main(options)
        printed = capsys.readouterr()
        assert caught.value.code == 2 and printed.out == "" and len(printed.err.splitlines()) == 1
    assert (tmp_path / "there").read_text(encoding="utf-8") == "kept"


@pytest.mark.parametrize("program", [base_models, write_transcripts])
def test_a_missing_model_is_one_line(program, monkeypatch, capsys, tmp_path):
    def missing(name):
        raise FileNotFoundError("Gemma 3 270M is not installed; install it with: make gemma")

    monkeypatch.setattr(program, "load_reader", missing)
    with pytest.raises(SystemExit) as caught:
        program.main(["--output", str(tmp_path / "a")])
    assert caught.value.code == 2 and capsys.readouterr().err.endswith("install it with: make gemma\n")


# ---- the committed results ------------------------------------------------------------------------------------------

def test_the_committed_log_fits_the_story_the_tasks_and_itself():
    log = json.loads((FOLDER / "base-models.json").read_text(encoding="utf-8"))
    size = len(STORY_FILE.read_bytes())
    assert list(log["models"]) == ["gpt2-mini", "smollm2", "gemma3"] and "gemma/terms" in log["about"]["terms"]
    assert [result["parameters"] for result in log["models"].values()] == [12_368_064, 134_515_008, 268_098_176]
    for result in log["models"].values():
        story, tokens = result["story"], result["story"]["tokens"]
        assert story["bytes"] == size and set(result["tasks"]) == {*PAIRS, "sum"}
        for row in story["windows"]:
            assert row["nats"] / size == pytest.approx(row["nats_per_byte"], abs=1e-4)
            assert row["nats"] / tokens == pytest.approx(row["nats_per_token"], abs=1e-3)
        curve, step = story["nats_per_byte_by_position"], story["bin_bytes"]
        sizes = [step] * (len(curve) - 1) + [size - step * (len(curve) - 1)]
        mean = sum(value * part for value, part in zip(curve, sizes, strict=True)) / size
        assert mean == pytest.approx(story["windows"][-1]["nats_per_byte"], abs=5e-3)
        for scores in result["tasks"].values():
            assert set(scores["right"]) == {"question", *map(str, SHOTS)} and all(0 <= n <= NUM_ITEMS for n in scores["right"].values())
    losses = [min(row["nats_per_byte"] for row in result["story"]["windows"]) for result in log["models"].values()]
    assert all(larger > smaller for larger, smaller in itertools.pairwise(losses)), "each larger model is less surprised"


def test_the_committed_transcripts_are_those_of_the_program():
    page = (FOLDER / "transcripts.md").read_text(encoding="utf-8")
    assert "https://ai.google.dev/gemma/terms" in page and "python write_transcripts.py --seed 123 --max_new_tokens 90" in page
    for title, _, prompt in write_transcripts.PROMPTS:
        assert f". {title}\n" in page and write_transcripts.fenced(prompt) in page
    assert page.count("**Gemma 3 270M, base:**") == page.count("**SmolLM2-135M-Instruct:**") == len(write_transcripts.PROMPTS)
