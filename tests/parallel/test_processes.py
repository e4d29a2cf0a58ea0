"""What can be said of processes within one of them; jobs of several are in tests/integration."""

import pytest

from jaxalign.errors import JaxalignError
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


@pytest.mark.parametrize("number", ["two", "-1", "1.0", ""])
def test_number_of_processes_that_is_no_whole_number_is_shown(no_job, number):
    no_job.setenv("JAX_COORDINATOR_ADDRESS", "localhost:1234")
    no_job.setenv("JAX_NUM_PROCESSES", number)
    no_job.setenv("JAX_PROCESS_ID", "0")
    with pytest.raises(JaxalignError, match=f"JAX_NUM_PROCESSES='{number}': expected a whole number"):
        start_processes()


def test_no_job_to_join_says_how_to_start_one(no_job):
    with pytest.raises(
        JaxalignError, match=r"(?s)cannot join the other processes: .*leave out --distributed"
    ):
        start_processes()


def test_single_process_is_the_main_one_and_agrees_with_itself():
    assert is_main_process()
    assert agree_on_text("häßlich") == "häßlich"
