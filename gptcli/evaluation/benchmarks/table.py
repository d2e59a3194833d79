"""The benchmarks by name, and where their rows are found."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatch
from pathlib import Path

from gptcli.config.schema import DataSettings, EvaluationSettings
from gptcli.data.ledger import Reading
from gptcli.data.sources import FileSource, Source, find_sources
from gptcli.errors import ConfigError, DataError, EnvironmentProblem
from gptcli.evaluation.benchmarks.arc import ARC_CHALLENGE, ARC_EASY
from gptcli.evaluation.benchmarks.benchmark import Benchmark, HubRows
from gptcli.evaluation.benchmarks.blimp import BLIMP
from gptcli.evaluation.benchmarks.copa import COPA
from gptcli.evaluation.benchmarks.crows_pairs import CROWS_PAIRS
from gptcli.evaluation.benchmarks.hellaswag import HELLASWAG
from gptcli.evaluation.benchmarks.lambada import LAMBADA
from gptcli.evaluation.benchmarks.multiple_choice import NAME as OWN_TEST
from gptcli.evaluation.benchmarks.multiple_choice import own_test
from gptcli.evaluation.benchmarks.piqa import PIQA
from gptcli.evaluation.benchmarks.winobias import WINOBIAS
from gptcli.evaluation.benchmarks.winogrande import WINOGRANDE
from gptcli.hub import first_line, use_cache_if_unreachable

BENCHMARKS = {
    benchmark.name: benchmark
    for benchmark in (
        LAMBADA,
        HELLASWAG,
        ARC_EASY,
        ARC_CHALLENGE,
        PIQA,
        COPA,
        WINOGRANDE,
        BLIMP,
        CROWS_PAIRS,
        WINOBIAS,
    )
}


ALL = "all"


def choose_benchmarks(
    names: Sequence[str], where: str | None, settings: EvaluationSettings
) -> tuple[list[Benchmark], list[str]]:
    """Return the benchmarks of these names, and the names of those of "all" that have no file.

    where: the folder of their files; None for the hub. Raises ConfigError for a name that there is not,
    DataError if the folder has none of them.
    """
    known = [*BENCHMARKS, OWN_TEST, ALL]
    for name in names:
        if name not in known:
            raise ConfigError(f"--benchmark is {name!r}; it must be one of {', '.join(known)}.")
    skipped: list[str] = []
    if ALL in names:
        names = list(BENCHMARKS)
        if where is None:
            skipped = [name for name in names if BENCHMARKS[name].hub is None]
            names = [name for name in names if name not in skipped]
        else:
            folder = Path(where).expanduser()
            if not folder.is_dir():
                raise ConfigError(f"--benchmark all takes a folder of files as --data; {where} is none.")
            skipped = [name for name in names if not files_of(BENCHMARKS[name], folder)]
            names = [name for name in names if name not in skipped]
            if not names:
                raise DataError(f"{where} has no file of a benchmark ({', '.join(BENCHMARKS)}).")
    if OWN_TEST in names and where is None:
        raise ConfigError(f"--benchmark {OWN_TEST} needs your file as --data.")
    chosen = [
        own_test(settings) if name == OWN_TEST else BENCHMARKS[name] for name in dict.fromkeys(names)
    ]
    return chosen, skipped


def find_rows(
    benchmark: Benchmark, where: str | None, data: DataSettings, reading: Reading
) -> list[Source]:
    """Return the sources of a benchmark: files of a folder by their names, a file, or the hub's.

    where: a folder, a file, or None for the hub. Raises DataError if they are not there,
    EnvironmentProblem if the hub cannot be reached.
    """
    if where is None:
        if benchmark.hub is None:
            raise ConfigError(f"{benchmark.name} is not on the hub; give its files with --data.")
        return _from_hub(benchmark.hub, data, reading)
    folder = Path(where).expanduser()
    if not folder.is_dir():
        return find_sources(where, data, reading, name="--data")
    found = files_of(benchmark, folder)
    if not found:
        raise DataError(
            f"{where} has no file for {benchmark.name}: none is named {' or '.join(benchmark.files)}."
        )
    return [FileSource(path) for path in found]


def _from_hub(rows: HubRows, data: DataSettings, reading: Reading) -> list[Source]:
    subsets = [rows.subset]
    if rows.subset == "*":
        use_cache_if_unreachable()
        import datasets

        try:
            subsets = datasets.get_dataset_config_names(rows.name)
        except Exception as error:  # `datasets` raises whatever its builders and parsers raise.
            raise EnvironmentProblem(
                f"{rows.name} on the hub: {first_line(error)}. Give its files with --data."
            ) from error
    return [
        source
        for subset in subsets
        for source in find_sources(
            rows.name,
            data.model_copy(update={"hub_subset": subset, "hub_split": rows.split}),
            reading,
        )
    ]


def files_of(benchmark: Benchmark, folder: Path) -> list[Path]:
    """Return the files in a folder, and in those in it, that are named as the benchmark's are."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    found = []
    for path in files:
        # The folder itself may be named after the benchmark.
        names = [str(path.relative_to(folder)), f"{folder.resolve().name}/{path.relative_to(folder)}"]
        is_named = any(
            fnmatch(name.lower(), pattern.lower()) for name in names for pattern in benchmark.files
        )
        if is_named and path.name.lower().removesuffix(".gz").endswith(benchmark.suffixes):
            found.append(path)
    return found
