"""Image data sets in the forms that they are published in, made of a few images."""

import io

import numpy as np


def encoded(image, format="PNG", **options):
    """One image, uint8 (C, H, W), as the content of a file."""
    from PIL import Image

    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    stream = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(stream, format, **options)
    return stream.getvalue()


def write_hub(folder, images, parts, *, split_files=1, format="PNG", **other_columns):
    """A copy of a data set of the hub, written by `datasets`: struct {bytes, path} and a ClassLabel.

    Args:
        folder: where to.
        images: the HubImages that says how it is laid out.
        parts: (images uint8 (N, C, H, W), labels) by part.
        split_files: into how many files each part is cut.
        format: of the encoded images.
        other_columns: functions of the labels, for columns that nobody asked for.
    """
    import datasets

    for part, (pixels, labels) in parts.items():
        features = datasets.Features(
            {
                images.image: datasets.Image(),
                images.label: datasets.ClassLabel(num_classes=int(max(labels)) + 1),
                **{name: datasets.Value("int64") for name in other_columns},
            }
        )
        columns = {
            images.image: [{"bytes": encoded(image, format), "path": None} for image in pixels],
            images.label: np.asarray(labels, dtype=np.int64),
            **{name: make(np.asarray(labels)) for name, make in other_columns.items()},
        }
        table = datasets.Dataset.from_dict(columns, features=features)
        for number in range(split_files):
            name = images.files[part].replace("*", f"{number:05d}-of-{split_files:05d}")
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            table.shard(split_files, number, contiguous=True).to_parquet(file)
    return folder
