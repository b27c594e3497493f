"""What a check found."""

from dataclasses import dataclass
from typing import Literal, TypeAlias

Status: TypeAlias = Literal["passed", "failed", "not applicable"]


class Nonconformity(AssertionError):
    """A method does not keep the interface; the message says what is wrong, what was seen, and how to mend it."""


class NotApplicable(Exception):
    """A check has nothing to look at; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """Of one check.

    `message` says what is wrong, with the numbers seen and how to mend it, where the check failed; why there was
    nothing to look at, where it is not applicable; nothing where it passed.
    """

    name: str
    status: Status
    message: str = ""

    def __str__(self) -> str:
        return f"{self.name}: {self.status}" + (f". {self.message}" if self.message else "")
