"""The header Accept: which of several types an answer should have. Source: RFC 9110, section 12.5.1."""

from __future__ import annotations

import re
from collections.abc import Sequence

_Q = re.compile(r"0(\.\d{0,3})?|1(\.0{0,3})?|\.\d{1,3}")


class Accept:
    """What a client accepts. A range that cannot be read is left out; without any, everything is accepted."""

    def __init__(self, header: str) -> None:
        """Takes the values of the header, joined by commas; parameters beside q are not looked at."""
        self._qualities: dict[str, float] = {}
        for part in header.split(","):
            name, *parameters = (word.strip() for word in part.lower().split(";"))
            kind, slash, subtype = name.partition("/")
            q = next((word[2:].strip() for word in parameters if word.startswith("q=")), "1")
            if not (kind and slash and subtype) or (kind == "*" and subtype != "*") or not _Q.fullmatch(q):
                continue
            self._qualities[name] = max(float(q), self._qualities.get(name, 0.0))
        if not header.strip():
            self._qualities["*/*"] = 1.0

    def quality(self, media_type: str) -> tuple[float, int]:
        """Returns how welcome a type is, 0 to 1, and how exactly it was named: 0 by */*, 1 by type/*, 2 in full."""
        kind = media_type.partition("/")[0]
        for exactness, name in ((2, media_type), (1, f"{kind}/*"), (0, "*/*")):
            if name in self._qualities:
                return self._qualities[name], exactness
        return 0.0, 0

    def best(self, media_types: Sequence[str]) -> str | None:
        """Returns the most welcome type, of equal ones the most exactly named, then the first; null where none is."""
        best = max(media_types, key=self.quality)
        return best if self.quality(best)[0] > 0 else None
