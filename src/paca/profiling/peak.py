"""What the bytes of a training step are for, and where in the step they are most.

Every storage is recorded with its birth and its death, and told apart afterwards, by its whole life. So a gradient
is one from its first moment on, and what a forward pass makes is an activation if it outlives that pass.
"""

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from .storages import storages_of
from .tracker import StorageTracker

PARAMETERS, GRADIENTS, OPTIMIZER = "parameters", "gradients", "optimizer"
ACTIVATIONS, TEMPORARIES = "activations", "temporaries"
CATEGORIES = (PARAMETERS, GRADIENTS, OPTIMIZER, ACTIVATIONS, TEMPORARIES)


@dataclass
class Life:
    """One storage.

    Args:
        size: Its bytes, after rounding.
        born: When, in the order of events.
        category: What it is for, if something has said so.
        forward: The number of the forward pass that made it; None if none did.
        died: When it was freed; None while it lives.
    """

    size: int
    born: int
    category: str | None
    forward: int | None
    died: int | None = None


@dataclass(frozen=True)
class Peak:
    """The moment at which most bytes are alive.

    Args:
        total: Bytes.
        by_category: The same, by what they are for; buffers and the batch are among the parameters.
        phase: `forward`, `backward`, `recompute` (a checkpointed forward again, in backward), `optimizer` or `other`.
        module: The dotted name of the module that ran, empty outside of all.
    """

    total: int
    by_category: dict[str, int]
    phase: str
    module: str


@dataclass(frozen=True)
class Moment:
    """When a storage was made.

    Args:
        at: In the order of events.
        total: Bytes alive then, it among them.
        phase: As `Peak` names them.
        module: Likewise.
    """

    at: int
    total: int
    phase: str
    module: str


