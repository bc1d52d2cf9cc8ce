"""Runs ONNX models on the machine that it is started on, and answers with raw numbers.

This package (standard library, numpy, onnxruntime; Python 3.9 or later; it imports nothing else of attar) goes to a
device as one zip file, made by `targets.devices.bundle`:

    python probe.pyz JOB.json               does one job in this fresh process; see `targets.probe.job`
    python probe.pyz keep SILENCE_S PYTHON  serves a workspace over its standard streams; see `targets.probe.keeper`
    python probe.pyz identity               says what this machine is; see `targets.probe.identity`

All paths in a job are relative to the job's own folder, and everything is written there.

The job:
    version     2
    tasks       any of "session", "latency", "throughput", "operators", "energy", "outputs"; or "memory" alone, and then
                one model
    models      {name: {"file": ONNX file, "inputs": {input name: .npy file}, "whole": bool, "axes": {name: size}}}
                an input file holds k examples (k, *shape without the batch axis), from which batches are made; they
                are converted to the input's dtype where that only changes the precision;
                or, if "whole", the one array that the input is fed with every time, batch axis and all, in the
                input's own dtype (floats, integers, bool);
                axes that the file leaves open are fixed at the sizes of "axes", a batch too; may be left out
    runtime     provider, options, fallback (providers that may take what the first does not; those that this
                onnxruntime does not have are left out), threads
    meter       warmup_s, samples, blocks, max_seconds, throughput_batch, pin, energy_s
    batch       inputs at a time, for "outputs"
    energy      powercap (root of the powercap tree), rails (labels of hwmon power rails to add up; empty: none)
    result      the answer's file, default "result.json"

The answer: {"version": 2, "environment": {...}, "models": {name: {...}}}, with for each model
    session_ms          times to create a session, milliseconds, one per creation
    warmup              {"seconds": spent, "stable": bool}: whether times had settled when measuring latency began
    latency_ms          one list of milliseconds per block: one request of batch 1 at a time, as a single client sees it
    inputs              {"count": different inputs that latencies were taken on, in a circle, "first": [place of each
                         block's first one]}
    throughput_per_s    inferences a second of each block at batch `throughput_batch`; runs a second of whole arrays
    operators           {"runs": n, "run_us": [wall time of each run under the profiler],
                         "nodes": [{"name", "op_type", "provider", "inputs": [[dtype, shape], ...], "outputs": [...],
                                    "us": [one duration per run], "ran": in how many runs}, ...] in execution order}
                        names, types and dtypes are those of the graph that really ran, after optimization (see
                        `targets.probe.operators.source_name`); durations are whole microseconds, as onnxruntime's
                        profiler gives them. A node counts once per run: what runs within it (If, Loop) is a node of
                        its own, with the sum of its turns, 0 where it was not run, and is taken off the outer one
    assignment          {provider: number of the model's nodes}, before they were fused; None where onnxruntime is too
                        old to tell
    energy              {"instrument": "counter: ...", "rail: ..." or "" where there is none, "remark": why, or what it
                         leaves out, "accelerated": whether the work is not in the CPU time, "windows": [{"joules" (or
                         None), "seconds", "idle_watts" (or None), "cpu_seconds", "inferences"}, ...]}
    outputs             a .npy file (k, ...), float32, of the first output; of whole arrays: that output as it is
    peak_memory_mb      most resident memory of a process that serves only this model at batch 1 (10^6 bytes)
    runtime_memory_mb   of that: before the session was created
All models are measured in turns, in short blocks whose order rotates, so that a ratio of two models holds while the
machine's speed drifts. Each block opens with a few inferences that are not kept: the caches held another model.

The environment: cpu, platform, python, numpy, onnxruntime, providers (of the session), settings, pinned (the cores that
the process stayed on; empty: any), memory_mb, before and after (load, frequencies, governor, temperature, throttling,
free memory: what the machine lets us read).

On failure the answer is {"version": 2, "error": "..."} and the exit code is 1.
"""

__all__ = ["VERSION"]

VERSION = 2
