"""The tokenizer and the chat template in an artifact's files on disk.

Owns the opening: files are mapped, so that of weights with gigabytes only the header is read. Refuses to know formats
(`madang.wire.text_facts`). Called by the hub, in a thread, and by `madang model inspect`.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path

from madang.core import Rejected
from madang.wire.text_facts import TextFacts, has_text_facts, read_text_facts


def read_text_files(paths: Mapping[str, Path]) -> TextFacts:
    """Return what files say of tokenizer and template; raises Rejected naming the file.

    Args:
        paths: by the names that the catalog gives them; what lies at a path may be called by its hash.
    """
    return read_text_facts({name: _map(path, name) for name, path in paths.items() if has_text_facts(name)})


def _map(path: Path, name: str) -> memoryview:
    try:
        with path.open("rb") as opened:
            # It is unmapped when the last view of it is gone.
            return memoryview(mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise Rejected(f"{name}: cannot read {path}: {error.strerror}") from error
    except ValueError as error:
        raise Rejected(f"{name}: {path} is empty") from error
