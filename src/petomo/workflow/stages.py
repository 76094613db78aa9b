"""The paper's workflow: every stage takes artefacts from the run folder and leaves artefacts there."""

from __future__ import annotations

from petomo.workflow.context import Stages
from petomo.workflow.step_alignment import alignment
from petomo.workflow.step_analysis import analysis, report
from petomo.workflow.step_bright_field import bright_field
from petomo.workflow.step_completion import completion
from petomo.workflow.step_end_to_end import end_to_end
from petomo.workflow.step_ptychography import ptychography
from petomo.workflow.step_refinement import refinement

STAGES: Stages = {
    "bright_field": bright_field,
    "ptychography": ptychography,
    "alignment": alignment,
    "end_to_end": end_to_end,
    "analysis": analysis,
    "refinement": refinement,
    "completion": completion,
    "report": report,
}
