"""Three routes give one state dict, equal to Hugging Face's GPT-2, for every size; what does not fit ends in one clear line."""

import ast
import json
import re
import shutil
from pathlib import Path

import convert_weights
import exercise_checks
import load_from_safetensors
import load_from_transformers
import nbformat
import pytest
import torch
import transformers
import weight_files
from convert_weights import convert, main
from exercise_checks import LAYERS, check_missing_transpose, make_suspect, tiny_model
from previous_chapters import SIZES as GPT2_SIZES
from previous_chapters import GPTModel, generate_text_simple, our_name
from safetensors.torch import load_file, save_file
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Model
from weight_files import check_state_dict, fingerprint, load_model, model_config, read_weights, write_weights

FOLDER = Path(weight_files.__file__).parent
ROUTE_NOTEBOOKS = sorted(FOLDER.glob("weight-loading-*.ipynb"))
REAL = dict(GPT2_SIZES)
SIZES = ["mini", *REAL]
TINY = {"n_vocab": 90, "n_ctx": 20, "n_embd": 24, "n_head": 3, "n_layer": 2}
transformers.utils.logging.disable_progress_bar()


def tiny_settings(size: str) -> dict:
    """Depth and number of heads of the published model, two numbers a head."""
    real = REAL.get(size, {"n_head": 8, "n_layer": 3})
    return {**TINY, "n_embd": 2 * real["n_head"], "n_head": real["n_head"], "n_layer": real["n_layer"]}


def random_gpt2(settings: dict) -> GPT2LMHeadModel:
    """A Hugging Face GPT-2 with weights large enough that each of them shows in the logits; biases and norms are random too."""
    names = {"n_vocab": "vocab_size", "n_ctx": "n_positions"}
    torch.manual_seed(7)
    config = GPT2Config(**{names.get(key, key): value for key, value in settings.items()}, bos_token_id=0, eos_token_id=0)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.transformer.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


@pytest.fixture
def published(tmp_path, monkeypatch):
    """Return a function from a size to (folder as Hugging Face saves it, the model); the size table is shrunk accordingly."""

    def make(size: str = "mini", **change) -> tuple[Path, GPT2LMHeadModel]:
        settings = {**tiny_settings(size), **change}
        if size != "mini":
            monkeypatch.setitem(GPT2_SIZES, size, settings)
        model = random_gpt2(settings)
        folder = tmp_path / f"published-{size}"
        model.save_pretrained(folder)
        if size == "mini":
            monkeypatch.setenv("LLM_COURSE_WEIGHTS", str(folder))
        return folder, model

    return make


def by_state_dict(size: str, folder: Path, file_format: str = "pth") -> GPTModel:
    path = convert(size, folder.parent / f"converted-{size}" / f"model.{file_format}", file_format, folder)
    return load_model(GPTModel(json.loads(path.with_name("config.json").read_text(encoding="utf-8"))), path)


def by_transformers(size: str, folder: Path) -> GPTModel:
    model = GPTModel(model_config(size))
    load_from_transformers.load_weights(model, GPT2Model.from_pretrained(folder))
    return model.eval()


def by_safetensors(size: str, folder: Path) -> GPTModel:
    model = GPTModel(model_config(size))
    load_from_safetensors.load_weights_into_gpt(model, load_file(folder / "model.safetensors"))
    return model.eval()


def numbers(model) -> dict:
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one: dict, other: dict) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# ---- one model ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("size", SIZES)
def test_the_three_routes_give_identical_state_dicts_with_hugging_faces_logits(size, published):
    folder, theirs = published(size)
    models = [by_state_dict(size, folder), by_state_dict(size, folder, "safetensors")]
    models += [by_transformers(size, folder), by_safetensors(size, folder)]
    assert len(models[0].trf_blocks) == tiny_settings(size)["n_layer"]
    for model in models[1:]:
        assert same(numbers(models[0]), numbers(model)) and fingerprint(model) == fingerprint(models[0])
    ids = torch.randint(0, TINY["n_vocab"], (2, TINY["n_ctx"]))  # up to the last position
    with torch.no_grad():
        expected = theirs(ids).logits
        difference = (models[0](ids) - expected).abs().max()
    assert not any(model.training for model in models) and difference < 1e-4 * expected.abs().max()


