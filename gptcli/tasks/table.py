"""The tasks by their names, as settings give them."""

from __future__ import annotations

from gptcli.config.schema import Settings
from gptcli.tasks import classification, instruction, language_modelling, question_answering
from gptcli.tasks.assembly import Notify
from gptcli.training.device import Compute
from gptcli.training.job import Job

_BUILDERS = {
    "language-modelling": language_modelling.build_job,
    "classification": classification.build_job,
    "question-answering": question_answering.build_job,
    "instruction": instruction.build_job,
}


def build_job(settings: Settings, compute: Compute, notify: Notify) -> Job:
    """Return the job that `settings` ask for, its data read and checked and its model loaded."""
    return _BUILDERS[settings.task](settings, compute, notify)
