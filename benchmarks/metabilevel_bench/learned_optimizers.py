"""The gradient of a 20-step window with respect to the weights of the LSTM optimizer.

- `textbook`: `jax.value_and_grad` of a scan of `jax.vmap` of a cell over the coordinates of every array, and over runs;
- `metabilevel`: the direction of `load_method("lstm")`, with its bookkeeping, as in `fit`;
- `matrix products alone`: those of every layer and both of its gradients, for 20 steps.

The optimizee's gradients are constants in all of them.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import metabilevel as mb
from metabilevel.bench import Case, Race, compiled, operations

from . import PEERS

KEY = jax.random.key(0)
WINDOW = 20
PRODUCTS = "matrix products alone"


def mlp(quick: bool) -> Any:
    """A network of 15,910 weights on 128 examples; small: 3,985."""
    units, n = (5, 16) if quick else (20, 128)
    learner = mb.classification(mb.MLP(784, (units,), 10, "sigmoid"))
    data = mb.Data(jax.random.uniform(KEY, (1, n, 784)), jax.random.randint(KEY, (1, n), 0, 10))
    arrays = {"support.inputs": data.inputs[0], "support.targets": data.targets[0], "units": units}
    return learner, mb.Episode(data, data), learner.fit, 10.0, arrays


def quadratics(quick: bool) -> Any:
    """128 functions |W y - v|^2 of 10 coordinates; small: 4."""
    draw = lambda key: {"matrix": jax.random.normal(key, (10, 10)), "vector": jax.random.normal(key, (10,))}
    loss = lambda y, task: jnp.sum((task["matrix"] @ y - task["vector"]) ** 2)
    family = mb.from_function(lambda task, key: jnp.zeros(10), lambda y, task, key: loss(y, task), draw)
    tasks = jax.vmap(draw)(jax.random.split(KEY, 4 if quick else 128))
    return family.subject, tasks, loss, None, tasks


def textbook(loss: Callable[..., Any], rule: Any, x: Any, tasks: Any, y: Any, states: Any) -> Any:
    """What one writes first: a net for a coordinate, mapped over coordinates, arrays and runs."""

    def features(g: Any) -> Any:
        p = rule.preprocess
        if p is None:
            return g[None]
        large = jnp.abs(g) >= jnp.exp(-p)
        logarithm = jnp.log(jnp.where(large, jnp.abs(g), 1)) / p
        return jnp.where(large, jnp.stack([logarithm, jnp.sign(g)]), jnp.stack([-jnp.ones_like(g), jnp.exp(p) * g]))

    def net(x: Any, g: Any, state: Any) -> Any:
        signal, after = features(g), []
        for layer, (h, c) in zip(x["layers"], state, strict=True):
            i, f, o, g = jnp.split(layer["weights"] @ jnp.concatenate([signal, h]) + layer["bias"], 4)
            c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
            signal = jax.nn.sigmoid(o) * jnp.tanh(c)
            after.append((signal, c))
        return rule.scale * (x["out"]["weights"] @ signal + x["out"]["bias"])[0], after

    def window(x: Any, task: Any, y: Any, states: Any) -> Any:
        def step(carry: Any, _: None) -> Any:
            y, states = carry
            leaves, structure = jax.tree.flatten(jax.lax.stop_gradient(jax.grad(loss)(y, task)))
            moved = [jax.vmap(partial(net, x))(g.ravel(), s) for g, s in zip(leaves, states, strict=True)]
            updates = structure.unflatten([u.reshape(g.shape) for (u, _), g in zip(moved, leaves, strict=True)])
            y = jax.tree.map(jnp.add, y, updates)
            return (y, [s for _, s in moved]), loss(y, task)

        return jax.lax.scan(step, (y, states), length=WINDOW)[1].sum()

    mean = lambda x: jax.vmap(partial(window, x))(tasks, y, states).mean()
    return jax.value_and_grad(mean)(x)


def by_array(point: Any) -> Any:
    """The state of every coordinate [runs, coordinates, units] of each array, in place of all coordinates'."""
    y, state = point
    ends = np.cumsum([a[0].size for a in jax.tree.leaves(y)])[:-1]
    pieces = [[jnp.split(jnp.moveaxis(a, 1, 2), ends, 1) for a in (s["hidden"], s["cell"])] for s in state["layers"]]
    return [[(h[i], c[i]) for h, c in pieces] for i in range(len(ends) + 1)]


def products(factors: Any) -> Any:
    """Forward, and both gradients, of every layer, 20 times. Each step's results are the next one's factors, so that
    none is left out and no memory is taken anew; they are zero throughout."""
    step = lambda factors, _: ([(b @ a.T, w.T @ b, w @ a) for w, a, b in factors], None)
    return jax.lax.scan(step, factors, length=WINDOW)[0]


def peers_arrays(point: Any, rule: Any) -> dict[str, Any]:
    """Where the window begins."""
    y, state = point
    rows = lambda a: jnp.moveaxis(a, 1, 2).reshape(-1, rule.units)
    flat = jnp.concatenate([a.reshape(len(a), -1) for a in jax.tree.leaves(y)], 1).ravel()
    states = {f"{name}.{i}": rows(s[name]) for i, s in enumerate(state["layers"]) for name in ("hidden", "cell")}
    return {"steps": WINDOW, "scale": rule.scale, "preprocess": rule.preprocess or 0.0, "y": flat, **states}


def build(workload: Callable[[bool], Any], quick: bool) -> Case:
    """In the midst of a training: the second window."""
    subject, tasks, loss, preprocess, arrays = workload(quick)
    method: Any = mb.load_method("lstm")(subject, steps=5 * WINDOW, window=WINDOW, preprocess=preprocess)
    rule, estimator, x = method.solver.rule, method.estimator, method.init(KEY)
    _, carry, _ = jax.jit(lambda: estimator(x, tasks, estimator.init(x, tasks, KEY), KEY))()

    def library(x: Any, tasks: Any, carry: Any) -> Any:
        direction, carry, info = estimator(x, tasks, carry, KEY)
        return info.loss.mean(), direction, carry, info.finite

    data = getattr(tasks, "support", tasks)
    given = x, data, carry.point[0], by_array(carry.point)
    columns = sum(a.size for a in jax.tree.leaves(carry.point[0]))
    matrices = [jnp.zeros_like(layer["weights"]) for layer in [*x["layers"], x["out"]]]
    factors = [(w, jnp.zeros((w.shape[1], columns)), jnp.zeros((w.shape[0], columns))) for w in matrices]
    by_hand = partial(textbook, loss, rule)
    return Case(
        {
            "textbook": compiled(by_hand, *given),
            "metabilevel": compiled(library, x, tasks, carry, read=lambda out: out[:2]),
            PRODUCTS: replace(compiled(products, factors), compared=False),
        },
        x=x,
        arrays={**peers_arrays(carry.point, rule), **arrays},
        operations=operations(products, factors).products,
    )


def _race(name: str, about: str, workload: Callable[[bool], Any], **goals: float) -> Race:
    about = f"Meta-gradient of a window of 20 steps of the LSTM optimizer on {about}."
    return Race(name, about, partial(build, workload), {"textbook": 2.0, **goals}, PEERS)


LSTM_MLP = _race(
    "lstm-mlp", "a network of 15,910 weights", mlp, **{"torch.compile": 1.2, "loop": 1.8, PRODUCTS: 0.4}
)  # fmt: skip
LSTM_QUADRATICS = _race("lstm-quadratics", "128 quadratics of 10 coordinates", quadratics, **{"torch.compile": 2.0})
