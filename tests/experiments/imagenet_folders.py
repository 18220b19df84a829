"""Folders of small images, as ImageNet's are, and shards of them."""

import io
import json

from PIL import Image

CLASSES = ("ant", "bee", "cat")


def jpeg(label, number, size=(40, 30)):
    """A JPEG of one color, which tells label and number."""
    content = io.BytesIO()
    Image.new("RGB", size, (80 * label, number, 255 - number)).save(content, "JPEG")
    return content.getvalue()


def make_folder(folder, splits=(("train", 8), ("validation", 4)), classes=CLASSES):
    """Make so many images of each class; of classes alone, where a split has no name."""
    for split, count in splits:
        for label, name in enumerate(classes):
            (folder / split / name).mkdir(parents=True)
            for i in range(count):
                (folder / split / name / f"{i}.JPEG").write_bytes(jpeg(label, i))
    return folder


def change_index(path, change):
    """Write an index anew, as `change` makes it in place."""
    index = json.loads(path.read_text())
    change(index)
    path.write_text(json.dumps(index))
