"""Tasks of EleutherAI's lm-evaluation-harness on our models, scored by our own scorer.

The harness brings the tasks: their rows (from the hub or from local files), prompts and metrics. What it
asks of a model is answered here: log-likelihoods of continuations and of whole texts, and greedy text.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from gptcli.config.schema import RuntimeSettings
from gptcli.errors import ConfigError, DataError, EnvironmentProblem
from gptcli.evaluation.continuations import ContinuationScorer, Likelihood
from gptcli.generation.decoder import Decoder, Finished, Request, TextStream
from gptcli.generation.sampling import Sampling
from gptcli.hub import first_line, is_network_failure
from gptcli.models.loading import LoadedModel, load_model
from gptcli.pipelines.evaluate import OnProgress
from gptcli.training.device import Compute, choose_compute
from gptcli.training.run import library_versions

DEFAULT_NEW_TOKENS = 256  # As the harness has it for tasks that do not say.
HARNESS_SEED = 1234  # Its default, of NumPy and of which examples stand before a question.
REQUESTS_AT_ONCE = 1024
"""Scored together: the more, the more of their beginnings are shared."""


def run_harness_tasks(
    model: str,
    runtime: RuntimeSettings,
    tasks: list[str],
    folder: Path | None,
    limit: int | None,
    progress: OnProgress = lambda what, done, total, unit: None,
) -> dict[str, Any]:
    """Return {"tasks": {name: {score: value}}, ...} of the harness.

    folder: of task files besides those that the harness ships. Raises ConfigError for tasks that there
    are not, EnvironmentProblem if the harness or its rows are not here.
    """
    # Of some 14,000 files, which takes seconds.
    progress("indexing the harness's tasks", 0, None, "tasks")
    try:
        import lm_eval
        from lm_eval.tasks import TaskManager
    except ImportError:
        raise EnvironmentProblem(
            'lm-evaluation-harness is not installed: pip install "gptcli[lm-eval]"'
        ) from None
    manager = TaskManager(include_path=None if folder is None else str(folder))
    unknown = [name for name in tasks if not manager.match_tasks([name])]
    if unknown:
        raise ConfigError(f"--tasks {unknown[0]}: the harness has no task of that name.")
    if runtime.precision == "auto":
        runtime = runtime.model_copy(update={"precision": "fp32"})
    compute = choose_compute(runtime, for_training=False)
    progress("loading the model", 0, None, "models")
    loaded = load_model(model, compute.device, compute.dtype)
    progress("reading the tasks' rows", 0, None, "rows")
    try:
        # As its simple_evaluate does, which also asks git and pip, with their messages, for versions.
        of_names = manager.load(tasks)
        for task in of_names["tasks"].values():
            if task.get_config("num_fewshot") is None:
                task.set_config(key="num_fewshot", value=0)
            task.set_fewshot_seed(seed=HARNESS_SEED)
        random.seed(runtime.seed)
        np.random.seed(HARNESS_SEED)
        with _without_bars():
            found = lm_eval.evaluate(
                lm=_harness_model(loaded, compute, progress),
                task_dict=of_names,
                limit=limit,
                bootstrap_iters=1000,
                log_samples=False,
            )
    except Exception as error:  # The harness and `datasets` raise whatever they meet.
        if is_network_failure(error):
            raise EnvironmentProblem(
                f"--tasks {','.join(tasks)}: the hub cannot be reached for their rows."
            ) from error
        raise DataError(f"--tasks {','.join(tasks)}: {first_line(error)}") from error
    return {
        "model": model,
        "precision": compute.precision,
        "versions": {**library_versions(), "lm_eval": lm_eval.__version__},
        "tasks": {
            name: {key: value for key, value in scores.items() if key != "alias"}
            for name, scores in found["results"].items()
        },
    }


@contextmanager
def _without_bars() -> Iterator[None]:
    """Keep the harness's own bars off stderr: `progress` is told how far it is."""
    from tqdm import tqdm

    usual = tqdm.__init__

    def hidden(bar: Any, *given: Any, **options: Any) -> None:
        usual(bar, *given, **{**options, "disable": True})

    tqdm.__init__ = hidden  # There is no option for all of them.
    try:
        yield
    finally:
        tqdm.__init__ = usual


