"""`doctor`: what a run here would use and find."""

from itertools import groupby
from pathlib import Path

import typer
from rich.table import Table
from rich.text import Text

from colbert_zero.cli.options import OutOption
from colbert_zero.errors import ColbertZeroError, reason
from colbert_zero.terminal import console


def doctor(out: OutOption = None) -> None:
    """Show what a run here would use and find: versions, devices, kernels, memory, disks, Hub, launcher.

    Each problem stands under its line, with its mend. Exit code 1 if one of them would stop a run.

    Examples:

      colbert-zero doctor
      colbert-zero doctor --out /scratch/study
    """
    try:
        from colbert_zero.study.host import look
    except (ImportError, OSError) as error:
        raise ColbertZeroError(
            f"a package cannot be imported: {reason(error)}; make install, or pip install colbert-zero anew"
        ) from error
    findings = list(look(out or Path("out")))
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for topic, several in groupby(findings, lambda found: found[0]):
        table.add_row(Text(topic, style="bold"))
        for _, finding in several:
            table.add_row(Text(f"  {finding.name}"), Text(finding.found))
            if finding.problem:
                mark = "stops: " if finding.stops else "problem: "
                table.add_row("", Text(mark + finding.problem, style="red" if finding.stops else "yellow"))
    console.print(table)
    problems = [finding for _, finding in findings if finding.problem]
    stops = sum(finding.stops for finding in problems)
    console.print(f"\n{len(problems) or 'No'} problem{'s' * (len(problems) != 1)}, {stops or 'none'} that stops a run")
    if stops:
        raise typer.Exit(1)
