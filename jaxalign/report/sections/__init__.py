"""The sections of a run's part of the page, in the order in which they stand there. Each is made by one module."""

from collections.abc import Callable

from jaxalign.report.document import Section
from jaxalign.report.record import RunRecord
from jaxalign.report.sections import (
    answers,
    balance,
    course,
    displacement,
    heldout,
    margins,
    probes,
    settings,
)

SECTIONS: tuple[Callable[[RunRecord], Section], ...] = (
    answers.section,
    heldout.section,
    heldout.gap_section,
    margins.section,
    probes.section,
    balance.section,
    displacement.section,
    course.section,
    settings.section,
)
