"""``python -m atrl.workspace ENTITY/PROJECT``: a saved view on W&B with the report's charts, a section a group."""

from __future__ import annotations

import argparse
import sys
from importlib.util import find_spec
from typing import TYPE_CHECKING

from atrl.report.panels import PANELS, Panel
from atrl.tracking import METRIC_GROUPS, TABLE, logged_in

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import LinePlot
    from wandb_workspaces.workspaces import Workspace

STEP = "trainer/global_step"
"""What Lightning's logger puts metrics over."""
OPEN = ("reward", "eval", "credit")
"""Sections that are unfolded at first."""


def build(entity: str, project: str, *, name: str = "AT-RL") -> Workspace:
    """The view of `entity`/`project`; nothing is sent anywhere.

    A section for each of `METRIC_GROUPS` in their order, with the panels of the report whose first curve is in it, the
    table of rollouts beside those of rollouts; runs are grouped as they are logged, by sweep or experiment.
    """
    from wandb_workspaces import workspaces
    from wandb_workspaces.reports import v2

    sections = []
    for group in METRIC_GROUPS:
        panels: list[object] = [_plot(panel) for panel in PANELS if group_of(panel) == group]
        if group_of_name(TABLE) == group:
            panels.append(v2.WeavePanelSummaryTable(table_name=TABLE))
        sections.append(workspaces.Section(name=group, panels=panels, is_open=group in OPEN))
    return workspaces.Workspace(
        entity=entity,
        project=project,
        name=name,
        sections=sections,
        settings=workspaces.WorkspaceSettings(x_axis=STEP, smoothing_type="none"),
        runset_settings=workspaces.RunsetSettings(groupby=[workspaces.Metric("Group")]),
    )


def group_of(panel: Panel) -> str:
    """The metric group of a panel: its first curve's."""
    return group_of_name(panel.lines[0].columns[0])


def group_of_name(metric: str) -> str:
    """What stands before the name."""
    return metric.partition("/")[0]


def _plot(panel: Panel) -> LinePlot:
    from wandb_workspaces.reports import v2

    columns = [column for line in panel.lines for column in line.columns]
    kind = "stacked-area" if panel.stacked else "line"
    return v2.LinePlot(title=panel.title, x=STEP, y=columns, title_y=panel.note, plot_type=kind)


def main() -> int:
    """Save the view and print where it is; what the user must do first is one line and exit code 2."""
    parser = argparse.ArgumentParser(prog="python -m atrl.workspace", description=__doc__)
    parser.add_argument("project", help="as ENTITY/PROJECT, where the runs are")
    asked = parser.parse_args().project
    entity, slash, project = asked.partition("/")
    if not (slash and entity and project) or "/" in project:
        return _refuse(f"{asked!r} must be ENTITY/PROJECT, as in the address of the project's page")
    if find_spec("wandb_workspaces") is None:
        return _refuse("a saved view needs the package wandb-workspaces: pip install 'atrl[workspaces]'")
    try:
        known = logged_in()
    except ValueError as error:
        return _refuse(str(error))
    if not known:
        return _refuse("there is no login for W&B on this machine: run `wandb login`, then this again")
    print(build(entity, project).save().url)
    return 0


def _refuse(line: str) -> int:
    print(f"error: {line}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
