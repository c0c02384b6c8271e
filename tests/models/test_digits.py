"""The trained digits model: what its README states holds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from models.digits import metric
from tests.models.graphs import in_inference, norms, run, session

MODEL = Path(metric.__file__).with_name("digits.onnx")


def test_accuracy_is_the_stated_one() -> None:
    loaded = session(MODEL)
    got = metric.accuracy(lambda feeds: {"logits": loaded.run(["logits"], dict(feeds))[0]})
    # One sample of the 450 may tip on another machine's arithmetic, not more.
    assert got == pytest.approx(447 / 450, abs=1.01 / 450)


def test_batchnorms_are_kept_behind_their_convolutions() -> None:
    graph = onnx.load(MODEL).graph
    found, behind = norms(graph)
    assert len(found) == behind == 9
    assert all(in_inference(node) for node in found)
    groups = [a.i for node in graph.node if node.op_type == "Conv" for a in node.attribute if a.name == "group"]
    assert max(groups) > 1


def test_the_model_is_valid_and_small() -> None:
    onnx.checker.check_model(onnx.load(MODEL), full_check=True)
    assert MODEL.stat().st_size < 2_000_000


@pytest.mark.parametrize("batch", [1, 5])
def test_the_batch_is_dynamic(batch: int) -> None:
    with np.load(metric.HELDOUT) as held:
        images = held["image"][:batch]
    assert run(MODEL, {"image": images})["logits"].shape == (batch, 10)


def test_heldout_samples_are_as_described_and_unseen() -> None:
    digits = pytest.importorskip("models.digits.train", reason="needs torch and scikit-learn")
    train_images, _, images, labels = digits.split()
    with np.load(metric.HELDOUT) as held:
        assert held["image"].dtype == np.float32 and held["label"].dtype == np.int64
        np.testing.assert_array_equal(held["image"], images)
        np.testing.assert_array_equal(held["label"], labels)
    assert min(np.bincount(labels)) > 40
    seen = {image.tobytes() for image in train_images}
    assert not any(image.tobytes() in seen for image in images)


@pytest.mark.slow
def test_the_recipe_can_be_run_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = pytest.importorskip("models.digits.train", reason="needs torch and scikit-learn")
    monkeypatch.setattr("sys.argv", ["train", "--out", str(tmp_path)])
    digits.main()
    monkeypatch.setattr(metric, "HELDOUT", tmp_path / "heldout.npz")
    loaded = session(tmp_path / "digits.onnx")
    assert metric.accuracy(lambda feeds: {"logits": loaded.run(["logits"], dict(feeds))[0]}) > 0.98
