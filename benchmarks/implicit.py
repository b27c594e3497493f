"""Implicit hypergradients: memory against inner steps, a million decays, the cost of an iteration, and others' code.

Every number is a ratio of two things timed in turn; the values are compared before anything is timed.
"""

from functools import partial

import click
import jax
import jax.numpy as jnp
import jaxopt
import numpy as np
import optax
from timing import alternate, write

import metabilevel as mb

KEY = jax.random.key(0)
GOALS = {"memory": 1.2, "million": 4.0, "iteration": 1.8}


def images(n):
    k_inputs, k_targets = jax.random.split(KEY)
    return mb.Data(jax.random.normal(k_inputs, (n, 784)), jax.random.randint(k_targets, (n,), 0, 10))


def decayed(learner):
    """The problem of a log decay x for the whole net, from the weights that the task brings along."""
    inner = lambda x, y, data: learner.fit(y, data) + jnp.exp(x) * optax.tree.norm(y, squared=True) / 2
    return mb.BilevelProblem(
        init=lambda x, task, key: task[1],
        inner_loss=lambda x, y, task, key: inner(x, y, task[0]),
        outer_loss=lambda x, y, task, key: sum(map(jnp.sum, jax.tree.leaves(y))),
    )


def hypergradient(problem, solver, inverse):
    adjoint = mb.Implicit(inverse)

    def call(x, task):
        reached, gradient = adjoint.hypergradient(problem, solver, x, task, KEY)
        return gradient, reached.certificate.iterations

    return jax.jit(call)


def memory():
    """Bytes that the compiler plans for temporaries, by the number of inner steps."""
    learner = mb.classification(mb.MLP(784, (100, 60), 10))
    task, found = (images(256), learner.init(KEY)), {}
    for steps in (4, 64):
        call = hypergradient(decayed(learner), mb.GradientDescent(optax.sgd(0.01), steps), mb.ConjugateGradient(20))
        found[steps] = call.lower(jnp.zeros(()), task).compile().memory_analysis().temp_size_in_bytes
    return {"temporary_bytes": found, "ratio": found[64] / found[4]}


def million(rounds):
    """An outer step of `weight-decay` for a net of 987,210 weights, over the inner steps within it."""
    learner = mb.classification(mb.MLP(784, (1000, 200), 10))
    task, weights = mb.Episode(images(1000), images(1000)), learner.init(KEY)
    batch, carry = jax.tree.map(lambda a: a[None], (task, (weights, jnp.array(True))))
    candidates = {}
    for name, options in {"Neumann, 5 terms": {}, "CG, 5 iterations": {"inverse": "cg"}}.items():
        method = mb.load_method("weight-decay")(learner, **options)
        x, estimator = method.init(KEY), method.estimator
        inner = jax.jit(lambda x, y, task, m=method: m.estimator.solver.solve(m.problem, x, y, task, KEY))
        outer = jax.jit(lambda x, batch, carry, e=estimator: e(x, batch, carry, KEY)[:2])
        candidates["inner steps alone"] = partial(inner, x, weights, task)
        candidates[name] = partial(outer, x, batch, carry)
    reached = jax.tree.map(lambda a: a[0], candidates["CG, 5 iterations"]()[1][0])
    jax.tree.map(partial(np.testing.assert_allclose, atol=1e-4), reached, candidates["inner steps alone"]())
    rows = alternate(candidates, rounds)
    return relative(rows, "inner steps alone")


def iteration(rounds):
    """What one more iteration costs: the time with 40 less that with 8, over 32, in gradients of the inner loss."""
    learner = mb.regression(mb.MLP(784, (100, 60), 10, "tanh"))
    problem, x = decayed(learner), jnp.log(1e-3)
    data = mb.Data(images(256).inputs, jax.random.normal(KEY, (256, 10)))
    train = mb.GradientDescent(optax.adam(1e-3), 1000)  # near a minimum nothing curves downwards, where CG would end
    task = data, jax.jit(partial(train.solve, problem))(x, learner.init(KEY), (data, None), KEY)
    found = {}
    for name, inverse in {
        "CG": lambda n: mb.ConjugateGradient(n),
        "Neumann": lambda n: mb.Neumann(n, scale=0.01),
    }.items():
        candidates = {"32 gradients": partial(jax.jit(partial(descent, problem)), x, task)}
        for n in (8, 40):
            call = hypergradient(problem, mb.GradientDescent(optax.sgd(0.01), 0), inverse(n))
            made = int(call(x, task)[1])
            if made != n:
                raise click.ClickException(f"{name}: {made} iterations were made, not {n}: the problem is too easy.")
            candidates[f"{n} iterations"] = partial(call, x, task)
        rows = alternate(candidates, rounds)
        slope = (rows["40 iterations"]["median"] - rows["8 iterations"]["median"]) / rows["32 gradients"]["median"]
        found[name] = {**rows, "gradients_an_iteration": slope}
    return found


