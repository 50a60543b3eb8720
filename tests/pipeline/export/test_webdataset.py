"""WebDataset export, as `webdataset` decodes it: every label of the dataset without loss."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import webdataset

from pipeline.data.decode import decode_image
from pipeline.export import webdataset as form
from tests.exports import export, samples

if TYPE_CHECKING:
    from tests.conftest import World


def test_webdataset_writer_labels_are_decoded_by_webdataset(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(form, "MAX_SAMPLES", 6)
    wanted = samples(world)
    summary = export(world, "webdataset", tmp_path / "out")
    tars = sorted(str(tar) for tar in (tmp_path / "out").glob("*.tar"))
    assert len(tars) == -(-len(wanted) // 6)
    seen = 0
    for found in webdataset.WebDataset(tars, shardshuffle=False).decode("pil"):
        sample = wanted[found["__key__"]]
        assert (found["json"]["source"], set(found["json"]["labels"])) == (sample.source, set(sample.values))
        assert found["jpg"].tobytes() == decode_image(sample.data).tobytes()
        for head, value in sample.values.items():
            label = found.get(f"{head}.json") or found[f"{head}.npz"]
            assert set(label) == set(value)
            for name, array in value.items():
                np.testing.assert_array_equal(np.asarray(label[name], array.dtype).reshape(array.shape), array)
        seen += 1
    assert seen == len(wanted) == summary["images"]
    assert not any(about["lost"] for about in summary["heads"].values())
