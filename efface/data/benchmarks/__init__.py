"""Benchmarks: which there are, what each is imported from, and the modules that read it."""

READERS = {
    "avatars": "efface.data.benchmarks.mllmu",
    "mllmu": "efface.data.benchmarks.mllmu",
    "clear": "efface.data.benchmarks.clear",
    "vqa": "efface.data.benchmarks.vqa",
}
"""Benchmark name to the module whose `read_benchmark` turns its folder into samples."""

LAYOUTS = {
    "mllmu": "efface.data.benchmarks.mllmu_files",
    "clear": "efface.data.benchmarks.clear_files",
    "vqa": "efface.data.benchmarks.vqa_files",
}
"""Imported benchmark to the module whose `files_to_import` finds and checks the files of a root."""

ROOTS = {"mllmu": ("eval", "train"), "clear": ("data",), "vqa": ("data",)}
"""Imported benchmark to the roots it is read from; each is a folder or a repository of the Hub."""

FRACTIONS: dict[str, tuple[float, ...]] = {
    "avatars": (0.05, 0.1, 0.15),
    "mllmu": (0.05, 0.1, 0.15),
    "clear": (0.01, 0.05, 0.1),
}
"""Shares of people to forget that a benchmark's files know; one that is not listed takes any share."""
