"""links.py finds dead links, dead anchors and bad images in markdown and notebooks, and stays quiet about good ones."""

import subprocess

import links
import pytest
from nbformat import write as write_notebook
from nbformat.v4 import new_markdown_cell, new_notebook


@pytest.fixture
def site(tmp_path):
    """A small repository: a picture, a page with headings, a notebook with a heading."""
    (tmp_path / "map.svg").write_text("<svg/>", encoding="utf-8")
    page = '# One `code` title\n\n## Same\n\n## Same\n\n```\n# not a heading\n```\n\n<a id="fixed"></a>\n'
    (tmp_path / "page.md").write_text(page, encoding="utf-8")
    write_notebook(new_notebook(cells=[new_markdown_cell("## 2.1 Big Title")]), tmp_path / "book.ipynb")
    return tmp_path


def found(site, text):
    path = site / "README.md"
    path.write_text(text, encoding="utf-8")
    return links.findings(path.resolve(), site.resolve())


@pytest.mark.parametrize(
    "text",
    [
        "[a](page.md)",
        "[a](page.md#one-code-title)",
        "[a](page.md#same-1)",
        "[a](page.md#fixed)",
        "[a](book.ipynb#2.1-Big-Title)",
        "[a](book.ipynb#21-big-title)",
        "# Here\n[a](#here)",
        "![a map](map.svg)",
        "[![a map](map.svg)](page.md)",
        "[a](https://example.org/x)",
        "[a]\n\n[a]: page.md",
        "`[a](gone.md)`",
        "```\n[a](gone.md)\n![](gone.png)\n```",
        "<!-- [a](gone.md) -->",
        '[a](page.md "title")',
        '<img src="map.svg" alt="a map">',
        "[mail](mailto:x@example.org)",
    ],
)
def test_good_references_pass(site, text):
    assert found(site, text) == []


@pytest.mark.parametrize(
    "text, wanted",
    [
        ("text\n\n[a](gone.md)", "line 3: dead link: gone.md"),
        ("[a](page.md#gone)", "dead anchor"),
        ("[a](page.md#not-a-heading)", "dead anchor"),
        ("[a](page.md#same-2)", "dead anchor"),
        ("[a](#gone)", "dead anchor"),
        ("![](map.svg)", "without alt text"),
        ("![a](gone.svg)", "not found"),
        ("![a](https://example.org/a.png)", "another host"),
        ("[![a](gone.svg)](page.md)", "not found"),
        ("[x](/page.md)", "absolute link"),
        ('<img src="map.svg">', "without alt text"),
        ('<img src="http://example.org/a.png" alt="a">', "another host"),
        ('<a href="gone.md">x</a>', "dead link"),
        ("[a]\n\n[a]: gone.md", "dead link"),
        ("[a](../outside)", "out of the repository"),
        ("[a](book.ipynb#gone)", "dead anchor"),
        ("![a](data:image/png;base64,AAAA)", "embedded"),
    ],
)
def test_bad_references_are_found_with_place_and_remedy(site, text, wanted):
    lines = found(site, text)
    assert len(lines) == 1 and wanted in lines[0] and ";" in lines[0]


def test_a_link_out_of_the_repository_is_found(site):
    (site / "inner").mkdir()
    (site / "inner" / "README.md").write_text("[a](../page.md)", encoding="utf-8")
    assert "out of the repository" in links.findings((site / "inner" / "README.md").resolve(), (site / "inner").resolve())[0]


def test_notebook_findings_name_the_cell_and_the_command_ends_with_1(site, capsys):
    cells = [new_markdown_cell("fine"), new_markdown_cell("[a](gone.md)", id="a1b2c3")]
    write_notebook(new_notebook(cells=cells), site / "bad.ipynb")
    assert links.main(["--root", str(site), str(site)]) == 1
    assert capsys.readouterr().out.splitlines() == ["bad.ipynb: cell a1b2c3: dead link: gone.md; correct the path or add the file to git"]
    assert links.main(["--root", str(site), str(site / "page.md")]) == 0


def test_environments_and_hidden_folders_are_skipped_but_not_github(site, capsys):
    for folder in (".venv", ".github"):
        (site / folder).mkdir()
        (site / folder / "x.md").write_text("[a](gone.md)", encoding="utf-8")
    assert links.main(["--root", str(site), str(site)]) == 1
    assert capsys.readouterr().out.count("dead link") == 1


def test_missing_path_is_one_line_and_status_2(tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        links.main([str(tmp_path / "gone.md")])
    assert stopped.value.code == 2 and len(capsys.readouterr().err.splitlines()) == 1


def test_a_target_that_git_ignores_is_dead_for_everybody_else(site):
    subprocess.run(["git", "init", "-q"], cwd=site, check=True)
    (site / ".gitignore").write_text("*.log\n", encoding="utf-8")
    (site / "run.log").write_text("", encoding="utf-8")
    subprocess.run(["git", "add", "."], cwd=site, check=True)
    assert "dead link" in found(site, "[a](run.log)")[0]
    assert found(site, "[a](page.md)") == []


def test_a_learners_own_page_is_left_alone_unless_it_is_named(site, capsys):
    subprocess.run(["git", "init", "-q"], cwd=site, check=True)
    subprocess.run(["git", "add", "."], cwd=site, check=True)
    (site / "notes.md").write_text("[a](gone.md)", encoding="utf-8")
    assert links.main(["--root", str(site)]) == 0
    assert links.main(["--root", str(site), str(site / "notes.md")]) == 1
