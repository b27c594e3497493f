"""The kit's own task families: one for every kind of subject that a method is built on, as small as they can be."""

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeAlias

import equinox as eqx
import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array

from ..errors import InputError
from ..learner import Learner, classification, regression
from ..method import Posed
from ..networks import MLP, AbstractNetwork
from ..optimizees import AbstractOptimizee, from_function
from ..problem import BilevelProblem
from ..solvers import GradientDescent
from ..tasks import Data, Episode, TaskDistribution, pooled

Family: TypeAlias = Callable[[], TaskDistribution]
WAYS = 3


class Supervised(TaskDistribution):
    """Regression to a tanh of random projections of normal inputs; or, where the learner has classes, examples about
    a random centre for each of them, as many of one class as of another."""

    subject: Learner
    shape: tuple[int, ...] = eqx.field(static=True)
    support: int = eqx.field(static=True)
    query: int = eqx.field(static=True)

    def sample(self, key, split):
        number, k_task, k_examples = pooled(key, self.subject.pool, split)
        inputs = jax.random.normal(k_examples, (self.support + self.query, *self.shape))
        if self.subject.ways is None:
            truth = jax.random.normal(jax.random.fold_in(k_task, 1), self.shape)
            targets = projected(truth, inputs)
        else:
            truth = jax.random.normal(jax.random.fold_in(k_task, 1), (WAYS, *self.shape))
            targets = jnp.arange(len(inputs)) % WAYS
            inputs = inputs / 2 + truth[targets]
        data = Data(inputs, targets)
        cut = lambda rows: jax.tree.map(lambda a: a[rows], data)
        known = {"truth": truth, "corrupted": jnp.arange(self.support) % 5 == 0}
        return Episode(cut(slice(self.support)), cut(slice(self.support, None)), known, number)


def projected(truth: Array, inputs: Array) -> Array:
    """tanh of the product of every input with `truth`, as targets [n, 1]."""
    return jnp.tanh(jnp.tensordot(inputs, truth, truth.ndim))[:, None]


class OneTask(TaskDistribution):
    """The same task at every draw."""

    single: ClassVar[bool] = True
    subject: Any
    task: Any

    def sample(self, key, split):
        return self.task


def few_shot_regression(pool: int | None = None) -> TaskDistribution:
    """A net of one hidden layer of tanh, ever new tasks (or `pool` of them) of six and five examples."""
    oracle = lambda task, inputs: projected(task.truth["truth"], inputs)
    return Supervised(regression(MLP(2, (3,), 1, "tanh"), oracle=oracle, pool=pool), (2,), 6, 5)


def pooled_regression() -> TaskDistribution:
    """The same, of four training tasks that come again and again."""
    return few_shot_regression(4)


def few_shot_classification() -> TaskDistribution:
    """Three classes; a support set of two examples of each."""
    learner = classification(MLP(2, (3,), WAYS, "tanh"), ways=(WAYS, WAYS))
    return Supervised(learner, (2,), 2 * WAYS, 2 * WAYS)


def data_set() -> TaskDistribution:
    """One task of three classes with a thousand training examples, as of hyperparameter optimisation."""
    learner = classification(MLP(2, (3,), WAYS, "tanh"), ways=(WAYS, WAYS))
    return _single(Supervised(learner, (2,), 1000, 300))


def images() -> TaskDistribution:
    """One task of three classes of coloured images of 2 x 2 pixels."""
    learner = classification(MLP(12, (3,), WAYS, "tanh"), ways=(WAYS, WAYS))
    return _single(Supervised(learner, (2, 2, 3), WAYS, WAYS))


def _single(family: Supervised) -> TaskDistribution:
    return OneTask(family.subject, family.sample(jax.random.key(0), "train"))


class Inner(NamedTuple):
    """Of every example the matrices a [n, d, d] and b [n, d, k], and the vector c [n, d]."""

    a: Array
    b: Array
    c: Array


class OuterPart(NamedTuple):
    """Of every example the vectors y [n, d] and x [n, k] at which its loss is least."""

    y: Array
    x: Array


