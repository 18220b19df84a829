"""`python -m benchmarks.folded` on networks that take seconds."""

import json

from benchmarks import folded


def test_reports(tmp_path, monkeypatch):
    monkeypatch.setattr(folded, "SMOKE", {"ResNet-8": folded.SMOKE["ResNet-8"]})
    folded.main(folded.Options(preset="smoke", batches=(2,), output=tmp_path))
    (row,) = json.loads((tmp_path / "folded_cpu.json").read_text())["rows"]
    assert set(row["seconds"]) == set(row["cost"]) == {"unfolded", "folded"}
    assert min(row["seconds"].values()) > 0
    assert row["cost"]["folded"]["flops"] < row["cost"]["unfolded"]["flops"]
    assert row["norms"] == 7
    assert row["error"] < 1e-5
    assert "ResNet-8, batch of 2" in (tmp_path / "folded_cpu.md").read_text()
