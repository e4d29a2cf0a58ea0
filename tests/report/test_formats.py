"""The other formats, and the command."""

import json
import logging
import re
import struct
import sys
from pathlib import Path

import pytest
from markupsafe import escape
from typer.testing import CliRunner

from jaxalign.cli import app
from jaxalign.config import ConfigError
from jaxalign.errors import MissingPackageError
from jaxalign.report.html import to_html
from jaxalign.run.report import read_document, report
from tests.report import runs

NAMES = (runs.MARKUP, "a|b_c*d")


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    workdir = runs.write_run(tmp_path_factory.mktemp("formats") / "run", names=NAMES)
    runs.write_safety(workdir, names=NAMES)
    return workdir


def test_markdown_has_every_table_and_no_markup_of_the_data(marked, tmp_path):
    report([marked], tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text()
    assert text.startswith("# run\n\n**run**")
    assert "<script>" not in text
    assert "a\\|b\\_c\\*d" in text
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) > 15
    for table in tables:
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_json_has_the_values_of_every_figure(marked, full_run, tmp_path):
    report([full_run, marked], tmp_path / "report.json")
    content = json.loads((tmp_path / "report.json").read_text())
    assert [run["name"] for run in content["runs"]] == ["cat-b-dpo", "run"]
    assert content["comparison"]["figures"][0]["title"] == "At a glance"
    sections = {section["key"]: section for section in content["runs"][0]["sections"]}
    assert len(sections["margins"]["figures"][0]["rows"]) == 19
    assert content["runs"][0]["verdict"]["state"] == "warn"


def test_json_says_all_that_the_page_says(marked, full_run):
    document = read_document([full_run, marked])
    page, content = to_html(document), document.as_dict()
    assert content["comparison"]["lead"].startswith("Differences are against the first run")
    for part, run in zip(document.parts, content["runs"], strict=True):
        assert run["subtitle"] == part.subtitle
        assert str(escape(run["subtitle"])) in page
        assert [section["lead"] for section in run["sections"]] == [section.lead for section in part.sections]


def test_picture_is_as_wide_as_it_says(marked, tmp_path):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'jaxalign[report]'")
    report([marked], tmp_path / "report.png")
    content = (tmp_path / "report.png").read_bytes()
    assert content.startswith(b"\x89PNG")
    width, height = struct.unpack(">II", content[16:24])
    assert width == 2 * (760 + 64)
    assert height > 4 * width


def test_characters_without_a_font_are_named_once(tmp_path, caplog, recwarn):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install 'jaxalign[report]'")
    names = ("\U00013000\U00013001", "\U00013001")  # hieroglyphs
    workdir = runs.write_run(tmp_path / "run", names=names)
    with caplog.at_level(logging.WARNING):
        report([workdir], tmp_path / "report.png")
    (line,) = [record.getMessage() for record in caplog.records if "no font for" in record.getMessage()]
    assert line.startswith(
        "no font for \U00013000 \U00013001: the picture shows boxes instead; install a font"
    )
    assert not [warning for warning in recwarn if "Glyph" in str(warning.message)]


def test_picture_without_matplotlib_says_what_to_install(marked, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.backends.backend_agg", None)
    with pytest.raises(MissingPackageError, match=r"needs matplotlib: pip install 'jaxalign\[report\]'"):
        report([marked], tmp_path / "report.png")
    assert not (tmp_path / "report.png").exists()


def test_format_that_is_given_wins_over_the_suffix(marked, tmp_path):
    report([marked], tmp_path / "report.txt", "md")
    assert (tmp_path / "report.txt").read_text().startswith("# run")


def test_output_that_is_a_folder_is_refused_before_anything_is_read(tmp_path):
    (tmp_path / "dir.html").mkdir()
    with pytest.raises(ConfigError, match=r"dir\.html is a folder, expected a file to write; name one in it"):
        report([tmp_path / "no run"], tmp_path / "dir.html")


def test_page_that_cannot_be_put_in_place_leaves_nothing_behind(marked, tmp_path, monkeypatch):
    def refuse(self, target):
        raise PermissionError(f"no place for {target}")

    monkeypatch.setattr(Path, "replace", refuse)
    with pytest.raises(PermissionError):
        report([marked], tmp_path / "report.html")
    assert list(tmp_path.iterdir()) == []


def test_command_writes_the_page(marked, full_run, tmp_path):
    output = tmp_path / "new" / "report.html"
    result = CliRunner().invoke(app, ["report", str(marked), str(full_run), "--output", str(output)])
    assert result.exit_code == 0, result.output
    assert f"report written to {output}" in result.output.replace("\n", "")
    assert "Runs side by side" in output.read_text()
    assert [path.name for path in output.parent.iterdir()] == ["report.html"]
