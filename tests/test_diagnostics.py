"""Diagnostics against what is known: quadratics, linear maps, kernels, and the scores that `evaluate` gives."""

from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from matplotlib.figure import Figure

import metabilevel as mb
from metabilevel.diagnostics.adapted import activations
from metabilevel.diagnostics.diagnosis import NotApplicable
from metabilevel.diagnostics.probe import ridge_outputs
from metabilevel.diagnostics.similarity import cca, cka
from metabilevel.diagnostics.tangent import kernel, spectrum
from metabilevel.figures import Curve, Panel, _draw_panel

RATE = 0.1


class Draws(mb.TaskDistribution):
    """Tasks that are one number each."""

    subject: Any = None

    def sample(self, key, split):
        return jax.random.normal(key)


def descent(hessian, outer_loss=lambda x, y, task, key: jnp.sum(y)) -> mb.Method:
    """x is the start of a descent of rate `RATE` on y^T H y / 2 with a diagonal H."""
    problem = mb.BilevelProblem(
        init=lambda x, task, key: x,
        inner_loss=lambda x, y, task, key: jnp.sum(jnp.asarray(hessian) * y**2) / 2,
        outer_loss=outer_loss,
    )
    solver = mb.GradientDescent(optax.sgd(RATE), steps=1)
    return mb.Method(problem, lambda key: jnp.ones(len(hessian)), mb.Nested(problem, solver), solver)


def sinusoids(method: str = "maml", *, network: str = "relu-40-40", **options):
    tasks = mb.load_tasks("sinusoid")(network=network)
    method = mb.load_method(method)(tasks.subject, **options)
    return method, method.init(jax.random.key(3)), tasks


def column(diagnosis, name, **where):
    """The values `name` of the rows that hold what `where` says."""
    return np.array([row[name] for row in diagnosis.rows if where.items() <= row.items()])


@pytest.mark.parametrize(("product", "factor"), [(2.2, 1.2), (0.5, 0.5)])
def test_gradients_grow_or_vanish_by_the_factor_of_theory(product, factor, key, x64):
    method, steps = descent([product / RATE] * 3), [1, 2, 5, 20]
    found = mb.gradients(method, jnp.ones(3), Draws(), key=key, steps=steps, episodes=3)
    for statistic in ("median", "95th percentile", "max"):
        grown = lambda norm, statistic=statistic: column(found, statistic, norm=norm)
        np.testing.assert_allclose(grown("inner Jacobian"), factor ** np.array(steps), rtol=1e-12)
        np.testing.assert_allclose(grown("outer gradient"), 3**0.5 * factor ** np.array(steps), rtol=1e-12)
        np.testing.assert_allclose(grown("first-order gradient"), 3**0.5, rtol=1e-12)


def test_of_several_curvatures_the_largest_decides_in_the_end(key, x64):
    method = descent([0.5 / RATE, 1.7 / RATE, 2.2 / RATE])
    found = mb.gradients(method, jnp.ones(3), Draws(), key=key, steps=[60, 61], episodes=1)
    before, after = column(found, "median", norm="inner Jacobian")
    np.testing.assert_allclose(after / before, 1.2, rtol=1e-6)


def test_gradients_that_are_not_finite_are_counted_as_infinite(key):
    method = descent([1.0], lambda x, y, task, key: jnp.sum(y) * jnp.where(task > 0, 1.0, jnp.nan))
    found = mb.gradients(method, jnp.ones(1), Draws(), key=key, steps=[1], episodes=40)
    (row,) = (row for row in found.rows if row["norm"] == "outer gradient")
    assert 0 < row["nonfinite"] < 40
    assert np.isinf([row["max"], row["95th percentile"]]).all()
    assert column(found, "nonfinite", norm="inner Jacobian") == [0]


def test_gradients_refuse_what_they_cannot_be_of(key):
    method, x, tasks = sinusoids("r2d2")
    with pytest.raises(NotApplicable, match="ClosedForm takes no steps"):
        mb.gradients(method, x, tasks, key=key)
    method, x, tasks = sinusoids("scratch")
    with pytest.raises(NotApplicable, match="trains nothing"):
        mb.gradients(method, x, tasks, key=key)
    for steps in ([], [0], [3, -1]):
        with pytest.raises(mb.InputError, match="steps = "):
            mb.gradients(descent([1.0]), jnp.ones(1), Draws(), key=key, steps=steps)


