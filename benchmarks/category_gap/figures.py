"""The study's figures as plain SVG files: categories.svg, settings.svg, margins_METHOD.svg for each with margins."""

import html
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from choosing import scores_of_settings
from plan import Plan
from results import Results
from tables import BASELINES, COMPARISONS
from world import NAMES

from jaxalign.files import write_whole

COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999999",
)  # Okabe and Ito
COMPARED_SETTINGS = (
    "dpo",
    "ipo",
    "simpo",
    "safe_dpo",
    "bfpo",
    "cat_dpo probe",
    "cat_dpo probe, multiplicative",
    "cat_dpo probe, multiplicative, one category",
)
FONT = 'font-family="system-ui, sans-serif" font-size="12"'


def write_figures(folder: Path, plan: Plan, results: Results) -> None:
    """All figures of the tested methods, into the folder."""
    write_whole(folder / "categories.svg", categories_figure(plan, results))
    write_whole(folder / "settings.svg", settings_figure(plan, results))
    for name in plan.methods:
        if "trace/margin" in results.of("test", name)[0]["figures"]:
            title = name.replace(",", "").replace(" ", "_")
            write_whole(folder / f"margins_{title}.svg", margins_figure(plan, results, name))


def svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    """A figure of these parts on white."""
    name = html.escape(title)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" role="img" {FONT}>\n'
        f'<title>{name}</title>\n<rect width="100%" height="100%" fill="white"/>\n'
        + "\n".join([text(12, 20, title, weight="bold"), *parts])
        + "\n</svg>\n"
    )


def text(
    x: float, y: float, words: str, *, anchor: str = "start", fill: str = "#222", weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{fill}" font-weight="{weight}">'
        f"{html.escape(words)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, colour: str = "#ddd", width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" stroke-width="{width}"/>'


def dot(x: float, y: float, colour: str, *, label: str = "", radius: float = 4.5) -> str:
    hint = f"<title>{html.escape(label)}</title>" if label else ""
    return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius}" fill="{colour}">{hint}</circle>'


def categories_figure(plan: Plan, results: Results) -> str:
    """A row a method: a dot for the mean safe rate of each category, with the number of the worst one."""
    left, right, top, row = 290.0, 840.0, 66.0, 26.0
    rates = {
        name: 100 * np.mean([r["figures"]["safe"] for r in results.of("test", name)], axis=0)
        for name in plan.methods
    }
    low = 10 * np.floor(min(x.min() for x in rates.values()) / 10)

    def place(rate: float) -> float:
        return left + (right - left) * (rate - low) / (100 - low)

    bottom = top + row * len(rates)
    parts = [line(place(t), top - 12, place(t), bottom - 8) for t in np.arange(low, 101, 10)]
    parts += [text(place(t), top - 16, f"{t:.0f} %", anchor="middle") for t in np.arange(low, 101, 10)]
    for i, (name, rate) in enumerate(rates.items()):
        y = top + row * i
        parts += [
            text(left - 12, y + 4, name, anchor="end", weight="bold" if name in COMPARISONS else "normal")
        ]
        parts += [line(place(rate.min()), y, place(rate.max()), y, "#888", 2)]
        parts += [dot(place(x), y, COLOURS[k], label=f"{NAMES[k]}: {x:.1f} %") for k, x in enumerate(rate)]
        parts += [text(place(rate.min()) - 8, y + 4, str(1 + rate.argmin()), anchor="end")]
    for k, name in enumerate(NAMES):
        x, y = 20 + 212 * (k % 4), bottom + 14 + 20 * (k // 4)
        parts += [dot(x, y - 4, COLOURS[k]), text(x + 9, y, f"{k + 1} {name}")]
    return svg(
        880, bottom + 50, "Safe rate of each harm category, mean over seeds; the number is the worst", parts
    )


def settings_figure(plan: Plan, results: Results) -> str:
    """The settings that were tried: worst category against helpfulness, and the best that can be had at each."""
    names = [name for name in COMPARED_SETTINGS if name in plan.methods]
    lowest, bottom = 90.0, 60.0  # what is further down is left out

    def x_place(helpful: float) -> float:
        return 60 + 480 * (helpful - lowest) / (100 - lowest)

    def y_place(worst: float) -> float:
        return 400 - 350 * (worst - bottom) / (100 - bottom)

    parts = [line(60, 400, 540, 400, "#888"), line(60, 50, 60, 400, "#888")]
    parts += [text(x_place(v), 416, f"{v:.0f}", anchor="middle") for v in np.arange(lowest, 101, 2)]
    parts += [text(52, y_place(v) + 4, f"{v:.0f}", anchor="end") for v in np.arange(bottom, 101, 10)]
    parts += [text(300, 436, "helpful answers to benign prompts, %", anchor="middle")]
    for i, name in enumerate(names):
        scores = scores_of_settings(results.rows, name, plan.screening_seeds)
        points = [(100 * one["helpful"], 100 * one["worst"]) for one in scores.values()]
        shown = sorted(p for p in points if p[0] >= lowest and p[1] >= bottom)
        front = [p for p in shown if not any(q[0] >= p[0] and q[1] > p[1] for q in shown)]
        path = " ".join(f"{x_place(x):.1f},{y_place(y):.1f}" for x, y in front)
        dashes = ' stroke-dasharray="5 3"' if name in BASELINES else ""
        parts += [f'<polyline points="{path}" fill="none" stroke="{COLOURS[i]}" stroke-width="2"{dashes}/>']
        parts += [dot(x_place(x), y_place(y), COLOURS[i], label=name, radius=2.5) for x, y in shown]
        parts += [dot(556, 66 + 22 * i, COLOURS[i]), text(566, 70 + 22 * i, f"{name} ({len(shown)})")]
    parts += [text(556, 70 + 22 * len(names), "(settings in the picture)", fill="#666")]
    return svg(880, 450, "Safe rate of the worst category, %: settings tried, on the screening seeds", parts)


def margins_figure(plan: Plan, results: Results, name: str) -> str:
    """The margin of every category over the steps, mean over seeds, nats."""
    runs = results.of("test", name)
    beta = runs[0]["numbers"]["loss.beta"]
    margins = np.mean([row["figures"]["trace/margin"] for row in runs], axis=0) / beta
    highest = max(float(np.ceil(margins.max())), 1.0)
    steps = plan.budget.num_steps
    # A value holds from its probe to the next one; the last column of the trace is that of the last steps.
    x = np.linspace(0, steps, len(margins) + 1)[1:]

    def x_place(step: float) -> float:
        return 50 + 510 * step / steps

    def y_place(margin: float) -> float:
        return 300 - 250 * margin / highest

    parts = [line(50, y_place(v), 560, y_place(v)) for v in np.linspace(0, highest, 5)]
    parts += [text(44, y_place(v) + 4, f"{v:.3g}", anchor="end") for v in np.linspace(0, highest, 5)]
    parts += [text(x_place(v), 318, f"{v:.0f}", anchor="middle") for v in np.linspace(0, steps, 5)]
    for k, category in enumerate(NAMES):
        points = " ".join(f"{x_place(a):.1f},{y_place(b):.1f}" for a, b in zip(x, margins[:, k], strict=True))
        parts += [f'<polyline points="{points}" fill="none" stroke="{COLOURS[k]}" stroke-width="2"/>']
        parts += [dot(580, 60 + 22 * k - 4, COLOURS[k]), text(590, 60 + 22 * k, category)]
    parts += [text(305, 336, "steps", anchor="middle")]
    return svg(800, 345, f"Margins of {name}, nats, mean over seeds", parts)
