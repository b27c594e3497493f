"""MAML with a part of the network fixed in the inner loop."""

from metabilevel import Learner, Method, Unroll

from .descent import descent
from .policy import Policy, policies


@policies(learning_rate=0.1, steps=5, adapts="head", head="meta")
def anil(learner: Learner, train: Policy, test: Policy, *, first_order: bool = False) -> Method:
    """Almost no inner loop: the head alone adapts, on features of the body that are computed once a task.

    Raghu, Raghu, Bengio & Vinyals 2020, arXiv:1909.09157.

    **Arguments:**

    - `first_order`: drops the inner Hessians.
    """
    return descent(learner, train, test, Unroll(first_order))


@policies(learning_rate=0.4, steps=1, adapts="body", head="meta")
def boil(learner: Learner, train: Policy, test: Policy, *, first_order: bool = False) -> Method:
    """Body only in the inner loop: the head is learned and stays, the features change.

    Oh, Yoo, Kim & Yun 2021, arXiv:2008.08882.

    **Arguments:**

    - `first_order`: drops the inner Hessians.
    """
    return descent(learner, train, test, Unroll(first_order))
