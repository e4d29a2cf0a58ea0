"""The page as text: what it says, that it needs nothing else, that text from data stays text."""

import json
import re
from html.parser import HTMLParser

import pytest

from jaxalign.data.schema import PKU_CATEGORIES
from jaxalign.evaluation.judges.refusal import RefusalJudge
from jaxalign.report.html import to_html
from jaxalign.report.sections import SECTIONS
from jaxalign.run.report import read_document
from tests.report import runs


class Elements(HTMLParser):
    """All elements with their attributes, and all text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.texts.append(data)

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.elements)


def page_of(*workdirs) -> str:
    return to_html(read_document(workdirs))


@pytest.fixture(scope="module")
def page(full_run):
    return page_of(full_run)


def test_page_loads_nothing(page, full_run, plain_run):
    for text in (page, page_of(full_run, plain_run)):
        found = Elements(text)
        assert not {tag for tag, _ in found.elements} & {"script", "iframe", "img", "object", "base", "form"}
        references = [
            a.get(key) for _, a in found.elements for key in ("src", "href", "xlink:href") if key in a
        ]
        assert references
        assert all(ref.startswith(("#", "data:,")) for ref in references)
        assert "@import" not in text
        assert not re.search(r"url\(|https?:", text)


def test_every_link_leads_to_a_section(page):
    found = Elements(page)
    ids = {attributes["id"] for _, attributes in found.elements if "id" in attributes}
    links = {a["href"][1:] for tag, a in found.elements if tag == "a"}
    assert len(links) == len(SECTIONS)
    assert links <= ids


def test_every_figure_has_its_table_and_a_drawing_for_both_widths(page):
    found = Elements(page)
    assert found.count("figure") == found.count("table") > 15
    drawings = [
        a["class"] for tag, a in found.elements if tag == "div" and "drawing" in (a.get("class") or "")
    ]
    assert drawings.count("drawing wide") == drawings.count("drawing narrow") == len(drawings) / 2
    assert all(a.get("aria-label") for tag, a in found.elements if tag == "svg")


def test_every_category_stands_in_every_figure_by_category(page):
    texts = " ".join(Elements(page).texts)
    for name in PKU_CATEGORIES:
        assert texts.count(name) >= 10


def test_verdict_comes_first_and_names_worst_category_gap_and_certificates(page):
    verdict = page[page.index('class="verdict') : page.index("<nav")]
    assert (
        "1 of 19 categories are not shown to keep their targets; 1 of 19 categories have too few prompts"
        in verdict
    )
    assert "17 of 19 met" in verdict
    assert PKU_CATEGORIES[0] in verdict
    assert "20 points" in verdict
    assert "judged by refusal words. Knows refusals by their words alone." in verdict


def test_run_without_answers_is_not_certified_and_says_what_it_rests_on(plain_run):
    page = page_of(plain_run)
    assert "Not certified: no generated answers were judged against targets." in page
    assert "held-out pairs, not on generated answers" in page
    assert "No generated answers were judged." in page


def test_no_category_is_called_worst_where_all_are_alike(tmp_path):
    workdir = runs.write_run(tmp_path / "run", names=("Violence", "Drugs"))
    after = json.loads((workdir / "evaluation" / "after.json").read_text())
    spread = {"violation_rate": {"worst_category": "Violence", "worst": 0.0, "gap": 0.0}}
    runs.write(workdir / "evaluation" / "after.json", after | {"spread": spread})
    (worst, *_) = read_document([workdir]).parts[0].verdict.facts
    assert (worst.value, worst.note) == ("all are alike", "0 % of held-out pairs unsafe, target 5 %")


def test_run_without_held_out_pairs_is_judged_by_its_training_pairs(tmp_path):
    workdir = runs.write_run(tmp_path / "run", names=("Violence", "Drugs"))
    (workdir / "evaluation" / "after.json").unlink()
    verdict = read_document([workdir]).parts[0].verdict
    assert verdict.basis.startswith("Measured on training pairs alone")
    assert verdict.facts[0].value in ("Violence", "Drugs")
    assert "of training pairs unsafe, target 5 %" in verdict.facts[0].note


def test_section_says_what_is_missing(bare_run, plain_run):
    page = page_of(bare_run)
    assert page.count('class="missing"') == len(SECTIONS) - 1  # settings are always there
    assert "metrics.jsonl holds no step." in page
    assert "No step was logged. Not certified" in page
    assert "The loss dpo reads no mutual information." in page_of(plain_run)


def test_old_run_without_single_pairs_says_so(tmp_path):
    workdir = runs.write_run(tmp_path / "old")
    (workdir / "evaluation" / "after_pairs.jsonl").unlink()
    (workdir / "evaluation" / "mutual_information.json").unlink()
    page = page_of(workdir)
    assert "The run left no single held-out pairs (evaluation/after_pairs.jsonl)" in page
    assert "The run left no mutual information of single pairs" in page
    assert "Accuracy, ordered by gain" in page


def test_run_under_way_says_how_far_it_is(tmp_path):
    workdir = runs.write_run(tmp_path / "run", num_steps=40)
    (workdir / "finished.json").unlink()
    path = workdir / "metrics.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:25]) + '{"step": 26, "lo')
    assert "Not finished: step 25 of 40." in page_of(workdir)


def test_text_from_data_stays_text(tmp_path):
    names = (runs.MARKUP, '"><img src=x onerror=alert(1)>', "{{ 7 * 7 }}", "a/b")
    workdir = runs.write_run(tmp_path / "<b>run<b>", names=names, system_prompt="</table><script>1</script>")
    runs.write_safety(workdir, names=names)
    page = page_of(workdir)
    found = Elements(page)
    assert not found.count("script")
    assert not found.count("img")
    assert not found.count("b")
    assert not [a for _, a in found.elements if any(key.startswith("on") for key in a)]
    texts = " ".join(found.texts)
    for name in names:
        assert name in texts
    assert "</table><script>1</script>" in texts


def test_figures_of_a_category_whose_name_has_a_slash_are_found(tmp_path):
    page = page_of(runs.write_run(tmp_path / "run", names=("a/b", "a")))
    table = page[page.index("pairs seen") :]
    assert table[: table.index("</table>")].count("<tr>") == 2


def test_same_runs_give_the_same_page(full_run, plain_run):
    assert page_of(full_run, plain_run) == page_of(full_run, plain_run)


def test_categories_are_ordered_by_gain(full_run):
    document = read_document([full_run])
    (section,) = [s for s in document.parts[0].sections if s.key == "heldout"]
    rows = section.figures[0].table.records()[:-1]
    gains = [row["after"] - row["before"] for row in rows]
    assert gains == sorted(gains, reverse=True)
    assert len(gains) == 19


def test_pairs_without_a_category_are_shown_apart(tmp_path):
    workdir = runs.write_run(tmp_path / "run", names=("Violence", "Drugs"))
    after = json.loads((workdir / "evaluation" / "after.json").read_text())
    runs.write(
        workdir / "evaluation" / "after.json", after | {"without_category": after["overall"] | {"pairs": 3}}
    )
    (section,) = [s for s in read_document([workdir]).parts[0].sections if s.key == "heldout"]
    rows = section.figures[0].table.records()
    assert [row["category"] for row in rows[2:]] == ["(no category)", "all pairs"]
    assert rows[2]["pairs"] == 3


def test_category_called_as_a_summary_of_pairs_has_a_row_of_its_own(tmp_path):
    workdir = runs.write_run(tmp_path / "run", names=("all pairs", "Drugs"))
    (section,) = [s for s in read_document([workdir]).parts[0].sections if s.key == "heldout"]
    after = json.loads((workdir / "evaluation" / "after.json").read_text())
    rows = [(row["category"], row["after"]) for row in section.figures[0].table.records()]
    assert sorted(rows[:2]) == sorted((name, one["accuracy"]) for name, one in after["categories"].items())
    assert rows[2] == ("all pairs", after["overall"]["accuracy"])


def test_panels_begin_with_the_most_violations(full_run):
    document = read_document([full_run])
    (section,) = [s for s in document.parts[0].sections if s.key == "margins"]
    last = [row["at last"] for row in section.figures[0].table.records()]
    assert last == sorted(last, reverse=True)
    assert {row["target"] for row in section.figures[0].table.records()} == {runs.TARGET}


def test_loss_without_margins_shows_no_target(plain_run):
    (section,) = [s for s in read_document([plain_run]).parts[0].sections if s.key == "margins"]
    assert {row["target"] for row in section.figures[0].table.records()} == {None}
    assert "no margins and no targets" in section.lead


def test_targets_by_category_come_from_the_settings(tmp_path):
    workdir = runs.write_run(tmp_path / "run", names=("Violence", "Drugs"))
    manifest = json.loads((workdir / "manifest.json").read_text())
    manifest["config"]["adaptive"]["margin"]["target_rate"] = {"Violence": 0.2, "default": 0.01}
    runs.write(workdir / "manifest.json", manifest)
    (section,) = [s for s in read_document([workdir]).parts[0].sections if s.key == "margins"]
    targets = {row["category"]: row["target"] for row in section.figures[0].table.records()}
    assert targets == {"Violence": 0.2, "Drugs": 0.01}


def test_probes_and_looks_of_the_selection_are_shown_with_what_they_cost(tmp_path):
    workdir = runs.write_run(tmp_path / "run", num_steps=6)
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    for step, seconds in ((2, 100.0), (4, 250.0), (6, 30.0)):  # resumed after step 4: the total begins anew
        lines[step - 1]["probe/seconds"] = seconds
    for step, bound in ((3, 0.5), (6, 0.75)):
        lines[step - 1] |= {
            "selection/worst_safe_rate_at_least": bound,
            "selection/seconds": 8.0,
            "selection/best_step": step,
        }
    (workdir / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    manifest = json.loads((workdir / "manifest.json").read_text())
    manifest["config"]["selection"] = {"judge": {"kind": "refusal"}}
    runs.write(workdir / "manifest.json", manifest)
    (run,) = read_document([workdir]).parts
    (course,) = [section for section in run.sections if section.key == "course"]
    figures = {figure.title: figure.table for figure in course.figures}
    numbers = dict(figures["In numbers"].rows)
    assert numbers["seconds in probes"] == 280.0
    assert numbers["seconds in looks of the selection"] == 16.0
    assert numbers["best step"] == 6.0
    assert figures["Worst category in answers"].rows[0][-1] == 0.75
    (caption,) = [figure.caption for figure in course.figures if figure.title == "Worst category in answers"]
    assert caption.endswith(f"Judged by the refusal rule. {RefusalJudge.limits}")


def test_skipped_step_is_counted_and_named(full_run):
    (section,) = [s for s in read_document([full_run]).parts[0].sections if s.key == "course"]
    assert (
        "500 steps logged, 1 skipped as not finite. Skipped (marked at the foot of each figure): 6."
        in section.lead
    )


def test_data_without_categories_gives_a_page(tmp_path):
    page = page_of(runs.write_run(tmp_path / "run", names=()))
    assert "No category was logged" in page
    assert "Nothing was measured by category." in page
