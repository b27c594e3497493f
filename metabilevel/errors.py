"""What can go wrong for a user: the kind of an error decides the exit status of the command line."""

import difflib
import operator
from collections.abc import Iterable

MOST = 2**31 - 1  # of whatever is counted: the largest number of the integers by which arrays are indexed


class InputError(ValueError):
    """Wrong input; the message names it and says what is allowed. Exit status 2."""


class PluginError(InputError):
    """A plugin is unknown, ambiguous, does not import or does not keep the interface."""


class OptionError(InputError):
    """An option is unknown or its value is not allowed."""


class RunError(InputError):
    """A run directory cannot be used in the way that was asked for."""


class CheckpointError(InputError):
    """No checkpoint can be restored, or it does not fit."""


def count(name: str, value: object, least: int, most: int = MOST) -> int:
    """`value` as an integer of `least` or more, up to `most`.

    **Raises:** `InputError` that names it.
    """
    try:
        number = operator.index(value)  # pyright: ignore[reportArgumentType]
    except TypeError:
        number = None
    if number is None or isinstance(value, bool) or number < least:
        raise InputError(f"{name} = {value!r}: an integer of {least} or more is wanted.")
    if number > most:
        raise InputError(f"{name} = {value!r}: {most} or less is wanted.")
    return number


def number(name: str, value: object, least: int, *, above: bool = False) -> None:
    """Looks at a number that is known already, which an array, as it may be traced, is not.

    **Raises:** `InputError` that names it, unless it is `least` or more (`above`: more).
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        right = value > least if above else value >= least
    else:
        right = hasattr(value, "dtype")
    if not right:
        wanted = f"above {least}" if above else f"of {least} or more"
        raise InputError(f"{name} = {value!r}: a number {wanted} is wanted.")


def kind(value: object) -> str:
    """What `value` is, in words."""
    return f"the class {value.__name__}" if isinstance(value, type) else f"of type {type(value).__name__}"


class ComputationError(RuntimeError):
    """The input was right and the computation failed. Exit status 1."""


class NonFiniteError(ComputationError):
    """A loss or a gradient became NaN or infinite. `state` is the last good training state, where there is one."""

    def __init__(self, message: str, state: object = None):
        super().__init__(message)
        self.state = state


class HypergradientWarning(UserWarning):
    """A hypergradient that should not be trusted; the certificate beside it says so too. An error where `strict`."""


def did_you_mean(given: str, allowed: Iterable[str]) -> str:
    """A sentence that offers the nearest of `allowed`, or nothing where none is near."""
    near = difflib.get_close_matches(given, list(allowed), 1)
    return f" Did you mean {near[0]!r}?" if near else ""
