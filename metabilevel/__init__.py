"""metabilevel: meta-learning and bilevel optimisation, every method an outer objective over an inner solver.

Names are imported when they are first used, so that `import metabilevel` costs nothing.
"""

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from . import conformance as conformance
    from .adjoints import AbstractAdjoint as AbstractAdjoint
    from .adjoints import ForwardMode as ForwardMode
    from .adjoints import StopGradient as StopGradient
    from .adjoints import Unroll as Unroll
    from .adjoints import backpropagated as backpropagated
    from .advice.advice import Advice as Advice
    from .advice.advise import advise as advise
    from .check.examine import check_hypergradient as check_hypergradient
    from .check.examine import check_method as check_method
    from .check.report import Check as Check
    from .check.report import Verdict as Verdict
    from .devices import mesh as mesh
    from .diagnostics.diagnosis import Diagnosis as Diagnosis
    from .diagnostics.gradients import gradients as gradients
    from .diagnostics.memory import memory as memory
    from .diagnostics.probe import probe as probe
    from .diagnostics.similarity import similarity as similarity
    from .diagnostics.tangent import tangent as tangent
    from .embeddings import R2D2Net as R2D2Net
    from .embeddings import ResNet12 as ResNet12
    from .episodes import FewShot as FewShot
    from .episodes import few_shot as few_shot
    from .errors import ComputationError as ComputationError
    from .errors import HypergradientWarning as HypergradientWarning
    from .errors import InputError as InputError
    from .errors import NonFiniteError as NonFiniteError
    from .estimators import AbstractEstimator as AbstractEstimator
    from .estimators import Nested as Nested
    from .estimators import WarmStarted as WarmStarted
    from .evaluation import Interval as Interval
    from .evaluation import evaluate as evaluate
    from .external import JaxoptSolver as JaxoptSolver
    from .external import OptimistixSolver as OptimistixSolver
    from .hypergradients import Solution as Solution
    from .hypergradients import hypergradient as hypergradient
    from .hypergradients import reduced as reduced
    from .hypergradients import solve as solve
    from .implicit import Implicit as Implicit
    from .implicit import SecondMoments as SecondMoments
    from .info import Certificate as Certificate
    from .info import Info as Info
    from .info import Reached as Reached
    from .info import Result as Result
    from .learned import LearnedOptimizer as LearnedOptimizer
    from .learned import as_optax as as_optax
    from .learned import load_optimizer as load_optimizer
    from .learner import Learner as Learner
    from .learner import classification as classification
    from .learner import regression as regression
    from .linear import GMRES as GMRES
    from .linear import AbstractInverse as AbstractInverse
    from .linear import BiCGSTAB as BiCGSTAB
    from .linear import ConjugateGradient as ConjugateGradient
    from .linear import Dense as Dense
    from .linear import Identity as Identity
    from .linear import LinearSystem as LinearSystem
    from .linear import Lineax as Lineax
    from .linear import Neumann as Neumann
    from .linear import Nystrom as Nystrom
    from .method import Method as Method
    from .method import Posed as Posed
    from .networks import MLP as MLP
    from .networks import AbstractNetwork as AbstractNetwork
    from .networks import ConvNet as ConvNet
    from .optimizees import AbstractOptimizee as AbstractOptimizee
    from .optimizees import from_function as from_function
    from .oracles import Minibatches as Minibatches
    from .oracles import Oracles as Oracles
    from .oracles import Sample as Sample
    from .population_training import Trained as Trained
    from .population_training import fit_population as fit_population
    from .problem import BilevelProblem as BilevelProblem
    from .quadratic import simplex_qp as simplex_qp
    from .quadratic import simplex_residual as simplex_residual
    from .registry import load_method as load_method
    from .registry import load_tasks as load_tasks
    from .rules import AbstractRule as AbstractRule
    from .rules import RuleDescent as RuleDescent
    from .single_loop import AbstractSingleLoop as AbstractSingleLoop
    from .single_loop import SingleLoop as SingleLoop
    from .single_loop import Stride as Stride
    from .solvers import AbstractInnerSolver as AbstractInnerSolver
    from .solvers import AbstractIterativeSolver as AbstractIterativeSolver
    from .solvers import ClosedForm as ClosedForm
    from .solvers import Descent as Descent
    from .solvers import GradientDescent as GradientDescent
    from .solvers import ProjectedGradient as ProjectedGradient
    from .solvers import Trajectory as Trajectory
    from .tasks import Data as Data
    from .tasks import Episode as Episode
    from .tasks import TaskDistribution as TaskDistribution
    from .tasks import pooled as pooled
    from .tasks import sample_batch as sample_batch
    from .training import fit as fit
    from .training import plan as plan
    from .tuning import grid_search as grid_search
    from .tuning import tune as tune
    from .windows import EvolutionStrategies as EvolutionStrategies
    from .windows import PersistentES as PersistentES
    from .windows import Truncated as Truncated

_HOME = {
    "adjoints": "AbstractAdjoint ForwardMode StopGradient Unroll backpropagated",
    "advice.advice": "Advice",
    "advice.advise": "advise",
    "check.examine": "check_hypergradient check_method",
    "check.report": "Check Verdict",
    "devices": "mesh",
    "diagnostics.diagnosis": "Diagnosis",
    "diagnostics.gradients": "gradients",
    "diagnostics.memory": "memory",
    "diagnostics.probe": "probe",
    "diagnostics.similarity": "similarity",
    "diagnostics.tangent": "tangent",
    "embeddings": "R2D2Net ResNet12",
    "episodes": "FewShot few_shot",
    "errors": "ComputationError HypergradientWarning InputError NonFiniteError",
    "estimators": "AbstractEstimator Nested WarmStarted",
    "external": "JaxoptSolver OptimistixSolver",
    "evaluation": "Interval evaluate",
    "training": "fit plan",
    "implicit": "Implicit SecondMoments",
    "info": "Certificate Info Reached Result",
    "linear": "AbstractInverse BiCGSTAB ConjugateGradient Dense GMRES Identity Lineax LinearSystem Neumann Nystrom",
    "learned": "LearnedOptimizer as_optax load_optimizer",
    "learner": "Learner classification regression",
    "method": "Method Posed",
    "networks": "AbstractNetwork ConvNet MLP",
    "optimizees": "AbstractOptimizee from_function",
    "oracles": "Minibatches Oracles Sample",
    "population_training": "Trained fit_population",
    "problem": "BilevelProblem",
    "registry": "load_method load_tasks",
    "hypergradients": "Solution hypergradient reduced solve",
    "quadratic": "simplex_qp simplex_residual",
    "rules": "AbstractRule RuleDescent",
    "single_loop": "AbstractSingleLoop SingleLoop Stride",
    "solvers": "AbstractInnerSolver AbstractIterativeSolver ClosedForm Descent GradientDescent ProjectedGradient "
    "Trajectory",
    "tasks": "Data Episode TaskDistribution pooled sample_batch",
    "tuning": "grid_search tune",
    "windows": "EvolutionStrategies PersistentES Truncated",
}
_MODULE = {name: module for module, names in _HOME.items() for name in names.split()}
__all__ = sorted(_MODULE)  # pyright: ignore[reportUnsupportedDunderAll]
__version__ = "0.1.0"


def __getattr__(name: str) -> object:
    if name == "conformance":
        return importlib.import_module(".conformance", __name__)
    if name not in _MODULE:
        raise AttributeError(f"module 'metabilevel' has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_MODULE[name]}", __name__), name)


def __dir__() -> list[str]:
    return [*__all__, "__version__", "conformance"]
