"""Does a method keep the promises that the outer loop relies on? The kit by which a plugin's author finds out.

    from metabilevel import conformance
    from my_package import my_method

    test_my_method = conformance.checks(my_method)

under pytest runs every check on small problems of the kit's own, chosen by what the factory is built on; `run` does so
without pytest. `CHECKS` has their names, each with what it demands.
"""

from collections.abc import Callable, Sequence
from functools import partial

from ..errors import InputError, did_you_mean
from ..tasks import TaskDistribution
from . import adaptation, analytic, behaviour, interface, inverses, state
from .bench import Factory
from .outcome import Nonconformity as Nonconformity
from .outcome import NotApplicable as NotApplicable
from .outcome import Outcome as Outcome
from .trial import Trial

_CHECKS: dict[str, Callable[[Trial], None]] = {
    check.__name__.replace("_", "-"): check
    for module in (interface, state, behaviour, adaptation, analytic, inverses)
    for check in module.CHECKS
}
CHECKS: dict[str, str] = {name: " ".join((check.__doc__ or "").split()) for name, check in _CHECKS.items()}


def checks(
    method_factory: Factory,
    *,
    tasks: Callable[[], TaskDistribution] | None = None,
    direction_is_the_gradient: bool | None = None,
    seeds: Sequence[int] = (0, 1, 2),
) -> Callable[..., None]:
    """A test function for pytest, with a case for every check; the names of the cases are those of `CHECKS`.

    **Arguments:**

    - `method_factory`: `(subject, *, options...) -> Method`, which is called with default options. What it is built on
      is the annotation of its first parameter; without one, the kit tries.
    - `tasks() -> TaskDistribution`: tasks of your own, for a subject of which the kit has none.
    - `direction_is_the_gradient`: True demands that the direction be the derivative of the outer loss, False leaves
      that out. None goes by what the method's adjoint says of itself.
    - `seeds`: of tasks, starts and keys; every check is made for each.
    """
    import pytest

    trial = Trial(method_factory, tasks, direction_is_the_gradient, seeds)

    @pytest.mark.parametrize("check", list(_CHECKS))
    def test(check: str) -> None:
        outcome = _outcome(check, trial)
        if outcome.status == "not applicable":
            pytest.skip(outcome.message)
        if outcome.status == "failed":
            pytest.fail(outcome.message, pytrace=False)

    return test


def run(
    method_factory: Factory,
    *,
    tasks: Callable[[], TaskDistribution] | None = None,
    direction_is_the_gradient: bool | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    only: Sequence[str] | None = None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> list[Outcome]:
    """What every check finds, without pytest.

    **Arguments:** as of `checks`; `only` are the names of the checks to be made, all if None; `on_outcome` is told of
    each outcome at once.

    **Raises:** `InputError` for a check that there is not.
    """
    for name in only or ():
        if name not in _CHECKS:
            raise InputError(f"only: there is no check {name!r}.{did_you_mean(name, _CHECKS)}")
    trial = Trial(method_factory, tasks, direction_is_the_gradient, seeds)
    outcomes = []
    for name in _CHECKS if only is None else only:
        outcomes.append(_outcome(name, trial))
        on_outcome(outcomes[-1])
    return outcomes


def _outcome(name: str, trial: Trial) -> Outcome:
    outcome = partial(Outcome, name)
    try:
        _CHECKS[name](trial)
    except NotApplicable as reason:
        return outcome("not applicable", str(reason))
    except Nonconformity as error:
        return outcome("failed", str(error))
    except Exception as error:  # noqa: BLE001 - whatever a plugin raises is what its author is told of
        return outcome("failed", f"{type(error).__name__}: {error}")
    return outcome("passed")
