"""The environment check finds what is wrong, names it, and survives it.

python -m pytest setup/02_installing-python-libraries
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import python_environment_check as check

REPO = Path(__file__).resolve().parents[3]


def report(capsys, *arguments):
    """Run main; return (exit status, printed text)."""
    status = check.main(list(arguments))
    return status, capsys.readouterr().out


def fake_distribution(folder, name, version, monkeypatch):
    """Metadata of a package, as pip would have written it, in a folder that Python searches."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n", encoding="utf-8")
    monkeypatch.setattr(sys, "path", [str(folder), *sys.path])


def fake_data_package(folder, module, name, content, monkeypatch):
    """A package with one data file and code that must not run; return its row for check_data."""
    (folder / module / "data").mkdir(parents=True)
    (folder / module / "__init__.py").write_text("raise RuntimeError('imported')\n", encoding="utf-8")
    (folder / module / "data" / name).write_bytes(content)
    monkeypatch.syspath_prepend(str(folder))
    return (module, module, f"data/{name}", len(content), hashlib.sha256(content).hexdigest())


def test_versions_of_installed_and_absent_packages():
    found = check.get_packages(["NumPy", "no-such-package-here"])
    assert found["no-such-package-here"] == "0.0"
    assert found["numpy"] == check.metadata.version("numpy")
    assert set(found) == {"numpy", "no-such-package-here"}


@pytest.mark.parametrize("spelling", ["scikit-learn", "scikit_learn", "Scikit.Learn"])
def test_spelling_of_a_name_does_not_matter(spelling):
    assert check.installed_version(spelling) == check.metadata.version("scikit-learn") != "0.0"


def test_tensorflow_cpu_satisfies_tensorflow(tmp_path, monkeypatch):
    check.packaging_parts()  # imported before the search path is emptied
    monkeypatch.setattr(sys, "path", [])
    assert not check.package_finding("tensorflow", ">=2.16").ok
    fake_distribution(tmp_path, "tensorflow-cpu", "2.18.0", monkeypatch)
    assert check.package_finding("tensorflow", ">=2.16").ok


@pytest.mark.parametrize(
    "version, specifier, ok",
    [
        ("2.13.0+cu130", "==2.13.0", True),
        ("2.13.0+cpu", ">=2.2.2", True),
        ("2.15.0.dev20261101", ">=2.2.2", True),
        ("2.10.0", ">=2.2.2", True),
        ("2.1.9", ">=2.2.2", False),
        ("nonsense", ">=2.2.2", False),
    ],
)
def test_local_and_two_digit_versions_compare_as_numbers(tmp_path, monkeypatch, version, specifier, ok):
    fake_distribution(tmp_path, "course-fake", version, monkeypatch)
    finding = check.package_finding("course-fake", specifier)
    assert finding.ok is ok
    assert version in finding.text


def test_every_failing_line_is_followed_by_a_fix(capsys):
    findings = check.check_packages({"numpy": ">=1.0", "scipy": ">=999", "no-such-package-here": ">=1", "tqdm >>= 4": check.UNREADABLE})
    lines = capsys.readouterr().out.splitlines()
    assert [f.ok for f in findings] == [True, False, False, False]
    assert lines[0] == f"[OK] numpy: {check.metadata.version('numpy')}, required: >=1.0"
    failing = [number for number, line in enumerate(lines) if line.startswith("[FAIL]")]
    assert len(failing) == 3
    assert all("FIX: " in lines[number + 1] for number in failing)
    assert 'python -m pip install "scipy>=999"' in lines[2]
    assert "not installed" in lines[3]


def test_requirements_honor_markers_and_includes_and_skip_comments(tmp_path):
    (tmp_path / "more.txt").write_text("tqdm\n", encoding="utf-8")
    file = tmp_path / "requirements.txt"
    file.write_text(
        "# comment\nnumpy>=1.26  # why\nabsent-one>=1 ; python_version < '3.0'\nabsent-two ; sys_platform == 'nowhere'\n"
        "pandas[excel]>=2 ; python_version >= '3.10'\n--extra-index-url https://example.org\n-r more.txt\n"
        "scipy==1.0 \\\n    --hash=sha256:00\n",
        encoding="utf-8",
    )
    assert check.get_requirements_dict(file) == {"numpy": ">=1.26", "pandas": ">=2", "tqdm": "", "scipy": "==1.0"}


