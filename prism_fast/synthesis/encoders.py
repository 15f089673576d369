"""The libraries that turn pixels and rows into files: other versions write other bytes of the same content."""

from __future__ import annotations

from prism_fast.synthesis.images import ImageFormat

ENCODERS = ("pillow", "codec", "pyarrow")
"""Names in a set's ``environment``; sets from before there were any have none of them."""


def encoder_versions(kind: ImageFormat) -> dict[str, str]:
    """Versions of :data:`ENCODERS`, for images of one format.

    Pillow's version does not name its codec: its wheels bring their own, distributions link it to theirs.
    """
    import PIL
    import pyarrow as pa
    from PIL import features

    names = {
        "png": "zlib_ng" if features.check("zlib_ng") else "zlib",
        "webp": "webp",
        "jpg": "libjpeg_turbo" if features.check("libjpeg_turbo") else "jpg",
    }
    codec = names[kind]
    return {"pillow": PIL.__version__, "codec": f"{codec} {features.version(codec)}", "pyarrow": pa.__version__}
