from metabilevel_example_plugin import sign_maml

from metabilevel import conformance

test_conformance = conformance.checks(sign_maml)