def inner_loss(x: Array, y: Array, task: Episode, key: Any) -> Array:
    """G = mean over the examples of   y.a y / 2 + y.b x + c.y"""
    a, b, c = task.support.inputs
    return y @ a.mean(0) @ y / 2 + y @ b.mean(0) @ x + c.mean(0) @ y


def outer_loss(x: Array, y: Array, task: Episode, key: Any) -> Array:
    """F = mean over the examples of   |y - y_i|^2 / 2 + |x - x_i|^2 / 4"""
    at_y, at_x = task.query.inputs
    return jnp.sum((y - at_y) ** 2, -1).mean() / 2 + jnp.sum((x - at_x) ** 2, -1).mean() / 4


def quadratic_subject(d: int, k: int) -> Posed:
    """x starts at random, y at zero; eigenvalues of the inner Hessian up to 2 suit the solver."""
    problem = BilevelProblem(lambda x, task, key: jnp.zeros(d), inner_loss, outer_loss)
    return Posed(problem, lambda key: jax.random.normal(key, (k,)), GradientDescent(optax.sgd(0.5), 100))


def quadratic_task(key: Any, hessian: Array, k: int, *, examples: int, noise: float) -> Episode:
    """Random b, c and minima of F about which the examples lie with the deviation `noise`; the mean of a is `hessian`,
    exactly."""
    d = len(hessian)
    keys = jax.random.split(key, 10)

    def about(mean: Array, i: int) -> Array:
        each = noise * jax.random.normal(keys[i], (examples, *mean.shape))
        return mean + each - each.mean(0)

    a = about(hessian, 0)
    b, c, y, x = (jax.random.normal(keys[i], shape) for i, shape in ((1, (d, k)), (2, (d,)), (3, (d,)), (4, (k,))))
    support = Inner((a + a.swapaxes(1, 2)) / 2, about(b, 5), about(c, 6))
    number = jnp.arange(examples)
    return Episode(Data(support, number), Data(OuterPart(about(y, 7), about(x, 8)), number))  # pyright: ignore


def posed_quadratics() -> TaskDistribution:
    """One bilevel problem of quadratics whose losses are means over 256 examples."""
    hessian = jnp.diag(jnp.linspace(0.5, 1.5, 3))
    return OneTask(quadratic_subject(3, 2), quadratic_task(jax.random.key(0), hessian, 2, examples=256, noise=0.1))


def optimizees() -> TaskDistribution:
    """Linear regressions: functions of a matrix and a bias."""

    def sample(key: Any) -> Data:
        inputs = jax.random.normal(key, (6, 2))
        return Data(inputs, projected(jax.random.normal(jax.random.fold_in(key, 1), (2,)), inputs))

    start = lambda task, key: {"weights": jax.random.normal(key, (2, 1)), "bias": jnp.zeros(1)}
    loss = lambda y, task, key: jnp.mean((task.inputs @ y["weights"] + y["bias"] - task.targets) ** 2)
    return from_function(start, loss, sample)


class Linear(AbstractNetwork):
    """output = inputs @ weights: the squared error is a quadratic function of the weights."""

    in_size: int = eqx.field(static=True)

    @property
    def outputs(self) -> int:
        return 1

    @property
    def batch_statistics(self) -> bool:
        return False

    def init(self, key):
        return {"body": {}, "head": {"weights": jax.random.normal(key, (self.in_size, 1))}}

    def activations(self, params, inputs, key=None):
        return []

    def body(self, params, inputs, key=None):
        return inputs

    def head(self, params, features):
        return features @ params["weights"]


CASES: dict[str, tuple[float, ...]] = {
    "quadratic": (0.6, 1.4),
    "isotropic": (1.0, 1.0),
    "one-dimension": (1.0,),
    "ill-conditioned": (1.0, 0.01),
    "large": (0.6, 1.4),
}  # eigenvalues of the inner Hessian
LARGE = 1e3  # times the targets of the case of this name


