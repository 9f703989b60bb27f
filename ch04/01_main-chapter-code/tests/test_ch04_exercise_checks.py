"""The checks accept right answers, written in two ways, and reject wrong ones with a question.

Run it:  pytest ch04/01_main-chapter-code/tests/test_ch04_exercise_checks.py
"""

import contextlib
import io
import re
import subprocess
import sys
from pathlib import Path

import exercise_checks
import gpt
import nbformat
import pytest
from previous_chapters import CHECKS, CheckFailed

FOLDER = Path(exercise_checks.__file__).parent
NOTEBOOK = nbformat.read(FOLDER / "exercise-solutions.ipynb", as_version=4)


def imports_of_the_notebook() -> str:
    return next(cell.source for cell in NOTEBOOK.cells if cell.cell_type == "code").replace("use_course_style()", "")


def solution(number: str) -> str:
    """The first `solution` cell below the heading of the exercise (4.2b lies in 4.2's cell)."""
    inside = False
    for cell in NOTEBOOK.cells:
        heading = re.match(r"## Exercise (\d\.\d)", cell.source)
        inside = heading[1] == number[:3] if heading else inside
        if inside and cell.cell_type == "code" and "solution" in cell.metadata.get("tags", []):
            return cell.source
    raise LookupError(number)


def run_check(number: str, source: str) -> None:
    check, answer = CHECKS[number]
    names, config = {"__name__": "answer"}, dict(gpt.GPT_CONFIG_124M)
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            exec(compile(imports_of_the_notebook() + "\n" + source, f"answer {number}", "exec"), names)
            check(names[answer])
    finally:
        gpt.GPT_CONFIG_124M.update(config)  # one of the wrong answers changes it


