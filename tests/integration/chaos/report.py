"""What the chaos suite counts."""

from __future__ import annotations

import statistics
from dataclasses import dataclass, field


@dataclass
class Row:
    """Hold what came of one kind of fault."""

    kind: str
    injected: int = 0
    jobs: set[str] = field(default_factory=set)
    lost: list[str] = field(default_factory=list)
    doubled: list[str] = field(default_factory=list)
    recoveries: list[float] = field(default_factory=list)


@dataclass
class Report:
    """Hold a row for each kind of fault."""

    rows: dict[str, Row] = field(default_factory=dict)

    def row(self, kind: str) -> Row:
        """Return the row of a kind."""
        return self.rows.setdefault(kind, Row(kind))

    @property
    def wrong(self) -> list[str]:
        """Return every document that was lost or doubled."""
        return [f"{row.kind}: {text}" for row in self.rows.values() for text in (*row.lost, *row.doubled)]

    @property
    def worst(self) -> float:
        """Return the longest recovery, in seconds."""
        return max((seconds for row in self.rows.values() for seconds in row.recoveries), default=0.0)

    def table(self) -> str:
        """Return the table, in Markdown."""
        lines = [
            "| kind of fault | injected | jobs | lost | doubled | recovery, median | worst |",
            "|---|--:|--:|--:|--:|--:|--:|",
        ]
        for row in self.rows.values():
            recovered = row.recoveries
            times = [f"{call(recovered):.1f} s" if recovered else "-" for call in (statistics.median, max)]
            cells = [row.kind, row.injected, len(row.jobs), len(row.lost), len(row.doubled)]
            lines.append(f"| {' | '.join(map(str, [*cells, *times]))} |")
        return "\n".join(lines)
