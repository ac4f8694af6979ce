"""The page of ``python -m atrl.inspect``: one response, once for each credit scheme, side by side."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from atrl import __version__
from atrl.report.build import environment, script_hash
from atrl.report.cards import UNIT_TINT, make_cards, scale_top
from atrl.report.run_folder import Response
from atrl.report.text import printable

HERE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Inspection:
    """What the page shows."""

    checkpoint: str
    how: str
    """How the answer came about."""
    responses: dict[str, Response]
    """By scheme, the same response."""
    shares: list[list[float]]
    """[scheme] [picture] how its weighted tokens divide their attention among the question's pictures and videos."""


def write_inspection(folder: Path, inspection: Inspection) -> Path:
    """Write ``inspection.html`` into `folder`, where the pictures are; it needs nothing outside itself.

    Raises:
        ValueError: if a picture lies outside `folder`.
    """
    from markupsafe import Markup

    responses = list(inspection.responses.values())
    cards = make_cards(responses, folder)
    scripts = [(HERE / name).read_text(encoding="utf-8") for name in ("report.js", "inspection.js")]
    page = environment().get_template("inspection.html.j2").render(
        checkpoint=printable(inspection.checkpoint),
        how=inspection.how,
        named=list(zip(map(printable, inspection.responses), cards, inspection.shares, strict=True)),
        scale_top=scale_top([weight for response in responses for weight in response.weights]),
        unit_tint=UNIT_TINT,
        card_data=[card.data() | {"folded": []} for card in cards],  # pointing in step needs all tokens in the page
        style=Markup("\n".join((HERE / name).read_text(encoding="utf-8") for name in ("report.css", "inspection.css"))),
        scripts=[Markup(script) for script in scripts],
        script_hashes=[script_hash(script) for script in scripts],
        version=__version__,
    )  # fmt: skip
    target = folder / "inspection.html"
    target.write_text(page, encoding="utf-8")
    return target
