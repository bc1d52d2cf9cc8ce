"""What may go from a network without breaking it: whole blocks, and groups of channels.

    blocks     parts that can become a way through (`blocks`)
    groups     channels that can only leave together, layer by layer (`vendors.torch_pruning`)
    each       tried once alone: the network without it must answer like the one in which it is silenced (`trial`)

What stays whole says why (`Anatomy.refused`). A `Shape` names what is left; the cuts that lead there are data.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from torch import Tensor, nn

from stages.base import Surgery
from stages.network import matching
from stages.structure.trial import merged
from stages.vendors.torch_pruning import Group

__all__ = ["Anatomy", "Block", "Shape", "Strand", "dissect", "inside"]


@dataclass(frozen=True)
class Shape:
    """A structure inside a network.

    Attributes:
        gone: names of blocks that are left out.
        widths: by strand, how many channels stay; strands that are not named are whole.
    """

    gone: frozenset[str] = frozenset()
    widths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Block:
    """A part of a network that can become a way through.

    Attributes:
        name: of the module that is replaced.
        surgery: "identity" (what comes in goes out) or "zero" (its branch adds nothing any more; the branch's other
            modules are `idle` then).
        kind: equal for blocks of the same layers and shapes: they cost the same.
    """

    name: str
    surgery: Surgery
    kind: str

    def holds(self, module: str) -> bool:
        """Does a module lie in it, or in what leaves with it?"""
        return any(inside(module, name) for name in (self.name, *self.surgery.idle))


@dataclass(frozen=True)
class Strand:
    """A group of channels that may be narrowed.

    Attributes:
        group: its channels, and what is cut in each layer when some of them leave.
        unit: how many channels leave together at least (the size of an attention head); 1 for most.
        kind: equal for strands through the same layers and shapes: they cost the same.
    """

    group: Group
    kind: str
    unit: int = 1

    @property
    def name(self) -> str:
        """The layer it was found from."""
        return self.group.name

    @property
    def channels(self) -> int:
        """How many there are."""
        return len(self.group.scores)

    def leaving(self, shape: Shape, worst: Mapping[str, tuple[int, ...]] | None = None) -> tuple[int, ...]:
        """Which of its channels a structure lacks; for `worst` see `Anatomy.surgery`."""
        order = (worst or {}).get(self.name, tuple(reversed(range(self.channels))))
        return tuple(sorted(order[: self.channels - shape.widths.get(self.name, self.channels)]))


@dataclass(frozen=True)
class Anatomy:
    """All that may go. Of what is here each was removed alone and the network still answered as it should.

    Attributes:
        refused: what stays whole, by name, and why.
    """

    blocks: tuple[Block, ...]
    strands: tuple[Strand, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def held(self, strand: Strand, gone: Iterable[str]) -> bool:
        """Whether the absence of these blocks leaves nothing to narrow in a strand: it left with one of them, or one
        that hands its input on now joins it to other channels, with which it would have to stay in step."""
        return not self._holders[strand.name].isdisjoint(gone)

    @cached_property
    def _holders(self) -> dict[str, frozenset[str]]:
        """By strand, the blocks that hold it once they are gone."""
        return {s.name: frozenset(block.name for block in self.blocks if _holds(block, s)) for s in self.strands}

    def smallest(self, widths: Mapping[str, int]) -> tuple[Shape, ...]:
        """Structures than which none is smaller: everything gone; and, where the absence of blocks keeps strands whole,
        everything gone but these blocks.

        Args:
            widths: by strand, how many channels stay at least.
        """
        every = frozenset(block.name for block in self.blocks)
        joining = frozenset(
            block.name
            for block in self.blocks
            for strand in self.strands
            if strand.name in widths
            and self.held(strand, [block.name])
            and not all(block.holds(member.module) for member in strand.group.members)
        )
        return (Shape(every, widths), Shape(every - joining, widths)) if joining else (Shape(every, widths),)

    def surgery(self, shape: Shape, worst: Mapping[str, tuple[int, ...]] | None = None) -> tuple[Surgery, ...]:
        """The cuts that make a structure; all numbered as in the uncut network, blocks last. A strand that is `held`
        stays whole, whatever its width is to be.

        Args:
            worst: by strand, its channels in the order in which they leave; None: the last ones leave first.
        """
        gone = [block for block in self.blocks if block.name in shape.gone]
        parts = []
        for strand in self.strands:
            leave = () if self.held(strand, shape.gone) else strand.leaving(shape, worst)
            parts.append(strand.group.cuts(leave) if leave else ())
        channels = [cut for cut in merged(parts) if not any(block.holds(cut.module) for block in gone)]
        return (*channels, *(block.surgery for block in gone))


def dissect(module: nn.Module, inputs: Tensor, multiple: int = 1, exclude: Sequence[str] = ()) -> Anatomy:
    """Looks for all that may go.

    Args:
        module: in eval mode; stays as it is. Its weights do not matter.
        inputs: (batch, ...), real inputs that each cut is tried on.
        multiple: channel counts that the target likes.
        exclude: patterns of modules that stay whole: blocks that hold them or lie in them, strands that run through.

    Raises:
        InputError: a pattern matches nothing.
        StageError: the network cannot be traced.
    """
    from stages.structure.blocks import blocks  # both need the classes above
    from stages.structure.strands import strands

    kept = matching(module, exclude)
    found, refused = blocks(module, inputs)
    strung, whole = strands(module, inputs, multiple, exclude)
    free = tuple(
        block
        for block in found
        if not any(
            block.holds(name) or inside(other, name) for name in kept for other in (block.name, *block.surgery.idle)
        )
    )
    for name, why in whole.items():
        refused[name] = f"{refused[name]}; {why}" if name in refused else why
    return Anatomy(free, strung, refused)


def _holds(block: Block, strand: Strand) -> bool:
    held = [member.kind for member in strand.group.members if block.holds(member.module)]
    if len(held) in (0, len(strand.group.members)):
        return bool(held)
    # A residual block reads its strand and adds to it: the same channels on both ends. A layer alone has others.
    return block.surgery.kind == "identity" and not {"in", "out"} <= set(held)


def inside(name: str, other: str) -> bool:
    """Is one module the other, or does it lie in it?"""
    return name == other or name.startswith(f"{other}.")
