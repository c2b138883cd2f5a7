"""What of the data could not be used as it stands: told with how many rows have it, and where one stands."""

from collections.abc import Iterable
from dataclasses import dataclass, field

from paca.errors import first_few


@dataclass
class Remarks:
    """Gathers remarks from the rows of a data set.

    Args:
        places: For each remark, the places of the rows that it is about.
        columns: Names of columns that no format reads, in the order in which they were met.
    """

    places: dict[str, list[str]] = field(default_factory=dict)
    columns: dict[str, None] = field(default_factory=dict)

    def add(self, remark: str, place: str) -> None:
        """Note that a remark holds for the row at `place`; once for each row."""
        places = self.places.setdefault(remark, [])
        if not places or places[-1] != place:
            places.append(place)

    def extend(self, others: Iterable["Remarks"]) -> None:
        """Take in other remarks."""
        for other in others:
            for remark, places in other.places.items():
                self.places.setdefault(remark, []).extend(places)
            self.columns.update(other.columns)

    def lines(self) -> list[str]:
        """Return one line for each remark."""
        return [
            f"{len(places):,} row{'s' if len(places) > 1 else ''}: {remark}; for instance {places[0]}"
            for remark, places in self.places.items()
        ]

    def unused_columns(self) -> list[str]:
        """Return a line that names the columns that are not used, or none."""
        return [f"columns that are not used: {first_few(list(map(repr, self.columns)), 12)}"] if self.columns else []
