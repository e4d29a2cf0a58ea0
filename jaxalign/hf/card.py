"""Model cards. Of an export: data, method, what is reconstructed, figures per harm category; of a merge: its parts."""

from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import yaml
from jinja2 import Environment, PackageLoader, StrictUndefined

from jaxalign.markdown import plain

_CAT_DPO = "Cat-DPO (arXiv 2604.17299): a margin per harm category that adapts during training"
_B_DPO = "B-DPO (arXiv 2603.22829): response weights from mutual information with the prompt"
_RECONSTRUCTED = {"cat_dpo": [_CAT_DPO], "b_dpo": [_B_DPO], "cat_b_dpo": [_CAT_DPO, _B_DPO]}


def model_card(
    *,
    title: str,
    method: str,
    data: Sequence[str],
    base_model: str | None = None,
    settings: Mapping[str, Any] | None = None,
    categories: Mapping[str, Mapping[str, float | int | None]] | None = None,
    explanation: str = "",
    adapter: bool = False,
) -> str:
    """The text of README.md.

    `method` is the name of the loss, `data` one line per source, and `categories` maps each category to its
    figures by column name, such as {"violence": {"pairs": 12, "reward accuracy": 0.75}}. A figure that is
    missing or None is shown as a dash; `explanation` says what the columns mean.
    """
    categories = categories or {}
    columns = list(dict.fromkeys(column for figures in categories.values() for column in figures))
    return _template("model_card.md.jinja").render(
        title=title,
        summary="An adapter" * adapter
        + "A language model" * (not adapter)
        + " trained for safety preferences.",
        front_matter=_front_matter(base_model, adapter),
        method=method,
        reconstructed=_RECONSTRUCTED.get(method, []),
        version=_version(),
        base_model=base_model,
        settings=settings or {},
        data=data,
        categories={name: {c: figures.get(c) for c in columns} for name, figures in categories.items()},
        columns=columns,
        explanation=explanation,
        adapter=adapter,
    )


def merge_card(*, title: str, parts: Sequence[Mapping[str, Any]]) -> str:
    """The text of README.md for the weighted mean of models.

    Each part is a row of the table, such as {"share": 0.25, "model": "stage1", "loss": "dpo"}; what is not known of
    it is left out or None, and shown as a dash.
    """
    columns = list(dict.fromkeys(column for part in parts for column in part))
    papers = [paper for part in parts for paper in _RECONSTRUCTED.get(part.get("loss") or "", [])]
    return _template("merge_card.md.jinja").render(
        title=title,
        front_matter=_front_matter(None, adapter=False, tags=("merge",)),
        parts=[{column: part.get(column) for column in columns} for part in parts],
        columns=columns,
        reconstructed=list(dict.fromkeys(papers)),
        version=_version(),
    )


def _template(name: str) -> Any:
    environment = Environment(  # Markdown, not HTML: cells are escaped by the filters below
        loader=PackageLoader("jaxalign.hf", "."), undefined=StrictUndefined, keep_trailing_newline=True
    )
    environment.filters |= {"cell": plain, "figure": _figure}
    return environment.get_template(name)


def _front_matter(base_model: str | None, adapter: bool, tags: Sequence[str] = ()) -> str:
    """The YAML that a hub reads; a base model is named only if it looks like a hub's owner/name."""
    fields: dict[str, Any] = {"library_name": "peft" if adapter else "transformers"}
    if base_model is not None and base_model.count("/") == 1 and not base_model.startswith((".", "/", "~")):
        fields["base_model"] = base_model
    return yaml.safe_dump(fields | {"tags": ["jaxalign", "dpo", "safety", *tags]}, sort_keys=False)


def _figure(value: float | int | None) -> str:
    if value is None:
        return "–"
    return str(value) if isinstance(value, int) else f"{value:.3f}"


def _version() -> str:
    try:
        return version("jaxalign")
    except PackageNotFoundError:  # run from a checkout that is not installed
        return "from source"
