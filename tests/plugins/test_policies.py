"""The axes of adaptation, for every gradient-based method, in training and at test apart."""

import dataclasses

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import assert_close, directional, dot, like

import metabilevel as mb
from metabilevel.training import train

METHODS = ["maml", "fomaml", "anil", "boil", "meta-sgd", "lslr", "reptile"]
SECOND_ORDER = ["maml", "anil", "boil", "meta-sgd", "lslr"]
RATE = {"learning_rate": 0.02, "steps": 2}


def setting(name, n=3, pool=None, **options):
    tasks = mb.load_tasks("sinusoid")(shots=5, queries=5, network="tanh-64-64", pool=pool)
    method = mb.load_method(name)(tasks.subject, **RATE | options)
    return method, method.init(jax.random.key(1)), mb.sample_batch(tasks, jax.random.key(2), "train", n)


@eqx.filter_jit
def estimate(method, x, batch, carry=None):
    key = jax.random.key(3)
    carry = method.estimator.init(x, batch, key) if carry is None else carry
    return method.estimator(x, batch, carry, key)


def first(batch):
    return jax.tree.map(lambda a: a[0], batch)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("adapts", ["all", "head", "body"])
def test_what_does_not_adapt_is_bitwise_what_it_was(name, adapts):
    method, x, batch = setting(name, test_adapts=adapts)
    y = {**x, **method.adapt(x, first(batch), jax.random.key(0))}
    for part in ("body", "head"):
        same = jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), x[part], y[part]))
        assert same != (part in {"all": ("body", "head")}.get(adapts, (adapts,)))


@pytest.mark.parametrize("name", SECOND_ORDER)
@pytest.mark.parametrize(("adapts", "head"), [("all", "random"), ("body", "random")])
def test_the_direction_is_the_gradient_of_the_reported_loss(name, adapts, head, x64):
    method, x, batch = setting(name, adapts=adapts, head=head)
    v = like(x, jax.random.key(5))
    slope = directional(lambda x: estimate(method, x, batch)[2].loss.mean(), x, v)
    np.testing.assert_allclose(dot(estimate(method, x, batch)[0], v), slope, rtol=1e-6)


@pytest.mark.parametrize("name", METHODS)
def test_training_and_test_are_apart(name):
    same, x, batch = setting(name, n=1)
    other = setting(name, test_steps=5, test_learning_rate=-0.01, test_adapts="all", test_head="random")[0]
    assert_close(estimate(other, x, batch)[0], estimate(same, x, batch)[0], 0.0)
    adapted = [{**x, **method.adapt(x, first(batch), jax.random.key(0))}["head"]["weights"] for method in (same, other)]
    assert jnp.abs(adapted[0] - adapted[1]).max() > 0.1  # another head at the start


def test_a_random_head_is_drawn_at_every_visit():
    method, x, batch = setting("maml", head="random", steps=0)
    heads = [method.adapt(x, first(batch), jax.random.key(i))["head"]["weights"] for i in (0, 0, 1)]
    assert (heads[0] == heads[1]).all()
    assert not (heads[0] == heads[2]).any()


def test_anil_computes_no_gradient_of_the_body_in_the_inner_loop():
    method, x, batch = setting("anil", n=1)
    adapt = jax.make_jaxpr(lambda: method.adapt(x, first(batch), jax.random.key(0)))()
    loops = [eqn for eqn in adapt.eqns if eqn.primitive.name == "scan"]
    inside = [v.aval.shape for eqn in loops[0].params["jaxpr"].eqns for v in eqn.outvars]
    assert len(loops) == 1
    assert (64, 1) in inside  # the gradient of the head
    assert (64, 64) not in inside


