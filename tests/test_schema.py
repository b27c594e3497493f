"""A factory's signature is the schema of its options."""

from collections.abc import Callable
from typing import Any, Literal, Optional

import numpy as np
import pytest

from metabilevel import errors
from metabilevel.errors import OptionError, PluginError
from metabilevel.schema import configure, options


def factory(
    subject: object,
    *,
    learning_rate: float = 1,
    steps: int = 3,
    first_order: bool = False,
    name: str = "a",
    pool: Literal["max", "mean"] = "max",
    ways: Literal[1, 20] = 1,
    chunk: int | None = None,
    norm: Optional[Literal["batch"]] = None,  # noqa: UP045
) -> None:
    """A method.

    **Arguments:**

    - `subject`: not an option.
    - `learning_rate`: the inner step size,
        in units of the loss.
    - `steps`, `chunk`: how many: inner steps, or tasks at once.

    - `pool`: how to pool.

    **Returns:** nothing.

    - `name`: not in the section.
    """


def test_types_defaults_and_help():
    found = options(factory)
    assert [(o.flag, o.type, o.default) for o in found.values()][:3] == [
        ("--learning-rate", float, 1),
        ("--steps", int, 3),
        ("--first-order", bool, False),
    ]
    assert (found["pool"].choices, found["ways"].type) == (("max", "mean"), int)
    assert (found["chunk"].optional, found["norm"].optional, found["steps"].optional) == (True, True, False)
    assert {name: o.help for name, o in found.items() if o.help} == {
        "learning_rate": "the inner step size, in units of the loss.",
        "steps": "how many: inner steps, or tasks at once.",
        "chunk": "how many: inner steps, or tasks at once.",
        "pool": "how to pool.",
    }


def test_every_option_has_a_value():
    values = configure(factory, {"learning-rate": 2})
    assert (values["learning_rate"], values["steps"], values["chunk"]) == (2.0, 3, None)
    assert type(values["learning_rate"]) is float
    assert type(configure(factory, {})["learning_rate"]) is float


@pytest.mark.parametrize(
    ("name", "given", "value"),
    [
        ("learning_rate", "-1e-3", -1e-3),
        ("learning_rate", np.float32(0.5), 0.5),
        ("steps", "7", 7),
        ("steps", np.int64(7), 7),
        ("first_order", "Yes", True),
        ("first_order", "0", False),
        ("name", "3", "3"),
        ("pool", "mean", "mean"),
        ("ways", "20", 20),
        ("chunk", "none", None),
        ("chunk", "8", 8),
        ("norm", "batch", "batch"),
        ("norm", None, None),
    ],
)
def test_allowed_values(name: str, given: object, value: object):
    found = configure(factory, {name: given})[name]
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("name", "given", "allowed"),
    [
        ("learning_rate", "fast", "a number"),
        ("learning_rate", True, "a number"),
        ("learning_rate", float("nan"), "a number"),
        ("learning_rate", float("inf"), "a number"),
        ("learning_rate", None, "a number"),
        ("steps", 1.0, "an integer"),
        ("steps", True, "an integer"),
        ("steps", "1.5", "an integer"),
        ("first_order", 1, "true or false"),
        ("first_order", "maybe", "true or false"),
        ("name", 3, "a text"),
        ("pool", "men", "one of max, mean. Did you mean 'mean'?"),
        ("ways", True, "one of 1, 20"),
        ("ways", "10", "one of 1, 20"),
        ("chunk", "few", "an integer or none"),
        ("chunk", [1], "an integer or none"),
    ],
)
def test_refused_values_are_named(name: str, given: object, allowed: str):
    with pytest.raises(OptionError) as error:
        configure(factory, {name: given})
    assert str(error.value).startswith(f"Option {name!r} is {given!r}, and must be {allowed}.".rstrip("."))


def test_unknown_option_offers_the_nearest():
    with pytest.raises(
        OptionError, match=r"no option 'learning-rat'\. Did you mean 'learning_rate'\? Options: .*steps"
    ):
        configure(factory, {"learning-rat": 1})


def hidden(*rates: float) -> None: ...
def loose(**rates: float) -> None: ...
def untyped(*, rate=1.0) -> None: ...
def required(*, rate: float) -> None: ...
def exotic(*, rate: list[int] = []) -> None: ...  # noqa: B006
def either(*, rate: int | str = 1) -> None: ...
def unfit(*, rate: int = "1") -> None: ...  # pyright: ignore[reportArgumentType]
def leading(rate: float = 1.0) -> None: ...
def undefined(*, rate: "Rate" = 1.0) -> None: ...  # pyright: ignore[reportUndefinedVariable]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (hidden, "rates.*hides the options"),
        (loose, "rates.*hides the options"),
        (untyped, "'rate' needs an annotation and a default"),
        (required, "'rate' needs an annotation and a default"),
        (exotic, r"'rate' is annotated list\[int\], and must be int"),
        (either, r"'rate' is annotated int \| str"),
        (unfit, "default does not fit: Option 'rate' is '1'"),
        (leading, "'rate' must be keyword-only"),
        (undefined, "signature cannot be read: name 'Rate'"),
    ],
)
def test_signatures_that_are_no_schema(bad: Callable[..., Any], reason: str):
    with pytest.raises(PluginError, match=reason):
        options(bad)


@pytest.mark.parametrize("value", [None, "1", True, [1.0], -0.5, float("nan")])
def test_what_is_no_number_in_range_is_refused_by_name(value):
    errors.number("rate", 0, 0)
    errors.number("rate", np.float32(-1), 0)  # an array, whose value may not be known
    with pytest.raises(errors.InputError, match=r"rate = .*: a number of 0 or more is wanted"):
        errors.number("rate", value, 0)


def test_counts_have_32_bits():
    assert errors.count("size", errors.MOST, 1) == 2**31 - 1
    with pytest.raises(errors.InputError, match="size = 2147483648: 2147483647 or less is wanted"):
        errors.count("size", 2**31, 1)
