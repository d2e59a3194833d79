"""What benchmarks/inference.py compares: programs that continue prompts, each in a process of its own.

    PYTHON inference_sides.py '{"side": {"program": "transformers", "precision": "bf16"}, ...}'

The process loads its model once and prints {"ready": what it is}, or {"problem": why not}. Then each
line on its standard input is a request (prompts), and each line that it prints what it made of them and
in how many seconds. So sides can take turns without loading again. PYTHON is that of the program's own
environment; of what is not Python's own, each class below imports what it is about, when it is made.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import asdict, dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


@dataclass(frozen=True)
class Side:
    """A program with its number format."""

    program: str
    """One of PROGRAMS."""
    precision: str
    """As the program calls it."""
    flags: str = ""

    @property
    def name(self) -> str:
        return ", ".join(part for part in (self.program, self.precision, self.flags) if part)


STATIC_CACHE, PROMPT_LOOKUP, DIRECT_STEPS = "static cache", "prompt lookup", "direct steps"
GPTCLI_INT8, GPTCLI_BF16 = Side("gptcli", "int8"), Side("gptcli", "bf16")
# What a GPU is asked for operator by operator, with no step replayed.
GPTCLI_DIRECT = Side("gptcli", "bf16", DIRECT_STEPS)
GPTCLI_FP32 = Side("gptcli", "fp32")
TRANSFORMERS_BF16, TRANSFORMERS_FP32 = Side("transformers", "bf16"), Side("transformers", "fp32")
TRANSFORMERS_STATIC = Side("transformers", "bf16", STATIC_CACHE)
TRANSFORMERS_LOOKUP = Side("transformers", "bf16", PROMPT_LOOKUP)
CTRANSLATE2_INT8 = Side("ctranslate2", "int8")
LLAMA_CPP_Q8_0 = Side("llama.cpp", "Q8_0")
VLLM_BF16 = Side("vllm", "bf16")


@dataclass(frozen=True)
class Job:
    """What a process is started with."""

    side: Side
    model: str
    """A Hugging Face folder; its end-of-text is never the likeliest token."""
    folder: str
    """For the model in formats of the peers, which are made once."""
    gptcli: str
    """The Python that gptcli is installed for, which exports the model."""
    device: str
    threads: int


@dataclass(frozen=True)
class Request:
    """Prompts to continue by the likeliest tokens."""

    prompts: list[list[int]]
    new_tokens: list[int]
    """How many, a prompt."""
    at_once: int = 1
    """Sequences that go through the model together; a program that batches by itself need not obey."""


@dataclass(frozen=True)
class Answer:
    """What a side made of a request."""

    seconds: float
    counts: list[int]
    """New tokens of each prompt."""
    ids: list[list[int]] | None
    texts: list[str] | None
    """In place of the ids, where the program gives only text."""


class Program(Protocol):
    """A loaded model. `continue_all` returns the new tokens of each prompt; it is what is timed."""

    def __init__(self, job: Job) -> None: ...

    def continue_all(self, request: Request) -> Any: ...

    def answer(self, seconds: float, made: Any) -> Answer: ...


class OfIds:
    """What programs have in common that return the ids of the new tokens."""

    def answer(self, seconds: float, made: list[list[int]]) -> Answer:
        return Answer(seconds, [len(ids) for ids in made], made, None)


class Gptcli:
    """`gptcli generate` without its command line. Encoding and decoding the texts is timed with it."""

    def __init__(self, job: Job) -> None:
        from gptcli.config.schema import GenerationSettings, RuntimeSettings
        from gptcli.hub import quiet_libraries
        from gptcli.models import step_graphs
        from gptcli.pipelines.generate import Generator

        quiet_libraries()
        if job.side.flags == DIRECT_STEPS:
            step_graphs.DIRECT_STEPS = sys.maxsize
        runtime = {"device": job.device, "precision": job.side.precision, "threads": job.threads}
        self._generator = Generator(
            job.model, GenerationSettings(), RuntimeSettings.model_validate(runtime), seed=None
        )

    def continue_all(self, request: Request) -> Any:
        from gptcli.generation.prompts import Prompt

        tokenizer = self._generator.loaded.tokenizer
        planned = []
        for ids, count in zip(request.prompts, request.new_tokens, strict=True):
            prompt = self._generator.plan(Prompt(tokenizer.decode(ids, skip_special_tokens=False)))
            assert prompt.prompt_ids == ids
            planned.append(replace(prompt, max_new_tokens=count))
        return [made for of_prompt in self._generator.run(planned) for made in of_prompt]

    def answer(self, seconds: float, made: Any) -> Answer:
        counts = [continuation.completion_tokens for continuation in made]
        return Answer(seconds, counts, None, [continuation.completion for continuation in made])


FLAGS: dict[str, dict[str, Any]] = {
    "": {},
    STATIC_CACHE: {"cache_implementation": "static"},
    PROMPT_LOOKUP: {"prompt_lookup_num_tokens": 10},
}
"""What they are to transformers' `generate`."""


