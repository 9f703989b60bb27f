"""A document's text is its own: not its batch's, not its neighbors', not the break's in which the run was stopped."""

import json
import re

import corpus_prompts
import generate_corpus
import pytest
import torch
from generate_corpus import CorpusFile, cut_at_sentence
from llama import Llama3Model, Llama3ModelFast, SmolLM2Tokenizer, find_smollm2, generate_text_simple, read_gguf
from previous_chapters import STORY_FILE, words_of
from slot_generation import Job, SlotGenerator, document_uniforms, sample_rows

TINY = {
    "vocab_size": 60,
    "context_length": 96,
    "emb_dim": 32,
    "n_heads": 4,
    "n_layers": 2,
    "hidden_dim": 48,
    "n_kv_groups": 2,
    "rope_base": 10_000.0,
    "rope_freq": None,
    "dtype": torch.float64,
}
EOS = 7


def tiny(model_class=Llama3ModelFast):
    torch.manual_seed(3)
    model = model_class(TINY).double().eval()
    with torch.no_grad():
        model.out_head.weight *= 3  # clearer preferences
    return model


def jobs_of(numbers, max_new=24):
    return [Job(n, torch.randint(8, 60, (3 + n % 9,), generator=torch.Generator().manual_seed(n)).tolist(),
                document_uniforms(5, n, max_new)) for n in numbers]  # fmt: skip


def texts(numbers, slots, temperature=1.0, model=None, max_new=24):
    generator = SlotGenerator(model or tiny(), jobs_of(numbers, max_new), slots, 12, max_new, temperature, 20, EOS)
    return {job.number: job.ids for job in generator.run()}


def test_a_document_equals_itself_written_alone():
    together = texts(range(30), slots=4)
    lengths = {len(ids) for ids in together.values()}
    assert sorted(together) == list(range(30)) and len(lengths) > 5 and 24 in lengths  # some ended, some ran out
    assert together == texts(range(30), slots=30) == texts(reversed(range(30)), slots=7)
    assert all(together[n] == texts([n], slots=1)[n] for n in range(0, 30, 5))


def test_without_temperature_it_is_greedy_decoding_of_the_plain_model():
    found, plain = texts(range(6), slots=6, temperature=0, max_new=20), tiny(Llama3Model)
    for job in jobs_of(range(6)):
        ids = generate_text_simple(plain, torch.tensor([job.prompt_ids]), 20, use_cache=False)[0, len(job.prompt_ids) :].tolist()
        assert found[job.number] == (ids[: ids.index(EOS)] if EOS in ids else ids)


def test_sampling_follows_the_top_k_probabilities():
    logits = torch.tensor([[0.0, 2.0, 1.0, -1.0, 1.5]])
    draws = sample_rows(logits.expand(20_000, -1), torch.rand(20_000, dtype=torch.float64), 0.8, 3)
    shares = draws.bincount(minlength=5) / 20_000
    expected = torch.zeros(5)
    expected[[1, 4, 2]] = torch.softmax(logits[0, [1, 4, 2]] / 0.8, dim=0)
    assert torch.allclose(shares, expected, atol=0.015)
    edge = sample_rows(logits, torch.tensor([1 - 1e-12], dtype=torch.float64), 0.8, 99)
    assert edge.item() == 3 and sample_rows(logits, torch.tensor([0.0]), 0.8, 99).item() == 1


def test_too_long_a_prompt_or_text_is_an_error():
    with pytest.raises(ValueError, match="document 8"):
        list(SlotGenerator(tiny(), jobs_of([8]), 1, 10, 8, 1.0, 5, EOS).run())
    with pytest.raises(ValueError, match="do not fit"):
        SlotGenerator(tiny(), [], 1, 90, 8, 1.0, 5, EOS)


def test_prompts_depend_on_seed_and_number_and_hardly_repeat():
    prompts = [corpus_prompts.make_prompt(n, 1) for n in range(20_000)]
    assert corpus_prompts.make_prompt(777, 1) == prompts[777] != corpus_prompts.make_prompt(777, 2)
    assert len({prompt.request for prompt in prompts}) > 19_950
    assert {prompt.genre for prompt in prompts} == set(corpus_prompts.GENRES)
    assert not any("{" in prompt.request + prompt.opening for prompt in prompts)
    story_names = {"nell", "ruddock", "tamsett", "ottery", "amos", "brill", "bosun", "scarrow"}
    assert story_names <= set(words_of(STORY_FILE.read_text(encoding="utf-8")))
    assert not any(story_names & set(words_of(prompt.request + prompt.opening)) for prompt in prompts)


def test_prompts_fit_their_room_in_the_cache():
    tokenizer = SmolLM2Tokenizer(read_gguf(find_smollm2())[0])
    jobs = list(generate_corpus.make_jobs(tokenizer, iter(range(300)), 1, 4, None))
    assert max(len(job.prompt_ids) for job in jobs) <= generate_corpus.MAX_PROMPT
    assert tokenizer.decode(jobs[0].prompt_ids).endswith("<|im_start|>assistant\n" + corpus_prompts.make_prompt(0, 1).opening)


