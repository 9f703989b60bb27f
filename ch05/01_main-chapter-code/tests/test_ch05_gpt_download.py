"""A download is whole or absent, however the network fails; both file formats give one model, equal to Hugging Face's."""

import base64
import hashlib
import json
import os
import socket
import sys
from pathlib import Path

import download
import gpt_download
import gpt_generate
import numpy as np
import pytest
import safetensors.numpy
import torch
from download import DiskError, DownloadError, download_file
from gpt_download import download_and_load_gpt2, load_gpt2_params_from_safetensors, load_gpt2_params_from_tf_ckpt, tensor_shapes, to_tree
from gpt_generate import assign, load_weights_into_gpt
from mirror_server import Mirror
from previous_chapters import GPTModel, gpt2_data_folder

CONTENT = bytes(range(256)) * 3000
SHA256 = hashlib.sha256(CONTENT).hexdigest()
TINY = {"n_vocab": 50257, "n_ctx": 24, "n_embd": 12, "n_head": 3, "n_layer": 2}
SIZES_HERE = {"vocab_size": 50257, "context_length": 24, "emb_dim": 12, "n_heads": 3, "n_layers": 2}
CFG = {**SIZES_HERE, "drop_rate": 0.0, "qkv_bias": True}


@pytest.fixture
def mirror(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.setattr(download, "PAUSE", 0.0)
    server = Mirror()
    server.files["w.bin"] = CONTENT
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def second(mirror):
    server = Mirror()
    server.files["w.bin"] = CONTENT
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "weights" / "w.bin"


def closed_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def lies_in(target):
    return sorted(path.name for path in target.parent.iterdir()) if target.parent.exists() else []


def fails(url, target, *needed, error=DownloadError, left=(), **known):
    """The download fails in one line that names address, target and the way by hand, and leaves only `left`."""
    with pytest.raises(error) as caught:
        download_file(url, target, **known)
    text = str(caught.value)
    assert "\n" not in text and url in text and str(target) in text and "by hand" in text, text
    assert all(word in text for word in needed), text
    assert not target.exists() and lies_in(target) == list(left)


# ---- one file -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("known", [{}, {"size": len(CONTENT)}, {"size": len(CONTENT), "sha256": SHA256}, {"sha256": SHA256}])
def test_a_whole_file_arrives_and_is_not_asked_for_again(mirror, target, known):
    assert download_file(f"{mirror.url}/w.bin", str(target), **known) == target
    assert target.read_bytes() == CONTENT and lies_in(target) == ["w.bin"]
    download_file(f"{mirror.url}/w.bin", target, **known)
    assert mirror.requests == [("/w.bin", None)]


def test_the_final_name_appears_only_at_the_end(mirror, target):
    seen = []
    mirror.before_end = lambda: seen.append(target.exists())
    download_file(f"{mirror.url}/w.bin", target)
    assert seen == [False] and target.exists()


def test_a_length_that_is_not_stated_is_no_fault(mirror, target):
    mirror.fault("w.bin", no_length=True)
    assert download_file(f"{mirror.url}/w.bin", target, sha256=SHA256).read_bytes() == CONTENT


@pytest.mark.parametrize("known", [{}, {"size": len(CONTENT), "sha256": SHA256}])
def test_a_connection_that_drops_goes_on_where_it_stopped(mirror, target, known):
    mirror.fault("w.bin", drop=[98_304, 65_536])
    download_file(f"{mirror.url}/w.bin", target, **known)
    assert target.read_bytes() == CONTENT and lies_in(target) == ["w.bin"]
    assert [asked for _, asked in mirror.requests] == [None, "bytes=98304-", "bytes=163840-"]


@pytest.mark.parametrize("known", [{}, {"size": len(CONTENT)}])
def test_the_next_run_goes_on_where_the_last_one_gave_up(mirror, target, known):
    url = f"{mirror.url}/w.bin"
    mirror.fault("w.bin", drop=[327_680, 0])
    with pytest.raises(DownloadError, match="327,680 bytes are kept"):
        download_file(url, target, **known)
    assert not target.exists() and len(lies_in(target)) == 1 and lies_in(target)[0].endswith(".part")
    download_file(url, target, **known)
    assert target.read_bytes() == CONTENT and lies_in(target) == ["w.bin"]
    assert mirror.requests[-1] == ("/w.bin", "bytes=327680-")


def test_a_server_without_ranges_is_asked_for_the_whole(mirror, target):
    mirror.fault("w.bin", drop=[98_304], ranges=False)
    assert download_file(f"{mirror.url}/w.bin", target).read_bytes() == CONTENT
    assert len(mirror.requests) == 2


def test_a_connection_that_never_brings_anything_is_given_up(mirror, target):
    mirror.fault("w.bin", drop=[0] * 9)
    fails(f"{mirror.url}/w.bin", target, "broke")
    assert len(mirror.requests) == 1


def test_a_range_that_was_not_asked_for_is_refused(mirror, target):
    mirror.fault("w.bin", drop=[98_304, len(CONTENT)], shift=7)
    with pytest.raises(DownloadError, match="another range"):
        download_file(f"{mirror.url}/w.bin", target)
    assert not target.exists()


@pytest.mark.parametrize("extra", [0, 5])
def test_a_part_that_is_complete_or_too_long_is_settled(mirror, target, extra):
    target.parent.mkdir()
    known = {"size": len(CONTENT), "sha256": SHA256}
    (target.parent / "w.bin.part").write_bytes(CONTENT + b"x" * extra)
    assert download_file(f"{mirror.url}/w.bin", target, **known).read_bytes() == CONTENT
    assert len(mirror.requests) == (1 if extra else 0) and lies_in(target) == ["w.bin"]


def test_a_complete_part_of_unknown_size_is_settled(mirror, target):
    url = f"{mirror.url}/w.bin"
    target.parent.mkdir()
    (target.parent / f"w.bin.{hashlib.sha256(url.encode()).hexdigest()[:8]}.part").write_bytes(CONTENT)
    assert download_file(url, target).read_bytes() == CONTENT and lies_in(target) == ["w.bin"]


def test_a_spoiled_part_is_thrown_away_and_fetched_anew(mirror, target):
    target.parent.mkdir()
    (target.parent / "w.bin.part").write_bytes(b"rust" * 1000)
    known = {"size": len(CONTENT), "sha256": SHA256}
    assert download_file(f"{mirror.url}/w.bin", target, **known).read_bytes() == CONTENT
    assert [asked for _, asked in mirror.requests] == ["bytes=4000-", None]


@pytest.mark.parametrize("known", [{"size": len(CONTENT) + 1}, {"size": 12}, {"sha256": SHA256[::-1]}])
def test_wrong_size_and_wrong_hash_leave_nothing(mirror, target, known):
    fails(f"{mirror.url}/w.bin", target, "it offers 768,000 bytes" if "size" in known else "sha256", **known)


def md5_header(content):
    return base64.b64encode(hashlib.md5(content).digest()).decode()


@pytest.mark.parametrize("headers", [{"Content-MD5": md5_header(b"no")}, {"X-Linked-ETag": f'"{SHA256[::-1]}"'}])
def test_hashes_that_the_server_states_are_compared(mirror, target, headers):
    mirror.headers["w.bin"] = headers
    fails(f"{mirror.url}/w.bin", target, "differs")
    mirror.headers["w.bin"] = {"Content-MD5": md5_header(CONTENT), "X-Linked-ETag": f'"{SHA256}"'}
    assert download_file(f"{mirror.url}/w.bin", target).read_bytes() == CONTENT


@pytest.mark.parametrize("status", [403, 404, 429, 500, 503])
def test_a_mirror_that_refuses_is_named_and_the_next_one_serves(mirror, second, target, status):
    mirror.fault("w.bin", status=status)
    fails(f"{mirror.url}/w.bin", target, f"HTTP {status}")
    download_file(f"{mirror.url}/w.bin", target, f"{second.url}/w.bin")
    assert target.read_bytes() == CONTENT and len(mirror.requests) == 2 and len(second.requests) == 1


def test_mirrors_are_asked_in_order_and_each_fault_is_told(mirror, second, target):
    mirror.fault("w.bin", status=404)
    second.fault("w.bin", status=503)
    third = f"http://127.0.0.1:{closed_port()}/w.bin"
    fails(f"{mirror.url}/w.bin", target, "HTTP 404", "HTTP 503", third, backup_url=[f"{second.url}/w.bin", third])
    assert len(mirror.requests) == len(second.requests) == 1
    mirror.faults.clear()
    download_file(f"{mirror.url}/w.bin", target, f"{second.url}/w.bin")
    assert len(second.requests) == 1


def test_another_mirror_goes_on_only_when_the_size_is_known(mirror, second, target):
    for known, first_request in (({"size": len(CONTENT)}, "bytes=98304-"), ({}, None)):
        mirror.fault("w.bin", drop=[98_304, 0])
        second.requests.clear()
        download_file(f"{mirror.url}/w.bin", target, f"{second.url}/w.bin", **known)
        assert target.read_bytes() == CONTENT and lies_in(target) == ["w.bin"]
        assert second.requests[0][1] == first_request
        target.unlink()


@pytest.mark.parametrize("stated", [True, False])
def test_a_web_page_is_not_taken_for_weights(mirror, target, stated):
    mirror.files["w.bin"] = b"Please log in to the harbor network" if stated else b"\n<!DOCTYPE html><html>Please log in</html>"
    mirror.headers["w.bin"] = {"Content-Type": "text/html; charset=utf-8" if stated else "application/octet-stream"}
    fails(f"{mirror.url}/w.bin", target, "web page")


def test_no_connection_is_one_line(mirror, target):
    fails(f"http://127.0.0.1:{closed_port()}/w.bin", target, "no connection")
    fails("https://weights.invalid/w.bin", target, "no connection")  # the tests' guard refuses outside names like no network does
    fails("weights.invalid/w.bin", target, "MissingSchema")


def test_a_server_that_says_nothing_is_given_up(mirror, target, monkeypatch):
    monkeypatch.setattr(download, "TIMEOUT", (0.3, 0.3))
    mirror.fault("w.bin", hang=2)
    fails(f"{mirror.url}/w.bin", target, "no answer within")


def test_a_proxy_is_used_and_its_faults_are_told_without_its_password(mirror, target, monkeypatch):
    monkeypatch.setenv("HTTP_PROXY", mirror.url)
    url = "http://weights.invalid/gpt/w.bin"
    assert download_file(url, target).read_bytes() == CONTENT
    assert mirror.requests == [(url, None)]
    target.unlink()
    mirror.fault("w.bin", status=407)
    fails(url, target, "HTTP 407")
    monkeypatch.setenv("HTTP_PROXY", f"http://nell:brass-key@127.0.0.1:{closed_port()}")
    with pytest.raises(DownloadError, match="the proxy does not let it through") as caught:
        download_file(url, target)
    assert "brass-key" not in str(caught.value) and lies_in(target) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs the always full device of Linux")
def test_a_disk_that_runs_full_is_one_line_and_gives_its_space_back(mirror, second, target):
    target.parent.mkdir()
    (target.parent / "w.bin.part").symlink_to("/dev/full")
    known = {"size": len(CONTENT), "backup_url": f"{second.url}/w.bin"}
    fails(f"{mirror.url}/w.bin", target, os.strerror(28), error=DiskError, **known)
    assert second.requests == []


def test_a_file_larger_than_the_free_space_is_not_begun(mirror, target):
    mirror.fault("w.bin", length=10**17)
    fails(f"{mirror.url}/w.bin", target, "100,000,000,000,000,000 bytes are to come", error=DiskError)


def test_a_folder_that_cannot_be_made_is_one_line(mirror, tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DiskError, match="cannot store"):
        download_file(f"{mirror.url}/w.bin", tmp_path / "file" / "w.bin")


def test_a_copy_of_the_wrong_size_is_replaced_and_kept_if_that_fails(mirror, target):
    target.parent.mkdir()
    target.write_bytes(CONTENT[:1000])
    mirror.fault("w.bin", status=500)
    with pytest.raises(DownloadError):
        download_file(f"{mirror.url}/w.bin", target, size=len(CONTENT))
    assert lies_in(target) == ["w.bin"] and target.read_bytes() == CONTENT[:1000]
    mirror.faults.clear()
    assert download_file(f"{mirror.url}/w.bin", target, size=len(CONTENT)).read_bytes() == CONTENT


# ---- a tiny GPT-2, by Hugging Face, in every format ----------------------------------------------------------------------

@pytest.fixture(scope="module")
def hugging_face(tmp_path_factory):
    """(folder with model.safetensors and config.json, the model that was saved there), all tensors random."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(123)
    config = GPT2Config(vocab_size=50257, n_positions=24, n_embd=12, n_layer=2, n_head=3)
    model = GPT2LMHeadModel(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.6)  # the biases and norms too
    folder = tmp_path_factory.mktemp("hugging-face") / "gpt2-mini"
    model.save_pretrained(folder)
    return folder, model


@pytest.fixture
def flat(hugging_face):
    return safetensors.numpy.load_file(hugging_face[0] / "model.safetensors")


@pytest.fixture
def tiny_sizes(monkeypatch, mirror):
    """Let "124M" mean the tiny model, served by the mirror."""
    monkeypatch.setattr(gpt_download, "SIZES", {"124M": TINY})
    monkeypatch.setattr(gpt_download, "KNOWN_BYTES", {})
    monkeypatch.setattr(gpt_download, "MIRRORS", [f"{mirror.url}/gpt-2/models"])
    monkeypatch.setattr(gpt_download, "HUGGING_FACE", f"{mirror.url}/hf")
    return mirror


def same_tree(left, right):
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same_tree(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same_tree, left, right))
    return left.dtype == right.dtype == np.float32 and np.array_equal(left, right)


def assert_same_logits(gpt, model):
    ids = torch.randint(50257, (3, 24))
    with torch.no_grad():
        torch.testing.assert_close(gpt(ids), model(ids).logits, rtol=1e-4, atol=1e-4)


def test_random_hugging_face_weights_give_equal_logits(hugging_face, monkeypatch):
    folder, model = hugging_face
    monkeypatch.setenv("LLM_COURSE_WEIGHTS", str(folder))
    gpt, cfg = gpt_generate.load_pretrained_gpt({}, "gpt2-mini (mini)", "nowhere")
    assert cfg == CFG and not gpt.training
    assert_same_logits(gpt, model)
    assert torch.equal(gpt.out_head.weight, gpt.tok_emb.weight)
    assert all(parameter.is_contiguous() for parameter in gpt.parameters())


def test_float16_and_the_names_of_the_bare_model_give_the_same_tree(flat, tmp_path):
    path = tmp_path / "model.safetensors"
    halves = {name.removeprefix("transformer."): array.astype(np.float16) for name, array in flat.items() if name != "lm_head.weight"}
    masks = {"h.0.attn.bias": np.ones((1, 1, 24, 24), np.float32), "h.1.attn.masked_bias": np.float32([-1e4])}
    safetensors.numpy.save_file({**halves, **masks}, path)
    params = load_gpt2_params_from_safetensors(path, TINY)
    assert set(params) == {"blocks", "wte", "wpe", "g", "b"} and len(params["blocks"]) == 2
    assert params["blocks"][1]["attn"]["c_attn"]["w"].shape == (12, 36)
    expected = {name: array.astype(np.float32) for name, array in halves.items()}
    assert np.array_equal(params["blocks"][1]["mlp"]["c_proj"]["b"], expected["h.1.mlp.c_proj.bias"])
    assert np.array_equal(params["g"], expected["ln_f.weight"]) and params["g"].dtype == np.float32


def test_a_head_of_its_own_is_refused_and_a_stored_tied_one_taken(flat, tmp_path):
    path = tmp_path / "model.safetensors"
    tied = flat["transformer.wte.weight"]
    safetensors.numpy.save_file({**flat, "lm_head.weight": tied}, path)
    assert load_gpt2_params_from_safetensors(path, TINY)["wte"].shape == (50257, 12)
    safetensors.numpy.save_file({**flat, "lm_head.weight": tied + 1}, path)
    with pytest.raises(ValueError, match="lm_head.weight differs"):
        load_gpt2_params_from_safetensors(path, TINY)


FILE_FAULTS = {
    "missing tensor": "lacks the tensor h1/mlp/c_fc/w",
    "wrong shape": r"tensor h0/attn/c_attn/w has shape \(12, 35\), the settings ask for \(12, 36\)",
    "one block more": "2 tensors that the settings have no place for, such as h2/ln_1",
    "strange tensor": "no place for, such as rings",
    "truncated": "damaged",
    "web page": "damaged",
    "empty": "damaged",
    "absent": "damaged",
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_a_safetensors_file_that_does_not_fit_is_refused(fault, flat, tmp_path):
    path = tmp_path / "model.safetensors"
    if fault == "missing tensor":
        del flat["transformer.h.1.mlp.c_fc.weight"]
    elif fault == "wrong shape":
        flat["transformer.h.0.attn.c_attn.weight"] = np.ones((12, 35), np.float32)
    elif fault == "one block more":
        flat |= {f"transformer.h.2.ln_1.{kind}": np.ones(12, np.float32) for kind in ("weight", "bias")}
    elif fault == "strange tensor":
        flat["rings"] = np.ones(3, np.float32)
    safetensors.numpy.save_file(flat, path)
    if fault == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif fault in ("web page", "empty"):
        path.write_bytes(b"<html>gone</html>" if fault == "web page" else b"")
    elif fault == "absent":
        path.unlink()
    with pytest.raises(ValueError, match=FILE_FAULTS[fault]) as caught:
        load_gpt2_params_from_safetensors(path, TINY)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


# ---- into our model -------------------------------------------------------------------------------------------------

def small_params(settings=None):
    """A random tree for CFG with a vocabulary of 50."""
    settings = settings or {**TINY, "n_vocab": 50}
    return to_tree({name: torch.randn(shape).numpy() for name, shape in tensor_shapes(settings).items()}, settings["n_layer"])


def small_gpt(**changes):
    return GPTModel({**CFG, "vocab_size": 50, **changes})


def test_every_parameter_comes_from_the_weights_and_is_a_copy():
    gpt, params = small_gpt(), small_params()
    before = {name: value.clone() for name, value in gpt.state_dict().items()}
    load_weights_into_gpt(gpt, params)
    loaded = {name: value.clone() for name, value in gpt.state_dict().items()}
    assert all(not torch.equal(before[name], loaded[name]) for name in before)
    block, wide = params["blocks"][1], torch.tensor(params["blocks"][1]["attn"]["c_attn"]["w"])
    assert torch.equal(loaded["trf_blocks.1.att.W_key.weight"], wide[:, 12:24].T)
    assert torch.equal(loaded["trf_blocks.1.ff.layers.2.weight"], torch.tensor(block["mlp"]["c_proj"]["w"]).T)
    for array in (params["wte"], params["g"], block["attn"]["c_attn"]["w"], block["ln_2"]["b"]):
        array.fill(0)
    assert all(torch.equal(gpt.state_dict()[name], value) for name, value in loaded.items())
    assert all(parameter.requires_grad for parameter in gpt.parameters())


def leaves(tree, path=()):
    if isinstance(tree, np.ndarray):
        yield path
        return
    for key, value in tree.items() if isinstance(tree, dict) else enumerate(tree):
        yield from leaves(value, (*path, key))


OURS = {  # GPT-2's name of a layer in a block -> ours; of three thirds the first one is found
    ("attn", "c_attn"): "att.W_query", ("attn", "c_proj"): "att.out_proj", ("mlp", "c_fc"): "ff.layers.0",
    ("mlp", "c_proj"): "ff.layers.2", ("ln_1",): "norm1", ("ln_2",): "norm2",
}  # fmt: skip


@pytest.mark.parametrize("fault", ["transposed or longer", "missing"])
def test_any_tensor_that_is_wrong_is_named_and_the_model_stays_as_it_was(fault):
    gpt = small_gpt()
    before = {name: value.clone() for name, value in gpt.state_dict().items()}
    for path in leaves(small_params()):
        params = small_params()
        branch = params
        for key in path[:-1]:
            branch = branch[key]
        if fault == "missing":
            del branch[path[-1]]
            needed = [path[-1]]
        else:
            right = branch[path[-1]]
            square = right.ndim == 1 or right.shape[0] == right.shape[1]
            branch[path[-1]] = np.concatenate([right, right[:3]]) if square else right.T
            needed = ["the model has shape", "the weights have shape"]
            needed += [f"trf_blocks.{path[1]}.{OURS[path[2:-1]]}."] if path[0] == "blocks" else []
        with pytest.raises(ValueError) as caught:
            load_weights_into_gpt(gpt, params)
        assert all(word in str(caught.value) for word in needed), (path, str(caught.value))
    assert all(torch.equal(value, before[name]) for name, value in gpt.state_dict().items())


MISMATCHES = {
    "no qkv bias": ({"qkv_bias": False}, r"trf_blocks.0.att.W_query.bias: the model has no such parameter, the weights have shape \(12,\)"),
    "other width": ({"emb_dim": 6}, r"tok_emb.weight: the model has shape \(50, 6\), the weights have shape \(50, 12\)"),
    "other context": ({"context_length": 25}, r"pos_emb.weight: the model has shape \(25, 12\), the weights have shape \(24, 12\)"),
    "other vocabulary": ({"vocab_size": 51}, r"tok_emb.weight: .*\(51, 12\).*\(50, 12\)"),
    "more blocks": ({"n_layers": 3}, "the model has 3 blocks, the weights have 2"),
    "fewer blocks": ({"n_layers": 1}, "the model has 1 blocks, the weights have 2"),
}


@pytest.mark.parametrize("name", MISMATCHES)
def test_a_model_of_another_configuration_is_refused(name):
    changes, message = MISMATCHES[name]
    with pytest.raises(ValueError, match=message):
        load_weights_into_gpt(small_gpt(**changes), small_params())


def test_assign_keeps_type_and_device_and_refuses_other_shapes():
    left = torch.nn.Parameter(torch.zeros(2, 3, dtype=torch.bfloat16))
    new = assign(left, np.arange(6.0).reshape(3, 2).T)
    assert isinstance(new, torch.nn.Parameter) and new is not left and new.dtype == torch.bfloat16 and new.is_contiguous()
    assert new.tolist() == [[0, 2, 4], [1, 3, 5]] and left.sum() == 0
    assert assign(left, torch.ones(2, 3, requires_grad=True)).is_leaf
    for wrong in (np.ones((3, 2)), np.ones(6), np.ones((1, 2, 3))):
        with pytest.raises(ValueError, match=r"\(2, 3\)"):
            assign(left, wrong)


@pytest.mark.parametrize("change", [{"n_heads": 2}, {"context_length": 8}, {"qkv_bias": False}, {"n_layers": 1}])
def test_a_configuration_that_contradicts_the_weights_is_refused(change, hugging_face, monkeypatch):
    monkeypatch.setenv("LLM_COURSE_WEIGHTS", str(hugging_face[0]))
    (key,) = change
    with pytest.raises(ValueError, match=f"{key} is {CFG[key]} there, {change[key]} here"):
        gpt_generate.main({**CFG, **change}, "Bosun barked", "mini", "cpu")


# ---- sizes, places, routes --------------------------------------------------------------------------------------------

def test_published_sizes_and_addresses():
    counts = {size: sum(int(np.prod(s)) for s in tensor_shapes(settings).values()) for size, settings in gpt_download.SIZES.items()}
    assert counts == {"124M": 124_439_808, "355M": 354_823_168, "774M": 774_030_080, "1558M": 1_557_611_200}
    assert gpt_download.route_files("124M", "tensorflow")[gpt_download.DATA_FILE]["size"] == 497_759_232
    assert gpt_download.route_files("355M", "tensorflow")[gpt_download.DATA_FILE]["size"] == 1_419_292_672
    assert gpt_download.addresses("1558M", "model.safetensors")[0].endswith("/openai-community/gpt2-xl/resolve/main/model.safetensors")
    first, backup = gpt_download.addresses("355M", "model.ckpt.index")
    assert first.startswith("https://") and first.endswith("/gpt-2/models/355M/model.ckpt.index") and backup.endswith(first[-30:])


def test_what_is_known_of_the_vocabulary_files_is_true():
    for name in ("encoder.json", "vocab.bpe"):
        known = gpt_download.route_files("124M", "tensorflow")[name]
        assert download.file_problem(gpt2_data_folder() / name, known["size"], {"sha256": known["sha256"]}) is None


@pytest.mark.parametrize("size", ["", "125M", "gpt2-small", "gpt2-huge (9B)", "124m", "../124M"])
def test_an_unknown_size_is_refused(size):
    with pytest.raises(ValueError, match="unknown model size"):
        download_and_load_gpt2(size, "gpt2")


def test_size_keys_with_parentheses_are_understood():
    assert [gpt_download.size_name(key) for key in ("gpt2-small (124M)", "gpt2-mini (mini)", "355M")] == ["124M", "mini", "355M"]


def test_safetensors_route_downloads_once_and_then_works_offline(hugging_face, tiny_sizes, tmp_path):
    tiny_sizes.files["model.safetensors"] = (hugging_face[0] / "model.safetensors").read_bytes()
    settings, params = download_and_load_gpt2("gpt2-small (124M)", tmp_path, source="safetensors")
    assert settings == TINY and tiny_sizes.requests == [("/hf/gpt2/resolve/main/model.safetensors", None)]
    again = download_and_load_gpt2("124M", tmp_path, offline=True)
    assert len(tiny_sizes.requests) == 1 and same_tree(params, again[1])
    gpt = GPTModel(CFG).eval()
    load_weights_into_gpt(gpt, params)
    assert_same_logits(gpt, hugging_face[1])


def test_when_the_checkpoint_is_not_to_be_had_safetensors_take_its_place(hugging_face, tiny_sizes, tmp_path):
    tiny_sizes.files["model.safetensors"] = (hugging_face[0] / "model.safetensors").read_bytes()
    assert download_and_load_gpt2("124M", tmp_path)[0] == TINY


def test_a_full_disk_is_not_answered_by_another_download(tiny_sizes, tmp_path):
    for name in ("checkpoint", "model.safetensors"):
        tiny_sizes.files[name] = CONTENT
        tiny_sizes.fault(name, length=10**17)
    with pytest.raises(DiskError, match="are to come"):
        download_and_load_gpt2("124M", tmp_path)
    assert len(tiny_sizes.requests) == 1


def test_when_nothing_is_to_be_had_every_address_is_named(tiny_sizes, tmp_path, capsys):
    with pytest.raises(SystemExit) as caught:
        gpt_download.main(["--model_size", "124M", "--models_dir", str(tmp_path), "--source", "safetensors"])
    err = capsys.readouterr().err
    assert caught.value.code == 2 and err.count("\n") == 1 and "/hf/gpt2/resolve/main/model.safetensors: HTTP 404" in err
    with pytest.raises(DownloadError, match="HTTP 404"):
        download_and_load_gpt2("124M", tmp_path)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(("content", "fault"), [(b"rubbish" * 99, "damaged"), (b"", "empty")])
def test_downloaded_rubbish_does_not_stay(content, fault, tiny_sizes, tmp_path):
    tiny_sizes.files["model.safetensors"] = content
    with pytest.raises((ValueError, DownloadError), match=fault):
        download_and_load_gpt2("124M", tmp_path, source="safetensors")
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_verify_only_asks_nobody_and_sees_a_changed_byte(hugging_face, tiny_sizes, tmp_path, capsys):
    def call(*more):
        return gpt_download.main(["--model_size", "124M", "--models_dir", str(tmp_path), "--source", "safetensors", *more])

    def refused():
        with pytest.raises(SystemExit) as caught:
            call("--verify_only")
        err = capsys.readouterr().err
        return caught.value.code == 2 and err.count("\n") == 1 and err

    assert "model.safetensors: missing" in refused()
    tiny_sizes.files["model.safetensors"] = (hugging_face[0] / "model.safetensors").read_bytes()
    assert call() == 0 and call("--verify_only") == 0
    assert "607,164 parameters" in capsys.readouterr().out
    path = tmp_path / "124M" / "model.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-7] ^= 1
    path.write_bytes(whole)
    assert "sha256 differs" in refused() and len(tiny_sizes.requests) == 1


def test_mini_is_found_by_variable_by_walking_up_and_beside_the_others(hugging_face, tmp_path, monkeypatch):
    folder = hugging_face[0]
    inside = tmp_path / "course" / gpt_download.MINI
    inside.parent.mkdir(parents=True)
    script = tmp_path / "course" / "ch06" / "01" / "gpt_download.py"
    monkeypatch.setattr(gpt_download, "__file__", str(script))
    monkeypatch.delenv("LLM_COURSE_WEIGHTS", raising=False)
    with pytest.raises(ValueError, match="gpt2-mini is not on this machine .*set LLM_COURSE_WEIGHTS"):
        download_and_load_gpt2("mini", tmp_path)
    inside.symlink_to(folder, target_is_directory=True)
    assert gpt_download.find_mini(tmp_path) == inside
    for named in (folder, folder.parent):
        monkeypatch.setenv("LLM_COURSE_WEIGHTS", str(named))
        assert gpt_download.find_mini(tmp_path) == folder
    monkeypatch.setenv("LLM_COURSE_WEIGHTS", str(tmp_path / "nowhere"))
    assert gpt_download.find_mini(tmp_path) == inside
    inside.unlink()
    with pytest.raises(ValueError, match="nowhere"):
        gpt_download.find_mini(tmp_path)
    for place in (script.parent, script.parents[1]):  # in a folder that was copied alone, and beside it
        place.mkdir(parents=True, exist_ok=True)
        (place / "gpt2-mini").symlink_to(folder, target_is_directory=True)
        assert gpt_download.find_mini(tmp_path) == place / "gpt2-mini"
        (place / "gpt2-mini").unlink()
    (tmp_path / "mini").symlink_to(folder, target_is_directory=True)
    assert download_and_load_gpt2("mini", tmp_path)[0] == TINY


@pytest.mark.parametrize(("text", "needed"), [("{", "be read"), ("[]", "be read"), ('{"n_embd": "12"}', "n_embd"), (None, "be read")])
def test_settings_that_are_none_are_one_line(text, needed, tmp_path):
    path = tmp_path / "config.json"
    if text is not None:
        path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=needed) as caught:
        gpt_download.read_settings(path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_the_generator_writes_with_mini_and_names_what_is_missing(hugging_face, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LLM_COURSE_WEIGHTS", str(hugging_face[0]))
    text = gpt_generate.main({}, "Amos Brill", "mini", "cpu", max_new_tokens=4)
    assert text.startswith("Amos Brill") and capsys.readouterr().out == text + "\n"
    assert gpt_generate.command_line(["--prompt", "Amos Brill", "--device", "cpu", "--max_new_tokens", "4"]) == 0
    assert capsys.readouterr().out == text + "\n"
    calls = [["--model_size", "124M", "--offline"], ["--model_size", "7B"], ["--prompt", "tide " * 30], ["--prompt", ""]]
    for call, needed in zip(calls, ["model.safetensors: missing", "unknown model size", "context_length 24", "empty"]):
        with pytest.raises(SystemExit) as caught:
            gpt_generate.command_line([*call, "--models_dir", str(tmp_path), "--device", "cpu"])
        err = capsys.readouterr().err
        assert caught.value.code == 2 and err.count("\n") == 1 and needed in err


# ---- OpenAI's format ------------------------------------------------------------------------------------------------

def test_without_tensorflow_the_other_route_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorflow", None)
    with pytest.raises(ValueError, match="pip install tensorflow, or use --source safetensors"):
        load_gpt2_params_from_tf_ckpt("model.ckpt", TINY)


def write_checkpoint(tf, prefix, arrays):
    """Save arrays under OpenAI's names, matrices with the leading 1 of a convolution."""
    named = {f"model/{name}": array[None] if name.endswith("/w") else array for name, array in arrays.items()}
    tf.raw_ops.SaveV2(prefix=str(prefix), tensor_names=list(named), shape_and_slices=[""] * len(named), tensors=list(named.values()))


@pytest.mark.slow
def test_a_tensorflow_checkpoint_is_downloaded_and_gives_the_same_tree(hugging_face, flat, tiny_sizes, tmp_path, monkeypatch):
    tf = pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    arrays = {gpt_download.our_name(name): array for name, array in flat.items() if name != "lm_head.weight"}
    published = tmp_path / "published"
    published.mkdir()
    write_checkpoint(tf, published / "model.ckpt", arrays)
    tiny_sizes.files |= {path.name: path.read_bytes() for path in published.iterdir()}
    tiny_sizes.files |= {name: (gpt2_data_folder() / name).read_bytes() for name in ("encoder.json", "vocab.bpe")}
    tiny_sizes.files |= {"hparams.json": json.dumps(TINY).encode(), "checkpoint": b"x" * 77, "model.ckpt.meta": b"graph"}
    tiny_sizes.fault(gpt_download.DATA_FILE, drop=[1_000_000])
    settings, params = download_and_load_gpt2("124M", tmp_path, source="tensorflow")
    assert settings == TINY and same_tree(params, load_gpt2_params_from_safetensors(hugging_face[0] / "model.safetensors", TINY))
    folder = tmp_path / "124M"
    assert sorted(path.name for path in folder.iterdir()) == sorted([*gpt_download.TF_FILES, "SHA256SUMS"])
    asked = len(tiny_sizes.requests)
    assert asked == 8 and same_tree(download_and_load_gpt2("124M", tmp_path)[1], params) and len(tiny_sizes.requests) == asked
    gpt = GPTModel(CFG).eval()
    load_weights_into_gpt(gpt, params)
    assert_same_logits(gpt, hugging_face[1])

    with pytest.raises(ValueError, match=r"wte has shape \(50257, 12\), the settings ask for \(50257, 16\)"):
        load_gpt2_params_from_tf_ckpt(folder / "model.ckpt", {**TINY, "n_embd": 16})
    with pytest.raises(ValueError, match="lacks the tensor h2/"):
        load_gpt2_params_from_tf_ckpt(folder / "model.ckpt", {**TINY, "n_layer": 3})
    data = folder / gpt_download.DATA_FILE
    whole, index = data.read_bytes(), (folder / "model.ckpt.index").read_bytes()
    for file, content in ((data, whole[:-4000]), (data, whole[:-9] + b"x" + whole[-8:]), (folder / "model.ckpt.index", index[:300])):
        data.write_bytes(whole)
        file.write_bytes(content)
        with pytest.raises(ValueError, match="damaged") as caught:
            load_gpt2_params_from_tf_ckpt(folder / "model.ckpt", TINY)
        assert "\n" not in str(caught.value)
    data.write_bytes(whole[:-4000])
    with pytest.raises(ValueError, match="bytes instead of"):
        download_and_load_gpt2("124M", tmp_path, offline=True)
    with pytest.raises(ValueError, match="damaged"):
        load_gpt2_params_from_tf_ckpt(tmp_path / "no-such.ckpt", TINY)
