"""An adapter: named tensors and their settings, in PEFT's layout on disk.

Which tensors there are, and how they lie in memory and on disk, is the method's (edgelora/methods/).
`docs/adapter-format.md` specifies the files.
"""

from edgelora.adapter.adapter import Adapter, absent_adapter, head_names
from edgelora.adapter.files import (
    CONFIG_FILE,
    RECORD_FILE,
    TENSORS_FILE,
    parse_adapter,
    read_adapter,
    read_bytes,
    read_files,
    settings_field,
    to_files,
    write_adapter,
)
from edgelora.adapter.fresh import label_problems, new_adapter

__all__ = [
    "CONFIG_FILE",
    "RECORD_FILE",
    "TENSORS_FILE",
    "Adapter",
    "absent_adapter",
    "head_names",
    "label_problems",
    "new_adapter",
    "parse_adapter",
    "read_adapter",
    "read_bytes",
    "read_files",
    "settings_field",
    "to_files",
    "write_adapter",
]
