"""The pictures of a report, drawn while other claims still train."""

from contextlib import suppress

from batchnorm.study import pictures
from batchnorm.study.findings import Claim, Finding


class Drawn:
    """Pictures by claim, as SVG for the page."""

    def __init__(self) -> None:
        """Start with none."""
        self._pictures: dict[str, str] = {}

    def draw_early(self, claim: Claim, finding: Finding) -> None:
        """Draw a claim that has been measured. A picture that fails is left for the end: no numbers are lost for it."""
        with suppress(Exception):
            self.of(claim, finding)

    def of(self, claim: Claim, finding: Finding) -> str:
        """Return the picture of a claim, drawn now unless it was before."""
        if claim.id not in self._pictures:
            figure = claim.picture(finding)
            self._pictures[claim.id] = pictures.inline(figure, claim.id, claim.statement, claim.caption)
        return self._pictures[claim.id]