@pytest.mark.parametrize("name", ["maml", "anil", "lslr", "reptile"])
def test_a_stored_head_is_bitwise_the_adapted_one(name):
    method, x, batch = setting(name, n=1, pool=7, head="stored")
    number, problem = int(batch.id[0]), method.estimator.problem
    saying = dataclasses.replace(problem, outer_loss=lambda x, y, *rest: (problem.objective(x, y, *rest)[0], y["head"]))
    method = dataclasses.replace(method, estimator=dataclasses.replace(method.estimator, problem=saying))
    _, (table, filled), info = estimate(method, x, batch)
    assert filled.tolist() == [i == number for i in range(7)]
    assert_close(jax.tree.map(lambda a: a[number : number + 1], table), info.metrics, 0.0)
    again = estimate(method, x, batch, (table, filled))
    x["head"] = jax.tree.map(lambda a: a[number], table)
    assert_close(again[2].loss, estimate(method, x, batch)[2].loss, 1e-5)


def test_a_task_not_seen_before_starts_at_the_learned_head():
    method, x, batch = setting("maml", n=2, pool=7, head="stored")
    stored, meta = estimate(method, x, batch), estimate(setting("maml", n=2, pool=7)[0], x, batch)
    assert_close(stored[2].loss, meta[2].loss, 0.0)
    unseen = batch._replace(id=jnp.full(2, -1))
    _, (table, filled), _ = estimate(method, x, unseen, stored[1])
    assert_close((table, filled), stored[1], 0.0)


def test_lslr_steps_beyond_training_have_the_last_rate(x64):
    _, x, batch = setting("lslr")
    x["rates"] = jax.tree.map(lambda a: jnp.array([0.01, 0.03]), x["rates"])
    longer = setting("lslr", test_steps=3)[0].adapt(x, first(batch), jax.random.key(0))
    y = setting("maml", learning_rate=0.01, steps=1)[0].adapt(x, first(batch), jax.random.key(0))
    plain = setting("maml", learning_rate=0.03, steps=2)[0].adapt(y, first(batch), jax.random.key(0))
    assert_close(longer, plain, 1e-12)


def test_the_multi_step_loss_goes_from_the_mean_over_steps_to_the_last(x64):
    method, x, batch = setting("lslr", steps=3, multi_step=10)
    each = [estimate(setting("maml", steps=k)[0], {"body": x["body"], "head": x["head"]}, batch)[2] for k in (1, 2, 3)]
    losses = jnp.stack([info.loss for info in each])
    early, late = (estimate(method, x, batch, jnp.asarray(t))[2].loss for t in (0, 100))
    np.testing.assert_allclose(early, losses.mean(0), rtol=1e-10)
    np.testing.assert_allclose(late, 0.01 * losses[0] + 0.01 * losses[1] + 0.98 * losses[2], rtol=1e-10)


@pytest.mark.parametrize("combine", ["sum", "mean", "last"])
def test_reptile_moves_by_its_inner_steps(combine, x64):
    method, x, batch = setting("reptile", n=1, steps=3, combine=combine, batch=100)
    one = lambda k: estimate(setting("reptile", n=1, steps=k, batch=100)[0], x, batch)[0]
    moves = [one(1), jax.tree.map(jnp.subtract, one(2), one(1)), jax.tree.map(jnp.subtract, one(3), one(2))]
    total = jax.tree.map(lambda *a: sum(a), *moves)
    expected = {"sum": total, "mean": jax.tree.map(lambda a: a / 3, total), "last": moves[-1]}[combine]
    assert_close(estimate(method, x, batch)[0], expected, 1e-12)


def test_reptile_goes_through_the_examples_in_epochs():
    method, _, batch = setting("reptile", n=1, batch=2)
    task, seen = first(batch), method.estimator.solver.minibatch
    everything = jnp.concatenate([task.support.inputs, task.query.inputs])
    epoch = jnp.concatenate([seen(task, jax.random.key(0), i).support.inputs for i in range(5)])
    np.testing.assert_array_equal(jnp.sort(epoch, 0), jnp.sort(everything, 0))
    following = jnp.concatenate([seen(task, jax.random.key(0), i).support.inputs for i in range(5, 10)])
    assert not (epoch == following).all()


