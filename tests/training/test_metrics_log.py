"""metrics.jsonl and TensorBoard events."""

import json
import logging
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event, SessionLog

from jaxalign.errors import JaxalignError
from jaxalign.training.log import MetricsLog, MetricsLogError
from jaxalign.training.trackers import TensorBoardTracker


def lines(workdir) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


def write_steps(workdir, first: int, last: int, *, tensorboard: bool = False) -> None:
    trackers = [TensorBoardTracker(workdir, first)] if tensorboard else []
    with MetricsLog(workdir, first, trackers) as log:
        for step in range(first + 1, last + 1):
            log.write(step, {"loss": 1.0 / step})


def test_each_step_is_one_line_with_its_figures(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {"loss": 0.5, "category/Violence/loss": 0.25})
        log.write(2, {"loss": 0.4})
    assert lines(tmp_path) == [
        {"step": 1, "loss": 0.5, "category/Violence/loss": 0.25},
        {"step": 2, "loss": 0.4},
    ]


def test_missing_figure_is_null_and_never_zero(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
        log.write(1, {"loss": None})
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1, "loss": null}\n'


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_non_finite_figure_is_refused_and_leaves_no_half_line(tmp_path, value):
    with MetricsLog(tmp_path, 0) as log:
        with pytest.raises(ValueError, match="not JSON compliant"):
            log.write(1, {"loss": value})
        log.write(1, {"loss": 0.5})
    assert lines(tmp_path) == [{"step": 1, "loss": 0.5}]


def test_line_is_in_the_file_before_the_run_ends(tmp_path):
    with MetricsLog(tmp_path, 0) as log:
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
def test_torn_last_line_is_dropped_with_a_warning(tmp_path, torn, caplog):
    write_steps(tmp_path, 0, 2)
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    with caplog.at_level(logging.WARNING):
        write_steps(tmp_path, 3, 4)
    assert "metrics.jsonl, line 3: dropped, a killed process left it half written" in caplog.text
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 4]


def test_torn_last_line_of_zero_bytes_is_dropped(tmp_path):
    write_steps(tmp_path, 0, 2)
    with (tmp_path / "metrics.jsonl").open("ab") as file:
        file.write(b"\0" * 64 + b"\xff")
    write_steps(tmp_path, 2, 3)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3]


def test_whole_last_line_that_lacks_its_newline_is_kept(tmp_path, caplog):
    write_steps(tmp_path, 0, 3)
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes().removesuffix(b"\n"))
    write_steps(tmp_path, 3, 4)
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 3, 4]
    assert caplog.text == ""


DAMAGED = [
    b'{"step": 2, "lo',
    b"",
    b"5",
    b"[2]",
    b'{"loss": 0.5}',
    b'{"step": "2"}',
    b'{"step": true}',
    b"\xff\xfe",
]


@pytest.mark.parametrize("damaged", DAMAGED)
@pytest.mark.parametrize("number", [2, 4])
def test_damaged_line_stops_the_resume_and_no_line_is_lost(tmp_path, damaged, number):
    write_steps(tmp_path, 0, 4)
    path = tmp_path / "metrics.jsonl"
    content = path.read_bytes().splitlines()
    content[number - 1] = damaged
    path.write_bytes(b"\n".join(content) + b"\n")
    before = path.read_bytes()
    with pytest.raises(
        MetricsLogError, match=rf"metrics\.jsonl, line {number}: expected an object .* got .*repair the line"
    ):
        MetricsLog(tmp_path, 3)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_last_line_that_is_json_but_no_record_is_refused_even_without_newline(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n[2]')
    with pytest.raises(JaxalignError, match=r"line 2: .* got '\[2\]'; .* or move the file away"):
        MetricsLog(tmp_path, 1)


def test_long_damaged_line_is_shown_in_part(tmp_path):
    (tmp_path / "metrics.jsonl").write_text("x" * 1000 + "\n")
    with pytest.raises(MetricsLogError, match=r"got 'x{80}'"):
        MetricsLog(tmp_path, 1)


def test_no_temporary_file_stays_behind(tmp_path):
    write_steps(tmp_path, 0, 2)
    write_steps(tmp_path, 1, 2)
    assert [path.name for path in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_tensorboard_holds_every_finite_figure(tmp_path):
    with MetricsLog(tmp_path, 0, [TensorBoardTracker(tmp_path, 0)]) as log:
        log.write(1, {"loss": 0.5, "rewards/accuracies": None})
    (events,) = (tmp_path / "tensorboard").iterdir()
    content = events.read_bytes()
    assert b"loss" in content
    assert b"rewards/accuracies" not in content


def test_no_tensorboard_folder_where_it_is_switched_off(tmp_path):
    write_steps(tmp_path, 0, 1)
    assert not (tmp_path / "tensorboard").exists()


def events(workdir) -> list[Event]:
    """All events in the order in which TensorBoard reads them: files by name, each a sequence of TFRecords."""
    found = []
    for path in sorted((workdir / "tensorboard").iterdir()):
        content = path.read_bytes()
        while content:
            (length,) = struct.unpack_from("<Q", content)
            found.append(
                Event.FromString(content[12 : 12 + length])
            )  # after 8 bytes of length, 4 of its checksum
            content = content[16 + length :]  # 4 of the record's checksum
    return found


def shown(workdir) -> list[tuple[int, float]]:
    """What a reader keeps that drops, at each START of a session, the values from its step on."""
    values = []
    for event in events(workdir):
        if event.session_log.status == SessionLog.START:
            values = [(step, value) for step, value in values if step < event.step]
        values += [(event.step, value.simple_value) for value in event.summary.value]
    return values


def test_tensorboard_shows_each_step_once_after_a_resume(tmp_path):
    write_steps(tmp_path, 0, 5, tensorboard=True)
    with MetricsLog(tmp_path, 3, [TensorBoardTracker(tmp_path, 3)]) as log:
        for step in (4, 5, 6):
            log.write(step, {"loss": float(step)})
    assert len(list((tmp_path / "tensorboard").iterdir())) == 2
    recorded = [event.step for event in events(tmp_path) if event.summary.value]
    assert recorded == [1, 2, 3, 4, 5, 4, 5, 6]  # nothing is lost, the reader purges
    steps, values = zip(*shown(tmp_path), strict=True)
    assert steps == (1, 2, 3, 4, 5, 6)
    assert values == pytest.approx((1.0, 1 / 2, 1 / 3, 4.0, 5.0, 6.0))


def test_tensorboard_shows_nothing_of_a_run_that_begins_anew(tmp_path):
    write_steps(tmp_path, 0, 3, tensorboard=True)
    write_steps(tmp_path, 0, 1, tensorboard=True)
    assert shown(tmp_path) == [(1, 1.0)]
