"""What a model is for: its inputs, split into calibration, validation and evaluation, and how well it does.

A score is a number from 0 to 1, higher being better, that a model gets on a split; it takes `run`, a function from feeds
to outputs by name, as graphopt's metrics do. Tools see the calibration split alone, graphopt's metric the validation
split too; what the table shows is taken on the evaluation split.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

import numpy as np

from benchmarks.quantization.data import collected, tones

Feeds = dict[str, np.ndarray]
Run = Callable[[Mapping[str, Any]], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        feeds: the inputs of a split, given a way to run the float model (for states that it hands on to itself).
        score: `score(run, split, float_run)`; None where there is nothing to hold results to but the float model.
        what: the score in words.
        data: the set of `collect_data.py` that it needs, "" for none.
        classes: the output whose largest element is the answer, for agreement with the float model; "" where there is none.
    """

    feeds: Callable[[str, Run], list[Feeds]]
    score: Callable[[Run, str, Run], float] | None = None
    what: str = ""
    data: str = ""
    classes: str = ""


def _f32(values: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(values, dtype=np.float32)


def _first(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    return np.asarray(next(iter(outputs.values())))


_IMAGENET = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def _pictures(images: np.ndarray, mean: Any, deviation: Any) -> np.ndarray:
    """uint8 [n, height, width, 3] to float32 [n, 3, height, width]."""
    scaled = (images.astype(np.float32) / 255 - np.float32(mean)) / np.float32(deviation)
    return _f32(scaled.transpose(0, 3, 1, 2))


def photographs(name: str, mean: Any, deviation: Any, *, size: tuple[int, int] = (224, 224), answers: str = "") -> Task:
    """Photographs, one a sample; with `answers`, the score is on those that the float model is sure of (above 0.5)."""

    def feeds(split: str, _: Run) -> list[Feeds]:
        images = collected("photos")[split][:, : size[0], : size[1]]
        return [{name: _pictures(image[None], mean, deviation)} for image in images]

    def score(run: Run, split: str, float_run: Run) -> float:
        right = sure = 0
        for fed in feeds(split, float_run):
            expected = np.asarray(float_run(fed)[answers], np.float64)[0]
            shares = np.exp(expected - expected.max())
            if (shares / shares.sum()).max() > 0.5:
                sure += 1
                right += int(np.asarray(run(fed)[answers])[0].argmax() == expected.argmax())
        return right / max(sure, 1)

    what = "answers to photographs that the float model is sure of (p > 0.5)"
    return Task(feeds, score if answers else None, what if answers else "", "photos", answers)


def _face_feeds(split: str, _: Run) -> list[Feeds]:
    images = np.repeat(collected("faces")[split][..., None], 3, axis=-1)
    return [{"image": _pictures(images[at : at + 4], 0.498, 0.502)} for at in range(0, len(images), 4)]


def _face_score(run: Run, split: str, _: Run) -> float:
    found = np.concatenate([np.asarray(run(fed)["faces"]).argmax(1) for fed in _face_feeds(split, run)])
    return float((found == collected("faces")[f"{split}_label"]).mean())


FACES = Task(_face_feeds, _face_score, "faces and other pictures told apart", "faces", "faces")


def _writing(name: str) -> Callable[[str, Run], list[Feeds]]:
    return lambda split, _: [{"x": _pictures(image[None], 0.5, 0.5)} for image in collected(name)[split]]


def read_text(frames: np.ndarray, letters: list[str]) -> str:
    """Greedy CTC: float [time, classes], class 0 the blank, then the letters, then a space."""
    best = frames.argmax(1)
    kept = best[np.insert(best[1:] != best[:-1], 0, True)]
    table = ["", *letters, " "]
    return "".join(table[i] for i in kept)


def letters_right(found: str, wanted: str) -> int:
    """Letters of `wanted` that stand, in order, in `found`."""
    return sum(block.size for block in SequenceMatcher(None, found, wanted, autojunk=False).get_matching_blocks())


def reading(letters: Callable[[], list[str]]) -> Task:
    """Lines of rendered text; the score is the share of letters that are read."""

    def score(run: Run, split: str, _: Run) -> float:
        table = letters()
        wanted = [str(text) for text in collected("lines")[f"{split}_label"]]
        right = long = 0
        for fed, text in zip(_writing("lines")(split, run), wanted, strict=True):
            found = read_text(_first(run(fed))[0], table)
            right += letters_right(found, text)
            long += max(len(text), len(found))
        return right / long

    return Task(_writing("lines"), score, "letters read", "lines")


def _turned_score(run: Run, split: str, _: Run) -> float:
    found = np.concatenate([_first(run(fed)).argmax(1) for fed in _writing("turned")(split, run)])
    return float((found == collected("turned")[f"{split}_label"]).mean())


TURNED = Task(_writing("turned"), _turned_score, "upright and upside-down lines told apart", "turned", "save_infer_model/scale_0.tmp_1")


def _page_feeds(split: str, _: Run) -> list[Feeds]:
    return [{"x": _pictures(image[None], *_IMAGENET)} for image in collected("pages")[split]]


def _page_score(run: Run, split: str, _: Run) -> float:
    both = either = 0
    for fed, writing in zip(_page_feeds(split, run), collected("pages")[f"{split}_label"], strict=True):
        found = _first(run(fed))[0, 0] > 0.3
        both += 2 * int((found & writing).sum())
        either += int(found.sum()) + int(writing.sum())
    return both / either


PAGES = Task(_page_feeds, _page_score, "overlap (Dice) with where writing stands", "pages")


def sentences(kinds: bool = True) -> Task:
    """Sentences of their own lengths; the score is how many find, by cosine, the one that says the same.

    kinds: whether the model takes token types.
    """

    def feed(ids: np.ndarray) -> Feeds:
        used = ids[None, : int((ids != 0).sum())]
        fed = {"input_ids": used, "attention_mask": np.ones_like(used)}
        return fed | ({"token_type_ids": np.zeros_like(used)} if kinds else {})

    def feeds(split: str, _: Run) -> list[Feeds]:
        return [feed(ids) for ids in collected("sentences")[split]]

    def score(run: Run, split: str, _: Run) -> float:
        pairs = int(collected("sentences")[f"{split}_label"])
        means = np.stack([np.asarray(run(fed)["last_hidden_state"])[0].mean(0) for fed in feeds(split, run)])
        means /= np.linalg.norm(means, axis=1, keepdims=True)
        near = means @ means.T
        np.fill_diagonal(near, -2)
        partner = np.arange(2 * pairs) ^ 1
        return float((near[: 2 * pairs].argmax(1) == partner).mean())

    return Task(feeds, score, "sentences that find their paraphrase", "sentences")


def _file_feeds(split: str, _: Run) -> list[Feeds]:
    rows = collected("files")[split]
    # Single files to calibrate on, as the model is used; larger batches where only answers count.
    step = 1 if split == "calibration" else 16
    return [{"bytes": rows[at : at + step]} for at in range(0, len(rows), step)]


def _file_score(run: Run, split: str, _: Run) -> float:
    found = np.concatenate([_first(run(fed)).argmax(1) for fed in _file_feeds(split, run)])
    return float((found == collected("files")[f"{split}_label"]).mean())


FILES = Task(_file_feeds, _file_score, "kinds of files told (labels from their names)", "files", "target_label")

# --- sound ----------------------------------------------------------------------------------------------------------

_COUNTS = {"calibration": 32, "validation": 32, "evaluation": 48}


def _within(found: np.ndarray, wanted: np.ndarray, cents: float = 50) -> np.ndarray:
    return np.abs(1200 * np.log2(np.maximum(found, 1e-3) / wanted)) < cents


def _frame_feeds(split: str, _: Run) -> list[Feeds]:
    waves, _pitches = tones(split, _COUNTS[split], 0.256, 16000)
    frames = np.stack([np.lib.stride_tricks.sliding_window_view(wave, 1024)[::384] for wave in waves])
    frames = frames - frames.mean(-1, keepdims=True)
    return [{"frames": _f32(some / some.std(-1, keepdims=True))} for some in frames]


def _frame_score(run: Run, split: str, _: Run) -> float:
    pitches = tones(split, _COUNTS[split], 0.256, 16000)[1]
    right = []
    for fed, pitch in zip(_frame_feeds(split, run), pitches, strict=True):
        salience = np.asarray(run(fed)["salience"], np.float64)
        cents = np.arange(360) * 20 + 1997.3794084376191
        best = salience.argmax(1)
        window = np.clip(best[:, None] + np.arange(-4, 5), 0, 359)
        weight = np.take_along_axis(salience, window, 1)
        mean = (weight * cents[window]).sum(1) / weight.sum(1)
        right.append(_within(10 * 2 ** (mean / 1200), pitch))
    return float(np.concatenate(right).mean())


PITCH = Task(_frame_feeds, _frame_score, "frames within 50 cents of the pitch", "", "salience")


def _sound_feeds(split: str, _: Run) -> list[Feeds]:
    waves, _pitches = tones(split, _COUNTS[split], 1.0, 16000)
    low, high = np.float32(46.875), np.float32(2093.75)
    return [{"audio": _f32(wave[None]), "fmin": np.array(low), "fmax": np.array(high)} for wave in waves]


def _sound_score(run: Run, split: str, _: Run) -> float:
    pitches = tones(split, _COUNTS[split], 1.0, 16000)[1]
    right = [_within(np.asarray(run(fed)["pitch"])[0], pitch) for fed, pitch in zip(_sound_feeds(split, run), pitches, strict=True)]
    return float(np.concatenate(right).mean())


SWIFT = Task(_sound_feeds, _sound_score, "frames within 50 cents of the pitch")

_NOTES = {"calibration": 16, "validation": 12, "evaluation": 24}


def _note_feeds(split: str, _: Run) -> list[Feeds]:
    waves, _pitches = tones(split, _NOTES[split], 43844 / 22050, 22050)
    return [{"serving_default_input_2:0": _f32(wave[None, :, None])} for wave in waves]


def _note_score(run: Run, split: str, _: Run) -> float:
    pitches = tones(split, _NOTES[split], 43844 / 22050, 22050)[1]
    keys = np.rint(69 + 12 * np.log2(pitches / 440)).astype(int) - 21
    found = [np.asarray(run(fed)["StatefulPartitionedCall:1"])[0, 8:-8].argmax(1) for fed in _note_feeds(split, run)]
    return float(np.mean([(frames == key).mean() for frames, key in zip(found, keys, strict=True)]))


NOTES = Task(_note_feeds, _note_score, "frames whose note is told")


def speech(kind: str) -> Task:
    """Spoken sentences and pauses; the score is the share of frames of 32 ms that are told apart.

    kind: "sr" for a net that takes the rate, "plain" for one that does not, "whole" for one that takes a whole clip.
    """

    def frames_of(clip: np.ndarray) -> np.ndarray:
        """float32 [frames, 576]: each with the last 64 samples of the one before."""
        padded = np.concatenate([np.zeros(64, np.float32), clip])
        return np.ascontiguousarray(np.lib.stride_tricks.sliding_window_view(padded, 576)[::512])

    def whole(frames: np.ndarray) -> Feeds:
        return {"input": frames, "h": np.zeros((1, 1, 128), np.float32), "c": np.zeros((1, 1, 128), np.float32)}

    def step(frame: np.ndarray, state: np.ndarray) -> Feeds:
        return {"input": frame[None], "state": state} | ({"sr": np.array(16000, np.int64)} if kind == "sr" else {})

    def followed(run: Run, frames: np.ndarray) -> tuple[list[Feeds], np.ndarray]:
        state, fed, answers = np.zeros((2, 1, 128), np.float32), [], []
        for frame in frames:
            fed.append(step(frame, state))
            out = run(fed[-1])
            state = np.asarray(out["stateN"])
            answers.append(float(np.asarray(out["output"]).reshape(-1)[0]))
        return fed, np.array(answers)

    def feeds(split: str, float_run: Run) -> list[Feeds]:
        made = []
        for clip in collected("speech")[split]:
            frames = frames_of(clip)
            if kind == "whole":
                made += [whole(frames[at : at + 31]) for at in range(0, len(frames) - 30, 62)]
            else:
                made += followed(float_run, frames)[0][5::20]
        return made

    def score(run: Run, split: str, _: Run) -> float:
        right = []
        for clip, spoken in zip(collected("speech")[split], collected("speech")[f"{split}_label"], strict=True):
            frames = frames_of(clip)
            answers = np.asarray(run(whole(frames))["speech_probs"]).reshape(-1) if kind == "whole" else followed(run, frames)[1]
            right.append((answers > 0.5)[: len(spoken)] == spoken[: len(answers)])
        return float(np.concatenate(right).mean())

    return Task(feeds, score, "frames of speech and silence told apart", "speech")


# --- without labels -------------------------------------------------------------------------------------------------


def seeded(make: Callable[[int], Feeds], counts: Mapping[str, int] | None = None, classes: str = "") -> Task:
    """Inputs that are made from a seed: results are held to the float model alone."""
    counts = counts or {"calibration": 32, "validation": 16, "evaluation": 24}

    def feeds(split: str, _: Run) -> list[Feeds]:
        first = 1000 * (list(counts).index(split) + 1)
        return [make(first + i) for i in range(counts[split])]

    return Task(feeds, classes=classes)


def digits(held: Mapping[str, np.ndarray], train: Callable[[], list[Feeds]]) -> Task:
    """Handwritten digits; half of those that training never saw to validate on, half to evaluate."""

    def part(split: str) -> slice:
        return slice(0, 225) if split == "validation" else slice(225, 450)

    def feeds(split: str, _: Run) -> list[Feeds]:
        if split == "calibration":
            return train()
        return [{"image": held["image"][part(split)][at : at + 1]} for at in range(225)]

    def score(run: Run, split: str, _: Run) -> float:
        logits = np.asarray(run({"image": held["image"][part(split)]})["logits"])
        return float((logits.argmax(1) == held["label"][part(split)]).mean())

    return Task(feeds, score, "digits told", "", "logits")
