"""Text within Markdown."""

MARKS = "\\`*_[]<>|#"


def plain(text: object) -> str:
    """One line on which nothing is markup, as a terminal or a page shows it."""
    line = " ".join(str(text).split())
    for mark in MARKS:
        line = line.replace(mark, "\\" + mark)
    return line
