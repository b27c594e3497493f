"""Implicit hypergradients: logistic regression beside others' code, memory against inner steps, a million decays, and
the cost of an iteration."""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import jaxopt
import lineax
import numpy as np
import optax
import optimistix
from jaxopt.linear_solve import solve_cg

import metabilevel as mb
from metabilevel.bench import Candidate, Case, Race, Study, alternate, compiled

from . import PEERS

KEY = jax.random.key(0)
ITERATIONS = 10


def images(n: int) -> mb.Data:
    """Noise of MNIST's shape."""
    k_inputs, k_targets = jax.random.split(KEY)
    return mb.Data(jax.random.normal(k_inputs, (n, 784)), jax.random.randint(k_targets, (n,), 0, 10))


def decayed(learner: mb.Learner) -> mb.BilevelProblem:
    """The problem of a log decay x for the whole net, from the weights that the task brings along."""
    inner = lambda x, y, data: learner.fit(y, data) + jnp.exp(x) * optax.tree.norm(y, squared=True) / 2
    return mb.BilevelProblem(
        init=lambda x, task, key: task[1],
        inner_loss=lambda x, y, task, key: inner(x, y, task[0]),
        outer_loss=lambda x, y, task, key: jnp.asarray(optax.tree.sum(y)),
    )


def hypergradient(problem: mb.BilevelProblem, solver: Any, inverse: Any) -> Callable[..., Any]:
    """(value, gradient, certificate) of one task; `fit` computes the last only where it reports."""
    adjoint = mb.Implicit(inverse)

    def call(x: Any, task: Any) -> Any:
        reached, gradient = adjoint.hypergradient(problem, solver, x, task, KEY)
        return reached.value, gradient, reached.certificate

    return call


def memory(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """Bytes that the compiler plans for temporaries, by the number of inner steps."""
    learner = mb.classification(mb.MLP(784, (100, 60), 10))
    task, found = (images(256), learner.init(KEY)), []
    for steps in (4, 64):
        call = hypergradient(decayed(learner), mb.GradientDescent(optax.sgd(0.01), steps), mb.ConjugateGradient(20))
        memory = jax.jit(call).lower(jnp.zeros(()), task).compile().memory_analysis()
        found.append({"inner steps": steps, "temporaries, bytes": memory and memory.temp_size_in_bytes})
    return found


def million(quick: bool) -> Case:
    """An outer step of `weight-decay` for a net of 987,210 weights, beside the inner steps within it."""
    learner = mb.classification(mb.MLP(784, (20, 10) if quick else (1000, 200), 10))
    task, weights = mb.Episode(images(1000), images(1000)), learner.init(KEY)
    batch, carry = jax.tree.map(lambda a: a[None], (task, (weights, jnp.array(True))))
    candidates = {}
    for name, options in {"Neumann, 5 terms": {}, "CG, 5 iterations": {"inverse": "cg"}}.items():
        method = mb.load_method("weight-decay")(learner, **options)
        estimator: Any = method.estimator
        x = method.init(KEY)
        inner = lambda x, y, task, m=method, e=estimator: e.solver.solve(m.problem, x, y, task, KEY)
        outer = lambda x, batch, carry, e=estimator: e(x, batch, carry, KEY)[:2]
        candidates["inner steps alone"] = compiled(inner, x, weights, task)
        candidates[name] = compiled(outer, x, batch, carry)

    def check(candidates: Mapping[str, Candidate]) -> None:
        """The inner steps end where they do by themselves."""
        reached = jax.tree.map(lambda a: a[0], candidates["CG, 5 iterations"].call()[1][0])
        jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), reached, candidates["inner steps alone"].call())

    return Case(candidates, "inner steps alone", None, check)


