"""The losses of TRL, run by TRL's own trainers on log-probabilities that we choose.

A trainer is made without its `__init__`, which wants a model, data and a tokenizer, and is given the attributes
that its loss reads. No formula of a loss may live here. Importing TRL takes seconds, so only a call does it.
"""

import contextlib
import importlib.metadata
import importlib.util
import os
from collections import defaultdict
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, NamedTuple

import numpy as np
import pytest

Arrays = dict[str, np.ndarray]

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # TRL's own switch: CPO and ORPO warn when imported


def obstacle() -> str:
    """Why the losses of TRL cannot be run here; empty where they can."""
    missing = [name for name in ("torch", "trl") if importlib.util.find_spec(name) is None]
    if missing:
        return f"needs {' and '.join(missing)}: pip install '.[dev]'"
    version = importlib.metadata.version("trl")
    return "" if version.startswith("1.16.") else f"is about TRL 1.16, found {version}"


NEEDED = pytest.mark.skipif(bool(obstacle()), reason=obstacle())


class Outcome(NamedTuple):
    """Losses, one per pair or response or their mean, and their gradient in the log-probs of the policy."""

    value: np.ndarray
    gradient: np.ndarray


class ResponseModel:
    """A causal model with one log-probability for each response; the first token is the response's number."""

    training = False
    is_gradient_checkpointing = False
    _modules = ()  # accelerate looks for wrapped submodules

    def __init__(self, logps: Any) -> None:
        self.logps = logps

    def __call__(self, input_ids: Any, labels: Any, **_: object) -> SimpleNamespace:
        import torch

        response = labels[:, 1:] != -100
        # The first token of a response carries all of it: a sum over the tokens then rounds nothing.
        first = response & (response.cumsum(1) == 1)
        log_probs = torch.where(first, self.logps[input_ids[:, 0], None], 0.0)
        unused = torch.zeros_like(log_probs)
        return SimpleNamespace(log_probs=log_probs, entropy=unused, mean_logits=unused, is_top1=response)


def dpo(pairs: Arrays, loss_type: str, **settings: Any) -> Outcome:
    """Mean loss of a batch of pairs and its gradient `[2, B]`, from `DPOTrainer._compute_loss`."""
    import torch
    from trl.trainer.dpo_trainer import DPOTrainer

    logps = np.stack([pairs["policy_chosen_logps"], pairs["policy_rejected_logps"]])
    reference = np.stack([pairs["reference_chosen_logps"], pairs["reference_rejected_logps"]])
    lengths = np.concatenate([pairs["chosen_length"], pairs["rejected_length"]])
    with _dtype_of(logps):
        policy = torch.tensor(logps.ravel(), requires_grad=True)
        trainer = _without_init(
            DPOTrainer,
            model=ResponseModel(policy),
            ref_model=ResponseModel(torch.tensor(reference.ravel())),
            args=SimpleNamespace(
                gradient_checkpointing_kwargs=None, discopop_tau=settings.pop("temperature", 0.05)
            ),
            loss_types=[loss_type],
            loss_weights=[1.0],
            **{"label_smoothing": 0.0, "f_divergence_type": "reverse_kl", "ld_alpha": None} | settings,
            use_weighting=False,
        )
        inputs = _sequences(np.arange(len(lengths)), lengths)
        loss = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
        return _outcome(loss, policy, (2, -1))


def kto(rows: Arrays, loss_type: str, kl_logps: np.ndarray | None = None, **settings: Any) -> Outcome:
    """Mean loss of a batch of responses and its gradient `[B]`, from `KTOTrainer._compute_loss`.

    `kl_logps` `[2, N]` are the log-probs of mismatched responses under policy and reference, for TRL's KL estimate.
    """
    import torch
    from trl.trainer.kto_trainer import KTOTrainer

    kl_logps = np.zeros((2, 1), rows["policy_logps"].dtype) if kl_logps is None else kl_logps
    num_rows, lengths = len(rows["policy_logps"]), rows["length"]
    mismatched = num_rows + np.arange(kl_logps.shape[1])
    with _dtype_of(rows["policy_logps"]):
        policy = torch.tensor(rows["policy_logps"], requires_grad=True)
        reference = np.concatenate([rows["reference_logps"], kl_logps[1]])
        trainer = _without_init(
            KTOTrainer,
            model=ResponseModel(torch.cat([policy, torch.tensor(kl_logps[0])])),
            ref_model=ResponseModel(torch.tensor(reference)),
            args=SimpleNamespace(gradient_checkpointing_kwargs=None),
            loss_type=loss_type,
            calculate_KL=loss_type == "kto",
            **{"desirable_weight": 1.0, "undesirable_weight": 1.0} | settings,
        )
        inputs = _sequences(np.arange(num_rows), lengths)
        inputs |= {f"KL_{k}": v for k, v in _sequences(mismatched, np.ones_like(mismatched)).items()}
        inputs["label"] = torch.tensor(rows["desirable"].astype(bool))
        loss = trainer._compute_loss(trainer.model, inputs, return_outputs=False)
        return _outcome(loss, policy, (-1,))