def case(subject: Any, spectrum: tuple[float, ...]) -> TaskDistribution:
    """A problem for subjects of the kind of `subject`, whose inner loss is a quadratic with eigenvalues `spectrum`.

    **Raises:** `InputError` for a kind of which there is none.
    """
    d = len(spectrum)
    if isinstance(subject, Posed):
        return Quadratics(quadratic_subject(d, d), spectrum)
    if isinstance(subject, Learner):
        return Regressions(regression(Linear(d)), spectrum)
    raise InputError(f"the kit has no quadratics for methods that are built on a {type(subject).__name__}")


class Quadratics(TaskDistribution):
    """Posed, with 64 examples that are all alike, so that a minibatch sees what all of them say."""

    single: ClassVar[bool] = True
    subject: Posed
    spectrum: tuple[float, ...] = eqx.field(static=True)

    def sample(self, key, split):
        return quadratic_task(key, turned(key, self.spectrum), len(self.spectrum), examples=64, noise=0.0)


class Regressions(TaskDistribution):
    """Linear regressions; the squared error of the support set has the Hessian 2 X^T X / n."""

    single: ClassVar[bool] = True
    subject: Learner
    spectrum: tuple[float, ...] = eqx.field(static=True)

    def sample(self, key, split):
        d, n = len(self.spectrum), 6
        k_inputs, k_query, k_targets = jax.random.split(key, 3)
        columns = jnp.linalg.qr(jax.random.normal(k_inputs, (n, d)))[0]
        inputs = columns @ jnp.linalg.cholesky(turned(key, self.spectrum) * n / 2).T
        support, query = jax.random.normal(k_targets, (2, n, 1))
        return Episode(Data(inputs, support), Data(jax.random.normal(k_query, (n, d)), query))


def turned(key: Any, spectrum: tuple[float, ...]) -> Array:
    """A symmetric matrix of these eigenvalues, along random axes."""
    axes = jnp.linalg.qr(jax.random.normal(key, (len(spectrum), len(spectrum))))[0]
    return axes @ jnp.diag(jnp.array(spectrum)) @ axes.T


def enlarged(task: Episode) -> Episode:
    """A task of these quadratics whose inner solution and targets, and hence the outer gradient, are far larger."""

    def data(part: Data) -> Data:
        match part.inputs:
            case Inner(a, b, c):
                return part._replace(inputs=Inner(a, b, LARGE * c))
            case OuterPart(y, x):
                return part._replace(inputs=OuterPart(LARGE * y, LARGE * x))  # pyright: ignore
        return part._replace(targets=LARGE * part.targets)

    return task._replace(support=data(task.support), query=data(task.query))


FAMILIES: dict[str, tuple[type, Family]] = {
    "posed quadratics": (Posed, posed_quadratics),
    "optimizees": (AbstractOptimizee, optimizees),
    "few-shot regression": (Learner, few_shot_regression),
    "pooled few-shot regression": (Learner, pooled_regression),
    "few-shot classification": (Learner, few_shot_classification),
    "a data set of 1,000 examples": (Learner, data_set),
    "images": (Learner, images),
}  # by the kind of their subject; a method is tried on them in this order


def still(tasks: Any) -> Any:
    """Tasks of these families whose inner gradient is exactly zero where the inner solve starts: inputs and targets of
    the support set are zero, and so are the terms linear in y. Of classes: whose gradient in some weights is zero."""
    nothing = lambda tree: jax.tree.map(
        lambda a: a if jnp.issubdtype(a.dtype, jnp.integer) else jnp.zeros_like(a), tree
    )
    match tasks:
        case Episode(support=Data(inputs=Inner() as inner)):
            zero = Inner(inner.a, *nothing(inner[1:]))
            return tasks._replace(support=tasks.support._replace(inputs=zero))
        case Episode(support=Data(inputs=jax.Array() as inputs, targets=targets)) if jnp.issubdtype(
            targets.dtype, jnp.integer
        ):  # of classes no net is sure, but where an input is always zero, weights have no gradient
            return tasks._replace(support=Data(inputs.at[..., 0].set(0), targets))
        case Episode():
            return tasks._replace(support=nothing(tasks.support))
        case _:
            return nothing(tasks)
