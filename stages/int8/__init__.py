"""How a float graph becomes an int8 one that holds its accuracy and pays.

    bench.py         what every rung works with: the float graph, ranges, placement, a score
    ladder.py        climbs rungs, cheap first, until accuracy holds; then measures what is fastest
    calibration.py   the calibration set: streamed within a memory cap, looked at, digested
    correction.py    bias correction             equalize.py   cross-layer equalization, SmoothQuant
    fallback.py      single layers back to float, the most sensitive first
    qat.py           training with the teacher, on the same placement
    pays.py          operators that do not pay on the target go back to float
    slower.py        which those may be          costs.py      the arithmetic: what single operators cost, and borders
    rules.py         what stays float by rule, with the reason       dynamic.py   dynamic quantization

A *rung* is a function `(Bench, Attempt) -> Iterator[Try]`: things to try, given the best so far. Whatever a rung
decides ends in a `Setup`, from which `Bench.place` makes the one kind of graph that runtimes fuse.
"""
