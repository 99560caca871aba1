"""A run's JSON records → one HTML page and one Markdown file: the answer first, then what it rests on.

Nothing is measured here: the same records give the same bytes.
"""

import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from colbert_zero.files import atomic_file
from colbert_zero.report.answer import findings, headline
from colbert_zero.report.cost import COMPUTE, TIME
from colbert_zero.report.drawing import Plot
from colbert_zero.report.ensembles import ensemble_findings, ensemble_tables
from colbert_zero.report.planned import planned_tables
from colbert_zero.report.plots import bytes_plot, cost_plot, loss_plot, quality_plot
from colbert_zero.report.records import MEASURE, Records
from colbert_zero.report.tables import (
    Best,
    Table,
    collections_table,
    comparisons_table,
    environment_table,
    glance,
    phase_tables,
    published_table,
    scores_table,
    sources_table,
    teachers_table,
)


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    title: str
    terms: list[tuple[str, str]] = field(default_factory=list)
    plots: list[Plot] = field(default_factory=list)
    tables: list[Table] = field(default_factory=list)
    commands: list[str] = field(default_factory=list)


def _sections(records: Records) -> list[Section]:
    """The report's body in reading order; a section without records is left out."""
    quality, cost, losses = quality_plot(records, records.currency), cost_plot(records), loss_plot(records)
    against_bytes = bytes_plot(records)
    against_time = quality_plot(records, TIME) if records.currency is COMPUTE else None
    measures = {m for s in records.systems.values() for scores in s["scores"].values() for m in scores}
    others = sorted(measures - {MEASURE})
    first = Section(
        "The answer",
        terms=findings(records),
        plots=[quality] if quality else [],
        tables=[glance(records)] if records.pipelines() else [],
    )
    data = [*([sources_table(records)] if records.data.get("sources") else []), collections_table(records)]
    machine = [environment_table(records)] if records.environment else []
    published = published_table(records)
    again = ["colbert-zero run recipe.json --out AGAIN", "colbert-zero report AGAIN"]
    sections = [
        first,
        Section(
            "Scores by phase and collection",
            plots=[against_bytes] if against_bytes else [],
            tables=[scores_table(records, m) for m in (MEASURE, *others)],
        ),
        Section("Two models or one", terms=ensemble_findings(records), tables=ensemble_tables(records)),
        Section("Published figures", tables=[published] if published else []),
        Section("Comparisons", tables=[comparisons_table(records)] if records.comparisons else []),
        Section("Cost", plots=[plot for plot in (cost, against_time) if plot], tables=planned_tables(records)),
        Section("Training", plots=[losses] if losses else [], tables=phase_tables(records) if records.phases else []),
        Section("Teachers", tables=[teachers_table(records)] if records.teachers else []),
        Section("Data", tables=data),
        Section("How to run this again", tables=machine, commands=again),
    ]
    return [s for s in sections if s.terms or s.plots or s.tables or s.commands]


def markdown(value: Any) -> Any:
    """Text that Markdown shows as it is, inside a table's cell too."""
    return re.sub(r"([\\`*|\[\]<>])", r"\\\1", " ".join(value.split())) if isinstance(value, str) else value


def environment(settings: dict[str, Any]) -> Any:
    """Where the pages' templates are made.

    Args:
        settings: How what goes into them is escaped.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    made = Environment(  # noqa: S701 (Markdown has its own escape)
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        **settings,
    )
    made.tests["best"] = lambda cell: isinstance(cell, Best)
    return made


def write_report(folder: Path) -> Path:
    """Write report.html, report.md and plots/*.png from the JSON records of a run's folder.

    Args:
        folder: What `colbert-zero run` wrote; see docs/records.md. Only results.json is needed.

    Returns:
        The path of report.html, one file that loads nothing else.

    Raises:
        ColbertZeroError: There is no results.json, or a record is damaged; names the file.
    """
    records = Records(folder)
    sections = _sections(records)
    for plot in (plot for section in sections for plot in section.plots):
        with atomic_file(folder / "plots" / f"{plot.name}.png", "wb") as file:
            file.write(plot.png)
    for suffix, settings in (("html", {"autoescape": True}), ("md", {"finalize": markdown})):
        page = (
            environment(settings)
            .get_template(f"report.{suffix}.j2")
            .render(recipe=records.recipe, headline=headline(records), sections=sections)
        )
        with atomic_file(folder / f"report.{suffix}") as file:
            file.write(page)
    return folder / "report.html"
