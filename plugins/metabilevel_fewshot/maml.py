"""MAML and first-order MAML (Finn, Abbeel & Levine 2017, arXiv:1703.03400)."""

from typing import Literal

from metabilevel import Learner, Method, Unroll

from .descent import descent
from .policy import Policy, policies


@policies(learning_rate=0.4, steps=1, adapts="all", head="meta")
def maml(
    learner: Learner,
    train: Policy,
    test: Policy,
    *,
    first_order: bool = False,
    mixed_mode: bool = False,
    checkpoint: Literal["step", "sqrt"] | None = None,
) -> Method:
    """MAML: minimise over x the query loss of y_k, where y_0 = x and y_{i+1} = y_i - learning_rate dG/dy(y_i).

    **Arguments:**

    - `first_order`: drops the inner Hessians.
    - `mixed_mode`: Hessian products by forward-over-reverse: the same gradient in less memory.
    - `checkpoint`: `step` or `sqrt` stores less of a long inner path, at the price of time.
    """
    return descent(learner, train, test, Unroll(first_order, checkpoint, mixed_mode))


@policies(learning_rate=0.4, steps=1, adapts="all", head="meta")
def fomaml(learner: Learner, train: Policy, test: Policy) -> Method:
    """First-order MAML: MAML whose inner gradients count as constants (Finn et al. 2017, section 5.2)."""
    return descent(learner, train, test, Unroll(first_order=True))
