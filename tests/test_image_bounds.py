"""How much memory the costliest images take: so many bytes a pixel, and there is a limit to the pixels."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from lplgrad_backend.image_decoding import BYTES_PER_PIXEL, MOST_SCANS

SIDE = 2000
AROUND = 16 * 2**20  # bytes: libraries that are loaded meanwhile, and the image's own file
MEASURE = """
import json, sys
from pathlib import Path
from lplgrad_backend.image_decoding import Decoder

def kilobytes(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name))

decoder, found = Decoder(), {}
for name in sys.argv[1:]:
    content = Path(name).read_bytes()
    decoder.size(content, name)
    Path("/proc/self/clear_refs").write_text("5")  # forget the peak so far
    before = kilobytes("VmRSS")
    decoder.decode(content, 224, name)
    found[Path(name).name] = 1024 * (kilobytes("VmHWM") - before)
print(json.dumps(found))
"""


def encoded(image: Image.Image, form: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def many_scans() -> bytes:
    """A progressive JPEG of as many passes over all pixels as are taken."""
    content = encoded(Image.new("RGB", (SIDE, SIDE)), "JPEG", progressive=True)
    last = content[content.rfind(b"\xff\xda") : -2]
    return content[:-2] + last * (MOST_SCANS - content.count(b"\xff\xda")) + content[-2:]


@pytest.fixture(scope="module")
def costly(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small files of many pixels, of every format and of the modes that are converted."""
    size, folder = (SIDE, SIDE), tmp_path_factory.mktemp("costly")
    packed = {"compression": "tiff_lzw"}
    contents = {
        "png": encoded(Image.new("RGBA", size), "PNG"),
        "png of 16 bits": encoded(Image.fromarray(np.zeros(size, np.uint16)), "PNG"),
        "png with a palette": encoded(Image.new("P", size), "PNG", transparency=b"\x10"),
        "tiff": encoded(Image.new("RGBA", size), "TIFF", **packed),
        "tiff of floats": encoded(Image.fromarray(np.zeros(size, np.float32)), "TIFF", **packed),
        "tiff of four colours": encoded(Image.new("CMYK", size), "TIFF", **packed),
        "webp": encoded(Image.new("RGBA", size), "WEBP", lossless=True),
        "webp animation": encoded(
            Image.new("RGBA", size), "WEBP", lossless=True, save_all=True,
            append_images=[Image.new("RGBA", size, "red")] * 20,
        ),
        "gif": encoded(Image.new("P", size), "GIF", transparency=0),
        "bmp": encoded(Image.new("RGB", size), "BMP"),
        "jpeg": many_scans(),
    }  # fmt: skip
    for name, content in contents.items():
        (folder / name).write_bytes(content)
    return [folder / name for name in contents]


def test_no_format_takes_more_than_so_many_bytes_a_pixel(costly: list[Path]) -> None:
    command = [sys.executable, "-c", MEASURE, *map(str, costly)]
    answer = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)
    taken = {name: (peak - AROUND) / SIDE**2 for name, peak in json.loads(answer.stdout).items()}
    assert len(taken) == len(costly)
    assert max(taken.values()) > 2, "the peak is seen"
    assert not {name: used for name, used in taken.items() if used > BYTES_PER_PIXEL}