class StepTracker(StorageTracker):
    """Counts as `StorageTracker` does, and records what each storage is for.

    Args:
        model: Its parameters and buffers are counted from the start.
        optimizer: Whose states are told apart; they may be there already.
        held: Other tensors that exist already and are to be counted, such as the batch.
        block: Sizes are rounded up to multiples of this many bytes; CUDA allocates in blocks of 512.
        elsewhere: Tensors that lie in another memory and are not counted, such as paged states of the optimizer.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer | None = None,
        held: Iterable[Tensor] = (),
        block: int = 1,
        elsewhere: Iterable[Tensor] = (),
    ) -> None:
        self._block = block
        self._clock = 0
        self._lives: list[Life] = []
        self._life_of: dict[int, Life] = {}
        self._ends: dict[int, int] = {}  # when each forward pass ended
        self._modules: list[str] = []
        self._names = {id(module): name for name, module in model.named_modules()}
        # Autograd numbers its nodes as it makes them: from which number on which module ran.
        self._marks: list[int] = []
        self._marked: list[str] = []
        self._stepping = False
        self._moments: list[Moment] = []
        self._model, self._optimizer = model, optimizer
        self._handles: list[Any] = []
        super().__init__()
        for storage in storages_of(list(elsewhere)):
            self._pass_over(storage)
        self._label([*model.parameters(), *model.buffers(), *held], PARAMETERS)
        self._label([parameter.grad for parameter in model.parameters()], GRADIENTS)
        self._label_states()
        self.reset_peak()

    def peak(self) -> Peak:
        """Describe the moment of the most bytes since the start or the last `reset_peak`."""
        return self.describe(max(self._moments, key=lambda moment: moment.total))

    @property
    def moments(self) -> Sequence[Moment]:
        """The start or the last `reset_peak`, and each moment since then at which a storage was made."""
        return self._moments

    def describe(self, moment: Moment) -> Peak:
        """Tell what the bytes of a moment were for, by what became of them."""
        totals = dict.fromkeys(CATEGORIES, 0)
        for life in self._lives:
            if life.born <= moment.at and (life.died is None or life.died > moment.at):
                totals[self._category(life)] += life.size
        return Peak(sum(totals.values()), totals, moment.phase, moment.module)

    def reset_peak(self) -> None:
        """Forget the peak so far: from here on it starts at the bytes that are alive now."""
        super().reset_peak()
        self._moments = [self._now()]

    def _now(self) -> Moment:
        return Moment(self._clock, self._live_bytes, *self.where())

    def where(self) -> tuple[str, str]:
        """Tell the phase and the module that run now, by the names that `Peak` has for them."""
        if self._stepping:
            return "optimizer", ""
        node = torch._C._current_autograd_node()
        if self._modules:
            return ("forward" if node is None else "recompute"), self._modules[-1]
        if node is None:
            return "other", ""
        return "backward", self._module_of(node)

    def __enter__(self) -> "StepTracker":
        """Start counting, and following modules, gradients and optimizer steps."""
        self._handles = [
            register_module_forward_pre_hook(self._enter_module),
            register_module_forward_hook(self._leave_module, always_call=True),
            register_optimizer_step_pre_hook(lambda *_: self._set_stepping(True)),
            register_optimizer_step_post_hook(lambda *_: self._set_stepping(False)),
            *(p.register_post_accumulate_grad_hook(self._label_gradient) for p in self._trained()),
        ]
        super().__enter__()
        return self

    def __exit__(self, *raised: Any) -> None:
        """Stop counting, and take the hooks off."""
        super().__exit__(*raised)
        for handle in self._handles:
            handle.remove()

    def _trained(self) -> list[nn.Parameter]:
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    def _size(self, storage: UntypedStorage) -> int:
        return -(-storage.nbytes() // self._block) * self._block

    def _count(self, storage: UntypedStorage) -> None:
        key = id(storage)
        known = key in self._references
        before = self._live_bytes
        super()._count(storage)
        if key not in self._counted or (known and self._live_bytes == before):
            return
        self._clock += 1
        self._record(key)
        self._moments.append(self._now())

    def _record(self, key: int) -> None:
        old = self._life_of.get(key)
        if old is not None:  # resized
            old.died = self._clock
        forward = None if not self._modules or self._stepping else len(self._ends)
        life = Life(self._counted[key], self._clock, old.category if old else None, forward)
        self._life_of[key] = life
        self._lives.append(life)

    def _closed(self, key: int) -> None:
        life = self._life_of.pop(key, None)
        if life is not None:
            self._clock += 1
            life.died = self._clock

    def _label(self, tensors: Iterable[Tensor | None], category: str) -> None:
        for storage in storages_of([tensor for tensor in tensors if tensor is not None]):
            self._count(storage)
            if id(storage) in self._life_of:
                self._life_of[id(storage)].category = category

    def _label_gradient(self, parameter: Tensor) -> None:
        for storage in storages_of(parameter.grad):
            if id(storage) in self._life_of:
                self._life_of[id(storage)].category = GRADIENTS

    def _label_states(self) -> None:
        self._label(state_tensors(self._optimizer), OPTIMIZER)

    def _set_stepping(self, stepping: bool) -> None:
        self._stepping = stepping
        if stepping:  # FSDP2 hands gradients to its shards without the hook that tells of them
            self._label([parameter.grad for parameter in self._trained()], GRADIENTS)
        else:
            self._label_states()

    def _enter_module(self, module: nn.Module, _: Any) -> None:
        self._modules.append(self._names.get(id(module), type(module).__name__))
        self._mark()

    def _leave_module(self, module: nn.Module, *_: Any) -> None:
        if self._modules:
            self._modules.pop()
            self._mark()
        if not self._modules:
            self._ends[len(self._ends)] = self._clock

    def _mark(self) -> None:
        self._marks.append(torch.autograd._get_sequence_nr())
        self._marked.append(self._modules[-1] if self._modules else "")

    def _module_of(self, node: Any) -> str:
        """The module whose forward made an autograd node."""
        after = bisect.bisect_right(self._marks, node._sequence_nr()) if hasattr(node, "_sequence_nr") else 0
        return self._marked[after - 1] if after else ""

    def _category(self, life: Life) -> str:
        if life.category is not None:
            return life.category
        if life.forward is None:
            return TEMPORARIES
        end = self._ends.get(life.forward)
        return ACTIVATIONS if end is not None and (life.died is None or life.died > end) else TEMPORARIES


def state_tensors(optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    """The tensors among an optimizer's states; none without one."""
    states = [] if optimizer is None else list(optimizer.state.values())
    return [value for state in states for value in state.values() if isinstance(value, Tensor)]