def test_all_routes_write_the_same_greedy_text_as_hugging_face(published):
    folder, theirs = published("mini")
    prompt = torch.tensor([[3, 14, 15]])
    greedy = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    expected = theirs.generate(prompt, attention_mask=torch.ones_like(prompt), **greedy)
    for route in (by_state_dict, by_transformers, by_safetensors):
        assert torch.equal(generate_text_simple(route("mini", folder), prompt, 12, TINY["n_ctx"]), expected)


def test_sixteen_bit_weights_with_masks_prefix_and_head_give_the_same_model(published):
    folder, theirs = published("mini")
    theirs.half().save_pretrained(folder)
    plain = {name.removeprefix("transformer."): tensor for name, tensor in load_file(folder / "model.safetensors").items()}
    expected = by_safetensors("mini", folder)
    assert same(numbers(expected), numbers(by_state_dict("mini", folder))) and expected.tok_emb.weight.dtype == torch.float32
    old_style = {f"transformer.{name}": tensor for name, tensor in plain.items()}
    old_style |= {"transformer.h.1.attn.bias": torch.ones(1, 1, 20, 20), "transformer.h.1.attn.masked_bias": torch.tensor(-1e4)}
    save_file({**old_style, "lm_head.weight": plain["wte.weight"].clone()}, folder / "model.safetensors")
    for route in (by_safetensors, by_state_dict):
        assert same(numbers(expected), numbers(route("mini", folder)))


def test_no_route_shares_memory_with_its_source(published):
    folder, _ = published("mini")
    gpt_hf, params = GPT2Model.from_pretrained(folder), load_file(folder / "model.safetensors")
    before = {name: tensor.clone() for name, tensor in params.items()}
    for load, source in ((load_from_transformers.load_weights, gpt_hf), (load_from_safetensors.load_weights_into_gpt, params)):
        model = GPTModel(model_config("mini"))
        load(model, source)
        with torch.no_grad():
            for parameter in model.parameters():
                assert parameter.requires_grad and parameter.is_leaf and parameter.is_contiguous()
                parameter.zero_()
    assert same(before, params) and all(parameter.any() for parameter in gpt_hf.parameters())


@pytest.mark.slow
def test_openais_checkpoint_converts_to_the_same_file(published, tmp_path):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    folder, _ = published("124M", n_layer=2)
    arrays, checkpoint = {}, tmp_path / "openai"
    checkpoint.mkdir()
    for name, tensor in load_file(folder / "model.safetensors").items():
        array = tensor.numpy()
        arrays[f"model/{our_name(name)}"] = array[None] if name.split(".")[-2].startswith("c_") and array.ndim == 2 else array
    tf.raw_ops.SaveV2(prefix=str(checkpoint / "model.ckpt"), tensor_names=list(arrays), shape_and_slices=[""] * len(arrays),
                      tensors=list(arrays.values()))
    (checkpoint / "hparams.json").write_text(json.dumps(GPT2_SIZES["124M"]), encoding="utf-8")
    assert same(numbers(by_state_dict("124M", folder)), numbers(by_state_dict("124M", checkpoint, "safetensors")))


def test_the_configuration_of_mini_is_read_from_its_file(published):
    published("mini")
    assert model_config("gpt2-mini (mini)") == {"vocab_size": 90, "context_length": 20, "emb_dim": 16, "n_layers": 3, "n_heads": 8,
                                                "drop_rate": 0.0, "qkv_bias": True}
    assert model_config("gpt2-xl (1558M)") == {**weight_files.BASE_CONFIG, "emb_dim": 1600, "n_layers": 48, "n_heads": 25}


def test_the_fingerprint_sees_names_shapes_and_every_number(published):
    folder, _ = published("mini")
    model = by_safetensors("mini", folder)
    first = fingerprint(model)
    with torch.no_grad():
        model.trf_blocks[2].att.W_key.weight[3, 4] += 1e-6
    assert fingerprint(model) != first


# ---- weights that do not fit ----------------------------------------------------------------------------------------

def one_line(caught) -> str:
    text = str(caught.value)
    assert text and "\n" not in text
    return text


