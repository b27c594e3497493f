"""Every reproduction runs at the smoke scale, and measures what it promises."""

from importlib.metadata import entry_points
from pathlib import Path

import pytest

from metabilevel.findings import PICTURE, RESULT, Report, block
from metabilevel.registry import REPRO, load

NAMES = [
    "andrychowicz-cifar",
    "andrychowicz-mnist",
    "andrychowicz-quadratics",
    "anil-freezing",
    "anil-omniglot",
    "bernacchia-negative-rates",
    "bilevel-benchmark",
    "franceschi-hypercleaning",
    "grazzi-comparison",
    "hoag-newsgroups",
    "imaml-error",
    "imaml-memory",
    "imaml-omniglot",
    "lecture-claims",
    "lorraine-augmentation",
    "lorraine-distillation",
    "lorraine-inverse",
    "lorraine-overfit",
    "maclaurin-distillation",
    "maclaurin-schedules",
    "maml-omniglot",
    "maml-sinusoid",
    "metaoptnet-cifar-fs",
    "neural-art",
    "pes-influence-balancing",
    "r2d2-cifar-fs",
    "r2d2-omniglot",
    "reptile-gradients",
    "reptile-omniglot",
    "reptile-sine",
    "union-vs-maml",
]
DATA = {
    "omniglot": ("omniglot28.npz", ("omniglot", "anil", "gradients", "lecture", "memory")),
    "mnist": (
        "train-images-idx3-ubyte.gz",
        ("andrychowicz-mnist", "lorraine", "maclaurin", "hypercleaning", "bilevel"),
    ),
    "cifar": ("cifar100_test.npz", ("cifar", "union", "augmentation")),
    "newsgroups": ("news20_counts.npz", ("newsgroups",)),
    "libsvm": ("ijcnn1.npz", ("bilevel",)),
    "photos": ("kodak_half.npz", ("neural-art",)),
}
RESULTS = Path(__file__).parents[2] / "paper_repro" / "results"
SCALES = ("smoke", "small", "full")


def test_all_are_known():
    ours = [point.name for point in entry_points(group=REPRO) if point.value.startswith("metabilevel_repro.")]
    assert sorted(ours) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_numbers_and_claims_are_about_the_same_settings(name):
    reproduction = load(REPRO, name)
    assert reproduction.name == name
    assert tuple(reproduction.scales) == SCALES
    settings = [number.setting for number in reproduction.published]
    assert len(set(settings)) == len(settings)
    assert all(number.place for number in reproduction.published)
    for scale in reproduction.scales.values():
        assert set(scale.unmeasured) <= set(settings)
        assert scale.protocol


@pytest.mark.parametrize("name", NAMES)
def test_smoke(name, tmp_path, data_files):
    reproduction = load(REPRO, name)
    for dataset, (file, users) in DATA.items():
        if any(user in name for user in users):
            data_files(dataset, file)
    report = reproduction.run("smoke", progress=False)
    measured = {row.setting for row in report.rows if row.ours is not None}
    assert set(reproduction.promised("smoke")) <= measured
    report.save(tmp_path)
    assert (tmp_path / PICTURE).stat().st_size > 20_000
    assert (tmp_path / RESULT).is_file()
    small = Report.load(RESULTS / name / "small")
    full = {number.setting for number in reproduction.published} | measured | {row.setting for row in small.rows}
    judged = {setting for claim in reproduction.claims for setting in claim.settings if isinstance(setting, str)}
    missing = {setting for setting in judged - full if block(setting) in set(map(block, measured))}
    assert not missing, "a claim names a setting that the experiment does not give"