def test_memory_grows_as_theory_says_and_nothing_runs():
    method, x, tasks = sinusoids(learning_rate=0.01)
    ran = []

    def outer_loss(*given):
        jax.debug.callback(lambda: ran.append(1))
        return method.problem.outer_loss(*given)

    watched = replace(method, problem=replace(method.problem, outer_loss=outer_loss))
    found = mb.memory(watched, x, tasks, steps=[16, 64, 32])
    sizes = {row["adjoint"]: column(found, "bytes", adjoint=row["adjoint"]) for row in found.rows}
    assert not ran
    small, middle, large = sizes["Unroll()"]
    np.testing.assert_allclose(large - middle, 2 * (middle - small), rtol=0.05)
    assert large > 3 * small
    small, _, large = sizes["Unroll(checkpoint='sqrt')"]
    assert small < large < 2.5 * small
    assert (sizes["Unroll(mixed_mode=True)"] < sizes["Unroll()"]).all()
    for constant in ("Unroll(first_order=True)", "StopGradient()"):
        assert len(set(sizes[constant])) == 1
    np.testing.assert_allclose(column(found, "MiB") * 2**20, column(found, "bytes"))
    legend = [curve.name for curve in found.panels[0].curves]
    assert legend == [*list(sizes)[:-1], "StopGradient(): 0 at k = 16, 32, 64"]
    assert found.panels[0].curves[0].y == list(sizes["Unroll()"] / 2**20)


def test_cka_knows_no_rotation_and_no_scale(key, x64):
    k1, k2, k3 = jax.random.split(key, 3)
    a = jax.random.normal(k1, (50, 6)) * jnp.arange(1.0, 7.0)
    rotation = jnp.linalg.qr(jax.random.normal(k2, (6, 6)))[0]
    for scale in (1e-3, 1.0, 1e3):
        np.testing.assert_allclose(cka(a, scale * a @ rotation + 5), 1, rtol=1e-12)
    assert cka(a, a @ jax.random.normal(k3, (6, 6))) < 0.98
    np.testing.assert_allclose(cka(a, a[:, :2]), _cka_by_definition(a, a[:, :2]), rtol=1e-12)


def _cka_by_definition(a, b):
    a, b = a - a.mean(0), b - b.mean(0)
    return np.linalg.norm(a.T @ b) ** 2 / (np.linalg.norm(a.T @ a) * np.linalg.norm(b.T @ b))


def test_cca_knows_no_linear_map(key, x64):
    k1, k2, k3 = jax.random.split(key, 3)
    a, noise = jax.random.normal(k1, (50, 6)), jax.random.normal(k3, (50, 1))
    mixed = a @ jax.random.normal(k2, (6, 6)) - 3
    np.testing.assert_allclose(cca(a, mixed), 1, rtol=1e-12)
    np.testing.assert_allclose(cca(a, jnp.concatenate([mixed, mixed[:, :3]], 1)), 1, rtol=1e-12)
    np.testing.assert_allclose(cca(a[:, :1], noise), abs(np.corrcoef(a[:, 0], noise[:, 0])[0, 1]), rtol=1e-10)


def test_neither_sees_a_likeness_between_independent_features(key):
    a, b = jax.random.normal(key, (2, 4000, 5))
    assert cka(a, b) < 0.02
    assert cca(a, b) < 0.1


def test_constant_features_have_no_similarity(key):
    a = jax.random.normal(key, (9, 3))
    assert np.isnan([cka(a, jnp.ones((9, 2))), cca(a, jnp.ones((9, 2)))]).all()


@pytest.mark.parametrize("measure", ["cka", "cca"])
def test_similarity_is_one_of_what_does_not_adapt(measure, key):
    method, x, tasks = sinusoids("anil", learning_rate=0.05, steps=3)
    first, second, head = (
        row for row in mb.similarity(method, x, tasks, key=key, episodes=8).rows if row["measure"] == measure
    )
    for row in (first, second):
        np.testing.assert_allclose([row["mean"], row["ci95"]], [1, 0], atol=1e-4)
        assert row["chance"] < row["mean"] + 1e-4
    assert head["mean"] < 0.9
    still, x, tasks = sinusoids("maml", steps=0)
    unmoved = mb.similarity(still, x, tasks, key=key, episodes=4)
    np.testing.assert_allclose(column(unmoved, "mean"), 1, atol=1e-4)


