"""YAML 1.2, where `5e-3` is a number and `no` is a word."""

import io
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.constructor import ConstructorError, SafeConstructor
from ruamel.yaml.error import YAMLError

from paca.workbench.base.messages import one_line


class _UniqueKeys(SafeConstructor):
    """Says in its own words that a key is given twice; ruamel's message tells how to switch the check off."""

    def check_mapping_key(self, node: Any, key_node: Any, mapping: Any, key: Any, value: Any) -> bool:
        if key in mapping:
            raise ConstructorError(None, None, f"the key {key!r} is given twice", key_node.start_mark)
        return True


def _yaml() -> YAML:
    # The C parser, which ruamel takes where it is installed, words its errors differently.
    yaml = YAML(typ="safe", pure=True)
    yaml.Constructor = _UniqueKeys
    yaml.default_flow_style = False
    yaml.sort_base_mapping_type_on_output = False
    yaml.width = 119
    return yaml


def parse(text: str) -> Any:
    """Read one YAML document or scalar; a ValueError says on one line why and where the text is not YAML."""
    try:
        return _yaml().load(text)
    except (YAMLError, RecursionError) as error:
        raise ValueError(one_line(error)) from error


def dump(value: Any) -> str:
    """Write mappings, lists and scalars, keys in their own order, so that `parse` reads the same back."""
    written = io.StringIO()
    _yaml().dump(value, written)
    return written.getvalue()
