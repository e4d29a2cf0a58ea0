"""The launch scripts: what they would run, what they do run, and what they refuse.

Where a script needs a cluster's own program, a stand-in of that name records how it was called.
"""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

LAUNCH = Path(__file__).resolve().parents[2] / "launch"
SCRIPTS = ["local_processes.sh", "tpu_pod.sh", "gpu_slurm.sbatch", "gke_jobset.sh"]
OVERRIDES = [
    "--set",
    'data.names=["a b", "c\\d"]',
    "--set",
    "loss.beta=0.1",
    "--workdir",
    "gs://bucket/$RUN & more",
]
POD = {
    "IMAGE": "registry/jaxalign:1",
    "TPU_ACCELERATOR": "tpu-v5-lite-podslice",
    "TPU_TOPOLOGY": "4x4",
    "HOSTS_PER_SLICE": "4",
    "CHIPS_PER_HOST": "4",
}
PRINT_ARGUMENTS = 'printf "%s\\n" "$@"\n'


@pytest.fixture
def config(tmp_path) -> Path:
    path = tmp_path / "my config.yaml"
    path.write_text("{}\n")
    return path


def stand_in(path: Path, body: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/usr/bin/env bash\n{body}")
    path.chmod(0o755)


def launch(script: str, *arguments: str | Path, **environment: str) -> subprocess.CompletedProcess:
    command = ["bash", str(LAUNCH / script), *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, text=True, timeout=60, env=os.environ | environment, check=False
    )


def printed_commands(result: subprocess.CompletedProcess) -> list[list[str]]:
    assert result.returncode == 0, result.stderr
    return [shlex.split(line) for line in result.stdout.splitlines()]


def training(config: Path) -> list[str]:
    return ["jaxalign", "train", str(config), "--distributed", *OVERRIDES]


# What would be run


def test_local_processes_dry_run_prints_one_command_per_process(config):
    result = launch("local_processes.sh", "--dry-run", 2, config, *OVERRIDES, JAXALIGN_PORT="4711")
    join = ["env", "JAX_COORDINATOR_ADDRESS=127.0.0.1:4711", "JAX_NUM_PROCESSES=2"]
    assert printed_commands(result) == [[*join, f"JAX_PROCESS_ID={i}", *training(config)] for i in range(2)]


def test_local_processes_gives_virtual_devices(config):
    environment = {"JAXALIGN_DEVICES_PER_PROCESS": "4", "JAXALIGN_PORT": "4711"}
    (command,) = printed_commands(launch("local_processes.sh", "--dry-run", 1, config, **environment))
    assert command[4:6] == ["JAX_PLATFORMS=cpu", "JAX_NUM_CPU_DEVICES=4"]


def test_tpu_pod_dry_run_prints_the_command_of_all_workers(config):
    (command,) = printed_commands(launch("tpu_pod.sh", "--dry-run", "pod", "us-east5-a", config, *OVERRIDES))
    assert command[:-1] == [
        *["gcloud", "compute", "tpus", "tpu-vm", "ssh", "pod"],
        *["--zone=us-east5-a", "--worker=all", "--batch-size=all"],
    ]
    remote = shlex.split(command[-1].removeprefix("--command="))
    assert remote == ["cd", "jaxalign", "&&", ".venv/bin/jaxalign", *training(config)[1:]]


def test_slurm_dry_run_prints_the_job_step(config):
    (command,) = printed_commands(launch("gpu_slurm.sbatch", "--dry-run", config, *OVERRIDES))
    assert command == ["srun", "--label", "--kill-on-bad-exit=1", *training(config)]


def test_gke_dry_run_prints_the_filled_manifest(config):
    result = launch("gke_jobset.sh", "--dry-run", config, *OVERRIDES, **POD, NUM_SLICES="2", JOB_NAME="mine")
    assert result.returncode == 0, result.stderr
    manifest = yaml.safe_load(result.stdout)
    assert manifest["kind"] == "JobSet"
    assert manifest["metadata"]["name"] == "mine"
    (job,) = manifest["spec"]["replicatedJobs"]
    assert job["replicas"] == 2
    assert job["template"]["spec"]["parallelism"] == job["template"]["spec"]["completions"] == 4
    pod = job["template"]["spec"]["template"]["spec"]
    assert pod["nodeSelector"] == {
        "cloud.google.com/gke-tpu-accelerator": "tpu-v5-lite-podslice",
        "cloud.google.com/gke-tpu-topology": "4x4",
    }
    (container,) = pod["containers"]
    assert container["command"] == training(config)
    assert container["image"] == "registry/jaxalign:1"
    assert container["resources"] == {"limits": {"google.com/tpu": 4}}


def test_every_placeholder_of_the_manifest_is_filled(config):
    manifest = launch("gke_jobset.sh", "--dry-run", config, **POD).stdout
    text = re.sub(r"#.*", "", manifest)
    assert "${" not in text
    assert (
        len(re.findall(r"\$\{[A-Z_]+\}", re.sub(r"#.*", "", (LAUNCH / "gke_jobset.yaml").read_text()))) == 9
    )


# What is run


def test_every_process_gets_its_number_and_the_arguments_verbatim(bin_dir, config):
    stand_in(bin_dir / "jaxalign", 'echo "$JAX_PROCESS_ID of $JAX_NUM_PROCESSES"\n' + PRINT_ARGUMENTS)
    result = launch("local_processes.sh", 3, config, *OVERRIDES)
    assert result.returncode == 0, result.stderr
    for i in range(3):
        lines = [
            line.removeprefix(f"[{i}] ") for line in result.stdout.splitlines() if line.startswith(f"[{i}]")
        ]
        assert lines == [f"{i} of 3", *training(config)[1:]]


def test_processes_join_through_jax_distributed(bin_dir, config):
    code = (
        "from jaxalign.parallel import start_processes; start_processes(); import jax; "
        "print(jax.process_index(), jax.process_count(), jax.local_device_count(), jax.device_count())"
    )
    stand_in(bin_dir / "jaxalign", f"exec {shlex.quote(sys.executable)} -c {shlex.quote(code)}\n")
    environment = {"JAXALIGN_DEVICES_PER_PROCESS": "2", "PYTHONPATH": str(LAUNCH.parent)}
    result = launch("local_processes.sh", 2, config, **environment)
    assert result.returncode == 0, result.stdout + result.stderr
    assert {"[0] 0 2 2 4", "[1] 1 2 2 4"} <= set(result.stdout.splitlines())


def test_failing_process_stops_the_others_and_gives_its_status(bin_dir, config, tmp_path):
    stopped = tmp_path / "stopped"
    stand_in(
        bin_dir / "jaxalign",
        '[[ $JAX_PROCESS_ID == 1 ]] && { sleep 0.5; echo "no such file"; exit 3; }\n'
        f"trap 'touch {stopped}; exit 1' TERM\n"
        "for _ in {1..300}; do sleep 0.1; done\n",
    )
    result = launch("local_processes.sh", 2, config)
    assert result.returncode == 3
    assert "[1] no such file" in result.stdout
    assert "process 1 failed with status 3; stopping the others" in result.stderr
    assert stopped.exists()


def test_termination_is_passed_on_and_a_clean_exit_is_success(bin_dir, config, tmp_path):
    stand_in(
        bin_dir / "jaxalign",
        f"trap 'echo saved; exit 0' TERM\ntouch {tmp_path}/ready$JAX_PROCESS_ID\n"
        "for _ in {1..300}; do sleep 0.1; done\nexit 1\n",
    )
    script = subprocess.Popen(
        ["bash", LAUNCH / "local_processes.sh", "2", config], stdout=subprocess.PIPE, text=True
    )
    while len(list(tmp_path.glob("ready*"))) < 2:
        assert script.poll() is None
        time.sleep(0.05)
    script.send_signal(signal.SIGTERM)
    output, _ = script.communicate(timeout=60)
    assert script.returncode == 0
    assert sorted(output.splitlines()) == ["[0] saved", "[1] saved"]


def test_tpu_hosts_run_the_arguments_verbatim(bin_dir, config, tmp_path):
    run_as_remote_shell = 'for last; do :; done\nbash -c "${last#--command=}"\n'
    stand_in(bin_dir / "gcloud", f"cd {tmp_path}\n{run_as_remote_shell}")
    stand_in(tmp_path / "jaxalign" / ".venv" / "bin" / "jaxalign", PRINT_ARGUMENTS)
    result = launch("tpu_pod.sh", "pod", "us-east5-a", config, *OVERRIDES)
    assert result.stdout.splitlines() == training(config)[1:], result.stderr


def test_slurm_job_runs_the_step(bin_dir, config):
    stand_in(bin_dir / "srun", PRINT_ARGUMENTS)
    result = launch("gpu_slurm.sbatch", config, *OVERRIDES, SLURM_JOB_ID="1")
    assert result.stdout.splitlines() == ["--label", "--kill-on-bad-exit=1", *training(config)], result.stderr


def test_gke_manifest_is_submitted(bin_dir, config):
    stand_in(bin_dir / "kubectl", 'echo "$@" >&2\ncat\n')
    result = launch("gke_jobset.sh", config, *OVERRIDES, **POD)
    assert result.stderr == "apply -f -\n"
    assert result.stdout == launch("gke_jobset.sh", "--dry-run", config, *OVERRIDES, **POD).stdout


# What is refused


@pytest.mark.parametrize("script", SCRIPTS)
@pytest.mark.parametrize("arguments", [[], ["--dry-run"]], ids=["nothing", "dry_run_alone"])
def test_missing_arguments_show_the_usage(script, arguments):
    result = launch(script, *arguments)
    assert result.returncode == 2
    assert re.search(
        rf"usage: .*{script} \[--dry-run\] .*CONFIG \[arguments of jaxalign train\]", result.stderr
    )


@pytest.mark.parametrize("number", ["0", "-1", "two", "config.yaml"])
def test_number_of_processes_must_be_a_positive_number(config, number):
    result = launch("local_processes.sh", number, config)
    assert result.returncode == 2
    assert f"N={number} is not a number of processes" in result.stderr


@pytest.mark.parametrize(("script", "leading"), [("local_processes.sh", ["2"]), ("gpu_slurm.sbatch", [])])
def test_missing_config_is_refused_before_anything_starts(script, leading):
    result = launch(script, *leading, "missing.yaml")
    assert result.returncode == 2
    assert "CONFIG=missing.yaml is not a file" in result.stderr


@pytest.mark.parametrize("name", POD)
def test_unset_name_of_the_manifest_is_refused(config, name):
    result = launch("gke_jobset.sh", "--dry-run", config, **(POD | {name: ""}))
    assert result.returncode == 2
    assert f"{name} is not set; see the first lines of" in result.stderr


def test_slurm_script_outside_a_job_says_how_to_submit(config):
    result = launch("gpu_slurm.sbatch", config, SLURM_JOB_ID="")
    assert result.returncode == 2
    assert "not inside a Slurm job: submit with sbatch" in result.stderr


# How they are written


@pytest.mark.parametrize("script", sorted(path.name for path in LAUNCH.iterdir() if path.suffix != ".yaml"))
def test_script_passes_shellcheck(script):
    shellcheck = Path(sys.executable).with_name("shellcheck")
    command = str(shellcheck) if shellcheck.exists() else shutil.which("shellcheck")
    if command is None:
        pytest.skip("shellcheck is not installed: pip install .[dev]")
    result = subprocess.run([command, LAUNCH / script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_launch_file_is_short_and_holds_no_hyper_parameter(path):
    text = path.read_text()
    assert len(text.splitlines()) <= 60
    # What an earlier stage has made may be handed on.
    settings = r"--set[ =](?!\"(model\.path|loss\.margin_model)=)|margin(?!_model| model)"
    assert not re.search(rf"beta|learning_rate|batch_pairs|num_steps|{settings}", text)
    assert os.access(path, os.X_OK) or path.suffix in (".yaml", ".bash")