def iteration(rounds: int, quick: bool) -> list[dict[str, Any]]:
    """What one more iteration costs: the time with 40 less that with 8, over 32, in gradients of the inner loss."""
    learner = mb.regression(mb.MLP(784, (10, 6) if quick else (100, 60), 10, "tanh"))
    problem, x = decayed(learner), jnp.log(1e-3)
    data = mb.Data(images(256).inputs, jax.random.normal(KEY, (256, 10)))
    train = mb.GradientDescent(optax.adam(1e-3), 1000)  # near a minimum nothing curves downwards, where CG would end
    task = data, jax.jit(partial(train.solve, problem))(x, learner.init(KEY), (data, None), KEY)
    found = []
    for name, inverse in {"CG": mb.ConjugateGradient, "Neumann": partial(mb.Neumann, scale=0.01)}.items():
        calls = {"gradients": partial(jax.jit(partial(descent, problem)), x, task)}
        for n in (8, 40):
            call = jax.jit(hypergradient(problem, mb.GradientDescent(optax.sgd(0.01), 0), inverse(n)))
            made = int(call(x, task)[2].iterations)
            if made != n:
                raise mb.ComputationError(f"{name}: {made} iterations were made, not {n}: the problem is too easy.")
            calls[f"{n}"] = partial(call, x, task)
        times = {name: each.median for name, each in alternate(calls, rounds, 0.02 if quick else 0.5).items()}
        slope = (times["40"] - times["8"]) / times["gradients"]
        found.append({"inverse": name, "gradients an iteration": slope, "goal": "1.7 or less",
                      "32 gradients, s": times["gradients"], "8 iterations, s": times["8"],
                      "40 iterations, s": times["40"]})  # fmt: skip
    return found


def descent(problem: mb.BilevelProblem, x: Any, task: Any) -> Any:
    """32 gradients of the inner loss, one after the other."""
    gradient = lambda y: jax.grad(problem.inner_loss, 1)(x, y, task, KEY)
    move = lambda i, y: jax.tree.map(lambda a, g: a - 1e-3 * g, y, gradient(y))
    return jax.lax.fori_loop(0, 32, move, task[1])


def data_loss(y: Any, data: mb.Data) -> Any:
    """Logistic regression to targets of +1 and -1."""
    return jax.nn.softplus(-data.targets * (data.inputs @ y)).mean()


def inner_loss(x: Any, y: Any, data: mb.Data) -> Any:
    """With a penalty for every feature, exp(x)."""
    return data_loss(y, data) + jnp.sum(jnp.exp(x) * y**2) / 2


def neumann(product: Callable[..., Any], b: Any, scale: float) -> Any:
    """scale sum_{i=0}^{10} (I - scale A)^i b."""
    turn = lambda _, s: (s[0] - scale * product(s[0]), s[1] + s[0] - scale * product(s[0]))
    return scale * jax.lax.fori_loop(0, ITERATIONS, turn, (b, b))[1]


def by_hand(solve: Callable[..., Any], x: Any, task: Any) -> Any:
    """The theorem, written out; `solve(product, b)` is the linear solver."""
    train, valid, y = task
    gradient = lambda y: jax.grad(inner_loss, 1)(x, y, train)
    product = lambda u: jax.jvp(gradient, (y,), (u,))[1]
    value, slope = jax.value_and_grad(data_loss)(y, valid)
    v = solve(product, slope)
    return value, -jax.vjp(lambda x: jax.grad(inner_loss, 1)(x, y, train), x)[1](v)[0]


def by_jaxopt(solve: Callable[..., Any], x: Any, task: Any) -> Any:
    """`custom_root` around the given y."""
    optimality = lambda y, x, train: jax.grad(inner_loss, 1)(x, y, train)
    solver = jaxopt.implicit_diff.custom_root(optimality, solve=solve)(lambda start, x, train: start)
    return jax.value_and_grad(lambda x: data_loss(solver(task[2], x, task[0]), task[1]))(x)


class AllSteps(lineax.CG):
    """Conjugate gradients that are content with their last step."""

    def compute(self, state: Any, vector: Any, options: Any) -> Any:
        found, _, stats = lineax.CG.compute(self, state, vector, options)
        return found, lineax.RESULTS.successful, stats


