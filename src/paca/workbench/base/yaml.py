"""YAML as people mean it: `5e-3` is a number and `no` is a word, as in YAML 1.2."""

import re
from typing import Any

import yaml


class RecipeLoader(yaml.SafeLoader):
    """PyYAML's safe loader with YAML 1.2's booleans and floats.

    PyYAML follows YAML 1.1, where `learning_rate: 5e-3` is a string and `eval_strategy: no` is False.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - the loader's own protocol, copied before it is changed
        first: [(tag, pattern) for tag, pattern in resolvers if tag not in ("tag:yaml.org,2002:bool",)]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """As PyYAML's, which lets the last of several equal keys win; here they are a mistake."""
        pairs = node.value if isinstance(node, yaml.MappingNode) else []
        keys = [key.value for key, _ in pairs if isinstance(key, yaml.ScalarNode)]
        repeated = next((key for position, key in enumerate(keys) if key in keys[:position]), None)
        if repeated is not None:
            raise yaml.constructor.ConstructorError(
                None, None, f"the key {repeated!r} is given twice", node.start_mark
            )
        return super().construct_mapping(node, deep)


class RecipeDumper(yaml.SafeDumper):
    """Quotes what either version of YAML would take for something other than a string."""


RecipeLoader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)
for reader_or_writer in (RecipeLoader, RecipeDumper):
    reader_or_writer.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?(?:\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
    )


def parse(text: str) -> Any:
    """Read one YAML document or scalar.

    Args:
        text: A recipe file's content, or the right side of an override.

    Returns:
        Mappings, lists and scalars.

    Raises:
        yaml.YAMLError: If `text` is not YAML.
    """
    return yaml.load(text, Loader=RecipeLoader)


def dump(value: Any) -> str:
    """Write mappings, lists and scalars so that `parse` reads the same back.

    Args:
        value: What to write.

    Returns:
        A YAML document, keys in their own order.
    """
    return yaml.dump(value, Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=119)
