"""A peer: TRL's DPOTrainer, one optimizer step at a time. `python trl_worker.py SPEC.json`; started by peer_trl.py.

The trainer is used as it is; only its data is given as token ids, in the order of the other side.
"""

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from channel import Channel

os.environ.setdefault("HF_HUB_OFFLINE", "1")


def main() -> None:
    channel = Channel()
    spec = json.loads(Path(sys.argv[1]).read_text())

    import torch
    import transformers
    import trl
    from datasets import Dataset

    torch.set_num_threads(spec["threads"])

    def load() -> Any:
        return transformers.AutoModelForCausalLM.from_pretrained(
            spec["model"], dtype=getattr(torch, spec["dtype"]), attn_implementation=spec["attention"]
        )

    class Steps(transformers.TrainerCallback):
        """Holds the trainer until a step is asked for."""

        seconds = cpu_seconds = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            if not channel.next_step():
                channel.end()
                sys.exit(0)
            self._start = time.perf_counter(), time.process_time()

        def on_step_end(self, args: Any, state: Any, control: Any, **unused: Any) -> None:
            if spec["device"] == "cuda":
                torch.cuda.synchronize()
            self.seconds = time.perf_counter() - self._start[0]
            self.cpu_seconds = time.process_time() - self._start[1]

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **unused: Any) -> None:
            if "loss" in logs:
                figures = {name: logs[name] for name in ("loss", "logps/chosen", "logps/rejected")}
                times = {"seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
                channel.send(**times, device_peak=device_peak(), **figures)

    def device_peak() -> int:
        return torch.cuda.max_memory_allocated() if spec["device"] == "cuda" else 0

    class Trainer(trl.DPOTrainer):
        def _prepare_dataset(self, dataset: Any, *args: Any, **kwargs: Any) -> Any:
            return dataset  # holds token ids already

    trainer = Trainer(
        model=load(),
        # Without one, 1.9.0 loads it from a hub by name; an adapter's reference is its base.
        ref_model=None if spec["lora"] else load(),
        args=trl.DPOConfig(
            output_dir=spec["output"],
            beta=spec["beta"],
            max_length=None,
            precompute_ref_log_probs=True,
            per_device_train_batch_size=spec["batch_size"] // spec["accumulation"],
            gradient_accumulation_steps=spec["accumulation"],
            learning_rate=spec["learning_rate"],
            lr_scheduler_type="constant",
            num_train_epochs=1,
            train_sampling_strategy="sequential",
            gradient_checkpointing=spec["checkpointing"],
            bf16=spec["autocast"],
            use_cpu=spec["device"] == "cpu",
            torch_compile=spec["compile"],
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(spec["pairs"]),
        processing_class=transformers.AutoTokenizer.from_pretrained(spec["model"]),
        peft_config=_lora(spec["lora"]),
        callbacks=[Steps()],
    )
    versions = {"trl": trl.__version__, "torch": torch.__version__, "transformers": transformers.__version__}
    channel.begin(versions=versions)
    trainer.train()
    channel.end()


def _lora(rank: int | None) -> Any:
    if rank is None:
        return None
    import peft

    return peft.LoraConfig(
        r=rank, lora_alpha=2 * rank, target_modules="all-linear", lora_dropout=0.0, task_type="CAUSAL_LM"
    )


if __name__ == "__main__":
    main()
