"""Checks for the exercises of appendix E; call them in the notebook, or: python exercise_checks.py E.1 my_answer.py

Each check runs your answer on several inputs and compares with something computed in another way: a table put together by hand,
two paths whose outputs are added in double precision, a model whose adapters are counted. A failed check ends with a question.
"""

import copy
import sys
import time
import warnings

import torch
import torch.nn as nn
from lora import LinearWithLoRA, LoRALayer, replace_linear_with_lora
from previous_chapters import GPTModel, exercise, expect_close, expect_equal, expect_something, fail, forbid, passed, run_checks

TINY = {"vocab_size": 50, "context_length": 12, "emb_dim": 24, "n_heads": 3, "n_layers": 2, "drop_rate": 0.0, "qkv_bias": True}


def tiny_classifier(seed: int, **changes) -> GPTModel:
    """A GPT with two outputs, none of its weights frozen."""
    torch.manual_seed(seed)
    model = GPTModel({**TINY, **changes})
    model.out_head = nn.Linear(TINY["emb_dim"], 2)
    return model


class Recorder:
    """A training and a measurement that write down when they were called and what they were given."""

    def __init__(self):
        self.trained, self.moments, self.seconds_free = [], [], []
        self.since = time.perf_counter()

    def train(self, model: nn.Module) -> None:
        """Move every B, and note the adapters' ranks and alphas and what would have been trained."""
        started = time.perf_counter()
        adapters = [module for module in model.modules() if isinstance(module, LoRALayer)]
        others = [name for name, parameter in model.named_parameters() if parameter.requires_grad and ".lora." not in name]
        self.trained.append({"model": model, "adapters": len(adapters), "others": others})
        self.trained[-1] |= {"rank": {layer.rank for layer in adapters}, "alpha": {float(layer.alpha) for layer in adapters}}
        with torch.no_grad():
            for layer in adapters:
                layer.B += 0.1
        time.sleep(0.02)
        self.moments.append((started, time.perf_counter()))

    def measure(self, model: nn.Module) -> float:
        """Some number that depends on every adapter; slow, so that counting it as training time shows."""
        self.seconds_free.append(time.perf_counter() - self.since)  # all the time a right answer can have seen
        with torch.no_grad():
            value = model.eval()(torch.arange(10)[None]).abs().sum().item()
        time.sleep(0.2)
        self.since = time.perf_counter()
        return value


def expected_measure(base: GPTModel, rank: int, alpha: float) -> float:
    """What Recorder.measure says of a copy of the base with these adapters, after Recorder.train."""
    model = copy.deepcopy(base)
    torch.manual_seed(123)
    replace_linear_with_lora(model, rank, alpha)
    Recorder().train(model)
    return Recorder().measure(model)


@exercise("E.1", answer="rank_table")
def check_E_1(rank_table):
    """Against adapters put together here; training and measuring are stand-ins that take notes."""
    for keep, ranks in (("scale", [4, 1, 2]), ("alpha", [2, 8]), ("scale", [2])):
        base = tiny_classifier(len(ranks))
        base.out_head = nn.Linear(TINY["emb_dim"], 8)  # wide enough for every rank here
        before, recorder = copy.deepcopy(base.state_dict()), Recorder()
        trainable = [name for name, parameter in base.named_parameters() if parameter.requires_grad]
        rows = rank_table(base, list(ranks), keep, recorder.train, recorder.measure)
        where = f"ranks {ranks}, keep={keep!r}"
        expect_something(rows, where)
        now = base.state_dict()
        question = "does every row start from a copy of the base, so that the next one finds it as it was?"
        expect_equal(list(before), list(now), f"names in the base afterwards, {where}", question)
        expect_equal(0.0, max((before[name] - now[name]).abs().max().item() for name in now), f"change of the base, {where}", question)
        still = [name for name, parameter in base.named_parameters() if parameter.requires_grad]
        expect_equal(trainable, still, f"what requires gradients in the base afterwards, {where}", question)
        expect_equal(len(ranks), len(recorder.trained), f"models trained, {where}", "is each rank trained once?")
        expect_equal(ranks, [row["rank"] for row in rows], f"ranks of the rows, {where}", "is there one row for each rank, in order?")
        for row, rank, note, (start, end), free in zip(rows, ranks, recorder.trained, recorder.moments, recorder.seconds_free):
            check_row(row, rank, float(rank if keep == "scale" else 16), note, f"{where}, row of rank {rank}")
            question = "is the model seeded with 123 right before its adapters are made, and measured after the training?"
            measured = expected_measure(base, rank, rank if keep == "scale" else 16)
            expect_close(measured, row["accuracy"], f"accuracy, {where}, rank {rank}", question, atol=1e-3)
            if not end - start - 1e-3 <= row["seconds"] <= free:
                question = "does your clock start right before `train` and stop right after it?"
                fail(f"{end - start:.3f}, the time of train alone", f"{row['seconds']:.3f}", f"seconds, {where}, rank {rank}", question)
    passed("E.1")


def check_row(row: dict, rank: int, alpha: float, note: dict, where: str) -> None:
    """Compare one row with what the training was given."""
    expect_equal([], note["others"], f"what is trained besides adapters, {where}", "what must be done before the layers are replaced?")
    expect_equal(6 * TINY["n_layers"] + 1, note["adapters"], f"adapters of the trained model, {where}", "do all linear layers have one?")
    expect_equal({rank}, note["rank"], f"rank of the trained adapters, {where}", "does the rank of the row reach the layers?")
    question = "which alpha keeps alpha / rank at 1, and which one keeps alpha at 16?"
    expect_equal({alpha}, note["alpha"], f"alpha of the trained adapters, {where}", question)
    expect_close(alpha, float(row["alpha"]), f"alpha in the table, {where}", question)
    count = sum(p.numel() for name, p in note["model"].named_parameters() if ".lora." in name)
    expect_equal(count, row["trained"], f"numbers trained, {where}", "is it the number of single numbers that require a gradient?")