def test_a_text_that_ran_out_of_tokens_ends_with_a_sentence():
    assert cut_at_sentence("One. Two! Thr") == "One. Two!"
    assert cut_at_sentence('He said "no." And then') == 'He said "no."'
    assert cut_at_sentence("no end at all") == "no end at all" and cut_at_sentence("Done.") == "Done."


class WordTokenizer:
    """Ids 8 to 59 are words; the text of a prompt is turned into some of them."""

    eos_token_id = EOS

    def encode_chat(self, messages):
        return [8 + len(word) % 50 for word in messages[-1]["content"].split()][:40]

    def encode(self, text):
        return [8 + ord(text[0]) % 50]

    def decode(self, ids):
        return "".join(f" word{number}" for number in ids) + "."


@pytest.fixture
def writer(monkeypatch):
    """A tiny random model in SmolLM2's place; the documents are short, so the shortest are allowed."""
    monkeypatch.setattr(generate_corpus, "load_writer", lambda dtype, device: (tiny(), WordTokenizer()))
    monkeypatch.setattr(generate_corpus, "MAX_PROMPT", 48)
    monkeypatch.setattr(generate_corpus, "MIN_WORDS", 8)


def run(*options):
    assert generate_corpus.main(["--max_new_tokens", "40", "--precision", "fp32", "--device", "cpu", "--temperature", "1", *options]) == 0


def test_the_file_is_the_same_for_every_batch_size_and_after_breaks(writer, tmp_path):
    run("--num_documents", "40", "--batch_size", "40", "--output", "a.jsonl")
    run("--num_documents", "40", "--batch_size", "3", "--output", "b.jsonl")
    whole = (tmp_path / "a.jsonl").read_bytes()
    assert whole == (tmp_path / "b.jsonl").read_bytes()
    lines = [json.loads(line) for line in whole.splitlines()]
    numbers = [line["number"] for line in lines]
    assert numbers == sorted(numbers) and len(numbers) > 20 and {"prompt", "seed", "text", "genre"} <= lines[0].keys()
    run("--num_documents", "11", "--batch_size", "4", "--output", "c.jsonl")
    with (tmp_path / "c.jsonl").open("ab") as file:
        file.write(b'{"number": 11, "text": "half a li')  # killed while writing
    run("--num_documents", "40", "--batch_size", "8", "--output", "c.jsonl", "--resume")
    assert whole == (tmp_path / "c.jsonl").read_bytes()
    run("--num_documents", "40", "--output", "c.jsonl", "--resume")
    assert whole == (tmp_path / "c.jsonl").read_bytes()


def test_documents_are_written_in_order_and_repeats_dropped(tmp_path):
    corpus = CorpusFile(tmp_path / "x.jsonl", {"seed": 1, "first_document": 0}, resume=False, max_overlap=0.5)
    distinct = [" ".join(f"a{n}b{i}" for i in range(40)) for n in range(3)]
    for number, text in [(2, distinct[2]), (1, distinct[0]), (0, distinct[0]), (4, "short"), (3, distinct[1])]:
        corpus.add(number, "story", "p", "o", text, True)
    assert [json.loads(line)["number"] for line in (tmp_path / "x.jsonl").read_text().splitlines()] == [0, 2, 3]
    assert corpus.dropped == {"near-duplicate": 1, "too short": 1} and re.search(r"3 documents kept.* 1 near-dup", corpus.report())


@pytest.mark.parametrize(
    "options, words",
    [
        (["--genres", "poem"], ["unknown genre 'poem'", "story"]),
        (["--temperature", "-1"], ["temperature"]),
        (["--top_k", "0"], ["top_k"]),
        (["--num_documents", "0"], ["num_documents"]),
        (["--output", "there.jsonl"], ["there.jsonl exists", "--resume"]),
        (["--output", "new.jsonl", "--resume"], ["nothing to resume"]),
        (["--output", "other.jsonl", "--resume", "--seed", "9"], ["other settings", "seed is 1 there, 9 here"]),
    ],
)
def test_bad_input_ends_in_one_line(capsys, tmp_path, options, words):
    (tmp_path / "there.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "other.jsonl").write_text("", encoding="utf-8")
    (tmp_path / "other.jsonl.settings.json").write_text('{"seed": 1}', encoding="utf-8")
    with pytest.raises(SystemExit) as stop:
        generate_corpus.main(["--device", "cpu", "--precision", "fp32", *options])
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and "error:" in last and all(word in last for word in words), last


def test_prompts_can_be_looked_at_without_the_model(capsys):
    assert generate_corpus.main(["--show_prompts", "3", "--genres", "letter"]) == 0
    assert capsys.readouterr().out.count("letter: Write a") == 3
