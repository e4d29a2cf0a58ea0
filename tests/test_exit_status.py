"""Exit statuses of the command line: what a user can mend is one message and status 2, never a traceback."""

import importlib
import pkgutil
import sys

import pytest
import yaml

import jaxalign
from jaxalign import cli
from jaxalign.errors import JaxalignError
from tests import tiny


def run(monkeypatch, *words: object) -> int:
    """Exit status of `jaxalign WORDS`."""
    monkeypatch.setattr(sys, "argv", ["jaxalign", *map(str, words)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    return end.value.code or 0


@pytest.fixture
def config(tmp_path, monkeypatch):
    """A configuration of a tiny run, in a directory of its own."""
    monkeypatch.delenv("JAXALIGN_TRACEBACK", raising=False)
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(tiny.run_settings(tmp_path, mesh={"data": 8})))
    monkeypatch.chdir(tmp_path)
    return path


def damaged_model(config, monkeypatch):
    (config.parent / "model" / "model.safetensors").write_bytes(b"half")


def not_implemented_model(config, monkeypatch):
    (config.parent / "model" / "config.json").write_text('{"model_type": "mamba"}')


def bad_row(config, monkeypatch):
    (config.parent / "train.jsonl").write_text('{"prompt": "a", "chosen": 3}\n')


def damaged_reference(config, monkeypatch):
    (config.parent / "reference.safetensors").write_bytes(b"half")


def half_a_job(config, monkeypatch):
    monkeypatch.setenv("JAX_NUM_PROCESSES", "2")


def without_gguf(config, monkeypatch):
    (config.parent / "model.gguf").write_bytes(b"GGUF")
    monkeypatch.setitem(sys.modules, "gguf", None)


def nothing(config, monkeypatch):
    pass


MENDABLE = {
    "no such file": (nothing, ["train", "gone.yaml"], "cannot read the configuration"),
    "unknown key": (nothing, ["train", "run.yaml", "--set", "train.steps=1"], "train.steps: unknown key"),
    "wrong type": (nothing, ["train", "run.yaml", "--set", "train.batch_size=true"], "integer, got True"),
    "damaged model": (damaged_model, ["train", "run.yaml"], "is not a whole safetensors file"),
    "unknown model": (not_implemented_model, ["train", "run.yaml"], "model_type='mamba'"),
    "bad row": (bad_row, ["train", "run.yaml"], "train.jsonl:1"),
    "too many devices": (nothing, ["train", "run.yaml", "--set", "mesh.fsdp=16"], "needs 128 devices"),
    "warm-up too long": (
        nothing,
        ["train", "run.yaml", "--set", "optimizer.warmup_steps=9"],
        "optimizer.warmup_steps=9 leaves nothing of train.num_steps=5",
    ),
    "warm-up longer than the epochs": (
        nothing,
        [
            *["train", "run.yaml", "--set", "train={num_epochs: 1, batch_size: 8}"],
            *["--set", "optimizer.warmup_steps=9"],
        ],
        "optimizer.warmup_steps=9 leaves nothing of 3 steps",
    ),
    "damaged reference": (
        damaged_reference,
        ["train", "run.yaml", "--set", "reference.file=reference.safetensors"],
        "is not a whole reference file",
    ),
    "half a job": (half_a_job, ["train", "run.yaml", "--distributed"], "JAX_NUM_PROCESSES set but not"),
    "no job": (nothing, ["train", "run.yaml", "--distributed"], "cannot join the other processes"),
    "missing extra": (
        without_gguf,
        ["train", "run.yaml", "--set", "model.path=model.gguf"],
        "pip install 'jaxalign[gguf]'",
    ),
    "file for a folder": (nothing, ["evaluate", "run.yaml/model", "--reference", "model"], "run.yaml"),
    "no run to report": (nothing, ["report", "model", "--output", "report.md"], "no manifest.json"),
    "no run to export": (nothing, ["export", "--checkpoint", "model", "--output", "out"], "no manifest.json"),
}


@pytest.mark.parametrize(("prepare", "words", "message"), MENDABLE.values(), ids=MENDABLE.keys())
def test_error_that_a_user_can_mend_is_one_message_and_status_2(
    config, monkeypatch, capsys, prepare, words, message
):
    prepare(config, monkeypatch)
    assert run(monkeypatch, *words) == 2
    shown = capsys.readouterr().err
    assert sum(line.startswith("error: ") for line in shown.splitlines()) == 1
    assert message in shown
    assert "Traceback" not in shown


def test_control_characters_of_a_message_do_not_reach_the_terminal(monkeypatch, capsys):
    def broken(*_: object) -> None:
        raise JaxalignError("a server said \x1b[2Jnothing\n\tmore")

    monkeypatch.setattr("jaxalign.config.load_config", broken)
    assert run(monkeypatch, "train", "run.yaml") == 2
    assert capsys.readouterr().err == "error: a server said \\x1b[2Jnothing\n\tmore\n"


def test_traceback_on_request(config, monkeypatch):
    monkeypatch.setenv("JAXALIGN_TRACEBACK", "1")
    monkeypatch.setattr(sys, "argv", ["jaxalign", "train", "gone.yaml"])
    with pytest.raises(JaxalignError, match="cannot read the configuration"):
        cli.main()


def test_error_of_the_program_keeps_its_traceback(config, monkeypatch):
    def broken(*_: object) -> None:
        raise ValueError("a mistake of ours")

    monkeypatch.setattr("jaxalign.config.load_config", broken)
    monkeypatch.setattr(sys, "argv", ["jaxalign", "train", str(config)])
    with pytest.raises(ValueError, match="a mistake of ours"):
        cli.main()


def test_success_is_status_0(config, monkeypatch, capsys):
    assert run(monkeypatch, "train", config, "--print-config") == 0
    assert "batch_size: 8" in capsys.readouterr().out


def test_every_error_class_has_the_base_class():
    names = [module.name for module in pkgutil.walk_packages(jaxalign.__path__, "jaxalign.")]
    modules = [importlib.import_module(name) for name in names if not name.endswith("__main__")]
    classes = {
        value
        for module in modules
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, Exception) and value.__module__ == module.__name__
    }
    without = {
        f"{kind.__module__}.{kind.__name__}" for kind in classes if not issubclass(kind, JaxalignError)
    }
    assert not without
