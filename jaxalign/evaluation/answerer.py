"""Which model gave answers, and how it was asked. Nothing is loaded or hashed here."""

import dataclasses
from collections.abc import Mapping

Option = bool | int | float | None


@dataclasses.dataclass(frozen=True)
class Answerer:
    """A model by the name of its folder, at a step if it is a run, and the settings of its answers.

    `model_fingerprint` is that of a pretrained model's files, or of what a run was made of and its step.
    """

    model: str
    model_fingerprint: str
    step: int | None
    answer_settings: dict[str, Option]

    def __str__(self) -> str:
        """For people."""
        return described(self.model, self.step, self.answer_settings)


def described(model: str, step: int | None, settings: Mapping[str, Option]) -> str:
    """The model, its step, and how it was asked, for people."""
    return f"{model}{'' if step is None else f' at step {step}'} ({in_words(settings)})"


def in_words(settings: Mapping[str, Option]) -> str:
    """The settings that say something, for people."""
    return ", ".join(f"{name} {value}" for name, value in settings.items() if value is not None)
