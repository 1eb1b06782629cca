"""The benchmarks, the module that imports each, and the roots it is imported from."""

READERS = {
    "avatars": "efface.data.benchmarks.mllmu_importer",
    "mllmu": "efface.data.benchmarks.mllmu_importer",
    "clear": "efface.data.benchmarks.clear_importer",
    "fiubench": "efface.data.benchmarks.fiubench_importer",
    "umu": "efface.data.benchmarks.umu_importer",
    "vqa": "efface.data.benchmarks.table_importer",
}
"""Benchmark name to the module that imports it: `read_benchmark` turns its folder into samples,
`files_to_import` checks a root and says which of its files are read, `PATTERNS` are the files to download."""

ROOTS = {"mllmu": ("eval", "train")} | dict.fromkeys(("clear", "fiubench", "umu", "vqa"), ("data",))
"""Imported benchmark to the roots it is read from; each is a folder or a repository of the Hub."""

FRACTIONS: dict[str, tuple[float, ...]] = {
    "avatars": (0.05, 0.1, 0.15),
    "mllmu": (0.05, 0.1, 0.15),
    "clear": (0.01, 0.05, 0.1),
    "fiubench": (0.01, 0.05, 0.1),
    "umu": (0.05, 0.1, 0.15),
}
"""Shares of people to forget for which a benchmark has files; a benchmark not listed takes any share."""