@exercise("E.2", answer="fold")
def check_E_2(fold):
    """Against the sum of two paths, in double precision."""
    forbid(fold, {"merge_lora", "unmerge_lora", "delta_weight", "LinearWithLoRAMerged"}, "can you say it with A, B, and @ alone?")
    cases = [(6, 4, 2, 2), (4, 6, 3, 12), (5, 5, 1, 8), (8, 8, 4, 1), (3, 7, 2, 0.5)]
    for number, (d_in, d_out, rank, alpha) in enumerate(cases):
        torch.manual_seed(number)
        linear, x = nn.Linear(d_in, d_out, bias=number % 2 == 0), torch.randn(3, d_in)  # x: (3, d_in)
        linear.requires_grad_(number < 3)
        A, B = nn.Parameter(torch.randn(d_in, rank)), nn.Parameter(torch.randn(rank, d_out))  # (d_in, rank), (rank, d_out)
        weight, kept = linear.weight, [tensor.detach().clone() for tensor in (linear.weight, A, B)]
        bias = linear.bias.detach().clone() if linear.bias is not None else None
        with torch.no_grad():
            beside = linear.double()(x.double()) + alpha / rank * x.double() @ A.double() @ B.double()  # (3, d_out)
            linear.float()
        where = f"layer {d_in} -> {d_out}, rank {rank}, alpha {alpha}"
        fold(linear, A, B, alpha)
        question = "is the product scaled by alpha / rank, and laid out as nn.Linear stores its weight?"
        expect_close(beside.float(), linear(x), f"outputs of the folded layer, {where}", question)
        check_untouched(linear, weight, bias, (A, B), kept, number < 3, where)
        fold(linear, A, B, alpha, sign=-1)
        question = "does sign=-1 take out just what sign=1 has put in?"
        expect_close(kept[0], linear.weight, f"weight after folding in and out, {where}", question)
        check_untouched(linear, weight, bias, (A, B), kept, number < 3, where)
    rounded = nn.Linear(6, 6).to(torch.bfloat16)
    A, B = torch.randn(6, 2).to(torch.bfloat16), torch.randn(2, 6).to(torch.bfloat16)  # (6, 2), (2, 6)
    fold(rounded, A, B, 2)
    expect_equal(torch.bfloat16, rounded.weight.dtype, "data type of a folded bfloat16 layer", "what does the weight become?")
    passed("E.2")


def check_untouched(linear, weight, bias, matrices, kept, trainable, where) -> None:
    """Fail if anything but the values of the weight has changed."""
    if linear.weight is not weight:
        question = "other parts, or an optimizer, may hold this parameter: can you change its values in place?"
        fail("the same parameter", "a new one", f"weight, {where}", question)
    expect_equal(trainable, weight.requires_grad, f"requires_grad of the weight, {where}", "did you change what is trained?")
    if weight.grad_fn is not None or not weight.is_leaf:
        fail("no history of gradients", str(weight.grad_fn), f"weight, {where}", "which context keeps PyTorch from recording?")
    if bias is not None:
        expect_equal(bias, linear.bias.detach(), f"bias, {where}", "is an adapter without bias any business of the layer's bias?")
    for name, now, then in zip("AB", matrices, kept[1:]):
        expect_equal(then, now.detach(), f"{name}, {where}", "did you change an adapter in place? It is needed to take it out again")


@exercise("E.3", answer="count_adapters")
def check_E_3(count_adapters):
    """Against counting the adapters of models on the meta device."""
    forbidden = {"GPTModel", "LoRALayer", "LinearWithLoRA", "replace_linear_with_lora", "numel", "parameters", "count_trained"}
    forbid(count_adapters, forbidden, "which widths does the configuration tell you without building anything?")
    targets = {"attention": ("att",), "feed-forward": ("ff",), "head": ("out_head",), "all": None}
    sizes = [{}, {"emb_dim": 36, "n_layers": 3}, {"n_layers": 1, "n_heads": 2}, {"vocab_size": 900, "qkv_bias": False}]
    for changes in sizes:
        for place in targets:
            for rank, num_classes in ((4, 2), (1, 5), (3, 4)):
                cfg = {**TINY, **changes}
                with torch.device("meta"), warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # rank 4 is more than two outputs need
                    model = GPTModel(cfg)
                    model.out_head = nn.Linear(cfg["emb_dim"], num_classes)
                    model.requires_grad_(False)
                    replace_linear_with_lora(model, rank, rank, targets=targets[place])
                assert any(isinstance(module, LinearWithLoRA) for module in model.modules())
                expected = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
                where = f"{place!r}, rank {rank}, {num_classes} classes, emb_dim {cfg['emb_dim']}, {cfg['n_layers']} blocks"
                question = "what are inputs + outputs of each layer at this place, and how many such layers are there?"
                expect_equal(expected, count_adapters(cfg, place, rank, num_classes), where, question)
    try:
        got = count_adapters(TINY, "embedding", 2, 2)
    except ValueError:
        passed("E.3")
        return
    fail("ValueError", repr(got), "a place that does not exist", "would a typing error be counted as something?")


if __name__ == "__main__":
    sys.exit(run_checks())
