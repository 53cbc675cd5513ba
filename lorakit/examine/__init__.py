"""The dataset check: finds problems of images and captions that harm training, and fixes them."""

from __future__ import annotations

from lorakit.config import Config
from lorakit.data import DataConfig
from lorakit.examine.checks import CHECKS
from lorakit.examine.facts import gather, measure_images
from lorakit.examine.finding import SEVERITIES, DatasetFinding, Report
from lorakit.project import Project
from lorakit.run.config import LoopConfig

__all__ = ["DatasetFinding", "Report", "examine", "measure_images"]


def examine(
    project: Project, config: DataConfig, model: Config | None = None, loop: LoopConfig | None = None
) -> Report:
    """Run all checks on a dataset. Fast the second time, as image measurements are cached.

    model    model settings of a run, whose tokenizer measures the captions; None: caption length is not checked
    loop     loop settings of a run, for the number of steps per epoch

    A dataset that cannot be read, such as a missing folder, is a finding as well, not an exception.
    """
    facts = gather(project, config, model, loop or LoopConfig())
    findings = [finding for check in CHECKS.values() if (finding := check.run(facts))]
    # A stable sort: within a severity the order of the table stays.
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Report(tuple(findings), facts.numbers(), {sample.name: sample for sample in facts.samples})