SECOND = {  # an independent answer to each exercise
    "4.1": """
def count_block(emb_dim, qkv_bias):
    def linear(n, m, bias=True):
        return n * m + (m if bias else 0)
    attention = sum(linear(emb_dim, emb_dim, qkv_bias) for _ in "qkv") + linear(emb_dim, emb_dim)
    return attention, linear(emb_dim, 4 * emb_dim) + linear(4 * emb_dim, emb_dim)
""",
    "4.2": """
def get_config(base_config, model_name="gpt2-small"):
    known = {"gpt2-small": (768, 12, 12), "gpt2-medium": (1024, 24, 16), "gpt2-large": (1280, 36, 20), "gpt2-xl": (1600, 48, 25)}
    if model_name not in known:
        raise ValueError(model_name)
    config = dict(base_config)
    config["emb_dim"], config["n_layers"], config["n_heads"] = known[model_name]
    return config
""",
    "4.2b": """
def calculate_size(model):
    sizes = {id(p): p.numel() for p in model.parameters()}
    total = sum(sizes.values())
    without_head = {id(p): p.numel() for name, p in model.named_parameters() if name != "out_head.weight"}
    return total, sum(without_head.values()), total / 2**18
""",
    "4.3": """
class Block(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        d = cfg["emb_dim"]
        self.att = MultiHeadAttention(d, d, cfg["context_length"], cfg["drop_rate_attn"], cfg["n_heads"], cfg["qkv_bias"])
        self.ff, self.norm1, self.norm2 = FeedForward(cfg), LayerNorm(d), LayerNorm(d)
        self.rate = cfg["drop_rate_shortcut"]
    def forward(self, x):
        x = x + F.dropout(self.att(self.norm1(x)), self.rate, self.training)
        return x + F.dropout(self.ff(self.norm2(x)), self.rate, self.training)
class ThreeRateGPTModel(nn.Module):
    def __init__(self, cfg):
        super().__init__()
        d = cfg["emb_dim"]
        self.tok_emb, self.pos_emb = nn.Embedding(cfg["vocab_size"], d), nn.Embedding(cfg["context_length"], d)
        self.trf_blocks = nn.ModuleList([Block(cfg) for _ in range(cfg["n_layers"])])
        self.final_norm, self.out_head = LayerNorm(d), nn.Linear(d, cfg["vocab_size"], bias=False)
        self.rate = cfg["drop_rate_emb"]
    def forward(self, ids):
        x = F.dropout(self.tok_emb(ids) + self.pos_emb.weight[: ids.shape[1]], self.rate, self.training)
        for block in self.trf_blocks:
            x = block(x)
        return self.out_head(self.final_norm(x))
""",
    "4.4": """
class RMSNorm(nn.Module):
    def __init__(self, emb_dim, eps=1e-5):
        super().__init__()
        self.scale, self.eps = nn.Parameter(torch.ones(emb_dim)), eps
    def forward(self, x):
        return torch.einsum("...d,d,...->...d", x, self.scale, torch.rsqrt((x * x).sum(-1) / x.shape[-1] + self.eps))
""",
    "4.5": """
def generate_until(model, idx, max_new_tokens, context_size, stop_id):
    rows, prompt = idx.tolist(), idx.shape[1]
    for _ in range(max_new_tokens):
        if all(stop_id in row[prompt:] for row in rows):
            break
        with torch.inference_mode():
            likeliest = model(torch.tensor([row[-context_size:] for row in rows])).argmax(dim=-1)[:, -1].tolist()
        rows = [row + [stop_id if stop_id in row[prompt:] else new] for row, new in zip(rows, likeliest)]
    return torch.tensor(rows)
""",
    "4.6": """
def forward_flops(cfg, b, num_tokens):
    def product(n, k, m):
        return 2 * n * k * m
    d, tokens, head_dim, total = cfg["emb_dim"], b * num_tokens, cfg["emb_dim"] // cfg["n_heads"], 0
    for _ in range(cfg["n_layers"]):
        total += 4 * product(tokens, d, d) + product(tokens, d, 4 * d) + product(tokens, 4 * d, d)
        scores, mixed = product(num_tokens, head_dim, num_tokens), product(num_tokens, num_tokens, head_dim)
        total += b * cfg["n_heads"] * (scores + mixed)
    return total + product(tokens, d, cfg["vocab_size"])
""",
    "4.7": """
def gpt_forward(w, ids, n_heads):
    d = w["tok_emb.weight"].shape[1]
    def ln(name, x):
        return F.layer_norm(x, (d,), w[name + ".scale"], w[name + ".shift"])
    def lin(name, x):
        return F.linear(x, w[name + ".weight"], w.get(name + ".bias"))
    x = F.embedding(ids, w["tok_emb.weight"]) + w["pos_emb.weight"][: ids.shape[1]]
    for i in range(1 + max(int(name.split(".")[1]) for name in w if name.startswith("trf_blocks."))):
        p = f"trf_blocks.{i}."
        n = ln(p + "norm1", x)
        q, k, v = (lin(p + "att.W_" + part, n).unflatten(-1, (n_heads, -1)).transpose(1, 2) for part in ("query", "key", "value"))
        x = x + lin(p + "att.out_proj", F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        x = x + lin(p + "ff.layers.2", F.gelu(lin(p + "ff.layers.0", ln(p + "norm2", x)), approximate="tanh"))
    return F.linear(ln("final_norm", x), w["out_head.weight"])
""",
    "4.8": """
def stream_gradients(weights, x, use_shortcut):
    slopes, gradients = [], [torch.ones(len(x))]
    for weight in weights:
        bent = torch.tanh(weight @ x)
        slopes.append(torch.diag(1 - bent**2) @ weight + use_shortcut * torch.eye(len(x)))
        x = bent + use_shortcut * x
    for slope in slopes[::-1]:
        gradients.append(gradients[-1] @ slope)
    return gradients[::-1]
""",
}

