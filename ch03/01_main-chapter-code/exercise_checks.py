"""Checks for the exercises of chapter 3. In the notebook: `check_3_4(causal_softmax)`; from a shell, for an own file:

    python exercise_checks.py 3.4 my_answer.py

Each check compares an answer with a judge that computes in another way, mostly PyTorch's fused attention.
"""

import sys
from collections.abc import Callable

import torch
import torch.nn.functional as F
from multihead_attention import MultiHeadAttention, MultiHeadAttentionWrapper, SelfAttention_v1, SelfAttention_v2
from previous_chapters import exercise, expect_close, expect_equal, fail, passed, run_checks
from torch.utils.flop_counter import FlopCounterMode

NO_ERROR = "no error"


def picture(make_tables: Callable[[], dict[str, torch.Tensor]], alt: str, same_colors: bool = False) -> None:
    """Draw tables side by side as heat maps, title above each; one line instead if there is nothing that can be drawn."""
    import matplotlib.pyplot as plt
    from previous_chapters import show, use_course_style

    try:
        tables = {title: torch.as_tensor(table).detach().float() for title, table in make_tables().items()}
    except NotImplementedError:
        print("nothing to draw yet: solve the exercise, then run this cell again")
        return
    except Exception as error:
        print(f"no picture: {type(error).__name__}: {str(error).partition(chr(10))[0]} (the check below says more)")
        return
    if wrong := [f"{title}: {tuple(table.shape)}" for title, table in tables.items() if table.dim() != 2]:
        print(f"no picture: a table has two dimensions, but these shapes came back: {', '.join(wrong)}")
        return
    use_course_style()
    top = max(float(table.max()) for table in tables.values()) if same_colors else None
    fig, axes = plt.subplots(1, len(tables), figsize=(2.6 * len(tables), 2.6), squeeze=False)
    for ax, (title, table) in zip(axes[0], tables.items()):
        ax.imshow(table, vmin=0, vmax=top)
        ax.set(title=title, xlabel="column", ylabel="row", xticks=range(table.shape[1]), yticks=range(table.shape[0]))
    show(fig, alt=alt)


def error_of(call: Callable) -> str:
    """Name of the error type that a call raises, or NO_ERROR."""
    try:
        call()
    except NotImplementedError:
        raise
    except Exception as error:
        return type(error).__name__
    return NO_ERROR


@exercise("3.1", answer="copy_weights")
def check_3_1(copy_weights: Callable) -> None:
    """Both classes give what the fused function gives with version 2's weights, and own their numbers."""
    for d_in, d_out in ((3, 3), (5, 2)):
        torch.manual_seed(123)
        v1, v2, x = SelfAttention_v1(d_in, d_out), SelfAttention_v2(d_in, d_out), torch.randn(4, d_in)
        expected = F.scaled_dot_product_attention(v2.W_query(x), v2.W_key(x), v2.W_value(x))  # (4, d_out)
        copy_weights(v2, v1)
        where = f"output of v1 for d_in {d_in}, d_out {d_out}"
        question = "nn.Linear stores (d_out, d_in): did you copy all three, each to its own name, transposed?"
        expect_close(expected, v1(x), where, question)
        expect_close(expected, v2(x), where.replace("v1", "v2"), "which of the two is the source, and must it change?")
        with torch.no_grad():
            for linear in (v2.W_query, v2.W_key, v2.W_value):
                linear.weight.add_(1.0)
        question = "do both layers hold the same memory? What would training one do to the other?"
        expect_close(expected, v1(x), "output of v1 after v2 was changed", question)
    passed("3.1")


