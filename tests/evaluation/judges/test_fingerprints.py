"""What tells two judges of one name apart: whatever their verdicts depend on, and nothing else."""

import pytest

from jaxalign.evaluation.judges.build import make_judge
from jaxalign.evaluation.judges.endpoint import EndpointJudge
from jaxalign.evaluation.judges.function import FunctionJudge
from jaxalign.evaluation.judges.interface import judge_id, same_judge
from jaxalign.evaluation.judges.settings import EndpointConfig, GuardConfig, ScoreModelConfig
from jaxalign.evaluation.judges.verdict import INSTRUCTIONS
from tests.evaluation.judges.cases import word_score, write_guard, write_score_model

HERE = {"url": "http://localhost:1/v1", "model": "tiny"}


@pytest.mark.parametrize(
    ("change", "same"),
    [
        ({"instructions": "Be strict."}, False),
        ({"categories": ("fraud",)}, False),
        ({"parameters": {"temperature": 1}}, False),
        ({"url": "http://localhost:2/v1", "timeout": 1.0, "concurrency": 1}, True),
        ({"instructions": INSTRUCTIONS}, True),
    ],
)
def test_endpoints_differ_by_what_they_are_asked(change, same):
    one, other = (EndpointJudge(EndpointConfig(**HERE | given)) for given in ({}, change))
    assert same_judge(judge_id(one), judge_id(other)) == same
    assert one.name == other.name


def test_score_models_of_one_folder_name_differ_by_their_weights(tmp_path):
    folders = [tmp_path / part / "cost" for part in "abc"]
    for folder, seed in zip(folders, (0, 0, 1), strict=True):
        folder.mkdir(parents=True)
        write_score_model(folder, seed=seed)
    judges = [judge_id(make_judge(ScoreModelConfig(path=folder))) for folder in folders]
    assert judges[0] == judges[1]
    assert judges[0][0] == judges[2][0]
    assert not same_judge(judges[0], judges[2])


def test_guards_differ_by_settings_of_their_verdicts(tmp_path):
    folder = write_guard(tmp_path)
    one, slower, other = (
        judge_id(make_judge(GuardConfig(path=folder, **given)))
        for given in ({}, {"batch_size": 2}, {"least_mass": 0.9})
    )
    assert one == slower
    assert not same_judge(one, other)


def test_a_judge_without_a_fingerprint_goes_by_its_name():
    mine = judge_id(FunctionJudge(word_score, "mine"))
    assert mine == ("function mine", None)
    assert same_judge(mine, ("function mine", "a"))
    assert not same_judge(mine, ("function yours", None))