def test_bands_end_where_the_measure_does(key):
    panels = mb.similarity(*sinusoids("maml", learning_rate=0.3, steps=5), key=key, episodes=8).panels
    assert [panel.within for panel in panels] == [(0.0, 1.0)] * 2
    curve = Curve("a", [0, 1], [0.1, 0.8], [0.3, 0.3])
    for within, ends in [((0.0, 1.0), (0.0, 1.0)), (None, (-0.2, 1.1))]:
        axes = Figure().add_subplot()
        _draw_panel(axes, Panel("", "", "", [curve], within=within), {"a": "black"})
        heights = axes.collections[0].get_paths()[0].vertices[:, 1]
        np.testing.assert_allclose([heights.min(), heights.max()], ends)


@pytest.mark.parametrize("method", ["r2d2", "oracle"])
def test_similarity_says_which_methods_have_it(method, key):
    method, x, tasks = sinusoids(method)
    with pytest.raises(NotApplicable, match="such as maml, reptile, anil or boil"):
        mb.similarity(method, x, tasks, key=key, episodes=2)


@pytest.mark.parametrize("transductive", [True, False])
def test_activations_follow_the_protocol_of_the_learner(transductive, key, x64):
    network = mb.ConvNet((6, 6, 1), 2, filters=3, blocks=2, readout="flatten")
    learner = mb.classification(network, transductive=transductive)
    body, (support, query) = learner.init(key)["body"], jax.random.normal(key, (2, 4, 6, 6, 1))
    blocks = activations(learner, body, query, support)
    assert [a.shape for a in blocks] == [(4, 3, 3, 3), (4, 2, 2, 3)]
    np.testing.assert_allclose(blocks[-1].reshape(4, -1), learner.features(body, query, support), rtol=1e-10)


def test_ridge_outputs_minimise_the_penalised_error(key, x64):
    k1, k2, k3 = jax.random.split(key, 3)
    s, q, t = jax.random.normal(k1, (7, 4)) + 3, jax.random.normal(k2, (5, 4)), jax.random.normal(k3, (7, 2))
    centred = s - s.mean(0)
    strength = 0.3 * jnp.sum(centred**2)
    weights = jnp.linalg.solve(centred.T @ centred + strength * jnp.eye(4), centred.T @ (t - t.mean(0)))
    expected = (q - s.mean(0)) @ weights + t.mean(0)
    np.testing.assert_allclose(ridge_outputs(s, t, q, 0.3), expected, rtol=1e-10)
    np.testing.assert_allclose(ridge_outputs(jnp.ones((7, 4)), t, q, 0.3), jnp.broadcast_to(t.mean(0), (5, 2)))


def test_a_probe_reads_what_is_linear_in_the_features(key, x64):
    class Lines(Draws):
        def sample(self, key, split):
            k1, k2 = jax.random.split(key)
            inputs, slope = jax.random.normal(k1, (2, 30, 2)), jax.random.normal(k2, (2, 1))
            return mb.Episode(*(mb.Data(each, each @ slope) for each in inputs))

    learner = mb.regression(mb.MLP(2, (16,), 1, "relu"))
    method = mb.load_method("maml")(learner, learning_rate=0.01)
    found = mb.probe(method, method.init(key), Lines(learner), key=key, episodes=20, ridge=1e-8)
    good, own = (column(found, "mean", block=block, adaptation="before") for block in ("block 1", "the method itself"))
    assert good < 0.02 * own


@pytest.mark.parametrize("steps", [0, 2])
def test_the_probe_stands_beside_what_evaluate_gives(steps, key):
    method, x, tasks = sinusoids("maml", learning_rate=0.02, steps=steps)
    found = mb.probe(method, x, tasks, key=key, episodes=6)
    scores = mb.evaluate(method, x, tasks, key=key, episodes=6, steps=[0, steps])
    for when, k in (("before", 0), ("after", steps)):
        (row,) = (row for row in found.rows if row["block"] == "the method itself" and row["adaptation"] == when)
        np.testing.assert_allclose([row["mean"], row["ci95"]], scores[k]["loss"][:2], rtol=1e-4)


def test_the_probe_of_a_body_that_stays_is_the_same_before_and_after(key):
    method, x, tasks = sinusoids("r2d2")
    found = mb.probe(method, x, tasks, key=key, episodes=3)
    before, after = (column(found, "mean", adaptation=when) for when in ("before", "after"))
    np.testing.assert_array_equal(before, after[:-1])
    with pytest.raises(NotApplicable, match="neither x nor y"):
        mb.probe(*sinusoids("oracle"), key=key, episodes=2)


