"""The kit catches what it is for: every broken method, by the check that is named for it."""

import pytest
from defects import DEFECTS

from metabilevel import conformance


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_caught_by_its_check_in_words_that_name_it(name):
    defect = DEFECTS[name]
    given = {"direction_is_the_gradient": defect.gradient, "only": [defect.check]}
    (outcome,) = conformance.run(defect.factory, **given)
    assert outcome.status == "failed", outcome
    assert defect.words in outcome.message
