"""The tasks by their names, as settings give them."""

from __future__ import annotations

from gptcli.config.schema import Settings
from gptcli.data.progress import Notify
from gptcli.errors import ConfigError
from gptcli.tasks import classification, instruction, language_modelling, question_answering
from gptcli.training.device import Compute
from gptcli.training.job import Job

_BUILDERS = {
    "language-modelling": language_modelling.build_job,
    "classification": classification.build_job,
    "question-answering": question_answering.build_job,
    "instruction": instruction.build_job,
}

WRITES_TEXT = ("language-modelling", "instruction")


def build_job(settings: Settings, compute: Compute, notify: Notify) -> Job:
    """Return the job that `settings` ask for, its data read and checked and its model loaded."""
    if settings.evaluation.sample_prompts and settings.task not in WRITES_TEXT:
        raise ConfigError(
            f"evaluation.sample_prompts is set, but a model of task {settings.task} writes no text. "
            f"Leave it out; it is for {' and '.join(WRITES_TEXT)}."
        )
    return _BUILDERS[settings.task](settings, compute, notify)
