"""What other libraries log while they are imported, and nobody who types a command can do anything about."""

import logging

# By the logger that says it.
_ASIDES = {
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",  # of torchao's enums
    "bitsandbytes.backends.cpu.ops": "Failed to load CPU gemm_4bit_forward",  # a kernel that is only faster
}


def _wanted(record: logging.LogRecord) -> bool:
    return _ASIDES.get(record.name, "\0") not in record.getMessage()


def hush_imports() -> None:
    """Silence these lines in this process, before the libraries are imported."""
    for name in _ASIDES:
        logging.getLogger(name).addFilter(_wanted)
