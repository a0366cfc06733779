"""A process that starts or was killed may leave an empty file in the folder of metrics."""

from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.mmap_dict import MmapedDict, mmap_key

from shared.metrics_folder import FolderCollector

pytestmark = pytest.mark.unit


def test_a_file_without_content_is_passed_over(tmp_path: Path) -> None:
    shared = MmapedDict(str(tmp_path / "counter_1.db"))
    shared.write_value(mmap_key("payments_settled", "payments_settled_total", [], [], "help"), 3.0, 0.0)
    shared.close()
    (tmp_path / "counter_2.db").touch()
    registry = CollectorRegistry()
    FolderCollector(registry, str(tmp_path))
    assert b"payments_settled_total 3.0" in generate_latest(registry)
