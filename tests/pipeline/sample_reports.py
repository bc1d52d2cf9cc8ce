"""Reports for tests, made by hand but chosen and judged as a run does it: one of each kind that can come out."""

import itertools

from pipeline.choose import choose
from pipeline.report.model import CandidateRow, CheckRow, Number, Report, StepRow, TargetRow
from targets.budget import Budget, Measurement, judge, worst

EVIL = "<script>alert('x & y')</script>"
RUNTIME = "onnxruntime 1.32, wall clock"


def num(value, low=None, high=None, samples=600, instrument=RUNTIME):
    return Number(
        value=value,
        low=value if low is None else low,
        high=value if high is None else high,
        samples=samples,
        instrument=instrument,
    )


def measured(accuracy, drop, p50, size, teacher_p50=1.062):
    """What one model was found to be worth, with intervals as wide as real ones."""
    found = {
        "accuracy": num(accuracy, accuracy - 1.6, min(100, accuracy + 1.1), 360, RUNTIME),
        "latency_p50_ms": num(p50, p50 * 0.994, p50 * 1.007),
        "latency_p95_ms": num(p50 * 1.08, p50 * 1.06, p50 * 1.13),
        "throughput_per_s": num(1450 / p50, 1420 / p50, 1467 / p50, 12),
        "size_mb": num(size, samples=1, instrument="file size"),
        "peak_memory_mb": num(58.2 + size * 3, 58 + size * 3, 58.4 + size * 3, 3, "peak resident memory"),
        "session_ms": num(2.1, 1.9, 2.6, 3),
    }
    if drop is not None:
        found["accuracy_drop_points"] = num(drop, drop - 0.9, drop + 1.05, 360)
        ratio = teacher_p50 / p50
        found["speedup_p50"] = num(ratio, ratio * 0.985, ratio * 1.014)
    return found


MET = {
    "accuracy_drop_points": 3.0,
    "latency_p50_ms": 0.3,
    "latency_p95_ms": 0.4,
    "throughput_per_s": 2000.0,
    "size_mb": 0.5,
}
MISSED = {"accuracy_drop_points": 3.0, "latency_p95_ms": 0.05, "size_mb": 0.05}
INCONCLUSIVE = {"accuracy_drop_points": 0.5, "latency_p95_ms": 0.4, "energy_mj": 2.0}
CANDIDATES = {
    "keep 1": (98.6, 0.3, 0.301, 0.601),
    "keep 0.5": (98.3, 0.6, 0.142, 0.2104),
    "keep 0.25": (97.5, 1.4, 0.0853, 0.0877),
}


def check(metric, limit, value, low, high, verdict, note=""):
    return CheckRow(metric=metric, limit=limit, value=value, low=low, high=high, verdict=verdict, note=note)


def plain(numbers):
    return {m: Measurement(m, **n.model_dump()) for m, n in numbers.items()}


def target(name="local", limits=None, candidates=None):
    """A target and its candidates, chosen and judged as a run does it."""
    budget = Budget(**(MET if limits is None else limits))
    values = {c: measured(*v) for c, v in (candidates or CANDIDATES).items()}
    choice = choose({c: plain(found) for c, found in values.items()}, budget)
    rows = [
        CandidateRow(
            target=name,
            name=ranked.name,
            chosen=ranked.name == choice.chosen,
            verdict=ranked.verdict,
            reason=ranked.reason,
            measured=values[ranked.name],
            sha256=f"{i:x}9c1f" * 12 + "abcd",
            lineage=("teacher", *(f"{stage} {ranked.name}" for stage in ("distill", "prune", "export", "quantize"))),
        )
        for i, ranked in enumerate(choice.ranked)
    ]
    on_test = values[choice.chosen] | {"accuracy_drop_points": num(0.84, -0.21, 1.92, 359)}
    checks = judge(budget, plain(on_test))
    verdict = worst(c.verdict for c in checks)
    merge = {
        "of": list(values),
        "accuracy": {"metric": "accuracy", **num(98.9, 97.2, 99.6, 360).model_dump()},
        "latency_p50_ms": sum(v["latency_p50_ms"].value for v in values.values()),
        "size_mb": sum(v["size_mb"].value for v in values.values()),
    }
    row = TargetRow(
        target=name,
        summary="this machine, one thread of its CPU",
        verdict=verdict,
        chosen=choice.chosen,
        artifact=name if verdict == "met" else "",
        checks=tuple(CheckRow(**vars(c)) for c in checks),
        test={
            "baseline_accuracy": num(98.05, 96.0, 99.1, 359),
            "accuracy": num(97.21, 94.9, 98.5, 359),
            "accuracy_drop_points": on_test["accuracy_drop_points"],
        },
        baseline=measured(98.9, None, 1.062, 2.31),
        merge=merge if len(values) > 1 else None,
        environment={
            "device": "local",
            "target": name,
            "cpu": {
                "model": "Intel(R) Xeon(R) Processor @ 2.10GHz",
                "machine": "x86_64",
                "cores": 2,
                "flags": ["avx2", "avx512_vnni"],
            },
            "onnxruntime": "1.32.0",
            "settings": {"intra_op_threads": 1, "execution_mode": "sequential"},
            "before": {"load_average_1min": 0.42},
            "after": {"load_average_1min": 3.1},
            "notes": ["the machine was busy (load 3.1 on 2 cores): absolute times are too high"],
        },
        confidence=0.95,
    )
    return row, rows


