"""Every way of loading returns the same model, damage ends in one clear line, and the measuring sees what it promises to see."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import memory_tools
import model_files
import nbformat
import pytest
import torch
import torch.nn as nn
import weight_loading
from memory_tools import MeasuringFailed, measure, memory_usage_in_gb
from model_files import INDEX, check_state_dict, load_weights, own_tensors, save_model, save_shards, shared_names
from previous_chapters import GPTModel, tie_weights
from safetensors.torch import save_file
from weight_loading import ROUTES, best_practices, load_individual_weights, load_shards, model_on_meta, rebuild_buffers

TINY = {"vocab_size": 50, "context_length": 16, "emb_dim": 12, "n_heads": 3, "n_layers": 2, "drop_rate": 0.1, "qkv_bias": True}
MIDDLE = {**TINY, "vocab_size": 4096, "emb_dim": 512, "n_heads": 8, "n_layers": 8}  # 118 MB, so that the model stands out
NOTEBOOK = Path(weight_loading.__file__).with_name("memory-efficient-state-dict.ipynb")
LOADERS = [route for route in ROUTES.values() if route is not weight_loading.plain_init]
ON_META = [weight_loading.load_sequentially_with_meta, best_practices, load_individual_weights, load_shards]
ALL, META = (pytest.mark.parametrize("route", routes, ids=lambda route: route.__name__) for routes in (LOADERS, ON_META))


def saved_model(cfg: dict, folder: Path) -> nn.Module:
    torch.manual_seed(5)
    model = weight_loading.new_model(cfg).eval()
    save_model(model, cfg, folder)
    weight_loading.save_individual_weights(model, folder)
    save_shards(model, folder, max_bytes=3000)
    return model


@pytest.fixture
def original(tmp_path):
    return saved_model(TINY, tmp_path)


@pytest.fixture(scope="module")
def middle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("middle")
    return folder, sum(parameter.nbytes for parameter in saved_model(MIDDLE, folder).parameters())


# ---- the ways -------------------------------------------------------------------------------------------------------

@ALL
def test_every_way_gives_the_logits_of_the_saved_model(route, original, tmp_path):
    ids = torch.randint(0, 50, (3, 16))  # up to the last position
    loaded = route(tmp_path)
    assert torch.equal(loaded(ids), original(ids)) and not loaded.training
    assert torch.equal(route()(ids), original(ids))  # the folder is the current one unless it is given
    assert all(parameter.requires_grad and not parameter.is_meta for parameter in loaded.parameters())


@META
def test_masks_are_rebuilt_where_the_model_began_on_meta(route, original, tmp_path):
    loaded = route(tmp_path)
    for (name, buffer), (_, expected) in zip(loaded.named_buffers(), original.named_buffers()):
        assert torch.equal(buffer, expected), name
    assert loaded.state_dict().keys() == original.state_dict().keys()  # still not persistent


def test_leftovers_in_the_masks_change_the_logits_and_rebuilding_mends_them(original):
    ids = torch.randint(0, 50, (1, 9))
    expected = original(ids)
    for block in original.trf_blocks:
        block.att.mask.zero_()
    assert not torch.allclose(original(ids), expected)
    assert torch.equal(rebuild_buffers(original)(ids), expected)


def test_a_loaded_model_can_be_trained_without_touching_the_file(original, tmp_path):
    loaded, before = best_practices(tmp_path), (tmp_path / "model.pth").read_bytes()
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1.0)
    loaded(torch.randint(0, 50, (1, 8))).sum().backward()
    optimizer.step()
    assert not torch.equal(loaded.out_head.weight, original.out_head.weight)
    assert (tmp_path / "model.pth").read_bytes() == before


def test_to_empty_and_assign_untie_what_to_and_copying_leave_tied():
    """Why `repair` ties again: each of the two gives every name a tensor of its own, without a word."""
    with torch.device("meta"):
        model = tie_weights(GPTModel(TINY))
    model.to_empty(device="cpu")
    assert model.out_head.weight is not model.tok_emb.weight
    assert model.out_head.weight.data_ptr() != model.tok_emb.weight.data_ptr()  # not even the numbers are shared
    model = tie_weights(GPTModel(TINY))
    model.load_state_dict(model.state_dict(), assign=True)
    assert model.out_head.weight is not model.tok_emb.weight
    model = tie_weights(GPTModel(TINY))
    model.to(torch.bfloat16).load_state_dict(GPTModel(TINY).state_dict())
    assert model.out_head.weight is model.tok_emb.weight


@ALL
def test_a_tied_model_stays_tied_in_every_way_and_in_training(route, tmp_path):
    original = saved_model({**TINY, "tied": True}, tmp_path)
    loaded, ids = route(tmp_path), torch.randint(0, 50, (2, 16))
    assert torch.equal(loaded(ids), original(ids))
    assert loaded.out_head.weight is loaded.tok_emb.weight
    optimizer = torch.optim.SGD(loaded.parameters(), lr=1.0)
    loaded(ids).sum().backward()
    optimizer.step()
    assert torch.equal(loaded.out_head.weight, loaded.tok_emb.weight) and not torch.equal(loaded.out_head.weight, original.out_head.weight)


def test_a_tensor_with_two_names_is_stored_once(tmp_path):
    model = saved_model({**TINY, "tied": True}, tmp_path)
    assert shared_names(model) == {"out_head.weight": "tok_emb.weight"} and shared_names(GPTModel(TINY)) == {}
    assert own_tensors(model).keys() == model.state_dict().keys() - {"out_head.weight"}
    assert not (tmp_path / "model_parameters" / "out_head.weight.pt").exists()
    assert "out_head.weight" not in (tmp_path / INDEX).read_text(encoding="utf-8")


@ALL
def test_an_untied_head_is_refused_by_a_tied_model_instead_of_overwriting_its_embedding(route, original, tmp_path):
    if route in (load_individual_weights, load_shards):
        (tmp_path / "model_parameters" / "out_head.weight.pt").unlink()  # way 7 would name the superfluous file
    save_model(original, {**TINY, "tied": True}, tmp_path)
    if route is load_individual_weights:
        assert route(tmp_path).out_head.weight.equal(original.tok_emb.weight)
        return
    with pytest.raises(ValueError) as caught:
        route(tmp_path)
    assert "out_head.weight: the model shares it with tok_emb.weight, the file has other numbers" in one_line(caught)


@ALL
def test_a_tied_file_does_not_tie_an_untied_model_silently(route, tmp_path):
    saved_model({**TINY, "tied": True}, tmp_path)
    save_model(GPTModel(TINY), TINY, tmp_path) if route in (load_individual_weights, load_shards) else None
    if route is load_individual_weights:
        with pytest.raises(FileNotFoundError, match=r"out_head\.weight\.pt"):
            route(tmp_path)
    elif route is load_shards:
        with pytest.raises(ValueError, match=r"out_head\.weight: the model has \(50, 12\), the file none"):
            route(tmp_path)


@pytest.mark.parametrize("max_bytes", [1, 3000, 2**26])
def test_shards_keep_to_the_size_and_the_index_names_every_tensor(max_bytes, original, tmp_path):
    for old in tmp_path.glob("*.safetensors"):
        old.unlink()
    files = save_shards(original, tmp_path, max_bytes)
    paths = sorted(tmp_path.glob("*.safetensors"))
    assert [path.name for path in paths] == files == [f"model-{n:05}-of-{len(files):05}.safetensors" for n in range(1, len(files) + 1)]
    content = [model_files.map_tensors(path) for path in paths]
    assert all(len(shard) == 1 or sum(tensor.nbytes for tensor in shard.values()) <= max_bytes for shard in content)
    assert {name for shard in content for name in shard} == original.state_dict().keys()
    assert len(files) == {1: 37, 2**26: 1}.get(max_bytes, len(files))
    assert torch.equal(load_shards(tmp_path).pos_emb.weight, original.pos_emb.weight)


@pytest.mark.parametrize("damage, message", [
    ("no index", "index.json does not exist"), ("no JSON", "index.json is damaged"), ("a list", "index.json is damaged"),
    ("lost shard", "-of-.* does not exist, one of"), ("half a shard", "truncated or damaged"), ("a web page", "truncated or damaged"),
])
def test_damaged_shards_are_one_line(damage, message, original, tmp_path):
    index, shard = tmp_path / INDEX, sorted(tmp_path.glob("*.safetensors"))[1]
    if damage == "no index":
        index.unlink()
    elif damage in ("no JSON", "a list"):
        index.write_text("[1, 2]" if damage == "a list" else "<html>", encoding="utf-8")
    elif damage == "lost shard":
        shard.unlink()
    else:
        shard.write_bytes(b"<!DOCTYPE html>" * 100 if damage == "a web page" else shard.read_bytes()[:-7])
    with pytest.raises((ValueError, FileNotFoundError), match=message) as caught:
        load_shards(tmp_path)
    one_line(caught)


def test_a_tensor_that_moved_to_no_shard_is_named(original, tmp_path):
    last = sorted(tmp_path.glob("*.safetensors"))[-1]
    tensors = model_files.map_tensors(last)
    name = min(tensors)
    save_file({other: tensor.clone() for other, tensor in tensors.items() if other != name}, tmp_path / "new.safetensors")
    (tmp_path / "new.safetensors").replace(last)
    with pytest.raises(ValueError, match=rf"{name}: the model has .*, the file none"):
        load_shards(tmp_path)


def test_no_copy_is_made_before_all_files_fit(original, tmp_path, monkeypatch):
    torch.save(torch.ones(3), tmp_path / "model_parameters" / "trf_blocks.1.norm2.shift.pt")  # the last but a few
    copied = []
    monkeypatch.setattr(torch.Tensor, "copy_", lambda self, other: copied.append(self))
    with pytest.raises(ValueError, match=r"norm2\.shift: the model has \(12,\), the file \(3,\)"):
        load_individual_weights(tmp_path)
    assert copied == []


def test_a_model_on_meta_draws_nothing_and_does_not_load_the_compiler(original, tmp_path):
    code = ("import sys; from weight_loading import model_on_meta; model = model_on_meta(sys.argv[1]); "
            "assert model.tok_emb.weight.is_meta and 'torch._dynamo' not in sys.modules")
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, cwd=NOTEBOOK.parent)
    state = torch.get_rng_state()
    model_on_meta(tmp_path)
    assert torch.equal(state, torch.get_rng_state())


def test_assign_replaces_the_tensors_and_unties_shared_ones(original, tmp_path):
    model = GPTModel(TINY)
    model.out_head.weight = model.tok_emb.weight
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    model.load_state_dict(load_weights(tmp_path / "model.pth"), assign=True)
    assert model.out_head.weight is not model.tok_emb.weight
    known = {id(parameter) for parameter in optimizer.param_groups[0]["params"]}
    assert not any(id(parameter) in known for parameter in model.parameters())


def test_a_model_on_meta_has_no_numbers(original, tmp_path):
    assert all(parameter.is_meta for parameter in model_on_meta(tmp_path).parameters())


# ---- bad input ------------------------------------------------------------------------------------------------------

def file_of(route, folder: Path) -> Path:
    """A file that the way reads."""
    if route is load_shards:
        return sorted(folder.glob("*.safetensors"))[0]
    return folder / ("model.pth" if route is not load_individual_weights else "model_parameters/pos_emb.weight.pt")


def one_line(caught) -> str:
    text = str(caught.value)
    assert text and "\n" not in text
    return text


@pytest.mark.parametrize("keep", [0, 10, 0.5, -1])
@ALL
def test_a_truncated_file_is_one_clear_error(route, keep, original, tmp_path):
    path = file_of(route, tmp_path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError) as caught:
        route(tmp_path)
    assert f"{path.name} is truncated or damaged" in one_line(caught)


@ALL
def test_missing_files_are_named(route, original, tmp_path):
    missing = file_of(route, tmp_path)
    missing.unlink()
    with pytest.raises(FileNotFoundError) as caught:
        route(tmp_path)
    assert missing.name in one_line(caught)
    (tmp_path / "gpt-config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"gpt-config\.json does not exist"):
        route(tmp_path)


@ALL
def test_weights_of_another_size_are_refused_even_where_copying_would_stretch_them(route, original, tmp_path):
    state_dict = {**original.state_dict(), "final_norm.scale": torch.ones(1)}
    torch.save(state_dict, tmp_path / "model.pth")
    torch.save(torch.ones(1), tmp_path / "model_parameters" / "final_norm.scale.pt")
    for path in tmp_path.glob("*.safetensors"):
        tensors = {name: tensor.clone() for name, tensor in model_files.map_tensors(path).items()}
        save_file({name: torch.ones(1) if name == "final_norm.scale" else tensor for name, tensor in tensors.items()}, path)
    with pytest.raises(ValueError) as caught:
        route(tmp_path)
    assert "final_norm.scale: the model has (12,), the file (1,)" in one_line(caught)


def test_missing_and_unknown_names_are_refused(original):
    state_dict = original.state_dict()
    with pytest.raises(ValueError, match=r"extra: the model has none, the file \(2,\)"):
        check_state_dict(original, {**state_dict, "extra": torch.ones(2)})
    del state_dict["pos_emb.weight"]
    with pytest.raises(ValueError, match=r"pos_emb\.weight: the model has \(16, 12\), the file none"):
        check_state_dict(original, state_dict)


def test_a_checkpoint_with_more_than_weights_is_refused_in_one_line(original):
    with pytest.raises(ValueError) as caught:
        check_state_dict(original, {"model_state_dict": original.state_dict(), "step": 3})
    assert "the file none" in one_line(caught)


def test_files_of_a_deeper_model_are_refused(original, tmp_path):
    torch.save(torch.ones(12), tmp_path / "model_parameters" / "trf_blocks.2.norm1.scale.pt")
    with pytest.raises(ValueError) as caught:
        load_individual_weights(tmp_path)
    assert "trf_blocks.2.norm1.scale: the model has none" in one_line(caught)


def test_an_old_pytorch_is_one_clear_error_and_the_other_ways_still_work(original, tmp_path, monkeypatch):
    new = torch.load

    def old_load(f, map_location=None, *, weights_only=False):
        return new(f, map_location=map_location, weights_only=weights_only)

    monkeypatch.setattr(torch, "load", old_load)
    with pytest.raises(RuntimeError) as caught:
        best_practices(tmp_path)
    assert "PyTorch 2.1 or newer" in one_line(caught) and torch.__version__ in str(caught.value)
    assert torch.equal(load_individual_weights(tmp_path).out_head.weight, original.out_head.weight)


def test_an_old_load_state_dict_is_noticed_too(original, tmp_path, monkeypatch):
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda self, state_dict, strict=True: None)
    with pytest.raises(RuntimeError, match=r"PyTorch 2\.1 or newer"):
        best_practices(tmp_path)


def test_too_little_memory_is_not_called_a_damaged_file(original, tmp_path, monkeypatch):
    def no_memory(*args, **kwargs):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes")

    monkeypatch.setattr(torch, "load", no_memory)
    with pytest.raises(RuntimeError, match="can't allocate"):
        load_weights(tmp_path / "model.pth")


def test_a_full_disk_is_noticed_before_writing(original, tmp_path, monkeypatch):
    target = tmp_path / "full"
    target.mkdir()
    monkeypatch.setattr(model_files.shutil, "disk_usage", lambda folder: type("Usage", (), {"free": 1000})())
    with pytest.raises(OSError, match="has only 1,000 left"):
        save_model(original, TINY, target)
    assert list(target.iterdir()) == []


# ---- measuring ------------------------------------------------------------------------------------------------------

SIZE = 2**26  # a quarter of a GiB in float32


def half_of(count):
    return count // 2


def two_short_blocks(count, *, fill=1.0):
    for _ in range(2):
        torch.full((half_of(count) * 2,), fill)


@pytest.mark.slow
def test_a_block_that_lives_for_a_moment_is_seen_and_helpers_of_this_file_travel_along():
    assert 0.23 < memory_usage_in_gb(two_short_blocks, SIZE, fill=2.0) < 0.3


def test_an_error_in_the_other_process_comes_back_as_one_line(tmp_path):
    with pytest.raises(MeasuringFailed) as caught:
        measure(best_practices, tmp_path / "nowhere")
    assert "best_practices: FileNotFoundError" in one_line(caught) and "gpt-config.json does not exist" in str(caught.value)


def test_what_cannot_be_sent_is_refused_before_a_process_starts(monkeypatch):
    monkeypatch.setattr(memory_tools.subprocess, "run", None)
    local = 3

    def uses_local():
        return local

    with pytest.raises(MeasuringFailed, match="uses variables of a function around it"):
        measure(uses_local)
    with pytest.raises(MeasuringFailed, match="cannot be sent"):
        measure(half_of, lambda: 3)


def test_a_process_that_dies_is_reported(monkeypatch):
    class Died:
        returncode, stdout, stderr = -9, b"", b""

    monkeypatch.setattr(memory_tools.subprocess, "run", lambda *args, **kwargs: Died)
    with pytest.raises(MeasuringFailed, match="ended with code -9: perhaps memory ran out"):
        measure(half_of, 4)


def test_the_tools_work_without_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    memory_tools.start_memory_tracking()
    memory_tools.cleanup()
    memory_tools.print_memory_usage()
    assert float(capsys.readouterr().out.split(":")[1].split()[0]) > 0.05


def test_other_systems_count_the_peak_too(monkeypatch):
    counted = memory_tools.peak_memory()
    monkeypatch.setattr(memory_tools, "linux_status", lambda key: None)
    assert memory_tools.peak_memory() > 0.5 * counted  # by getrusage, or by psutil on Windows


def answers() -> dict:
    """The folded answers of the exercises: {function name: function}."""
    (cell,) = [cell.source for cell in nbformat.read(NOTEBOOK, as_version=4).cells if "<summary>Answer" in cell.source]
    text = "\n".join(re.findall(r"```text\n(.*?)```", cell, flags=re.DOTALL))
    names = {name: getattr(weight_loading, name) for name in ("Path", "load_weights", "new_model", "read_config", "repair", "torch")}
    space = {**names, "model_on_meta": model_on_meta, "__name__": "__main__"}
    exec(compile(ast.parse(text), "answers", "exec"), space)
    return {name: space[name] for name in ("only_mmap", "only_assign", "load_half")}


@pytest.mark.slow
def test_peaks_are_those_that_the_notebook_states(middle):
    folder, model_bytes = middle
    ratios = {}
    for route in (weight_loading.baseline, best_practices, load_individual_weights, load_shards):
        found = measure(route, folder)
        ratios[route.__name__] = found.peak / model_bytes
        assert not found.timeline or abs(found.timeline[-1][1] / model_bytes - 1) < 0.3  # the picture ends with one set
        assert found.seconds > 0 and (found.gpu is None) == (not torch.cuda.is_available())
    assert 1.9 < ratios["baseline"] < 2.2
    assert 0.9 < ratios["best_practices"] < 1.1 + 0.08  # and one largest tensor
    assert 0.9 < ratios["load_individual_weights"] < 1.3
    assert 0.9 < ratios["load_shards"] < 1.1 + 0.08


@pytest.mark.slow
@pytest.mark.parametrize("name, low, high", [("only_mmap", 1.9, 2.2), ("only_assign", 0.95, 1.2), ("load_half", 0.5, 0.75)])
def test_the_answers_of_the_exercises_are_right(name, low, high, middle, original, tmp_path):
    folder, model_bytes = middle
    route = answers()[name]
    assert low < measure(route, folder).peak / model_bytes < high
    assert torch.allclose(route(tmp_path).out_head.weight.float(), original.out_head.weight, rtol=0.01)


# ---- command line ---------------------------------------------------------------------------------------------------

@pytest.mark.slow
def test_the_command_prints_a_table(monkeypatch, capsys):
    monkeypatch.setattr(weight_loading, "ROUTES", {"6 meta, mmap, assign": best_practices})
    assert weight_loading.main(["--emb_dim", "12", "--n_heads", "3", "--n_layers", "1", "--vocab_size", "40", "--device", "cpu"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("the model's own bytes") and lines[2].startswith("6 meta, mmap, assign") and len(lines) == 3
    assert len(lines[2]) == len(lines[1])


@pytest.mark.parametrize("argv", [["--emb_dim", "10", "--n_heads", "3"], ["--n_layers", "0"], ["--device", "toaster"]])
def test_bad_options_are_one_line_and_exit_code_2(argv, capsys):
    with pytest.raises(SystemExit) as stopped:
        weight_loading.main(argv)
    error = capsys.readouterr().err.strip().splitlines()
    assert stopped.value.code == 2 and "error" in error[-1] and len([line for line in error if "error" in line]) == 1


def test_sending_a_function_keeps_defaults_modules_and_functions_it_calls():
    packed = memory_tools.pack("two_short_blocks", two_short_blocks, {})
    assert {name: entry[0] for name, entry in packed.items()} == {"two_short_blocks": "code", "half_of": "code", "torch": "module"}
    assert memory_tools.unpack(packed)["two_short_blocks"].__kwdefaults__ == {"fill": 1.0}
    assert memory_tools.pack("f", best_practices, {}) == {"f": ("value", best_practices)}
