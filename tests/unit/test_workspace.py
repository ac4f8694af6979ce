"""The saved view for W&B, as it would be sent; and what is said where it can't be."""

from __future__ import annotations

import sys

import pytest

from atrl import workspace
from atrl.report.panels import PANELS
from atrl.tracking import METRIC_GROUPS, TABLE


def test_the_view_has_every_chart_of_the_report_in_its_groups_section() -> None:
    pytest.importorskip("wandb_workspaces", reason="not installed: pip install 'atrl[workspaces]'")
    view = workspace.build("team", "mine")._to_model()
    assert (view.entity, view.project, view.display_name) == ("team", "mine", "AT-RL")
    sections = {section.name: section for section in view.spec.section.panel_bank_config.sections}
    assert tuple(sections) == METRIC_GROUPS
    assert [name for name, section in sections.items() if section.is_open] == ["reward", "credit", "eval"]
    plots = [
        (name, panel.config)
        for name, section in sections.items()
        for panel in section.panels
        if hasattr(panel, "config")
    ]
    drawn = {config.chart_title: (name, config) for name, config in plots if hasattr(config, "chart_title")}
    assert drawn.keys() == {panel.title for panel in PANELS}
    for panel in PANELS:
        name, config = drawn[panel.title]
        assert config.x_axis == "trainer/global_step"
        assert config.metrics == [column for line in panel.lines for column in line.columns]
        assert name == config.metrics[0].split("/")[0]
        assert config.plot_type == ("stacked-area" if panel.stacked else "line")
    assert TABLE in str(sections["rollout"].panels[-1])


@pytest.mark.parametrize("asked", ["atrl", "team/", "/atrl", "team/a/b"])
def test_a_project_without_its_owner_is_refused(asked: str, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["workspace", asked])
    assert workspace.main() == 2
    assert (
        capsys.readouterr().err == f"error: {asked!r} must be ENTITY/PROJECT, as in the address of the project's page\n"
    )


def test_without_package_or_login_one_line_says_what_to_do(monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["workspace", "team/atrl"])
    monkeypatch.setattr(workspace, "find_spec", lambda name: None)
    assert workspace.main() == 2 and "pip install 'atrl[workspaces]'" in capsys.readouterr().err
    monkeypatch.setattr(workspace, "find_spec", lambda name: object())
    monkeypatch.setattr(workspace, "logged_in", lambda: False)
    assert workspace.main() == 2
    said = capsys.readouterr().err
    assert "run `wandb login`, then this again" in said and said.count("\n") == 1
