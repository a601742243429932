"""Pictures are those of the run: the stored images, the clean ones, and what targets said."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from advens.datasets import find_data
from advens.results.report.collect import Run, collect
from advens.results.report.gallery import ATTACKS, IMAGES, Gallery, _address, gallery
from advens.results.report.page import write_report
from advens.results.store import RunStore, read_table, schema, write_examples, write_table
from tests.results.report.conftest import Page

DATA = "digits:test?limit=12"
TARGETS = [f"m:t{k}" for k in range(5)]
EPS = 20 / 255


def decoded(address: str) -> np.ndarray:
    kind, _, text = address.partition(",")
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(text))).convert("RGB")).transpose(2, 0, 1)


@pytest.fixture
def made(
    tmp_path: Path, rows: Callable[..., pd.DataFrame], about: Callable[..., dict[str, object]]
) -> Path:
    """Two attacks on twelve digits: image k is broken for k of the five targets by the first one."""
    store, data = RunStore(tmp_path / "run"), find_data(DATA)
    for attack, step in (("strong", 20), ("weak", -10)):
        adversarial = [np.clip(data.pixels(k).astype(int) + step, 0, 255).astype(np.uint8) for k in range(12)]
        moved = [np.abs(a.astype(int) - data.pixels(k)).max() / 255 for k, a in enumerate(adversarial)]
        write_examples(
            store.examples_path(attack),
            pd.DataFrame({
                "cell": attack, "sample_id": data.sample_ids, "label": data.labels,
                "target_label": pd.array([None] * 12), "image": [each.tobytes() for each in adversarial],
                "height": 32, "width": 32, "linf": moved, "l2": 1.0, "l1": 1.0,
            }),
            about(attack=attack, data=DATA, shard=[0, 12]),
        )  # fmt: skip
        for t, target in enumerate(TARGETS):
            frame = rows([
                {"attack": attack, "target": target, "sample_id": name, "label": int(label), "cell": attack,
                 "clean_pred": int(label), "adv_pred": (int(label) + (attack == "strong" and k % 6 > t)) % 10}
                for k, (name, label) in enumerate(zip(data.sample_ids, data.labels, strict=True))
            ])  # fmt: skip
            write_table(store.samples_path(attack, f"t{t}"), schema.to_table("samples", frame))
    return store.directory


def of(directory: Path) -> Gallery:
    shown = gallery(Run(directory), collect(directory).parts[0])
    assert shown is not None
    return shown


def test_pictures_are_the_stored_images(made: Path) -> None:
    shown, data = of(made), find_data(DATA)
    place = {name: k for k, name in enumerate(data.sample_ids)}
    assert (len(shown.pictures), shown.missing, shown.preview) == (IMAGES, "", False)
    assert shown.factor == 127 // 20
    for picture in shown.pictures:
        k = place[picture.name]
        assert picture.label == str(data.labels[k])
        assert picture.clean is not None
        assert (decoded(picture.clean) == data.pixels(k)).all()
        assert [shot.attack for shot in picture.shots] == ["strong", "weak"]
        for shot in picture.shots:
            stored = read_table(RunStore(made).examples_path(shot.attack), "examples").to_pylist()[k]
            image = np.frombuffer(stored["image"], np.uint8).reshape(3, 32, 32)
            assert (decoded(shot.image) == image).all()
            assert shot.difference is not None
            wanted = np.clip(128 + shown.factor * (image.astype(int) - data.pixels(k)), 0, 255)
            assert (decoded(shot.difference) == wanted).all()


def test_the_most_and_the_least_transferable_are_among_them(made: Path) -> None:
    shown, place = of(made), {name: k for k, name in enumerate(find_data(DATA).sample_ids)}
    most, least, *drawn = shown.pictures
    assert (most.why, place[most.name] % 6) == ("fools most targets", 5)
    assert (most.shots[0].fooled, most.shots[0].of) == (5, 5)
    assert (least.why, place[least.name] % 6, least.shots[0].fooled) == ("fools fewest targets", 0, 0)
    assert {each.why for each in drawn} == {"drawn"}
    assert of(made) == shown


def test_answers_are_those_of_the_samples(made: Path) -> None:
    for picture in of(made).pictures:
        k = {name: k for k, name in enumerate(find_data(DATA).sample_ids)}[picture.name]
        strong, weak = picture.shots
        said = {answer.right: answer.targets for answer in strong.answers}
        assert said.get(False, ()) == tuple(f"t{t}" for t in range(5) if k % 6 > t)
        assert said.get(True, ()) == tuple(f"t{t}" for t in range(5) if k % 6 <= t)
        (only,) = weak.answers
        assert (only.right, only.said, len(only.targets)) == (True, picture.label, 5)


def test_clean_images_stand_on_the_page_once(made: Path) -> None:
    html = write_report(made).read_text()
    addresses = [a["src"] for tag, a in Page.of(html).tags if tag == "img"]
    assert len(addresses) == IMAGES * (1 + 2 * 2)
    assert len(set(addresses)) == len(addresses) - (IMAGES - len({p.clean for p in of(made).pictures}))
    assert "<img" not in write_report(made, images=False).read_text()


def test_without_the_data_the_stored_images_are_shown(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from advens.results.report import gallery as module

    monkeypatch.setattr(module, "_data", lambda _: (None, "folder 'x' is not there"))
    shown = of(made)
    assert {picture.clean for picture in shown.pictures} == {None}
    assert {shot.difference for picture in shown.pictures for shot in picture.shots} == {None}
    assert "folder &#39;x&#39; is not there" in write_report(made).read_text()


def test_other_data_of_that_name_are_not_taken_for_the_clean_images(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from advens.results.report import gallery as module

    other = find_data("synthetic:shapes?n=12")
    monkeypatch.setattr(other, "sample_ids", find_data(DATA).sample_ids)
    monkeypatch.setattr(module, "_data", lambda _: (other, ""))
    shown = of(made)
    assert {picture.clean for picture in shown.pictures} == {None}
    assert "not those that were attacked" in shown.missing


def test_large_images_are_previews() -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 224, 224), dtype=np.uint8)
    address = _address(pixels)
    assert address is not None
    assert address.startswith("data:image/webp;base64,")
    image = Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2])))
    assert image.size == (160, 160)


def test_at_most_two_dozen() -> None:
    assert IMAGES * ATTACKS <= 24
