"""The one exception for input that a user can correct, and its sentence about many mistakes."""

from collections.abc import Sequence


class InputError(Exception):
    """Something the user gave is wrong, and can be put right.

    The command line prints it as one sentence and exits with 2; the HTTP API answers 4xx.

    Args:
        what: what is wrong, without a full stop.
        where: the file, field or option it concerns.
        fix: what to do about it.
    """

    def __init__(self, what: str, *, where: object = None, fix: str | None = None) -> None:
        self.what, self.where, self.fix = what, where, fix
        place = "" if where is None else f" ({where})"
        remedy = "" if fix is None else f": {fix}"
        super().__init__(f"{what}{place}{remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        """Keep the parts when the error crosses a process boundary (Ray pickles exceptions)."""
        return _rebuild, (self.what, None if self.where is None else str(self.where), self.fix)


def first_of(problems: Sequence[str], most: int = 3) -> str:
    """The first few of many problems for a sentence, and how many more there are."""
    more = f" and {len(problems) - most} more" if len(problems) > most else ""
    return "; ".join(problems[:most]) + more


def _rebuild(what: str, where: str | None, fix: str | None) -> InputError:
    return InputError(what, where=where, fix=fix)
