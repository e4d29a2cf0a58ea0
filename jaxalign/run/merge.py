"""`jaxalign merge`: the weighted mean of two models, each a run, a Hugging Face directory or a .gguf file."""

from pathlib import Path

from jaxalign.config import ConfigError
from jaxalign.hf.gather import TensorGatherer
from jaxalign.hf.merge import MergeInput, StoredTensors, check_weight, merge_models
from jaxalign.hf.read import open_checkpoint
from jaxalign.hf.write import ExportDtype, Tensors
from jaxalign.run.data import load_tokenizer
from jaxalign.run.load import BEST, WhichStep, is_run, load_model


def merge(
    a: Path,
    b: Path,
    output: Path,
    *,
    weight: float,
    dtype: ExportDtype = "bf16",
    step_a: WhichStep = None,
    step_b: WhichStep = None,
    overwrite: bool = False,
) -> None:
    """Write (1 - weight) * a + weight * b in Hugging Face format; of a run its newest checkpoint, or the step given.

    The parameters of a run that trained all of them are held on its devices; anything else is read tensor by
    tensor. At most, then, two models, three tensors in float32 and one file of the export (5 GB).
    Raises ConfigError, CheckpointError, MergeError, ExportError.
    """
    check_weight(weight)
    models = _open(a, step_a, "--step-a"), _open(b, step_b, "--step-b")
    bases = {model.checkpoint.path.resolve() for model in models}
    folders = ("checkpoints", BEST)
    checkpoints = {path.resolve() / name for path in (a, b) if is_run(path) for name in folders}
    target = output.resolve()
    if target in {a.resolve(), b.resolve()} or (bases | checkpoints) & {target, *target.parents}:
        raise ConfigError(
            f"--output {output} is, or lies in, what is merged or its base model; give another directory"
        )
    merge_models(output, *models, weight, dtype=dtype, overwrite=overwrite)


def _open(path: Path, step: WhichStep, option: str) -> MergeInput:
    """The model at `path`, with no more of it read than has to be held."""
    if not is_run(path):
        if step is not None:
            raise ConfigError(f"{option} {step} needs the workdir of a run; {path} has no manifest.json")
        checkpoint = open_checkpoint(path)
        tensors: Tensors = StoredTensors(checkpoint)
        name = {"model": path.resolve().name}
        return MergeInput(str(path), checkpoint, checkpoint.load_tokenizer(), tensors, name)
    loaded = load_model(path, step=step, with_base=False)
    run, checkpoint = loaded.run, loaded.checkpoint
    assert run is not None  # a run was loaded
    if run.model.lora is None:
        tensors = TensorGatherer(loaded.params)
    else:
        tensors = StoredTensors(checkpoint, run.model.param_dtype, loaded.lora_params, run.model.lora)
    facts = {
        "model": path.resolve().name,
        "loss": run.loss.name,
        "beta": getattr(run.loss, "beta", None),  # some losses have none
        "steps": loaded.step,
    }
    return MergeInput(str(path), checkpoint, load_tokenizer(run), tensors, facts)
