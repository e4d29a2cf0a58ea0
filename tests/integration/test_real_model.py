"""SmolLM2-135M on real pairs of several harm categories: train, export, verify."""

import json
from pathlib import Path

import jax
import pytest

from jaxalign.config import parse_config
from jaxalign.run.export import export
from jaxalign.run.train import train
from jaxalign.run.verify import verify


@pytest.mark.slow
def test_smollm2_learns_real_pairs_and_its_export_computes_the_same(
    smollm2_gguf: Path, shared_data: Path, tmp_path: Path
) -> None:
    pairs = shared_data / "pairs_harm_categories.jsonl.gz"
    fields = {
        "categories": "harm_category",
        "chosen_unsafe": "chosen_harm",
        "rejected_unsafe": "rejected_harm",
    }
    settings = {
        "model": {
            "path": str(smollm2_gguf),
            "dtype": "float32",
            "remat": "dots",
            "logps_chunk_size": 16,
            "lora": {"rank": 4, "alpha": 8, "targets": ["query", "value"]},
        },
        "data": {
            "train": [{"format": "plain", "path": str(pairs), "fields": fields, "unsafe_threshold": 0.5}],
            "heldout_fraction": 0.2,
            "categories": [
                "violence",
                "hate_speech",
                "harassment",
                "exploitation",
                "misinformation",
                "self_harm",
            ],
            "on_error": "skip",
            "safety_transform": True,
            "max_prompt_length": 64,
            "max_response_length": 32,
        },
        "loss": {"name": "cat_b_dpo", "beta": 0.1},
        "adaptive": {"violation": {"threshold": 0.1}},
        "optimizer": {"learning_rate": 1e-3},
        "train": {"batch_size": 8, "num_steps": 4},
        "evaluation": {"batch_size": 8, "max_pairs": 16},
        "mesh": {"data": 1},
    }
    workdir = tmp_path / "run"
    result = train(parse_config(settings, "test"), workdir, jax.devices()[:1])
    assert result.before is not None
    assert result.after is not None
    assert result.before.overall["accuracy"] == 0.5
    assert result.after.overall["accuracy"] > 0.5
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["loss"] == pytest.approx(0.693147, abs=1e-3)
    assert lines[-1]["rewards/margins"] > lines[0]["rewards/margins"]

    exported = tmp_path / "hf"
    export(workdir, exported, dtype="f32", max_shard_size="200MB")
    report = verify(workdir, exported, step=None)
    assert report.passed, report
    assert report.max_response_logps < 1e-3
    wrong = verify(smollm2_gguf, exported, step=None)
    assert not wrong.passed