def test_union_with_heads_of_their_own_fits_each_task_by_its_head(x64):
    tasks = mb.load_tasks("sinusoid")(shots=5, queries=5, network="tanh-64-64", pool=4)
    method = mb.load_method("union")(tasks.subject, heads="per-task", adapts="head")
    x, batch = method.init(jax.random.key(1)), mb.sample_batch(tasks, jax.random.key(2), "train", 1)
    direction, _, info = estimate(method, x, batch)
    number = int(batch.id[0])
    moved = [bool(jnp.abs(g).max() > 0) for g in direction["heads"]["weights"]]
    assert moved == [i == number for i in range(4)]
    own = {"body": x["body"], "head": jax.tree.map(lambda a: a[number], x["heads"])}
    data = jax.tree.map(lambda a, b: jnp.concatenate([a[0], b[0]]), batch.support, batch.query)
    np.testing.assert_allclose(info.loss[0], tasks.subject.fit(own, data), rtol=1e-12)


def test_cavia_adapts_the_context_alone(x64):
    method, x, batch = setting("cavia", context=3)
    assert method.adapt(x, first(batch), jax.random.key(0)).shape == (3,)
    v = like(x, jax.random.key(5))
    slope = directional(lambda x: estimate(method, x, batch)[2].loss.mean(), x, v)
    np.testing.assert_allclose(dot(estimate(method, x, batch)[0], v), slope, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("maml", {"head": "stored"}, "give them a pool"),
        ("union", {"heads": "per-task"}, "give them a pool"),
        ("maml", {"head": "stored", "adapts": "body", "pool": 3}, "no head ever changes"),
        ("reptile", {"head": "random", "adapts": "head"}, "nothing that Reptile would learn"),
        ("reptile", {"combine": "last", "steps": 0}, "at least one inner step"),
        ("lslr", {"multi_step": -1}, "multi_step = -1"),
        ("cavia", {"context": 0}, "context = 0"),
        ("cavia", {"layer": 7}, "layer = 7: the body of this network has 2 layers"),
        ("maml", {"adapts": "tail"}, "'adapts' is 'tail'"),
        ("maml", {"test_steps": -1}, "steps = -1"),
    ],
)
def test_wrong_choices_are_refused(name, options, message):
    with pytest.raises(mb.InputError, match=message):
        setting(name, **options)


@pytest.mark.parametrize("name", ["maml", "union", "cavia", "reptile"])
def test_a_learned_head_wants_one_number_of_ways(name):
    learner = mb.classification(mb.MLP(4, (8,), 5), ways=(5, 3))
    with pytest.raises(mb.InputError, match="Heads in closed form take any: r2d2"):
        mb.load_method(name)(learner)


def test_every_axis_trains(key):
    tasks = mb.load_tasks("sinusoid")(pool=20, network="tanh-64-64")
    for name, options in [("maml", {"head": "stored"}), ("lslr", {"multi_step": 5})]:
        method = mb.load_method(name)(tasks.subject, learning_rate=0.01, **options)
        x, history = mb.fit(method, tasks, optax.adam(1e-3), key=key, steps=40, meta_batch=4, every=20)
        assert history[-1]["loss"] < history[0]["loss"] * 1.5
        assert np.isfinite(mb.evaluate(method, x, tasks, key=key, episodes=20, steps=[0, 3])[3]["loss"].mean)


@pytest.mark.parametrize(("name", "options"), [("maml", {"head": "stored"}), ("lslr", {"multi_step": 9})])
def test_a_training_that_is_resumed_ends_bitwise_the_same(name, options, key):
    tasks = mb.load_tasks("sinusoid")(pool=3, network="tanh-64-64")
    method, optimizer = mb.load_method(name)(tasks.subject, **RATE | options), optax.adam(1e-3)
    legs = lambda steps, state: list(
        train(method, tasks, optimizer, key=key, steps=steps, meta_batch=2, every=4, state=state)
    )
    whole = legs(8, None)[-1][0]
    assert_close(legs(8, legs(5, None)[-1][0])[-1][0], whole, 0.0)
    assert jax.tree.leaves(whole.carry)  # the table of heads, or the number of steps
