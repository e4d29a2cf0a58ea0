"""Progress lines where there is no terminal."""

import pytest

from jaxalign import progress
from jaxalign.progress import Stage, StageTimes


@pytest.fixture
def every_line(monkeypatch):
    """Log at every advance, and be as if a long time had passed."""
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)


def test_disabled_stage_prints_nothing(every_line, capsys):
    with Stage("train", 3, enabled=False) as stage:
        for _ in range(3):
            stage.advance(1, "loss 0.5")
    assert capsys.readouterr() == ("", "")


def test_every_line_has_label_count_and_text_on_stderr(every_line, capsys):
    with Stage("tokenize", 4) as stage:
        stage.advance(1, "loss 0.5")
        stage.advance(2)
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert out == ""
    assert lines[0].startswith("tokenize: 1/4, 0 s, 0 s left")
    assert lines[0].endswith("  loss 0.5")
    assert lines[1].startswith("tokenize: 3/4")
    assert len(lines) == 2


def test_short_stage_prints_nothing(capsys):
    with Stage("tokenize", 2) as stage:
        stage.advance(2)
    assert capsys.readouterr().err == ""


def test_long_stage_says_when_it_is_done(monkeypatch, capsys):
    now = iter([0.0, 100.0, 100.0, 100.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(now))
    with Stage("tokenize", 2):
        pass
    assert capsys.readouterr().err == "tokenize: 0/2, 100 s  done\n"


def test_failed_stage_is_not_done(monkeypatch, capsys):
    monkeypatch.setattr(progress.time, "monotonic", iter(range(0, 1000, 5)).__next__)
    with pytest.raises(RuntimeError, match="broken"), Stage("tokenize", 2):
        raise RuntimeError("broken")
    assert "done" not in capsys.readouterr().err


def test_time_left_counts_from_where_the_stage_was_resumed(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LOG_SECONDS", 15.0)
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    with Stage("train", 100, completed=90) as stage:
        now[0] = 10.0
        stage.advance()  # too early for a line
        now[0] = 20.0
        stage.advance()
    # 2 steps in 20 s: the 8 left take 80 s, whatever happened before step 90
    assert capsys.readouterr().err.splitlines()[0] == "train: 92/100, 20 s, 80 s left"


def test_times_of_a_start_add_up_by_stage(monkeypatch):
    moments = iter([10.0, 11.5, 14.5, 15.0, 17.0])
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(moments))
    times = StageTimes()
    for stage in ("read the data", "load the model", "read the data", "compile the step"):
        times.done(stage)
    assert times.seconds == {"read the data": 2.0, "load the model": 3.0, "compile the step": 2.0}
    assert times.summary() == "7.0 s (read the data 2.0 s, load the model 3.0 s, compile the step 2.0 s)"
