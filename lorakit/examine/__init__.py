"""The dataset's doctor: everything about images and captions that spoils training, with its images and a fix."""

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
    """Look at everything in a dataset; quick the second time, as what an image is like is remembered.

    model    of a run, for what its family cuts from captions; None: captions are not measured
    loop     of a run, for the number of steps in an epoch

    What is wrong with the whole set, such as a missing folder, is a finding as all else.
    """
    facts = gather(project, config, model, loop or LoopConfig())
    findings = [finding for check in CHECKS.values() if (finding := check.run(facts))]
    findings.sort(key=lambda finding: SEVERITIES.index(finding.severity))
    return Report(tuple(findings), facts.numbers(), {sample.name: sample for sample in facts.samples})
