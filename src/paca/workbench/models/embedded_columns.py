"""An embedded model as `column_source`: it comes as a GGUF file, and columns are read from safetensors."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from paca.workbench.models.embedded import EMBEDDED
from paca.workbench.models.load import load_model


@contextmanager
def columns_of_embedded(config: Any) -> Iterator[Any]:
    """Have a `column_source` that names an embedded model be a checkpoint of it, for as long as an adapter is made.

    Afterwards the configuration has the model's name again, which is the same on every machine.
    """
    name = getattr(config, "column_source", None)
    if name not in EMBEDDED:
        yield config
        return
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        config.column_source = folder
        try:
            load_model(name, "float32").save_pretrained(folder)
            yield config
        finally:
            config.column_source = name
