"""What the pages are completed with when they are built: equations as MathML, option tables from the settings.

No sentence of a page is written here. mkdocs calls the functions named `on_...`; an error stops the build.
"""

import html
import re
from typing import Any, get_args

from math_core import LatexToMathML
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from jaxalign import losses
from jaxalign.training.loss_settings import LossConfig, LossSettings

EQUATION = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)
OPTIONS = re.compile(r"<!-- options: (\w+) -->")
ALL_OPTIONS = "<!-- options of all losses -->"
SETTINGS: dict[str, type[LossSettings]] = {
    name: settings
    for settings in get_args(get_args(LossConfig)[0])
    for name in get_args(settings.model_fields["name"].annotation)
}
BOUNDS = {"gt": "above", "ge": "at least", "lt": "below", "le": "at most"}

_mathml = LatexToMathML()  # unknown commands raise, so that no page shows raw LaTeX


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Put a table in the place of each comment that asks for options."""
    markdown = OPTIONS.sub(lambda found: loss_options(found[1]), markdown)
    return markdown.replace(ALL_OPTIONS, all_options())


def on_page_content(content: str, **_: Any) -> str:
    """Replace LaTeX by MathML, which browsers show without any script."""
    return EQUATION.sub(_equation, content)


def loss_options(name: str) -> str:
    """Markdown table of the options of a loss in a configuration."""
    rows = [
        f"| `{option}` | {default_of(field)} | {allowed(field)} | {meaning(name, option, field)} |"
        for option, field in SETTINGS[name].model_fields.items()
        if option != "name"
    ]
    if not rows:
        return f"In a configuration: `loss: {{name: {name}}}`; it has no options."
    head = ["| Option | Default | Allowed | Meaning |", "|---|---|---|---|"]
    return "\n".join([f"In a configuration: `loss: {{name: {name}}}`", "", *head, *rows])


def all_options() -> str:
    """Markdown table with one row a loss: its options with their defaults, the state and the data that it reads."""
    rows = []
    for name, settings in SETTINGS.items():
        options = [
            f"`{option}` {default_of(field)}"
            for option, field in settings.model_fields.items()
            if option != "name"
        ]
        rules = ", ".join(settings.rules)
        rows.append(
            f"| `{name}` | {', '.join(options)} | {rules} | {(settings.reads or '').replace('_', ' ')} |"
        )
    return "\n".join(["| `loss.name` | Options and defaults | Rules | Reads |", "|---|---|---|---|", *rows])


def default_of(field: FieldInfo) -> str:
    """The default as YAML would have it, or that there is none."""
    return "required" if field.default is PydanticUndefined else str(field.default)


def allowed(field: FieldInfo) -> str:
    """Bounds or choices of an option."""
    if choices := [choice for choice in get_args(field.annotation) if isinstance(choice, str)]:
        return ", ".join(f"`{choice}`" for choice in choices)
    bounds = [
        f"{words} {getattr(bound, key):g}"
        for bound in field.metadata
        for key, words in BOUNDS.items()
        if getattr(bound, key, None) is not None
    ]
    return " and ".join(bounds) or ("any number" if field.annotation is float else "a path")


def meaning(name: str, option: str, field: FieldInfo) -> str:
    """The description in the settings, else that of the loss's argument of the same name."""
    if field.description:
        return field.description
    documented = re.search(
        rf"^ +{option}: (.+(?:\n {{8,}}.+)*)", getattr(losses, f"{name}_loss").__doc__, re.MULTILINE
    )
    if documented is None:
        raise ValueError(
            f"option {option} of loss {name} has no description, in the settings or in {name}_loss"
        )
    return re.sub(r"\s+", " ", documented[1]).removeprefix("scalar, ").rstrip(".")


def _equation(found: re.Match[str]) -> str:
    latex = html.unescape(found[2]).strip()
    return _mathml.convert_with_local_state(latex, displaystyle=found[1] == "div")
