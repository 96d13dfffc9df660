from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from kiss3d_infer.doctor import examine


@pytest.mark.parametrize("distribution", ["nvdiffrast", "diffrp-nvdiffrast"])
def test_nvdiffrast_is_found_under_either_of_its_names(
    distribution: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nvdiffrast").mkdir()
    (tmp_path / "nvdiffrast" / "__init__.py").touch()
    (tmp_path / "nvcc").touch(mode=0o755)
    record = tmp_path / f"{distribution.replace('-', '_')}-7.8.9.dist-info"
    record.mkdir()
    (record / "METADATA").write_text(f"Name: {distribution}\nVersion: 7.8.9\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    (finding,) = (finding for finding in examine() if finding.subject == "nvdiffrast")
    assert (finding.verdict, finding.detail) == ("ok", "7.8.9")


@pytest.mark.parametrize(("total", "verdict"), [(5.6, "ok"), (5.3, "lack")])
def test_a_machine_sold_with_6_gb_has_memory_enough(
    total: float, verdict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = SimpleNamespace(total=total * 2**30, available=2**30)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    (finding,) = (finding for finding in examine() if finding.subject == "memory")
    assert finding.verdict == verdict
