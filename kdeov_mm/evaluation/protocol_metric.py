"""What all metrics share: a protocol in words, a log, a file."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mmengine.evaluator import BaseMetric
from mmengine.fileio import load
from mmengine.logging import MMLogger

from ..vocabulary import asked_groups


class ProtocolMetric(BaseMetric):
    """A metric that is reported with the name of its protocol.

    Args:
        protocol: data and vocabulary in words, printed with the metrics: "OV-COCO
            48/17, val2017, 65 words".
        out_file: JSON of all metrics, with their protocol.
        collect_device: mmengine's.
        prefix: mmengine's.
    """

    def __init__(
        self,
        protocol: str,
        out_file: str | None = None,
        collect_device: str = "cpu",
        prefix: str | None = None,
    ) -> None:
        super().__init__(collect_device, prefix)
        self.protocol = protocol
        self.out_file = out_file

    @property
    def class_names(self) -> tuple[str, ...]:
        """Classes of the data set, in the order of its labels."""
        return tuple((self.dataset_meta or {})["classes"])

    @property
    def groups(self) -> dict[str, tuple[str, ...]]:
        """Groups of the data set whose classes are all asked: name -> class names."""
        return asked_groups(self.dataset_meta or {})

    @staticmethod
    def unique(results: list) -> list:
        """Each image once; the first entry of a result is its id.

        Several processes repeat images to make their last batches equally large.
        """
        if not results:
            raise ValueError("no image was tested: the data set is empty")
        return [*{result[0]: result for result in results}.values()]

    def section(
        self, size: str, metrics: Mapping[str, float], rules: str = ""
    ) -> list[str]:
        """Metrics as lines below their protocol, the data's size, and rules."""
        head = f"Protocol: {self.protocol} ({size}){rules and ', '}{rules}"
        return [head, *(f"  {key:<16} {value:.4f}" for key, value in metrics.items())]

    def report(self, lines: list[str], **content: Any) -> None:
        """Log lines; write the content and the protocol to the file."""
        MMLogger.get_current_instance().info("\n".join(lines))
        if self.out_file:
            # mm's loggers keep the metrics only, without what they mean
            content = _no_nan(dict(protocol=self.protocol, **content))
            Path(self.out_file).parent.mkdir(parents=True, exist_ok=True)
            text = json.dumps(content, indent=1, allow_nan=False)
            Path(self.out_file).write_text(text + "\n")


def newest_metrics(folder: Path) -> dict[str, float]:
    """The metrics that the latest run of ``tools/test.py`` wrote below a folder.

    Raises:
        FileNotFoundError: it wrote none.
    """
    # mmengine names them after the time: folder/20250131_120000/20250131_120000.json
    files = list(folder.glob("*/*.json"))
    if not files:
        raise FileNotFoundError(f"tools/test.py wrote no metrics below {folder}")
    return load(max(files, key=lambda f: f.stat().st_mtime))


def _no_nan(value: Any) -> Any:
    """NaN as null, because JSON has no NaN."""
    if isinstance(value, dict):
        return {key: _no_nan(v) for key, v in value.items()}
    if isinstance(value, list):
        return [_no_nan(v) for v in value]
    return None if value != value else value
