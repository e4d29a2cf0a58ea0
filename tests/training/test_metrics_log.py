"""metrics.jsonl and TensorBoard events."""

import json

import pytest

from jaxalign.training.log import MetricsLog


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write_steps(workdir, first: int, last: int, **options) -> None:
    with MetricsLog(workdir, first, **{"tensorboard": False, **options}) as log:
        for step in range(first + 1, last + 1):
            log.write(step, {"loss": 1.0 / step})


def test_each_step_is_one_line_with_its_figures(tmp_path):
    with MetricsLog(tmp_path, 0, tensorboard=False) as log:
        log.write(1, {"loss": 0.5, "category/Violence/loss": 0.25})
        log.write(2, {"loss": 0.4})
    assert lines(tmp_path) == [
        {"step": 1, "loss": 0.5, "category/Violence/loss": 0.25},
        {"step": 2, "loss": 0.4},
    ]


def test_missing_figure_is_null_and_never_zero(tmp_path):
    with MetricsLog(tmp_path, 0, tensorboard=False) as log:
        log.write(1, {"loss": None})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_figure_is_refused_and_leaves_no_half_line(tmp_path, value):
    with MetricsLog(tmp_path, 0, tensorboard=False) as log:
        with pytest.raises(ValueError, match="not JSON compliant"):
            log.write(1, {"loss": value})
        log.write(1, {"loss": 0.5})
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}]


def test_line_is_in_the_file_before_the_run_ends(tmp_path):
    with MetricsLog(tmp_path, 0, tensorboard=False) as log:
        log.write(1, {"loss": 0.5})
        assert len(lines(tmp_path)) == 1


def test_resume_drops_what_lies_beyond_the_checkpoint(tmp_path):
    write_steps(tmp_path, 0, 5)
    write_steps(tmp_path, 3, 6)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4, 5, 6]


def test_resume_at_the_last_step_keeps_all(tmp_path):
    write_steps(tmp_path, 0, 3)
    write_steps(tmp_path, 3, 3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_new_run_starts_an_empty_file(tmp_path):
    write_steps(tmp_path, 0, 3)
    write_steps(tmp_path, 0, 1)
    assert [line["step"] for line in lines(tmp_path)] == [1]


@pytest.mark.parametrize("torn", ['{"step": 3, "lo', '{"step": 3', "{", '{"step": 3, "loss": 0.25'])
def test_torn_last_line_is_dropped(tmp_path, torn):
    write_steps(tmp_path, 0, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    write_steps(tmp_path, 3, 4)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 4]


def test_no_temporary_file_stays_behind(tmp_path):
    write_steps(tmp_path, 0, 2)
    write_steps(tmp_path, 1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_holds_every_finite_figure(tmp_path):
    with MetricsLog(tmp_path, 0, tensorboard=True) as log:
        log.write(1, {"loss": 0.5, "rewards/accuracies": None})
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"loss" in content
    assert b"rewards/accuracies" not in content


def test_no_tensorboard_folder_where_it_is_switched_off(tmp_path):
    write_steps(tmp_path, 0, 1)
    assert not (tmp_path / "tensorboard").exists()
