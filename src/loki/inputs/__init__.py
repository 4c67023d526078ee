"""Reading what comes from outside: what may be read at all, what it must look like, and what went wrong.

- `reading` turns whatever a library raises while it reads a user's file into one line;
- `require_file` says what is at a path before anything waits on a pipe, or reads a device or a pointer of Git LFS;
- `files_below` lists the files of a folder, unless they are too many to be meant;
- `read_text` reads text, gzipped or not, that fits into memory (`require_text_file`); `read_json` and
  `read_json_lines` read JSON within bounds;
- `checked` holds what was read against a typed schema, which stands beside the reader of each artefact;
- `safetensors_header` knows the tensors of a file without reading them, and that they lie within it.
"""

from loki.inputs.json_files import read_json, read_json_lines
from loki.inputs.places import files_below, require_file
from loki.inputs.reading import reading, shown
from loki.inputs.schema import Strict, check_fields, checked
from loki.inputs.tensors import TensorEntry, safetensors_header
from loki.inputs.text_files import read_text, require_text_file

__all__ = [
    "Strict",
    "TensorEntry",
    "check_fields",
    "checked",
    "files_below",
    "read_json",
    "read_json_lines",
    "read_text",
    "reading",
    "require_file",
    "require_text_file",
    "safetensors_header",
    "shown",
]