def _harness_model(loaded: LoadedModel, compute: Compute, progress: OnProgress) -> Any:
    """Return the model as the harness wants one."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

    scorer = ContinuationScorer(loaded, compute)
    decoder = Decoder.of(loaded, compute)

    class HarnessModel(TemplateLM):  # type: ignore[misc]
        """Answers the harness's requests."""

        @property
        def eot_token_id(self) -> int:
            return int(loaded.tokenizer.eos_token_id)

        def tok_encode(self, string: str, add_special_tokens: bool | None = None, **_: Any) -> list[int]:
            return list(loaded.tokenizer.encode(string, add_special_tokens=False))

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[tuple[float, bool]]:
            found: list[Likelihood] = []
            for first in range(0, len(requests), REQUESTS_AT_ONCE):
                progress("scoring", first, len(requests), "requests")
                some = requests[first : first + REQUESTS_AT_ONCE]
                found += scorer.score_tokens([(context, text) for _, context, text in some])
            return [(one.log_probability, one.is_greedy) for one in found]

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> list[float]:
            totals = []
            for number, request in enumerate(requests):
                progress("scoring", number, len(requests), "texts")
                windows = get_rolling_token_windows(
                    token_list=self.tok_encode(request.args[0]),
                    prefix_token=self.eot_token_id,
                    max_seq_len=scorer.context_length,
                    context_len=1,
                )
                parted = [make_disjoint_window(window) for window in windows]
                totals.append(sum(one.log_probability for one in scorer.score_tokens(parted)))
            return totals

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> list[str]:
            asked = [
                (prompt, normalize_gen_kwargs(options, DEFAULT_NEW_TOKENS))
                for prompt, options in (request.args for request in requests)
            ]
            numbers: dict[Sampling, list[int]] = {}
            for number, (_, options) in enumerate(asked):
                numbers.setdefault(_sampling(options), []).append(number)
            texts: dict[int, str] = {}
            for sampling, some in numbers.items():
                for place, text in self._continuations([asked[number] for number in some], sampling):
                    texts[some[place]] = text
                    progress("generating", len(texts), len(asked), "texts")
            return [texts[number] for number in range(len(asked))]

        def _continuations(
            self, asked: list[tuple[str, dict[str, Any]]], sampling: Sampling
        ) -> Iterator[tuple[int, str]]:
            """Yield (number of the prompt, text up to the first stop), each when it is whole."""
            streams: dict[int, TextStream] = {}
            stopped: set[tuple[int, int]] = set()

            def prompts() -> Iterator[Request]:
                for number, (prompt, options) in enumerate(asked):
                    room = max(1, scorer.context_length - options["max_gen_toks"])
                    ids = self.tok_encode(prompt)[-room:] or [self.eot_token_id]
                    streams[number] = TextStream(loaded.tokenizer, ids)
                    # A prompt that is asked for again, to be sampled, gets another text.
                    yield Request(ids, options["max_gen_toks"], seed=number)

            for event in decoder.decode(prompts(), sampling, stopped=stopped):
                stream, stops = streams[event.request], asked[event.request][1]["until"]
                if isinstance(event, Finished):
                    stream.finish()
                    yield event.request, postprocess_generated_text(stream.text, stops, None)
                    del streams[event.request]
                else:
                    stream.add(event.token_id)
                    if any(stop and stop in stream.text for stop in stops):
                        stopped.add((event.request, event.sequence))

    return HarnessModel()


def _sampling(options: dict[str, Any]) -> Sampling:
    """Return what the options of a task, which are named as Hugging Face's, ask for."""
    if not options["do_sample"]:
        return Sampling()
    return Sampling(options.get("temperature"), options.get("top_k"), options.get("top_p"))