@exercise("3.2", answer="wrapper_of_width")
def check_3_2(wrapper_of_width: Callable) -> None:
    """Shape, values head by head, and outputs inside the range of the values."""
    for d_in, total_width, num_heads in ((5, 12, 3), (4, 6, 1)):
        torch.manual_seed(123)
        wrapper = wrapper_of_width(d_in, total_width, num_heads, context_length=6)
        where = f"d_in {d_in}, total_width {total_width}, num_heads {num_heads}"
        if not isinstance(wrapper, MultiHeadAttentionWrapper):
            fail("a MultiHeadAttentionWrapper", type(wrapper).__name__, where, "did you return the module itself?")
        expect_equal(num_heads, len(wrapper.heads), f"number of heads, {where}", "which argument is which in the constructor?")
        has_bias = wrapper.heads[0].W_query.bias is not None
        expect_equal(False, has_bias, f"bias in the projections, {where}", "which option of the wrapper adds a bias?")
        x = torch.randn(2, 6, d_in)  # (2, 6, d_in)
        out = wrapper(x)
        question = "is d_out the width of one head or of all heads together?"
        expect_equal((2, 6, total_width), tuple(out.shape), f"shape of the output, {where}", question)
        values = torch.cat([head.W_value(x) for head in wrapper.heads], dim=-1)  # (2, 6, total_width)
        fused = [F.scaled_dot_product_attention(h.W_query(x), h.W_key(x), h.W_value(x), is_causal=True) for h in wrapper.heads]
        expect_close(torch.cat(fused, dim=-1), out, f"output, {where}", "is dropout 0, so that no weight is lost?")
        inside = bool(((out <= values.amax(1, keepdim=True) + 1e-5) & (out >= values.amin(1, keepdim=True) - 1e-5)).all())
        expect_equal(True, inside, "every output between minimum and maximum of its values", "is this a weighted average?")
    question = "10 columns cannot be shared evenly by 4 heads: what should a caller be told?"
    expect_equal("ValueError", error_of(lambda: wrapper_of_width(4, 10, 4, 6)), "total_width 10, num_heads 4", question)
    passed("3.2")


@exercise("3.3", answer="gpt2_attention")
def check_3_3(gpt2_attention: Callable) -> None:
    """Sizes of GPT-2 small, and the parameter counts published for it."""
    for qkv_bias, count in ((False, 2_360_064), (True, 2_362_368)):
        attention, counted = gpt2_attention(qkv_bias)
        where = f"qkv_bias={qkv_bias}"
        if not isinstance(attention, MultiHeadAttention):
            fail("a MultiHeadAttention", type(attention).__name__, where, "did you return (module, count)?")
        sizes = {"d_in": attention.W_query.in_features, "d_out": attention.d_out, "num_heads": attention.num_heads}
        sizes |= {"context_length": attention.mask.shape[0], "bias": attention.W_query.bias is not None}
        expected = {"d_in": 768, "d_out": 768, "num_heads": 12, "context_length": 1024, "bias": qkv_bias}
        expect_equal(expected, sizes, where, "which number is the number of heads, and which the width of one?")
        expect_equal(0.0, attention.dropout.p, f"dropout, {where}", "which argument is the dropout?")
        expect_equal((1, 4, 768), tuple(attention(torch.zeros(1, 4, 768)).shape), where, "is it the module as the chapter has it?")
        question = "three matrices, one output projection: which of them have a bias, and is the mask a parameter?"
        expect_equal(count, counted, f"count, {where}", question)
    passed("3.3")


@exercise("3.4", answer="causal_softmax")
def check_3_4(causal_softmax: Callable) -> None:
    """The fused function with identity keys and values returns its weights: the judge."""
    torch.manual_seed(123)
    one, batch = torch.tensor([[0.0, 3.0], [1.0, 2.0]]), torch.randn(3, 2, 5, 5)
    steep = torch.tensor([[0.0, 300.0, 0.0], [0.0, 1.0, 300.0], [0.0, 1.0, 2.0]])
    questions = {
        "two tokens": "row 0 may see column 0 alone: did the mask act before softmax, over the right dimension, diagonal kept?",
        "shape (3, 2, 5, 5)": "is the softmax over the last dimension, whatever stands in front?",
        "scores of 300 in the future": "what is e to the power of -300 in 32 bits, and what do you then divide by?",
    }
    for (where, question), scores in zip(questions.items(), (one, batch, steep)):
        eye, given = torch.eye(scores.shape[-1]).expand(scores.shape), scores.clone()
        expected = F.scaled_dot_product_attention(scores, eye, eye, is_causal=True, scale=1.0)
        expect_close(expected, causal_softmax(given), where, question)
        expect_equal(scores, given, f"the scores passed in, {where}", "masked_fill_ or masked_fill: which one changes its input?")
    passed("3.4")


