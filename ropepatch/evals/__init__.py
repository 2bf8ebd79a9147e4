"""Whether a longer context helps, and what it cost: measured, compared, reported."""

from ropepatch.evals.claims import Check, Claim, headline
from ropepatch.evals.evaluation import Comparison, Evaluation, compare
from ropepatch.evals.plan import Plan, plan_evaluation
from ropepatch.evals.report import write_report
from ropepatch.evals.runner import measure
from ropepatch.evals.statistics import Interval, bootstrap_mean, paired_difference, wilson
from ropepatch.evals.table import print_table

__all__ = [
    "Check",
    "Claim",
    "Comparison",
    "Evaluation",
    "Interval",
    "Plan",
    "bootstrap_mean",
    "compare",
    "headline",
    "measure",
    "paired_difference",
    "plan_evaluation",
    "print_table",
    "wilson",
    "write_report",
]