MUTANTS = {  # one edit each of the worked solution: (what stands there, what replaces it)
    "4.1": [
        ("4 * emb_dim**2 + emb_dim", "4 * emb_dim**2"),
        ("4 * emb_dim**2", "3 * emb_dim**2"),
        ("(3 * emb_dim if qkv_bias else 0)", "0"),
        ("5 * emb_dim", "2 * emb_dim"),
        ("8 * emb_dim**2", "4 * emb_dim**2"),
        ("return attention, feed_forward", "return feed_forward, attention"),
        ("4 * emb_dim**2", "emb_dim**2 / 0.25"),
        ("3 * emb_dim if qkv_bias", "3 * emb_dim if not qkv_bias"),
        ("return attention, feed_forward", "return 2_360_064, 4_722_432"),
        ("attention = 4", "attention = sum(p.numel() for p in FeedForward({'emb_dim': emb_dim}).parameters()) * 0 + 4"),
    ],
    "4.2": [
        ("if model_name not in MODEL_SIZES:", "if False:"),
        ("return {**base_config, **MODEL_SIZES[model_name]}", "base_config.update(MODEL_SIZES[model_name])\n    return base_config"),
        ("{**base_config, **MODEL_SIZES[model_name]}", "{**MODEL_SIZES[model_name], **base_config}"),
        ("{**base_config, **MODEL_SIZES[model_name]}", "{**GPT_CONFIG_124M, **MODEL_SIZES[model_name]}"),
        ('model_name="gpt2-small"', 'model_name="gpt2-medium"'),
        ("raise ValueError(", "return str("),
        (
            "return {**base_config, **MODEL_SIZES[model_name]}",
            "return {k: MODEL_SIZES[model_name].setdefault(k, v) for k, v in base_config.items()}",
        ),
        ("if model_name not in MODEL_SIZES:", 'if model_name == "gpt2-huge":'),
    ],
    "4.2b": [
        ("total if shared else total - ", "total - "),
        ("model.out_head.weight.numel()", "model.pos_emb.weight.numel()"),
        ("2**20", "10**6"),
        ("total * 4", "total * 2"),
        ("total if shared else total - model.out_head.weight.numel()", "total"),
        ("return total, tied, total * 4", "return total, tied, tied * 4"),
        ("for name in MODEL_SIZES:\n", "whole = calculate_size\ncalculate_size = lambda model: whole(model)[:2]\nfor name in []:\n"),
        ("model.out_head.weight.numel()", "38_597_376"),
        (
            "model.out_head.weight is model.tok_emb.weight",
            "not model.out_head.weight.is_meta and torch.equal(*2 * [model.out_head.weight])",
        ),
        ("shared = model.out_head.weight is model.tok_emb.weight", "model.out_head.weight = model.tok_emb.weight\n    shared = False"),
    ],
    "4.3": [
        ('cfg["drop_rate_attn"]', 'cfg["drop_rate_shortcut"]'),
        ('self.drop_emb.p = cfg["drop_rate_emb"]', "pass"),
        ('block.att.dropout.p = cfg["drop_rate_attn"]', 'block.drop_shortcut.p = cfg["drop_rate_attn"]'),
        ("for block in self.trf_blocks:", "for block in self.trf_blocks[:1]:"),
        ('cfg["drop_rate_shortcut"]', 'cfg["drop_rate_emb"]'),
        ('self.drop_emb.p = cfg["drop_rate_emb"]', 'self.drop_emb.p = cfg["drop_rate_emb"] / 2'),
        (
            'super().__init__({**cfg, "drop_rate": cfg["drop_rate_shortcut"]})',
            'cfg["drop_rate"] = cfg["drop_rate_shortcut"]\n        super().__init__(cfg)',
        ),
        ('block.att.dropout.p = cfg["drop_rate_attn"]', 'block.att.dropout.p = float(cfg["drop_rate_attn"] > 0)'),
        ('self.drop_emb.p = cfg["drop_rate_emb"]', 'self.drop_emb.p = cfg["drop_rate_emb"] // 1'),
        ('block.att.dropout.p = cfg["drop_rate_attn"]', 'block.att.dropout.forward = lambda x, p=cfg["drop_rate_attn"]: F.dropout(x, p)'),
    ],
    "4.4": [
        ("x.pow(2).mean(dim=-1, keepdim=True)", "x.var(dim=-1, keepdim=True, unbiased=False)"),
        (".mean(dim=-1", ".sum(dim=-1"),
        ("torch.sqrt(mean_square + self.eps)", "(torch.sqrt(mean_square) + self.eps)"),
        ("mean_square + self.eps", "mean_square"),
        ("self.scale * x", "x"),
        ("dim=-1", "dim=1"),
        ("nn.Parameter(torch.ones(emb_dim))", "torch.ones(emb_dim)"),
        ("mean_square + self.eps", "mean_square + 1e-5"),
        ("return self.scale * x / torch.sqrt(mean_square + self.eps)", "return self.scale * x.div_(torch.sqrt(mean_square + self.eps))"),
        ("x.pow(2).mean(dim=-1, keepdim=True)", "sum(part.pow(2) for part in x.split(1, dim=-1)) / x.shape[-1]"),
        ("self.scale * x / torch.sqrt(mean_square + self.eps)", "F.rms_norm(x, self.scale.shape, self.scale, self.eps)"),
        ("self.scale * x", "self.scale.detach() * x"),
    ],
    "4.5": [
        ("if ended.all():", "if ended.any():"),
        ("if ended.all():", "if False:"),
        (".masked_fill(ended, stop_id)", ""),
        ("return idx", "return idx[:, :-1]"),
        ("idx[:, -context_size:]", "idx"),
        ("idx[:, -context_size:]", "idx[:, :context_size]"),
        ("torch.zeros(idx.shape[0], dtype=torch.bool, device=idx.device)", "(idx == stop_id).any(dim=1)"),
        ("with torch.no_grad():", "if True:"),
        ("model(idx[:, -context_size:])", "torch.cat([model(row[None, -context_size:]) for row in idx])"),
        ("range(max_new_tokens)", "range(max(1, max_new_tokens))"),
    ],
    "4.6": [
        ("linear = 2 * (", "linear = 1 * ("),
        ("4 * d**2 + 8", "3 * d**2 + 8"),
        ("2 * num_tokens * d + 2 * num_tokens * d", "2 * num_tokens * d"),
        ("2 * num_tokens * d + 2 * num_tokens * d", "(num_tokens + 1) * d + (num_tokens + 1) * d"),
        ("(linear + attention) + head", "(linear + attention)"),
        ("(linear + attention) + head", "(linear + attention + head)"),
        ("return b * num_tokens", "return num_tokens"),
        ("return b * num_tokens", 'return b * cfg["context_length"]'),
        ('cfg["n_layers"] * (linear', "3 * (linear"),
        ("return b * num_tokens", "return 1.0 * b * num_tokens"),
        ("return b", "GPTModel({**cfg, 'n_layers': 0})\n    return b"),
    ],
    "4.7": [
        ("unbiased=False", "unbiased=True"),
        ("/ (emb_dim // n_heads) ** 0.5", ""),
        ("(emb_dim // n_heads) ** 0.5", "emb_dim ** 0.5"),
        ('.masked_fill(later, float("-inf"))', ""),
        ("hidden = 0.5 * hidden * (1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))", "hidden = hidden.relu()"),
        ("(1 + torch.tanh(math.sqrt(2 / math.pi) * (hidden + 0.044715 * hidden**3)))", "(1 + torch.erf(hidden / 2**0.5))"),
        ('x = x + linear(weights, f"{block}.ff.layers.2", hidden)', 'x = linear(weights, f"{block}.ff.layers.2", hidden)'),
        ('norm(weights, f"{block}.norm1", x), n_heads)', "x, n_heads)"),
        ('norm(weights, "final_norm", x)', "x"),
        ("diagonal=1", "diagonal=0"),
        ('weights.get(f"{name}.bias", 0.0)', "0.0"),
        (".transpose(1, 2).reshape(b", ".reshape(b"),
        ('float("-inf")', "-100.0"),
        ('scores.masked_fill(later, float("-inf")).softmax(dim=-1)', "F.normalize(scores.exp().masked_fill(later, 0.0), p=1, dim=-1)"),
        ("var + 1e-5", "var + 1e-8"),
        ('weights["tok_emb.weight"][token_ids]', 'weights.pop("tok_emb.weight")[token_ids]'),
        ("hidden = 0.5 * hidden", "hidden = nn.Identity()(hidden)\n        hidden = 0.5 * hidden"),
        ('while f"trf_blocks.{layer}.norm1.scale" in weights:', "while layer < 1:"),
    ],
    "4.8": [
        ("weight.T @", "weight @"),
        ("(1 - bent * bent)", "(1 - bent)"),
        ("gradients[0] + through if use_shortcut else through", "through"),
        ("gradients[0] + through if use_shortcut else through", "gradients[0] + through"),
        ("[torch.ones_like(x)]", "[stream]"),
        ("reversed(bends)", "bends"),
        ("return gradients", "return gradients[0]"),
        ("return gradients", "return gradients[::-1]"),
        ("stream = stream + bent", "stream = stream.add_(bent)"),
    ],
}