class Transformers(OfIds):
    """`generate` of Hugging Face's model. Prompts are sorted by length and padded on the left.

    A batch ends when its last continuation does, as it would with end-of-text: that a sequence has got
    its tokens is told by a stopping criterion of its own.
    """

    def __init__(self, job: Job) -> None:
        import torch
        from transformers import GPT2LMHeadModel

        torch.set_num_threads(job.threads)
        dtype = getattr(torch, DTYPES[job.side.precision])
        self._model: Any = GPT2LMHeadModel.from_pretrained(job.model, dtype=dtype)
        self._model = self._model.to(job.device).eval()
        self._options = FLAGS[job.side.flags]

    def continue_all(self, request: Request) -> list[list[int]]:
        made: list[list[int]] = [[] for _ in request.prompts]
        order = sorted(range(len(made)), key=lambda number: len(request.prompts[number]))
        for begin in range(0, len(order), request.at_once):
            rows = order[begin : begin + request.at_once]
            prompts = [request.prompts[row] for row in rows]
            counts = [request.new_tokens[row] for row in rows]
            for row, ids in zip(rows, self._continue_batch(prompts, counts), strict=True):
                made[row] = ids
        return made

    def _continue_batch(self, prompts: list[list[int]], counts: list[int]) -> list[list[int]]:
        import torch
        from transformers import StoppingCriteria, StoppingCriteriaList

        longest = max(map(len, prompts))
        padding = self._model.config.eos_token_id
        ids = torch.full((len(prompts), longest), padding)
        mask = torch.zeros_like(ids)
        for row, prompt in enumerate(prompts):
            ids[row, longest - len(prompt) :] = torch.tensor(prompt)
            mask[row, longest - len(prompt) :] = 1
        device = self._model.device
        ends = longest + torch.tensor(counts, device=device)

        class HasItsTokens(StoppingCriteria):  # type: ignore[misc]
            def __call__(self, ids: Any, scores: Any, **options: Any) -> Any:
                return ids.shape[1] >= ends

        output = self._model.generate(
            input_ids=ids.to(device),
            attention_mask=mask.to(device),
            do_sample=False,
            max_new_tokens=max(counts),
            stopping_criteria=StoppingCriteriaList([HasItsTokens()] if len(set(counts)) > 1 else []),
            pad_token_id=padding,
            **self._options,
        )
        rows: list[list[int]] = output[:, longest:].tolist()
        return [row[:count] for row, count in zip(rows, counts, strict=True)]


class Ctranslate2(OfIds):
    """CTranslate2, on a model that its own converter has made in the format that it computes in."""

    def __init__(self, job: Job) -> None:
        import ctranslate2
        from ctranslate2.converters import TransformersConverter

        folder = Path(job.folder) / f"ctranslate2-{job.side.precision}"
        if not folder.exists():
            TransformersConverter(job.model).convert(str(folder), quantization=job.side.precision)
        self._generator = ctranslate2.Generator(
            str(folder),
            device=job.device,
            compute_type=job.side.precision,
            inter_threads=1,
            intra_threads=job.threads,
        )
        self._tokens = tokens_of(Path(job.model))

    def continue_all(self, request: Request) -> list[list[int]]:
        (count,) = set(request.new_tokens)  # It takes one length for all.
        found = self._generator.generate_batch(
            [[self._tokens[token] for token in ids] for ids in request.prompts],
            max_batch_size=request.at_once,
            max_length=count,
            sampling_topk=1,
            include_prompt_in_result=False,
        )
        return [list(result.sequences_ids[0]) for result in found]