def test_a_line_that_cannot_be_read_fails_by_name(tmp_path, capsys):
    file = tmp_path / "requirements.txt"
    file.write_text("numpy>=1.0\nscipy >>= one\n", encoding="utf-8")
    status, text = report(capsys, "--requirements", str(file))
    assert status == 1
    assert "[FAIL] scipy >>= one: this requirement line cannot be read" in text
    assert "[OK] numpy" in text


def test_a_missing_requirements_file_is_one_failure_and_the_rest_runs(tmp_path, capsys):
    status, text = report(capsys, "--requirements", str(tmp_path / "none.txt"))
    assert status == 1
    assert "[FAIL] requirements.txt: not found" in text
    assert "[OK] Python" in text and "matrix product" in text


def test_requirements_are_searched_at_the_root_then_beside_the_script(tmp_path, monkeypatch):
    assert check.find_requirements() == REPO / "requirements.txt"
    root, here = tmp_path / "root", tmp_path / "here"
    root.mkdir(), here.mkdir()
    monkeypatch.setattr(check, "ROOT", root)
    monkeypatch.setattr(check, "HERE", here)
    with pytest.raises(FileNotFoundError):
        check.find_requirements()
    (here / "requirements.txt").write_text("numpy\n", encoding="utf-8")
    assert check.find_requirements() == here / "requirements.txt"
    (root / "requirements.txt").write_text("scipy\n", encoding="utf-8")
    assert check.get_requirements_dict() == {"scipy": ""}


@pytest.mark.parametrize("version, ok", [((3, 9, 18), False), ((3, 10, 0), True), ((3, 13, 5), True), ((3, 14, 0), False)])
def test_python_range(version, ok):
    assert check.check_python(version)[0].ok is ok


def test_data_file_present_altered_shortened_absent(tmp_path, monkeypatch):
    row = fake_data_package(tmp_path, "course_fake_data", "words.txt", b"tide and clock\n", monkeypatch)
    assert check.check_data([row])[0].ok, "present; and the package's code did not run"
    file = tmp_path / "course_fake_data" / "data" / "words.txt"
    file.write_bytes(b"tide and clack\n")
    assert "sha256" in check.check_data([row])[0].text
    file.write_bytes(b"tide\n")
    assert "5 bytes instead of 15" in check.check_data([row])[0].text
    file.unlink()
    finding = check.check_data([row])[0]
    assert (finding.ok, finding.text) == (False, "not installed")
    assert "--require-hashes -r setup/data-packages.txt" in finding.fix


def test_data_of_a_package_that_is_not_installed_fails():
    assert not check.check_data([("no-such", "no_such_module_here", "a.txt", 1, "0")])[0].ok


def test_each_data_package_has_a_checked_file():
    text = (REPO / "setup/data-packages.txt").read_text(encoding="utf-8")
    pinned = {line.split("==")[0] for line in text.splitlines() if "==" in line and not line.startswith("#")}
    assert pinned == {row[0] for row in check.DATA_FILES}
    assert check.INSTALL_DATA in text


def test_the_optional_base_model_may_be_absent_but_not_incomplete(tmp_path, monkeypatch, capsys):
    pieces = (("tiny_gemma_part1", "data/tiny.part00"), ("tiny_gemma_part2", "data/tiny.part01"))
    finding = check.check_gemma(pieces, 8)[0]
    finding.show()
    assert finding.ok and capsys.readouterr().out == "[--] Gemma 3 270M (optional): not installed; to install it: make gemma\n"
    fake_data_package(tmp_path, "tiny_gemma_part1", "tiny.part00", b"GGUF", monkeypatch)
    finding = check.check_gemma(pieces, 8)[0]
    assert not finding.ok and "1 of 2 pieces, 4 bytes of 8" in finding.text and "data-packages-gemma.txt" in finding.fix
    fake_data_package(tmp_path, "tiny_gemma_part2", "tiny.part01", b"1234", monkeypatch)
    finding = check.check_gemma(pieces, 8)[0]
    assert finding.ok and not finding.absent and "installed" in finding.text
    (tmp_path / "tiny_gemma_part2" / "data" / "tiny.part01").write_bytes(b"123")
    assert not check.check_gemma(pieces, 8)[0].ok


