# ---
# jupyter:
#   jupytext:
#     text_representation: {extension: .py, format_name: percent}
#   kernelspec: {display_name: Python 3, language: python, name: python3}
# ---

# %% [markdown]
# # From a folder to a prediction
#
# Two teachers learn from two small labelled sets, both label all images, and one student learns from everything. Then
# the student predicts. On one core that takes about a minute. Nothing is downloaded.
#
# Everything is written to a new folder, which you may delete afterwards.

# %%
import json
import os
import tempfile
import warnings
from pathlib import Path

import duckdb
import numpy as np
import skimage
from PIL import Image
from scipy import ndimage

import must

warnings.filterwarnings("ignore", "IProgress not found")  # widgets, which nothing here needs
os.chdir(tempfile.mkdtemp(prefix="must-"))
print(Path.cwd())


def row(paths):
    """Return images of one size side by side."""
    return np.hstack([Image.open(path).convert("RGB") for path in paths])


# %% [markdown]
# ## Folders of images
#
# Squares out of pictures that scikit-image brings along stand in for yours:
#
# * `surfaces` has classes: a folder for each;
# * `coins` has a mask for each image;
# * `photos` has no labels.
#
# **If you have folders of your own,** leave out the next cell, and use their names from there on.

# %%
rng = np.random.default_rng(0)


def cut(split, *layers):
    """Cut one random square out of all these pictures, for tests on their right, and save it under their names."""
    width, height = layers[0][0].size
    side = int(rng.uniform(0.25, 0.4) * height)
    left, right = {"train": (0, 0.6), "test": (0.6, 1)}[split]
    x, y = rng.integers(int(left * width), int(right * width) - side), rng.integers(height - side)
    for picture, name in layers:
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        picture.resize((96, 96), Image.Resampling.NEAREST, (x, y, x + side, y + side)).save(name)


surfaces = {name: Image.fromarray(getattr(skimage.data, name)()) for name in ("brick", "grass", "gravel")}
photos = [Image.fromarray(getattr(skimage.data, name)()) for name in ("astronaut", "chelsea", "coffee")]
coins = skimage.data.coins()
discs = ndimage.binary_opening(ndimage.binary_fill_holes(skimage.feature.canny(coins / 255)), iterations=2)
image, mask = Image.fromarray(coins), Image.fromarray(discs.astype(np.uint8))

for split, count in (("train", 20), ("test", 10)):
    for number in range(count):
        for name, surface in surfaces.items():
            cut(split, (surface, f"surfaces/{split}/{name}/{number:02d}.png"))
        cut(split, (image, f"coins/images/{split}/{number:02d}.png"), (mask, f"coins/masks/{split}/{number:02d}.png"))
for number in range(36):
    cut("train", (photos[number % 3], f"photos/{number:02d}.png"))
Path("coins/classes.json").write_text(json.dumps(["table", "coin"]))

some = [*Path("surfaces/train").glob("*/00.png"), "coins/images/train/00.png", *Path("photos").glob("0[0-2].png")]
Image.fromarray(row(some))

# %% [markdown]
# ## A recipe
#
# `must.init` recognises each folder by its layout, and writes a recipe: a teacher for each labelled set,
# all sets in the pool, and one student. `must doctor first.yaml` checks data and models, and says how long a run takes.

# %%
print(*must.init(["photos", "surfaces", "coins"], to="first.yaml"), sep="\n")
print(Path("first.yaml").read_text())

# %% [markdown]
# The recipe is meant for real work: a ResNet-18, and images of 192 pixels. Overrides make everything small for now.
# **For real work, keep the first of them alone:** it runs all steps in this process, without a server.

# %%
overrides = ["runtime.runner=inline"]
for section in ("teachers.surfaces_classification", "teachers.coins_segmentation", "student"):
    small = {"backbone": "test_resnet", "image_size": 64, "width": 16, "batch": 16, "lr": 0.004}
    overrides += [f"{section}.{key}={value}" for key, value in small.items()]

for planned in must.plan("first.yaml", overrides=overrides):
    print(f"{planned.step.name:34}{planned.action:6}{planned.why}")

# %% [markdown]
# ## The run
#
# If you interrupt it, the same cell goes on where it ended. If you change something, what depends on it runs again, and
# nothing else.


# %%
def show(step, done, line):
    """Show the progress in one line that replaces itself."""
    print(f"\r{step} {done:.0%}  {line:90.90}", end="")


outcome = must.run("first.yaml", overrides=overrides, progress=show)

# %% [markdown]
# ## How good are they?
#
# Held-out images tell. The baseline is the best answer that does not look at the image.

# %%
for record in outcome.metrics:
    print(f"{record['head']:25}{record['metric']:16}{record['model']:34}{record['value']:.3f}")
print("\nCurves, pictures and all other numbers:", outcome.folder / "report.html")

# %% [markdown]
# ## What did the teachers say?
#
# Labels are Parquet files, and so is the index of a set's images. These are the photos that the teacher of surfaces is
# surest of. It has seen nothing but brick, grass and gravel, and one of these is what it calls each of them. Their
# `applicability` near 0 says that it does not know such images. `must browse` shows all labels on a page.

# %%
surest = duckdb.sql("""
    SELECT source, probability, applicability
    FROM 'must-root/labels/surfaces_classification-*/*.parquet'
    JOIN 'must-root/artifacts/data.photos/*/images/train/*.parquet' USING (key)
    ORDER BY probability DESC LIMIT 6
""")
print(surest)
Image.fromarray(row([Path("photos", source) for source, *_ in surest.fetchall()]))

# %% [markdown]
# ## Predictions
#
# The student does both tasks at once, for any images: paths, Pillow's images or arrays.

# %%
student = must.load("student")
unseen = sorted(Path("coins/images/test").iterdir())[:6]
labels = student.predict(unseen)
print(labels[0].name, "-", labels[0].describe())

# %% [markdown]
# The images, and below them what the student takes for table and coins:

# %%
drawn = np.hstack([each["coins_segmentation"].draw() for each in labels])
Image.fromarray(np.vstack([row(unseen), drawn]))

# %% [markdown]
# ## Vectors
#
# `embed` returns what the backbone makes of an image. Images that look alike have vectors of nearly one direction. Here
# is the first of the test images, followed by those most like it:

# %%
paths = sorted(Path("surfaces/test").glob("*/*.png"))
vectors = student.embed(paths)
vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
alike = [paths[number] for number in (vectors @ vectors[0]).argsort()[::-1][:6]]
print(*alike)
Image.fromarray(row(alike))