def test_the_kernel_is_that_of_the_jacobian(key, x64):
    network = mb.MLP(2, (5,), 3, "tanh")
    params, inputs = network.init(key), jax.random.normal(key, (12, 2))
    f = lambda p: network.head(p["head"], network.body(p["body"], inputs))
    jacobian = jnp.concatenate([a.reshape(36, -1) for a in jax.tree.leaves(jax.jacobian(f)(params))], 1)
    np.testing.assert_allclose(kernel(f, params), jacobian @ jacobian.T, rtol=1e-10, atol=1e-12)
    with pytest.raises(NotApplicable, match="1001 rows"):
        kernel(lambda y: y * jnp.ones(1001), jnp.ones(()))


def test_labels_along_one_component_are_aligned_with_it(x64):
    basis = jnp.linalg.qr(jnp.asarray(np.random.default_rng(0).normal(size=(6, 6))))[0]
    given = jnp.array([9.0, 5.0, 4.0, 2.0, 1.0, 0.5])
    values, alignment = spectrum(basis * given @ basis.T, basis[:, 1] + 2 * basis[:, 3])
    np.testing.assert_allclose(values, given, rtol=1e-10)
    np.testing.assert_allclose(alignment, [0, 0.2, 0.2, 1, 1, 1], atol=1e-12)


def test_the_linearised_path_is_wrong_by_the_square_of_the_rate(key, x64):
    rates = [4e-4, 2e-4, 1e-4]
    errors, changes = [], []
    for rate in rates:
        # Smooth: where a ReLU passes its kink the error is one of the rate itself.
        method, x, tasks = sinusoids("maml", network="tanh-64-64", learning_rate=rate, steps=4)
        row = mb.tangent(method, x, tasks, key=key, steps=4).rows[-1]
        assert (row["start"], row["step"]) == ("meta-trained", 4)
        errors.append(row["difference"])
        changes.append(row["change"])
    slope = lambda values: np.polyfit(np.log(rates), np.log(values), 1)[0]
    np.testing.assert_allclose(slope(errors), 2, atol=0.1)
    np.testing.assert_allclose(slope(np.divide(errors, changes)), 1, atol=0.1)


def test_a_head_alone_is_its_own_linearisation(key, x64):
    found = mb.tangent(*sinusoids("anil", learning_rate=0.02, steps=5), key=key, steps=5)
    assert column(found, "relative").max() < 1e-10
    np.testing.assert_allclose(column(found, "loss"), column(found, "linearised_loss"), rtol=1e-10)
    assert mb.tangent(*sinusoids("boil", learning_rate=0.02), key=key, steps=5).rows[-1]["relative"] > 1e-3


def test_the_tangent_view_knows_where_it_does_not_apply(key):
    method, x, tasks = sinusoids("maml", learning_rate=0.02)
    decayed = lambda x, y, task, key: (
        method.problem.inner_loss(x, y, task, key) + sum(jnp.sum(a**2) for a in jax.tree.leaves(y))
    )
    other = replace(method, problem=replace(method.problem, inner_loss=decayed))
    with pytest.raises(NotApplicable, match="not the network's loss on the support set alone"):
        mb.tangent(other, x, tasks, key=key)
    with pytest.raises(NotApplicable, match="these tasks are for a NoneType"):
        mb.tangent(method, x, Draws(), key=key)


def test_what_diverges_is_said_and_drawn(key, tmp_path):
    setting = sinusoids("maml", learning_rate=1e6, steps=6)
    found = [
        mb.gradients(*setting, key=key, steps=[6, 20], episodes=3),
        mb.similarity(*setting, key=key, episodes=3),
        mb.probe(*setting, key=key, episodes=3),
        mb.tangent(*setting, key=key),
    ]
    assert column(found[0], "nonfinite", steps=20, norm="outer gradient") == [3]
    for diagnosis in found[1:]:
        assert not np.isfinite([value for value in diagnosis.rows[-1].values() if isinstance(value, float)]).all()
    for diagnosis in found:
        diagnosis.draw(tmp_path / "picture.png", "a method that diverges")
        assert diagnosis.table("it").row_count == len(diagnosis.rows)