def test_an_unexpected_error_does_not_stop_the_check(monkeypatch, capsys):
    import torch  # noqa: F401  (a first import that breaks on a missing version could not be repeated by the next test)

    def broken(*arguments):
        raise RuntimeError("out of order")

    monkeypatch.setattr(check, "check_disk", broken)
    monkeypatch.setattr(check.metadata, "version", broken)
    status, text = report(capsys)
    assert status == 1
    assert "[FAIL] disk: the check broke: RuntimeError: out of order" in text
    assert "Jupyter kernel" in text


def test_a_full_disk_fails():
    assert not check.check_disk(needed=10**18)[0].ok
    assert check.check_disk(needed=1)[0].ok


def test_a_kernel_of_another_interpreter_fails(tmp_path, monkeypatch):
    from jupyter_client import kernelspec

    class Other:
        argv = [str(tmp_path / "other" / "bin" / "python3"), "-m", "ipykernel_launcher"]

    monkeypatch.setattr(kernelspec.KernelSpecManager, "get_kernel_spec", lambda self, name: Other)
    assert not check.check_kernel()[0].ok
    Other.argv = [str(Path(sys.executable).with_name("python3")), "-m", "ipykernel_launcher"]
    assert check.check_kernel()[0].ok


def test_a_wrong_matrix_product_fails(monkeypatch):
    import torch

    monkeypatch.setattr(torch, "allclose", lambda *a, **k: False)
    assert [f.ok for f in check.check_device("cpu") if f.name == "matrix product"] == [False]


def test_absent_device_is_one_line_and_status_2(monkeypatch, capsys):
    monkeypatch.setattr(check, "available_devices", lambda: ["cpu"])
    assert check.main(["--device", "cuda"]) == 2
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1 and "available: cpu" in captured.err
    assert captured.out == ""


@pytest.mark.parametrize("arguments", [["--device", "tpu"], ["--nonsense"], ["--req", "x"]])
def test_bad_arguments_are_one_line_and_status_2(arguments, capsys):
    with pytest.raises(SystemExit) as stopped:
        check.main(arguments)
    assert stopped.value.code == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_json_holds_the_same_findings(tmp_path, capsys):
    file = tmp_path / "requirements.txt"
    file.write_text("numpy>=1.0\nscipy>=999\n", encoding="utf-8")
    status, text = report(capsys, "--json", "--requirements", str(file))
    content = json.loads(text)
    rows = {row["name"]: row for row in content["checks"]}
    assert status == 1 and content["ok"] is False
    assert rows["numpy"]["ok"] is True and rows["scipy"]["ok"] is False and rows["scipy"]["fix"]


def test_main_without_arguments_ignores_the_command_line_of_the_program(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["kernel", "-f", "connection.json"])
    status, text = report(capsys)
    assert status == ("[FAIL]" in text) and "[OK] Python" in text


def test_package_part_imports_none_of_the_packages(tmp_path):
    code = (
        f"import sys; sys.path.insert(0, {str(Path(check.__file__).parent)!r}); import python_environment_check as c\n"
        "c.check_packages(c.get_requirements_dict())\n"
        "print(sorted({'torch', 'numpy', 'tensorflow', 'pandas', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, encoding="utf-8")
    assert done.stdout.startswith("[OK] torch") and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_a_failing_check_ends_with_status_1(tmp_path):
    file = tmp_path / "requirements.txt"
    file.write_text("no-such-package-here\n", encoding="utf-8")
    done = subprocess.run([sys.executable, check.__file__, "--requirements", str(file)], capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 1 and "[FAIL] no-such-package-here" in done.stdout and "Traceback" not in done.stderr