def steps(names):
    """The steps of a run in which the teacher was found stored."""
    made = [
        (
            "teacher",
            "teacher",
            True,
            21.4,
            {"validation_accuracy": 0.9889, "parameters": 577_482, "macs": 10_190_848},
            (),
        )
    ]
    made += [("export teacher", "export", True, 2.1, {"parity_max_difference": 3.34e-6, "opset": 21}, ())]
    for i, name in enumerate(names):
        cut = 4**i
        numbers = {"validation_accuracy": 0.986 - 0.004 * i, "parameters": 577_482 // cut, "macs": 10_190_848 // cut}
        made += [
            (f"distill {name}", "distill", False, 14.2 / (i + 1), numbers, ()),
            (
                f"prune {name}",
                "prune",
                False,
                3.1,
                {"parameters": 400_000 // cut, "channels_kept": 0.5},
                ("skipped head.2: its outputs are the classes",),
            ),
            (f"export {name}", "export", False, 2.0, {"parity_max_difference": 2.9e-6, "opset": 21}, ()),
            (
                f"quantize {name}",
                "quantize",
                False,
                1.24,
                {
                    "nodes_int8": 9,
                    "nodes_float": 0,
                    "size_mb": 0.6 / cut,
                    "agreement": 0.9972,
                    "signal_to_noise_db": 31.4,
                },
                ("calibrated on 256 examples",),
            ),
        ]
    return tuple(
        StepRow(
            key=f"{i:02x}" * 32,
            title=t,
            stage=s,
            stored=st,
            seconds=sec,
            changed=s != "prune" or i != 3,
            metrics=m,
            notes=n,
        )
        for i, (t, s, st, sec, m, n) in enumerate(made)
    )


def report(*targets, name="digits", error="", names=CANDIDATES, **changes):
    """A report of these targets, which are (TargetRow, rows) pairs."""
    values = {
        "attar": "0.1.0",
        "name": name,
        "verdict": "failed" if error else worst(row.verdict for row, _ in targets),
        "error": error,
        "recipe": {
            "name": name,
            "digest": "5d0c" * 16,
            "text": "version: 1\nname: digits\nseed: 7\ntask: classification\ndata: {source: digits, image_size: 32}\n"
            'model: {source: "stages.zoo:seed_cnn", train: {epochs: 12}}\nstages:\n'
            "  - distill: {students: [{keep: 1.0}, {keep: 0.5}, {keep: 0.25}], epochs: 8, temperature: 4.0}\n"
            "  - prune: {to: budget}\n  - export: {}\n  - quantize: {engine: auto}\n"
            "targets:\n  - use: local  # <b>&amp; https://example.org</b>\n",
        },
        "data": {
            "source": "digits",
            "digest": "77aa" * 16,
            "examples": {"train": 1078, "validation": 360, "test": 359},
            "classes": [str(i) for i in range(10)],
            "preprocessing": {"image_size": 32, "channels": 3, "divide_by": 16.0, "mean": [0.0], "std": [1.0]},
        },
        "targets": tuple(row for row, _ in targets),
        "candidates": tuple(itertools.chain.from_iterable(rows for _, rows in targets)),
        "steps": steps(names),
        "seconds": 84.2,
        "frame_seconds": 0.31,
        "libraries": {"attar": "0.1.0", "numpy": "2.3.1", "onnx": "1.22.0", "onnxruntime": "1.32.0", "torch": "2.13.0"},
    }
    return Report(**{**values, **changes})


def sample(kind):
    """One of the reports that the forms must be able to show."""
    if kind == "failed":
        return report(
            error="prune keep 0.25: the pruned network no longer runs: shape '[64, 4096]' is bad\n  help: see `attar`",
            steps=steps(CANDIDATES)[:4],
        )
    if kind == "two targets":
        return report(target(), target("raspberry-pi-5", MISSED))
    if kind == "one candidate":
        return report(target(candidates={"keep 0.5": CANDIDATES["keep 0.5"]}), names=["keep 0.5"])
    if kind == "no limits":
        return report(target(limits={}))
    if kind == "hostile":
        names = {f"a|b {EVIL}": CANDIDATES["keep 1"], "[red]*x*_y_ `code` \x1b[31m\u202e": CANDIDATES["keep 0.25"]}
        row, rows = target(EVIL, candidates=names)
        row = row.model_copy(
            update={"summary": EVIL, "environment": {EVIL: EVIL, "nested": {"a": [EVIL, 1.5, None, True]}}}
        )
        rows = [r.model_copy(update={"reason": f"{EVIL} {r.reason}", "lineage": (EVIL,)}) for r in rows]
        return report(
            (row, rows),
            name=EVIL,
            names=names,
            recipe={"name": EVIL, "digest": "0" * 64, "text": f"```\n{EVIL}\n```"},
            attar=EVIL,
            libraries={EVIL: EVIL},
            data={"source": EVIL, "classes": [EVIL], "preprocessing": {EVIL: EVIL}},
        )
    return report(target(limits={"met": MET, "missed": MISSED, "inconclusive": INCONCLUSIVE}[kind]))


KINDS = ("met", "missed", "inconclusive", "failed", "two targets", "one candidate", "no limits", "hostile")