def cpo(pairs: Arrays, loss_type: str, **settings: Any) -> Outcome:
    """Loss of each pair and its gradient `[2, B]`, from `CPOTrainer.cpo_loss`; without its NLL term."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    trainer = _cpo_trainer(CPOTrainer, loss_type, settings)
    average = loss_type in ("ipo", "simpo")  # as CPOTrainer.concatenated_forward has it
    return _policy_alone(lambda chosen, rejected: trainer.cpo_loss(chosen, rejected)[0], pairs, average)


def orpo(pairs: Arrays, *, beta: float) -> Outcome:
    """Odds-ratio loss of each pair and its gradient `[2, B]`, from `ORPOTrainer.odds_ratio_loss`; no NLL term."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    trainer = _without_init(ORPOTrainer, beta=beta)
    # ORPOTrainer.get_batch_loss_metrics subtracts this term, so the loss is its negative.
    return _policy_alone(lambda chosen, rejected: -trainer.odds_ratio_loss(chosen, rejected)[0], pairs, True)


def cpo_step(logits: np.ndarray, batch: Arrays, *, loss_type: str, **settings: Any) -> Outcome:
    """Whole loss, NLL included, and its gradient in the logits `[2 B, T, V]`, from `CPOTrainer`."""
    from trl.experimental.cpo.cpo_trainer import CPOTrainer

    return _step(_cpo_trainer(CPOTrainer, loss_type, settings), logits, batch)


def orpo_step(logits: np.ndarray, batch: Arrays, *, beta: float) -> Outcome:
    """Whole loss, NLL included, and its gradient in the logits `[2 B, T, V]`, from `ORPOTrainer`."""
    from trl.experimental.orpo.orpo_trainer import ORPOTrainer

    return _step(_without_init(ORPOTrainer, beta=beta, padding_value=0), logits, batch)


def each_alone(loss: Callable[..., Outcome], arrays: Arrays, *args: Any, **settings: Any) -> Outcome:
    """One value per pair from a trainer that returns means: each pair is a batch of its own."""
    num_rows = len(next(iter(arrays.values())))
    outcomes = [
        loss({k: v[i : i + 1] for k, v in arrays.items()}, *args, **settings) for i in range(num_rows)
    ]
    gradient = np.concatenate([outcome.gradient for outcome in outcomes], axis=-1)
    return Outcome(np.stack([outcome.value for outcome in outcomes]), gradient)


def _without_init(trainer_class: type, **attributes: Any) -> Any:
    """A trainer of TRL on one CPU process, with the given attributes and the methods of its class."""
    import torch

    trainer = trainer_class.__new__(trainer_class)
    accelerator = SimpleNamespace(
        device=torch.device("cpu"), gather=lambda x: x, gather_for_metrics=lambda x: x
    )
    metrics: dict[str, defaultdict] = defaultdict(lambda: defaultdict(list))
    vars(trainer).update(
        accelerator=accelerator, aux_loss_enabled=False, is_encoder_decoder=False, precompute_ref_logps=False
    )
    vars(trainer).update(_metrics=metrics, _total_train_tokens=0, **attributes)
    return trainer


def _cpo_trainer(trainer_class: type, loss_type: str, settings: dict[str, Any]) -> Any:
    defaults = {"label_smoothing": 0.0, "alpha": 0.0, "cpo_alpha": 0.0, "simpo_gamma": 0.0}
    return _without_init(trainer_class, loss_type=loss_type, pad_token_id=0, **defaults | settings)


def _sequences(numbers: np.ndarray, lengths: np.ndarray) -> dict[str, Any]:
    """Token ids and masks of responses after a prompt of one token, the number of the response."""
    import torch

    positions = np.arange(int(lengths.max()) + 1)
    mask = torch.tensor((positions >= 1) & (positions <= lengths[:, None])).long()
    input_ids = mask.clone()
    input_ids[:, 0] = torch.tensor(numbers)
    return {"input_ids": input_ids, "attention_mask": mask, "completion_mask": mask}


def _policy_alone(loss: Callable, pairs: Arrays, average: bool) -> Outcome:
    """Values and gradients of a loss of two tensors: summed, or average, log-probs of the policy."""
    import torch

    policy = torch.tensor(
        np.stack([pairs["policy_chosen_logps"], pairs["policy_rejected_logps"]]), requires_grad=True
    )
    lengths = torch.tensor(np.stack([pairs["chosen_length"], pairs["rejected_length"]]))
    return _outcome(loss(*(policy / lengths if average else policy)), policy, policy.shape)


def _step(trainer: Any, logits: np.ndarray, batch: Arrays) -> Outcome:
    import torch

    leaf = torch.tensor(logits, requires_grad=True)
    tensors = {name: torch.tensor(array) for name, array in batch.items()}
    loss, _ = trainer.get_batch_loss_metrics(lambda *_, **__: SimpleNamespace(logits=leaf), tensors)
    return _outcome(loss, leaf, leaf.shape)


def _outcome(loss: Any, policy: Any, shape: tuple[int, ...]) -> Outcome:
    loss.sum().backward()
    return Outcome(loss.detach().numpy(), policy.grad.numpy().reshape(shape))


@contextlib.contextmanager
def _dtype_of(array: np.ndarray) -> Iterator[None]:
    """TRL makes constants, such as EXO's epsilon, in torch's default type: it shall be that of the log-probs."""
    import torch

    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64 if array.dtype == np.float64 else torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
