"""Writes lengths/*.csv: how many tokens prompt, chosen and rejected response of real pairs have, and no text.

`python benchmarks/lengths.py MODEL hh=FILE category=FILE` reads transcripts of HH-RLHF and pairs of the plain format
with the tokenizer and chat template of MODEL, cut at 512 tokens each as a run does by default.
"""

import argparse
from pathlib import Path

import numpy as np

from jaxalign.data.settings import DataConfig
from jaxalign.data.sources import load_pairs
from jaxalign.data.tokenize import tokenize_pairs
from jaxalign.hf.read import open_checkpoint

FORMATS = {"hh": "hh", "category": "plain"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE", help=f"names: {', '.join(FORMATS)}")
    args = parser.parse_args()
    tokenizer = open_checkpoint(args.model).load_tokenizer()
    for name, path in (text.split("=", 1) for text in args.files):
        settings = {"train": [{"format": FORMATS[name], "path": path}], "on_error": "skip"}
        config = DataConfig.model_validate(settings)
        dataset = tokenize_pairs(load_pairs(config, "train")[0], tokenizer, config)
        target = Path(__file__).parent / "lengths" / f"{name}.csv"
        np.savetxt(
            target, dataset.lengths, fmt="%d", delimiter=",", header="prompt,chosen,rejected", comments=""
        )
        print(f"{target}: {len(dataset)} pairs, medians {np.median(dataset.lengths, axis=0)}")


if __name__ == "__main__":
    main()
