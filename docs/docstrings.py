"""How the API pages read our docstrings: one `Example:` is the section that the parser calls `Examples:`."""

import re
from typing import Any

import griffe


class OneExample(griffe.Extension):
    """Without this the doctest of an `Example:` would be taken for Markdown, its prompts for quotations."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rename the section of every object as it is loaded."""
        if obj.docstring:
            obj.docstring.value = re.sub(r"^Example:$", "Examples:", obj.docstring.value, flags=re.MULTILINE)
