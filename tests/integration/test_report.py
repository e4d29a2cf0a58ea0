"""A page about a run with probes and answers before and after: the commands of docs/report.md, as they stand there."""

import json
from pathlib import Path

import jax
import pytest
import yaml
from typer.testing import CliRunner

from jaxalign.cli import app
from jaxalign.config import parse_config
from jaxalign.run.report import read_document
from jaxalign.run.train import train
from tests import tiny
from tests.integration.runs import prompts_by_category

JUDGE = {"kind": "function", "function": "tests.integration.judging:by_letters"}
ANSWERS = {"max_new_tokens": 4, "temperature": 1.0, "num_samples": 2}


@pytest.fixture(scope="module")
def workdir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose margins follow probes, with answers before and after training."""
    folder = tmp_path_factory.mktemp("report")
    prompts = folder / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(row) + "\n" for row in prompts_by_category(tiny.CATEGORIES)))
    asked = {"prompts": {"path": str(prompts)}, "answers": ANSWERS, "judge": JUDGE}
    adaptive = {"signal": "probe", "probe": asked | {"every_steps": 2}, "margin": {"target_rate": 0.3}}
    settings = tiny.run_settings(folder, loss={"name": "cat_dpo", "beta": 0.1}, adaptive=adaptive)
    train(parse_config(settings, "test"), folder / "run", jax.devices()[:1])
    for name in ("mine", "before-mine"):
        (folder / f"{name}.yaml").write_text(yaml.safe_dump(asked))
    run = folder / "run"
    before = ["evaluate", settings["model"]["path"], "--safety", str(folder / "before-mine.yaml")]
    command([*before, "--output", str(run / "evaluation")])
    baseline = run / "evaluation" / "answers-before-mine.json"
    command(["evaluate", str(run), "--safety", str(folder / "mine.yaml"), "--baseline", str(baseline)])
    return run


def command(arguments: list[str]) -> None:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output


def test_commands_of_the_docs_give_a_page_with_before_and_after(workdir: Path, tmp_path: Path) -> None:
    command(["report", str(workdir), "--output", str(tmp_path / "report.html")])
    assert "Judged answers at probes" in (tmp_path / "report.html").read_text()
    (part,) = read_document([workdir]).parts
    sections = {section.key: section for section in part.sections}
    rates = sections["answers"].figures[0].table.records()
    assert {row["category"] for row in rates} == {*tiny.CATEGORIES, "all prompts"}
    assert all(row["before"] is not None and row["after"] is not None for row in rates)


def test_page_has_every_probe_of_the_run(workdir: Path) -> None:
    (part,) = read_document([workdir]).parts
    (section,) = [section for section in part.sections if section.key == "probes"]
    by_category, each = section.figures
    assert {row["category"] for row in by_category.table.records()} == set(tiny.CATEGORIES)
    assert [row["step"] for row in each.table.records()] == [2, 4]
    (course,) = [section for section in part.sections if section.key == "course"]
    assert "older log" not in course.figures[0].caption
    assert "safety-mine.json" in [path.name for path in (workdir / "evaluation").iterdir()]
