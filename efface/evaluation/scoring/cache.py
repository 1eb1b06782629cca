"""Cache of finished batches on disk, so that an interrupted scoring resumes with the next batch."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from efface.data.samples import Sample


class ResultCache:
    """Finished batches of one scoring, each a small JSON file named after a hash of all it depends on.

    Args:
        folder: folder of the files; created with the first one.
        key: everything the numbers depend on besides the samples: model, settings.
    """

    def __init__(self, folder: Path, *, key: str):
        self.folder = folder
        self.key = key

    def load(self, samples: Sequence[Sample]) -> list[dict[str, Any]] | None:
        """The stored results of a batch of these samples; None without an intact file."""
        try:
            content = json.loads(self._path(samples).read_text(encoding="utf-8"))
        except (FileNotFoundError, json.JSONDecodeError, UnicodeDecodeError):
            return None  # damaged: the batch is scored again
        return content if isinstance(content, list) and len(content) == len(samples) else None

    def save(self, samples: Sequence[Sample], content: Sequence[dict[str, Any]]) -> None:
        """Store a batch atomically."""
        path = self._path(samples)
        self.folder.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".partial-{os.getpid()}")
        partial.write_text(json.dumps(list(content), allow_nan=False), encoding="utf-8")
        os.replace(partial, path)

    def remove(self) -> None:
        """Delete all files."""
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, samples: Sequence[Sample]) -> Path:
        total = hashlib.sha256(self.key.encode())
        for sample in samples:
            texts = [sample.sample_id, sample.question, sample.answer, sample.paraphrase]
            total.update(json.dumps([texts, sample.options, sample.wrong_answers]).encode())
            for picture in sample.encoded_images or (b"",):
                total.update(hashlib.sha256(picture).digest())
        return self.folder / f"{total.hexdigest()[:32]}.json"
