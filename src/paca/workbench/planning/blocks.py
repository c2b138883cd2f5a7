"""Steps of a model of many equal blocks, from steps of the same model with three blocks and with four.

What lives at any moment of a step grows by the same bytes with each block that the model has more. So the moments of
the two steps are matched, those of the second and the second last block as well, and continued along a straight line.
Where the blocks are not equal, or the steps don't match, nothing is continued: the whole model has to be run.
"""

import copy
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from paca.profiling import Peak, StepTracker
from paca.profiling.peak import Moment

FEW, MORE = 3, 4
LEAST = 8  # blocks of a model for which two steps of fewer are worth it
_PLAIN = (int, float, str, bool, type(None))


@dataclass(frozen=True)
class Blocks:
    """The blocks of a model, which are all alike.

    Args:
        place: The name of the list of them.
        count: How many there are.
    """

    place: str
    count: int

    def line(self, few: int, more: int) -> int:
        """Continue what there is with few blocks and with more along the line through both."""
        return more + (self.count - MORE) * (more - few)

    def split(self, module: str) -> tuple[int | None, str]:
        """The number of the block that a module lies in, None outside of them, and its name there."""
        if not module.startswith(f"{self.place}."):
            return None, module
        number, _, name = module.removeprefix(f"{self.place}.").partition(".")
        return int(number), name

    def renumber(self, module: str) -> str:
        """The name that a module of the model with `MORE` blocks has in the whole one, counted from the nearer end."""
        number, name = self.split(module)
        if number is None or number < MORE // 2:
            return module
        return ".".join(filter(None, (self.place, str(number + self.count - MORE), name)))

    def have_alike(self, modules: Collection[str]) -> bool:
        """Whether every block has the same of these modules."""
        of_blocks: list[set[str]] = [set() for _ in range(self.count)]
        for number, name in map(self.split, modules):
            if number is not None:
                of_blocks[number].add(name)
        return all(names == of_blocks[0] for names in of_blocks)


@dataclass(frozen=True)
class Fewer:
    """A model twice, with fewer blocks.

    Args:
        blocks: Of the whole model.
        few: The model with `FEW` of them.
        more: The model with `MORE`.
    """

    blocks: Blocks
    few: nn.Module
    more: nn.Module


def with_fewer_blocks(whole: Any, config: Any, build: Callable[[Any], nn.Module]) -> Fewer | None:
    """Make a model with fewer blocks; None where the whole one has few, or blocks that differ.

    Args:
        whole: The model that `build` makes of `config`.
        config: Its configuration.
        build: Makes models from configurations.

    Returns:
        The model with three and with four blocks.
    """
    blocks = _find_blocks(whole)
    shorter = [_shorten(config, count) for count in (FEW, MORE)] if blocks else [None]
    if blocks is None or None in shorter:
        return None
    few, more = map(build, shorter)
    first = f"{blocks.place}.0"
    alike = _structure(whole, blocks.place) == _structure(more, blocks.place) and _structure(
        whole.get_submodule(first)
    ) == _structure(more.get_submodule(first))
    return Fewer(blocks, few, more) if alike else None


def _find_blocks(model: Any) -> Blocks | None:
    """Find the blocks of a model; None where there are few, or they differ in anything but their number."""
    count = getattr(model.config, "num_hidden_layers", None)
    if not isinstance(count, int) or count < LEAST or model.config.get_text_config() is not model.config:
        return None
    lists = [
        name for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module) == count
    ]
    if len(lists) != 1:
        return None
    kinds = [_structure(block) for block in model.get_submodule(lists[0])]
    return Blocks(lists[0], count) if all(kind == kinds[0] for kind in kinds) else None


def _shorten(config: Any, count: int) -> Any | None:
    """Make the configuration of a model that has `count` blocks; None if it says something of each that differs."""
    shorter = copy.deepcopy(config)
    for name, values in vars(shorter).items():
        if isinstance(values, list | tuple) and len(values) == config.num_hidden_layers:
            if any(value != values[0] for value in values):
                return None
            vars(shorter)[name] = values[:count]
    shorter.num_hidden_layers = count
    return shorter


