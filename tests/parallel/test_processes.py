"""What can be said of processes within one of them; jobs of several are in tests/integration."""

import pytest

from jaxalign.parallel import agree_on_text, is_main_process, start_processes


@pytest.fixture
def no_job(monkeypatch):
    for name in ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_half_set_environment_names_what_is_missing(no_job):
    no_job.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    no_job.setenv("JAX_PROCESS_ID", "0")
    message = "JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID set but not JAX_NUM_PROCESSES; set all three or none"
    with pytest.raises(ValueError, match=message):
        start_processes()


def test_one_variable_alone_names_both_others(no_job):
    no_job.setenv("JAX_NUM_PROCESSES", "2")
    with pytest.raises(ValueError, match="set but not JAX_COORDINATOR_ADDRESS, JAX_PROCESS_ID"):
        start_processes()


def test_single_process_is_the_main_one_and_agrees_with_itself():
    assert is_main_process()
    assert agree_on_text("häßlich") == "häßlich"