class LlamaCpp(OfIds):
    """llama.cpp through llama-cpp-python, built on this machine; a prompt at a time.

    Without its extra layouts of weights: that for AMX ends llama-cpp-python 0.3.36 with a segmentation
    fault in Q8_0 (ggml_backend_amx_mul_mat), and for other processors of x86 Q8_0 has none.
    """

    def __init__(self, job: Job) -> None:
        from llama_cpp import Llama, llama_cpp

        usual = llama_cpp.llama_model_default_params

        def without_extra_layouts() -> Any:
            parameters = usual()
            parameters.use_extra_bufts = False
            return parameters

        llama_cpp.llama_model_default_params = without_extra_layouts  # `Llama` has no option for it.
        folder = Path(job.folder) / f"gguf-{job.side.precision}"
        if not folder.exists():
            command = [job.gptcli, "-m", "gptcli", "export", "--model", job.model, "--format", "gguf"]
            options = ["--precision", job.side.precision.lower(), "--output", str(folder)]
            subprocess.run([*command, *options], check=True)
        self._model = Llama(
            str(folder / "model.gguf"),
            n_ctx=1024,
            n_threads=job.threads,
            n_threads_batch=job.threads,
            verbose=False,
        )

    def continue_all(self, request: Request) -> list[list[int]]:
        made = []
        for prompt, count in zip(request.prompts, request.new_tokens, strict=True):
            self._model.reset()  # Else it would find the prompt of the last time in its cache.
            tokens = self._model.generate(prompt, temp=0.0)
            made.append([int(next(tokens)) for _ in range(count)])
        return made


class Vllm(OfIds):
    """vLLM, which needs a GPU. Prompts come again in each round, so that it must not keep their keys."""

    def __init__(self, job: Job) -> None:
        from vllm import LLM

        self._model = LLM(
            job.model, dtype=DTYPES[job.side.precision], max_model_len=1024, enable_prefix_caching=False
        )

    def continue_all(self, request: Request) -> list[list[int]]:
        from vllm import SamplingParams

        found = self._model.generate(
            [{"prompt_token_ids": ids} for ids in request.prompts],
            [SamplingParams(temperature=0.0, max_tokens=count) for count in request.new_tokens],
            use_tqdm=False,
        )
        return [list(result.outputs[0].token_ids) for result in found]


PROGRAMS: dict[str, type[Program]] = {
    "gptcli": Gptcli,
    "transformers": Transformers,
    "ctranslate2": Ctranslate2,
    "llama.cpp": LlamaCpp,
    "vllm": Vllm,
}
PACKAGES = {"llama.cpp": "llama_cpp_python"}
"""What a program is installed as, where that is not its name."""


def tokens_of(model: Path) -> list[str]:
    """Return the tokens of a model's tokenizer in the order of their ids."""
    facts = json.loads((model / "tokenizer.json").read_text(encoding="utf-8"))
    ids = facts["model"]["vocab"] | {token["content"]: token["id"] for token in facts["added_tokens"]}
    return sorted(ids, key=ids.__getitem__)


def main() -> None:
    facts = json.loads(sys.argv[1])
    job = Job(**{**facts, "side": Side(**facts["side"])})
    # Libraries print what they like; the answers have standard output for themselves.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        program = PROGRAMS[job.side.program](job)
        package = PACKAGES.get(job.side.program, job.side.program)
        ready = {"ready": f"{package} {version(package)}"}
    except Exception as error:  # Whatever the program raises; it is reported, not handled.
        ready = {"problem": f"{type(error).__name__}: {error}"}
    print(json.dumps(ready), file=answers, flush=True)
    if "problem" in ready:
        return
    for line in sys.stdin:
        request = Request(**json.loads(line))
        started = time.perf_counter()
        made = program.continue_all(request)
        answer = program.answer(time.perf_counter() - started, made)
        print(json.dumps(asdict(answer)), file=answers, flush=True)


if __name__ == "__main__":
    main()