@pytest.mark.parametrize("change, needed", [
    ({"n_layers": 4}, "8 heads and 4 blocks, the weights are for 8 heads and 3 blocks"),
    ({"n_heads": 4}, "4 heads"),
    ({"qkv_bias": False}, r"trf_blocks\.0\.att\.W_query\.bias: the model has no such parameter, the weights have shape \(16,\)"),
    ({"context_length": 21}, r"pos_emb\.weight: the model has shape \(21, 16\), the weights have shape \(20, 16\)"),
    ({"vocab_size": 91}, r"tok_emb\.weight: the model has shape \(91, 16\)"),
])
def test_route_2_names_what_does_not_fit_and_leaves_the_model_alone(change, needed, published):
    folder, _ = published("mini")
    model = GPTModel({**model_config("mini"), **change})
    before = numbers(model)
    with pytest.raises(ValueError, match=needed) as caught:
        load_from_transformers.load_weights(model, GPT2Model.from_pretrained(folder))
    assert one_line(caught) and same(before, numbers(model))


def spoilt(params: dict, fault: str) -> dict:
    """The tensors of a published file with one fault."""
    prefix = "transformer." if "transformer.wte.weight" in params else ""
    name, params = f"{prefix}h.2.mlp.c_proj.weight", dict(params)
    if fault == "missing":
        del params[name]
    elif fault == "extra":
        params[f"{prefix}h.1.attn.rotary"] = torch.ones(3)
    elif fault == "another block":
        params[f"{prefix}h.3.ln_1.weight"] = torch.ones(16)
    elif fault == "shape":
        params[name] = params[name].T.contiguous()
    elif fault == "untied":
        params["lm_head.weight"] = params[f"{prefix}wte.weight"] + 1
    return params