def _structure(module: nn.Module, without: str | None = None) -> list[Any]:
    """All that is to tell of a module and those in it: classes, settings, shapes; but for those below `without`."""
    return [
        (
            name,
            type(part),
            {key: value for key, value in vars(part).items() if key != "layer_idx" and _is_plain(value)},
            [
                (key, tensor.shape, tensor.stride(), tensor.dtype, tensor.requires_grad)
                for key, tensor in (*part.named_parameters(recurse=False), *part.named_buffers(recurse=False))
            ],
        )
        for name, part in module.named_modules()
        if without is None or not name.startswith(f"{without}.")
    ]


def _is_plain(value: Any) -> bool:
    """Numbers and words, also by an adapter's name; lists are of the names of modules."""
    if isinstance(value, dict | tuple):
        return all(isinstance(part, _PLAIN) for part in (value.values() if isinstance(value, dict) else value))
    return isinstance(value, _PLAIN)


@dataclass(frozen=True)
class Part:
    """A part of a step, in which all moments grow alike with the number of blocks.

    Args:
        phase: As a `Peak` names it.
        inside: Whether a block runs.
        block: The number of that block or of the one that ran before; None before all.
    """

    phase: str
    inside: bool
    block: int | None


def peak_of_all(few: StepTracker, more: StepTracker, blocks: Blocks) -> Peak | None:
    """Find the peak of a step of all blocks from steps with `FEW` and `MORE`; None if these don't match."""
    parts = _parts(more, blocks)
    matches = _matches(_parts(few, blocks), parts)
    if matches is None or not _go_on_alike(parts):
        return None
    highest = max(matches, key=lambda match: (blocks.line(match[0].total, match[1].total), -match[1].at))
    less, most = few.describe(highest[0]), more.describe(highest[1])
    return replace(
        most,
        total=blocks.line(less.total, most.total),
        by_category={name: blocks.line(less.by_category[name], size) for name, size in most.by_category.items()},
        module=blocks.renumber(most.module),
    )


def _parts(tracker: StepTracker, blocks: Blocks) -> dict[Part, list[Moment]]:
    parts: dict[Part, list[Moment]] = {}
    latest: dict[str, int] = {}
    for moment in tracker.moments:
        number, _ = blocks.split(moment.module)
        if number is not None:
            latest[moment.phase] = number
        part = Part(moment.phase, number is not None, latest.get(moment.phase))
        parts.setdefault(part, []).append(moment)
    return parts


def _matches(few: dict[Part, list[Moment]], more: dict[Part, list[Moment]]) -> list[tuple[Moment, Moment]] | None:
    """Pairs of moments of both steps; None if there is one without its like."""
    pairs: list[tuple[Moment, Moment]] = []
    for part, moments in more.items():
        # Of four blocks, the second and the third are like the second of three.
        block = part.block if part.block is None or part.block < MORE // 2 else part.block - 1
        like = few.get(replace(part, block=block), [])
        if len(like) == len(moments):
            pairs += zip(like, moments, strict=True)
        elif like and not part.inside:  # something is done for each block in turn: what lives is most at one end
            pairs.append((_highest(like), _highest(moments)))
        else:
            return None
    return pairs


def _highest(moments: list[Moment]) -> Moment:
    return max(moments, key=lambda moment: moment.total)


def _go_on_alike(parts: dict[Part, list[Moment]]) -> bool:
    """Whether the second and the third block of four differ by the same bytes at all moments."""
    for part, moments in parts.items():
        if part.inside and part.block == 1:
            third = parts.get(replace(part, block=2), [])
            if len(third) != len(moments):
                return False
            if len({b.total - a.total for a, b in zip(moments, third, strict=True)}) > 1:
                return False
    return True
