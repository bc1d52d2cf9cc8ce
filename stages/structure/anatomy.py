"""What may go from a network without breaking it: whole blocks, and groups of channels.

    blocks     parts that can become a way through (`blocks`)
    groups     channels that can only leave together, layer by layer (`vendors.torch_pruning`)
    each       tried once alone: the network without it must answer like the one in which it is silenced (`trial`)

What stays whole says why (`Anatomy.refused`). A `Shape` names what is left; the cuts that lead there are data.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from stages.base import Surgery
from stages.structure.trial import merged
from stages.vendors.torch_pruning import Group

__all__ = ["Anatomy", "Block", "Shape", "Strand"]


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
        surgery: "identity" (what comes in goes out) or "zero" (its branch adds nothing any more).
        kind: equal for blocks of the same layers and shapes: they cost the same.
    """

    name: str
    surgery: Surgery
    kind: str

    def holds(self, module: str) -> bool:
        """Does a module lie in it?"""
        return module == self.name or module.startswith(f"{self.name}.")


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


@dataclass(frozen=True)
class Anatomy:
    """All that may go. Of what is here each was removed alone and the network still answered as it should.

    Attributes:
        refused: what stays whole, by name, and why.
    """

    blocks: tuple[Block, ...]
    strands: tuple[Strand, ...]
    refused: Mapping[str, str] = field(default_factory=dict)

    def inner(self, strand: Strand) -> Block | None:
        """The block that a strand lies in with all of its layers: it leaves with it."""
        members = [member.module for member in strand.group.members]
        return next((block for block in self.blocks if all(map(block.holds, members))), None)

    def surgery(self, shape: Shape, worst: Mapping[str, tuple[int, ...]] | None = None) -> tuple[Surgery, ...]:
        """The cuts that make a structure; all numbered as in the uncut network, blocks last.

        Args:
            worst: by strand, its channels in the order in which they leave; None: the last ones leave first.
        """
        gone = [block for block in self.blocks if block.name in shape.gone]
        parts = []
        for strand in self.strands:
            order = (worst or {}).get(strand.name, tuple(reversed(range(strand.channels))))
            leave = tuple(sorted(order[: strand.channels - shape.widths.get(strand.name, strand.channels)]))
            parts.append(strand.group.cuts(leave) if leave else ())
        channels = [cut for cut in merged(parts) if not any(block.holds(cut.module) for block in gone)]
        return (*channels, *(block.surgery for block in gone))