@exercise("3.5", answer="padding_mask")
def check_3_5(padding_mask: Callable) -> None:
    """Every entry against the specification's three nested loops."""
    for lengths, num_tokens in (([2, 3], 3), ([1, 4, 6], 6)):
        mask = padding_mask(torch.tensor(lengths), num_tokens)
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            fail("a boolean tensor", getattr(mask, "dtype", type(mask).__name__), f"lengths {lengths}", "what does masked_fill want?")
        expected = torch.tensor([[[j > i or j >= n for j in range(num_tokens)] for i in range(num_tokens)] for n in lengths])
        question = "keys are columns: is a pair blocked if the KEY is padding or lies in the future? Is True blocked?"
        expect_equal(expected, mask, f"mask for lengths {lengths}, num_tokens {num_tokens}", question)
    passed("3.5")


@exercise("3.6", answer="window_mask")
def check_3_6(window_mask: Callable) -> None:
    """Every entry against two nested loops, for windows from 1 to more than all tokens."""
    for num_tokens, window in ((4, 1), (6, 3), (3, 10)):
        mask = window_mask(num_tokens, window)
        if not isinstance(mask, torch.Tensor) or mask.dtype != torch.bool:
            fail("a boolean tensor", getattr(mask, "dtype", type(mask).__name__), f"window {window}", "what does masked_fill want?")
        allowed = [[range(max(0, i - window + 1), i + 1).count(j) for j in range(num_tokens)] for i in range(num_tokens)]
        question = "how many keys may the last query see, and does the window count the query itself? Is True blocked?"
        expect_equal(torch.tensor(allowed) == 0, mask, f"num_tokens {num_tokens}, window {window}", question)
    passed("3.6")


@exercise("3.7", answer="split_heads")
def check_3_7(split_heads: Callable) -> None:
    """Head h is a slice of columns: the judge cuts slices."""
    for shape, num_heads in (((1, 3, 4), 2), ((2, 5, 12), 3)):
        x = torch.arange(torch.Size(shape).numel()).view(shape)  # (b, num_tokens, d_out)
        expected = torch.stack(x.chunk(num_heads, dim=-1), dim=1)
        question = "whose numbers are in head 0: those of all tokens, or all numbers of the first tokens?"
        expect_equal(expected, split_heads(x, num_heads), f"numbers 0, 1, 2, ... in shape {shape}, {num_heads} heads", question)
    question = "5 columns cannot be shared evenly by 2 heads: what should a caller be told?"
    expect_equal("ValueError", error_of(lambda: split_heads(torch.zeros(1, 3, 5), 2)), "5 columns, 2 heads", question)
    passed("3.7")


@exercise("3.8", answer="attention_flops")
def check_3_8(attention_flops: Callable) -> None:
    """PyTorch counts the operations of a real forward pass."""
    for b, num_tokens, d_in, d_out, num_heads in ((1, 2, 3, 4, 2), (2, 16, 8, 12, 3), (1, 32, 8, 8, 1)):
        attention = MultiHeadAttention(d_in, d_out, num_tokens, 0.0, num_heads)
        with FlopCounterMode(display=False) as counter:
            attention(torch.zeros(b, num_tokens, d_in))
        where = f"b={b}, num_tokens={num_tokens}, d_in={d_in}, d_out={d_out}, num_heads={num_heads}"
        question = "an (n, m) by (m, k) product costs 2nmk: all six products? How wide is one head, as a whole number (//)?"
        expect_equal(counter.get_total_flops(), attention_flops(b, num_tokens, d_in, d_out, num_heads), where, question)
    passed("3.8")


@exercise("3.9", answer="streaming_attention")
def check_3_9(streaming_attention: Callable) -> None:
    """One pass over pairs that can be read once, also where scores are huge, must give what the fused function gives."""
    questions = {
        0.1: "what must happen to the old total AND the old sum when a larger score arrives? Is the root of d there?",
        50.0: "which exponent is the largest that you ever compute, and is it 0?",
        -50.0: "if all scores are far below zero, what is your running maximum at the start?",
    }
    for factor, question in questions.items():
        torch.manual_seed(123)
        query, keys, values = torch.ones(9), factor * (1 + torch.rand(20, 9)), torch.randn(20, 3)
        expected = F.scaled_dot_product_attention(query[None], keys, values)[0]  # (3)
        got = streaming_attention(query, ((key, value) for key, value in zip(keys, values)))
        expect_close(expected, got, f"20 pairs, keys between {factor} and {2 * factor}", question, atol=1e-4)
    passed("3.9")


if __name__ == "__main__":
    sys.exit(run_checks())
