"""The colours of all figures, by role; after Okabe and Ito, so that the colour-blind tell them apart."""

LIGHT = {
    "paper": "#ffffff",
    "ink": "#1d2125",
    "soft": "#5b6570",
    "rule": "#d9dee3",
    "wash": "#f4f6f8",
    "muted": "#98a2ac",  # what was before
    "accent": "#0072b2",  # what is now
    "warn": "#d55e00",  # over a target, unsafe, an alarm; used for nothing else
    "good": "#00795a",
    "run0": "#0072b2",
    "run1": "#e69f00",
    "run2": "#009e73",
    "run3": "#cc79a7",
    "run4": "#56b4e9",
    "run5": "#5b6570",
}
DARK = LIGHT | {
    "paper": "#15181b",
    "ink": "#e8ebee",
    "soft": "#a3adb7",
    "rule": "#343b42",
    "wash": "#1e2327",
    "muted": "#7a858f",
    "accent": "#56b4e9",
    "warn": "#ff8f4a",
    "good": "#34c79c",
    "run0": "#56b4e9",
    "run4": "#8fa9ff",
    "run5": "#b9c2ca",
}
NUM_RUN_COLOURS = sum(role.startswith("run") for role in LIGHT)
SHAPES = ("circle", "square", "triangle", "diamond")
"""Of the dots of runs, in turn; a `tick` is one more shape, of targets."""