@pytest.mark.parametrize("number", CHECKS)
def test_worked_solution_passes(number):
    run_check(number, solution(number))


@pytest.mark.parametrize("number", CHECKS)
def test_second_answer_passes(number):
    run_check(number, SECOND[number])


@pytest.mark.parametrize(("number", "edit"), [(number, i) for number, edits in MUTANTS.items() for i in range(len(edits))])
def test_mutant_is_rejected_with_a_question(number, edit):
    old, new = MUTANTS[number][edit]
    source = solution(number)
    assert old in source, "the mutant no longer fits the solution"
    with pytest.raises(CheckFailed, match=r"\?") as failure:
        run_check(number, source.replace(old, new))
    assert "expected:" in str(failure.value) and "got:" in str(failure.value)


def test_autograd_is_of_no_use_in_exercise_4_8():
    source = """
def stream_gradients(weights, x, use_shortcut):
    stream = [x.requires_grad_()]
    for weight in weights:
        stream.append(torch.tanh(weight @ stream[-1]) + use_shortcut * stream[-1])
    return list(torch.autograd.grad(stream[-1].sum(), stream))
"""
    with pytest.raises(CheckFailed, match="your code stopped"):
        run_check("4.8", source)


@pytest.mark.parametrize(
    ("answer", "question"),
    [
        ("4 * emb_dim**2, 8 * emb_dim**2 + 5 * emb_dim", "output projection have a bias"),
        ("4 * emb_dim**2 + emb_dim, 8 * emb_dim**2 + 5 * emb_dim", "qkv_bias=True add"),
        ("4 * emb_dim**2 + emb_dim + 3 * emb_dim * qkv_bias, 8 * emb_dim**2", "both layers have a bias"),
    ],
)
def test_a_known_slip_brings_its_own_question(answer, question):
    with pytest.raises(CheckFailed, match=question):
        run_check("4.1", f"def count_block(emb_dim, qkv_bias):\n    return {answer}")


def test_every_exercise_has_mutants():
    assert MUTANTS.keys() == SECOND.keys() == CHECKS.keys()
    assert all(len(edits) >= 4 for edits in MUTANTS.values())


def test_command_line_of_the_checks(tmp_path):
    answer = tmp_path / "answer.py"
    script = FOLDER / "exercise_checks.py"
    answer.write_text(SECOND["4.1"], encoding="utf-8")
    good = subprocess.run([sys.executable, str(script), "4.1", str(answer)], capture_output=True, text=True)
    assert good.returncode == 0 and "passed" in good.stdout
    with pytest.raises(SystemExit) as stopped:
        exercise_checks.run_checks(["4.9", str(answer)])
    assert stopped.value.code == 2
