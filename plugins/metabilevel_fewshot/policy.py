"""What one chooses about adaptation, whatever the method, in training and at test apart."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, Literal, NamedTuple, TypeAlias

from metabilevel import Learner, Method

Adapts: TypeAlias = Literal["all", "head", "body"]
Head: TypeAlias = Literal["meta", "random", "stored"]


class Policy(NamedTuple):
    """How a network is adapted to a task.

    - `learning_rate`, `steps`: of gradient descent on the mean support loss; a rate of any sign.
    - `adapts`: the part that moves; the rest is bitwise what it was.
    - `head`: where the task's head starts. `"meta"`: at the learned one; `"random"`: drawn anew at every visit;
      `"stored"`: where the last visit of this task left it, and at the learned one for a task not seen before.
    """

    learning_rate: float
    steps: int
    adapts: Adapts = "all"
    head: Head = "meta"


_TYPES = {"learning_rate": float, "steps": int, "adapts": Adapts, "head": Head}
_HELP = {
    "learning_rate": "inner step size, on the mean support loss; any sign.",
    "steps": "number of inner steps, 0 or more.",
    "adapts": "what moves in the inner loop: the whole network, its head or its body alone.",
    "head": "where a task's head starts: at the learned one, a random one, or where its last visit left it (stored).",
}


def policies(**defaults: Any) -> Callable[[Callable[..., Method]], Callable[..., Method]]:
    """Turns `factory(learner, train, test, *, ...)`, which takes two policies, into a plugin with their options.

    The options are the fields of `Policy` that have `defaults`, and each once more as `test_...` for the adaptation
    at test, None for what holds in training.
    """

    def decorate(factory: Callable[..., Method]) -> Callable[..., Method]:
        @wraps(factory)
        def plugin(learner: Learner, **given: Any) -> Method:
            train = {name: given.pop(name, default) for name, default in defaults.items()}
            test = {name: given.pop(f"test_{name}", None) for name in defaults}
            test = {name: train[name] if value is None else value for name, value in test.items()}
            return factory(learner, Policy(**train), Policy(**test), **given)

        own = list(inspect.signature(factory).parameters.values())
        training = [_option(name, _TYPES[name], default) for name, default in defaults.items()]
        testing = [_option(f"test_{name}", _TYPES[name] | None, None) for name in defaults]
        plugin.__signature__ = inspect.Signature([own[0], *training, *own[3:], *testing])  # pyright: ignore[reportAttributeAccessIssue]
        about, _, arguments = inspect.cleandoc(factory.__doc__ or "").partition("**Arguments:**")
        lines = [f"- `{name}`: {_HELP[name]}" for name in defaults]
        twice = [f"- `test_{name}`: at test; as in training if none." for name in defaults]
        plugin.__doc__ = "\n".join([f"{about.rstrip()}\n\n**Arguments:**\n", *lines, arguments.strip(), *twice])
        return plugin

    return decorate


def _option(name: str, kind: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=kind)