def by_optimistix(x: Any, task: Any) -> Any:
    """`root_find`, of no steps from the given y, with its implicit adjoint."""
    adjoint = optimistix.ImplicitAdjoint(AllSteps(0.0, 0.0, max_steps=ITERATIONS))
    optimality = lambda y, args: jax.grad(inner_loss, 1)(args[0], y, args[1])
    options = {"tags": frozenset({lineax.positive_semidefinite_tag}), "max_steps": 0, "throw": False}
    newton = optimistix.Newton(1.0, 1.0, linear_solver=lineax.CG(1.0, 1.0))

    def loss(x: Any) -> Any:
        found = optimistix.root_find(optimality, newton, task[2], (x, task[0]), adjoint=adjoint, **options)
        return data_loss(found.value, task[1])

    return jax.value_and_grad(loss)(x)


def logistic(kind: str, quick: bool) -> Case:
    """Logistic regression with a penalty for each of 1,000 features, and 2,000 examples; small: 20 and 40."""
    d, n = (20, 40) if quick else (1000, 2000)
    k_inputs, k_weights, k_valid = jax.random.split(KEY, 3)
    weights = jax.random.normal(k_weights, (d,)) / d**0.5
    draw = lambda key: mb.Data((a := jax.random.normal(key, (n, d))), jnp.sign(a @ weights))
    train, valid, x = draw(k_inputs), draw(k_valid), jnp.full(d, jnp.log(0.1))
    y = jaxopt.LBFGS(lambda y: inner_loss(x, y, train), maxiter=50).run(jnp.zeros(d)).params
    problem = mb.BilevelProblem(
        init=lambda x, task, key: task[2],
        inner_loss=lambda x, y, task, key: inner_loss(x, y, task[0]),
        outer_loss=lambda x, y, task, key: data_loss(y, task[1]),
    )
    scale, task = 0.5, (train, valid, y)
    if kind == "cg":
        inverse = mb.ConjugateGradient(ITERATIONS)
        hand = lambda product, b: jax.scipy.sparse.linalg.cg(product, b, maxiter=ITERATIONS, tol=0.0)[0]
        solve = partial(solve_cg, maxiter=ITERATIONS, tol=0.0)
        more = {"optimistix": by_optimistix}
    else:
        inverse = mb.Neumann(ITERATIONS, scale)
        hand, more = partial(neumann, scale=scale), {}
        solve = lambda product, b: neumann(product, b, scale)
    library = hypergradient(problem, mb.GradientDescent(optax.sgd(0.1), 0), inverse)
    functions = {"textbook": partial(by_hand, hand), "jaxopt": partial(by_jaxopt, solve), **more}
    candidates = {name: compiled(fn, x, task) for name, fn in functions.items()}
    passes = 2 + 2 + 2 * ITERATIONS + 2  # products with the data: the slope, the linearisation, H v, the mixed product
    return Case(
        {
            **candidates,
            "metabilevel": compiled(lambda x, task: library(x, task)[:2], x, task),
            "metabilevel, with its certificate": compiled(library, x, task, read=lambda out: out[:2]),
        },
        x=x,
        arrays={
            "y": y, "iterations": ITERATIONS, "scale": scale,
            "support.inputs": train.inputs, "support.targets": train.targets,
            "query.inputs": valid.inputs, "query.targets": valid.targets,
        },
        operations=2.0 * n * d * passes,
    )  # fmt: skip


_ABOUT = "Hypergradient of logistic regression with a penalty for each of 1,000 features, 2,000 examples, 10 iterations"
_GOALS = {"textbook": 1.0, "jaxopt": 1.0, "optimistix": 1.0, "loop": 2.0, "torchopt": 3.0}
LOGISTIC_CG = Race("logistic-cg", f"{_ABOUT} of conjugate gradients.", partial(logistic, "cg"), _GOALS, PEERS, 15)
LOGISTIC_NEUMANN = Race(
    "logistic-neumann", f"{_ABOUT} of the Neumann series.", partial(logistic, "neumann"),
    {name: goal for name, goal in _GOALS.items() if name != "optimistix"}, PEERS, 15,
)  # fmt: skip
MEMORY = Study("implicit-memory", "Temporaries of an implicit hypergradient, by the number of inner steps.", memory)
ITERATION = Study("implicit-iteration", "The cost of one more iteration, of a net of 85,270 weights.", iteration)
MILLION = Race(
    "implicit-million", "An outer step of weight-decay with 987,210 decays, beside the inner steps within it.", million,
    rounds=3,
)  # fmt: skip