def descent(problem, x, task):
    gradient = lambda y: jax.grad(problem.inner_loss, 1)(x, y, task, KEY)
    move = lambda i, y: jax.tree.map(lambda a, g: a - 1e-3 * g, y, gradient(y))
    return jax.lax.fori_loop(0, 32, move, task[1])


def logistic(rounds):
    """Logistic regression with a penalty for each of 1,000 features, 2,000 examples, 10 conjugate gradients."""
    k_inputs, k_weights, k_valid = jax.random.split(KEY, 3)
    weights = jax.random.normal(k_weights, (1000,)) / 1000**0.5
    draw = lambda key: ((a := jax.random.normal(key, (2000, 1000))), jnp.sign(a @ weights))
    train, valid, x = draw(k_inputs), draw(k_valid), jnp.full(1000, jnp.log(1e-3))
    loss = lambda y, data: jax.nn.softplus(-data[1] * (data[0] @ y)).mean()
    inner = lambda x, y, data: loss(y, data) + jnp.sum(jnp.exp(x) * y**2) / 2
    y = jaxopt.LBFGS(lambda y: inner(x, y, train), maxiter=50).run(jnp.zeros(1000)).params

    problem = mb.BilevelProblem(
        init=lambda x, task, key: task[2],
        inner_loss=lambda x, y, task, key: inner(x, y, task[0]),
        outer_loss=lambda x, y, task, key: loss(y, task[1]),
    )
    library = hypergradient(problem, mb.GradientDescent(optax.sgd(0.1), 0), mb.ConjugateGradient(10))

    @jax.jit
    def by_hand(x, task):
        train, valid, y = task
        gradient = lambda y: jax.grad(inner, 1)(x, y, train)
        product = lambda u: jax.jvp(gradient, (y,), (u,))[1]
        v, _ = jax.scipy.sparse.linalg.cg(product, jax.grad(loss)(y, valid), maxiter=10, tol=0.0)
        return -jax.vjp(lambda x: jax.grad(inner, 1)(x, y, train), x)[1](v)[0]

    @jax.jit
    def by_jaxopt(x, task):
        solve = partial(jaxopt.linear_solve.solve_cg, maxiter=10, tol=0.0)
        optimality = lambda y, x, train: jax.grad(inner, 1)(x, y, train)
        solver = jaxopt.implicit_diff.custom_root(optimality, solve=solve)(lambda start, x, train: start)
        return jax.grad(lambda x: loss(solver(task[2], x, task[0]), task[1]))(x)

    task = (train, valid, y)
    expected = by_hand(x, task)
    for found in (library(x, task)[0], by_jaxopt(x, task)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-3 * float(jnp.abs(expected).max()))
    candidates = {"by hand": by_hand, "jaxopt": by_jaxopt, "metabilevel": library}
    return relative(alternate({name: partial(fn, x, task) for name, fn in candidates.items()}, rounds), "by hand")


def relative(rows, to):
    return {name: {**row, "ratio": row["median"] / rows[to]["median"]} for name, row in rows.items()}


@click.command(help=__doc__.splitlines()[0])
@click.option("--rounds", default=7, show_default=True)
def main(rounds):
    results = {"memory": memory()}
    click.echo(f"64 inner steps against 4: {results['memory']['ratio']:.2f} x the temporary bytes")
    results["iteration"] = iteration(rounds)
    for name, rows in results["iteration"].items():
        click.echo(f"an iteration of {name}: {rows['gradients_an_iteration']:.2f} gradients")
    results["logistic regression"] = logistic(rounds)
    results["million"] = million(min(rounds, 3))
    for part, goal in {"logistic regression": "by hand", "million": "the inner steps alone"}.items():
        for name, row in results[part].items():
            click.echo(f"{part}, {name}: {row['median'] * 1e3:.1f} ms, {row['ratio']:.2f} x {goal}")
    click.echo(f"Written to {write('implicit', goals=GOALS, results=results)}.")


if __name__ == "__main__":
    main()