FAULTS = {
    "missing": ("lacks h.2.mlp.c_proj.weight", "lacks the tensor h2/mlp/c_proj/w"),
    "extra": ("h.1.attn.rotary, for which the model has no place", "h1/attn/rotary"),
    "another block": ("h.3.ln_1.weight, for which the model has no place", "h3/ln_1/g"),
    "shape": ("trf_blocks.2.ff.layers.2.weight: the model has shape (16, 64), the file has shape (64, 16)",
              "h2/mlp/c_proj/w has shape (16, 64)"),
    "untied": ("lm_head.weight, for which the model has no place", "lm_head.weight differs from the token embedding"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_route_3_and_the_converter_name_the_tensor(fault, published, tmp_path, capsys):
    folder, _ = published("mini")
    params = spoilt(load_file(folder / "model.safetensors"), fault)
    model = GPTModel(model_config("mini"))
    before = numbers(model)
    with pytest.raises(ValueError) as caught:
        load_from_safetensors.load_weights_into_gpt(model, params)
    assert FAULTS[fault][0] in one_line(caught) and same(before, numbers(model))
    save_file(params, folder / "model.safetensors", {"format": "pt"})
    assert FAULTS[fault][1] in refused(["--input", str(folder), "--output", str(tmp_path / "out" / "m.pth")], capsys)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("file_format", weight_files.FORMATS)
@pytest.mark.parametrize("fault, needed", [
    ("missing", "the weights lack final_norm.scale"),
    ("extra", "the weights hold final_norm.weight, for which the model has no place"),
    ("shape", "pos_emb.weight: the model has shape (20, 16), the weights have (19, 16)"),
])
def test_route_1_names_the_tensor_and_leaves_the_model_alone(file_format, fault, needed, published, tmp_path):
    folder, _ = published("mini")
    good = by_state_dict("mini", folder)
    weights = numbers(good)
    if fault == "missing":
        del weights["final_norm.scale"]
    elif fault == "extra":
        weights["final_norm.weight"] = torch.ones(16)
    else:
        weights["pos_emb.weight"] = weights["pos_emb.weight"][:19]
    path = write_weights(weights, tmp_path / f"spoilt.{file_format}", file_format)
    model = GPTModel(model_config("mini"))
    before = numbers(model)
    with pytest.raises(ValueError) as caught:
        load_model(model, path)
    assert needed in one_line(caught) and path.name in str(caught.value) and same(before, numbers(model))
    check_state_dict(model, numbers(good))


# ---- files that are no weights --------------------------------------------------------------------------------------

class Surprise:
    def __reduce__(self):
        return print, ("code ran",)


@pytest.mark.parametrize("suffix", weight_files.FORMATS)
@pytest.mark.parametrize("content, needed", [
    (b"\n <!DOCTYPE html><title>404</title>", "is a web page, not weights"),
    (b"<HTML><body>log in</body>", "is a web page, not weights"),
    (b'<?xml version="1.0"?><Error>denied</Error>', "is a web page, not weights"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:12", "is a Git LFS pointer"),
    (b"", "is empty"),
    (b"nothing of the kind" * 100, "is truncated or damaged|is no file of plain weights"),
])
def test_what_is_no_weights_file_is_said_plainly(suffix, content, needed, published, tmp_path, capsys):
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=needed) as caught:
        read_weights(path)
    one_line(caught)
    folder, _ = published("mini")
    shutil.copyfile(path, folder / "model.safetensors")
    error = refused(["--input", str(folder), "--output", str(tmp_path / "out.pth")], capsys)
    assert re.search(f"{needed}|is damaged", error) and not (tmp_path / "out.pth").exists()
    assert re.search(f"{needed}|is damaged", refused(["--output", str(tmp_path / "out.pth")], capsys))  # the same when it is found


@pytest.mark.parametrize("keep", [9, 0.5, -1])
@pytest.mark.parametrize("suffix", weight_files.FORMATS)
def test_a_truncated_file_is_one_clear_line(suffix, keep, published, tmp_path, capsys):
    folder, _ = published("mini")
    path = convert("mini", tmp_path / f"whole.{suffix}", suffix, folder)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match="is truncated or damaged|is no file of plain weights") as caught:
        read_weights(path)
    one_line(caught)
    source = folder / "model.safetensors"
    source.write_bytes(source.read_bytes()[:-1])
    assert "is damaged" in refused(["--input", str(source), "--output", str(tmp_path / "out.pth")], capsys)


def test_a_file_that_asks_for_code_is_refused(tmp_path, capsys):
    torch.save({"tok_emb.weight": Surprise()}, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="weights_only=True refuses"):
        read_weights(tmp_path / "model.pth")
    assert "code ran" not in capsys.readouterr().out


@pytest.mark.parametrize("contents", [[torch.ones(2)], {"model": {"a": torch.ones(2)}}, {"step": 3}])
def test_a_checkpoint_that_is_no_state_dict_is_refused(contents, tmp_path):
    torch.save(contents, tmp_path / "model.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_weights(tmp_path / "model.pth")


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"nowhere\.pth does not exist"):
        read_weights(tmp_path / "nowhere.pth")


def test_no_code_and_no_prose_loads_without_weights_only():
    texts = {path: path.read_text(encoding="utf-8") for path in [*FOLDER.glob("*.py"), *FOLDER.glob("*.md"), *ROUTE_NOTEBOOKS]}
    calls = [(path.name, call) for path, text in texts.items() for call in re.findall(r"torch\.load\([^\n]*", text)]
    assert calls and all("weights_only=True" in call for _, call in calls), calls


# ---- writing --------------------------------------------------------------------------------------------------------

def test_the_tied_head_is_stored_once_in_pth_and_twice_in_safetensors(published, tmp_path):
    folder, _ = published("mini", n_vocab=5000)
    sizes = {suffix: convert("mini", tmp_path / f"m.{suffix}", suffix, folder).stat().st_size for suffix in weight_files.FORMATS}
    embedding = 4 * 5000 * 16
    assert 0.9 * embedding < sizes["safetensors"] - sizes["pth"] + 20_000 < 1.2 * embedding  # a .pth file has more small parts


@pytest.mark.parametrize("file_format", weight_files.FORMATS)
def test_too_little_room_is_noticed_before_writing(file_format, published, tmp_path, monkeypatch, capsys):
    folder, _ = published("mini")
    monkeypatch.setattr(weight_files.shutil, "disk_usage", lambda place: type("Usage", (), {"free": 2**20})())
    target = tmp_path / "out"
    error = refused(["--input", str(folder), "--output", str(target / f"m.{file_format}")], capsys)
    assert "bytes, but the disk has only 1,048,576 left" in error and list(target.iterdir()) == []


@pytest.mark.parametrize("file_format", weight_files.FORMATS)
def test_a_disk_that_fills_up_while_writing_leaves_the_old_file_and_no_piece(file_format, published, tmp_path, capsys):
    resource = pytest.importorskip("resource", reason="limits of file sizes are a Unix thing")
    folder, _ = published("mini", n_vocab=5000)
    target = tmp_path / "out" / f"m.{file_format}"
    target.parent.mkdir()
    target.write_bytes(b"the old file")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))  # bytes; a write beyond fails, as on a full disk
    try:
        error = refused(["--input", str(folder), "--output", str(target), "--overwrite"], capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert f"{target} cannot be written" in error
    assert [path.name for path in target.parent.iterdir()] == [target.name] and target.read_bytes() == b"the old file"


def test_an_unknown_format_is_refused(tmp_path):
    with pytest.raises(ValueError, match="unknown format 'onnx'"):
        write_weights({}, tmp_path / "m.onnx", "onnx")


# ---- command line ---------------------------------------------------------------------------------------------------

def refused(argv: list, capsys) -> str:
    """Run the converter, expect exit code 2 and one line on stderr, and return that line."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stopped:
        main(argv)
    lines = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and len(lines) == 1 and "error: " in lines[0], lines
    return lines[0]


@pytest.mark.parametrize("argv, file_format", [
    (["--output", "a/m.pth"], "pth"), (["--output", "a/m.safetensors"], "safetensors"), (["--output", "a/m.pth", "--format", "pth"], "pth"),
])
def test_the_command_writes_a_file_and_its_configuration(argv, file_format, published, tmp_path, capsys):
    published("mini")
    assert main(argv) == 0 and "wrote" in capsys.readouterr().out
    assert sorted(path.name for path in (tmp_path / "a").iterdir()) == ["config.json", f"m.{file_format}"]
    assert json.loads((tmp_path / "a" / "config.json").read_text(encoding="utf-8")) == model_config("mini")
    assert "exists already" in refused(argv, capsys)
    assert main([*argv, "--overwrite"]) == 0


def test_without_output_the_file_goes_beside_the_downloads(published, tmp_path, monkeypatch):
    published("mini")
    monkeypatch.setattr(convert_weights, "MODELS_DIR", tmp_path / "gpt2")
    assert main(["--format", "safetensors"]) == 0
    assert (tmp_path / "gpt2" / "converted-mini" / "model.safetensors").is_file()


@pytest.mark.parametrize("argv, needed", [
    (["--model_size", "7B"], "unknown model size '7B'"),
    (["--output", "m.bin"], "does not end in .pth or .safetensors"),
    (["--output", "m.pth", "--format", "safetensors"], "does not end in .safetensors"),
    (["--input", "nowhere", "--output", "m.pth"], "nowhere does not exist"),
    (["--input", ".", "--output", "m.pth"], "model.safetensors does not exist"),
    (["--format", "gguf"], "invalid choice"),
    (["--output", "file/m.pth"], "cannot be written"),
    (["--input", "notes.txt", "--output", "m.pth"], "neither a .safetensors file nor a folder with weights"),
    (["--model_size", "124M", "--input", "published-mini", "--output", "m.pth"], "wte has shape (90, 16), the settings ask for (50257"),
    (["--output", "taken/m.pth"], "belongs to another model"),
])
def test_bad_options_are_one_line_and_exit_code_2(argv, needed, published, tmp_path, capsys):
    published("mini")
    (tmp_path / "file").write_text("x", encoding="utf-8")
    (tmp_path / "notes.txt").write_text("these are notes", encoding="utf-8")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "config.json").write_text("{}", encoding="utf-8")
    assert needed in refused(argv, capsys)


def test_without_mini_one_line_says_where_to_get_it(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("previous_chapters.MINI", "no/such/folder")
    monkeypatch.delenv("LLM_COURSE_WEIGHTS", raising=False)
    assert "gpt2-mini is not on this machine" in refused(["--output", str(tmp_path / "m.pth")], capsys)


# ---- the exercise ---------------------------------------------------------------------------------------------------

def exercise_cell() -> str:
    notebook = nbformat.read(FOLDER / "weight-loading-hf-safetensors.ipynb", as_version=4)
    (cell,) = [cell.source for cell in notebook.cells if "<summary>Answer" in cell.source]
    return cell


def answer(change: tuple = ()):
    """The folded answer as a function, with a text exchanged for a mutant."""
    (text,) = re.findall(r"```text\n(.*?)```", exercise_cell(), flags=re.DOTALL)
    if change:
        assert change[0] in text
        text = text.replace(*change)
    space = {"torch": torch}
    exec(compile(ast.parse(text), "answer", "exec"), space)
    return space["find_missing_transpose"]


def test_the_folded_answer_passes(capsys):
    check_missing_transpose(answer())
    assert "exercise 1: passed (12 suspects)" in capsys.readouterr().out


def test_an_answer_that_tries_all_on_copies_passes():
    def find(model, suspect):
        ids = torch.arange(10)[None]
        errors = {}
        for block in range(len(model.trf_blocks)):
            for layer in LAYERS:
                copy = GPTModel(exercise_checks.TINY).eval()
                weights = numbers(model)
                name = f"trf_blocks.{block}.{layer}.weight"
                copy.load_state_dict({**weights, name: weights[name].T})
                errors[block, layer] = (copy(ids) - suspect(ids)).abs().max().item()
        return list(min(errors, key=errors.get))

    check_missing_transpose(find)


MUTANTS = {
    "looks at the last position for the kind": (("[:, 0]", "[:, -1]"), None),
    "kinds exchanged": (("if first_equal", "if not first_equal"), None),
    "tries the first block only": (("enumerate(model.trf_blocks)", "enumerate(model.trf_blocks[:1])"), None),
    "forgets to turn back": (("weight.copy_(weight.T.clone())\n                if found", "if found"), None),
    "counts blocks from 1": (("return number, kind", "return number + 1, kind"), "expected"),
    "returns the block only": (("return number, kind", "return number"), "a pair"),
    "exchanges the results": (("return number, kind", "return kind, number"), "expected"),
    "first position only": (("allclose(model(ids), wanted, atol", "allclose(model(ids)[:, 0], wanted[:, 0], atol"), None),
    "accepts anything": (("if found", "if True"), None),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_wrong_answers_are_rejected(mutant):
    change, needed = MUTANTS[mutant]
    with pytest.raises(AssertionError) as caught:
        check_missing_transpose(answer(change))
    assert "think:" in str(caught.value) and (needed or "") in str(caught.value)


def test_an_answer_that_leaves_the_model_changed_is_rejected():
    def find(model, suspect):
        found = answer()(model, suspect)
        with torch.no_grad():
            model.final_norm.scale.add_(1)
        return found

    with pytest.raises(AssertionError, match=r"final_norm\.scale is changed"):
        check_missing_transpose(find)


@pytest.mark.parametrize("block, layer", [(0, "att.W_query"), (2, "att.W_key"), (1, "att.W_value"), (0, "att.out_proj")])
def test_the_first_position_tells_the_kind(block, layer):
    ids = torch.randint(0, 60, (3, 9))
    with torch.no_grad():
        good, bad = tiny_model(5)(ids), make_suspect(5, block, layer)(ids)
    assert torch.allclose(good[:, 0], bad[:, 0], atol=1e-5) == (layer in ("att.W_query", "att.W_key"))
    assert not torch.allclose(good, bad, atol=1e-2)


# ---- the notebooks --------------------------------------------------------------------------------------------------

def stored_output(path: Path) -> str:
    cells = nbformat.read(path, as_version=4).cells
    return "\n".join(output.get("text", "") for cell in cells if cell.cell_type == "code" for output in cell.outputs)


def test_the_stored_runs_end_in_one_fingerprint_and_one_text():
    outputs = [stored_output(path) for path in ROUTE_NOTEBOOKS]
    assert len(outputs) == 3
    prints = [set(re.findall(r"fingerprint [^:\n]*: ([0-9a-f]{12})", output)) for output in outputs]
    texts = [re.findall(r"^Mr\. Ottery put down his lamp and[^\n]*", output, flags=re.MULTILINE) for output in outputs]
    assert len(prints[0]) == 1 and prints[0] == prints[1] == prints[2]
    assert len(texts[0]) == 1 and texts[0] == texts[1] == texts[2]


def test_only_the_notebook_of_route_2_needs_transformers():
    texts = [path.read_text(encoding="utf-8") for path in FOLDER.glob("*.py")]
    assert len(texts) > 5 and not any(re.search(r"^\s*(import|from) transformers", text, flags=re.MULTILINE) for text in texts)
