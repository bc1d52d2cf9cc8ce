"""What a network is made of, and how a smaller one comes out of it.

anatomy.py  blocks.py  branches.py  stand_ins.py    what may go: whole blocks and single channels, each tried once
wiring.py  calls.py                                 how values flow: the traced graph, and what each module gets
strands.py  heads.py                                groups of channels, and attention heads, that may be narrowed
surgery.py  trial.py                                cuts as data, replayed; no cut is believed unseen
mockup.py  races.py  costs.py  table.py             what structures cost on a target, measured before any training
worth.py  variants.py                               what units are worth: how much the loss grows without them
choice.py  fit.py                                   the most important structure that fits; measured, chosen again
budget.py                                           the act: a network pruned to a budget
channels.py                                         the most important share of every layer's channels
"""
