"""Energy: fake trees of the kernel's files, whose counters really move; the arithmetic; the grades."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import types
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from probing import METER, run

from targets.budget import Budget, Measurement, judge
from targets.energy import Spent, counting, energy_measurement, payback, together
from targets.probe.counters import Rails, Rapl
from targets.probe.energy import Meter, measure
from targets.target import Energy
from targets.testing import tiny_onnx

NOWHERE = "/nowhere"


class Powercap:
    """A powercap tree whose packages draw `idle` watts, and more while something is worked at. A thread moves it."""

    def __init__(self, root, idle=10.0, range_uj=10**12, zones=("package-0",)):
        self.root, self.idle, self.range_uj, self.zones = root, idle, range_uj, zones
        self.watts, self.uj, self.name, self.worked_j, self.calls = idle, 0.0, "", Counter(), Counter()
        self.at, self.lock, self.done = time.perf_counter(), threading.Lock(), threading.Event()
        for number, name in enumerate(zones):
            zone(root, f"intel-rapl:{number}", name, 0, range_uj)
        self.thread = threading.Thread(target=self._follow)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.thread.join()

    def _follow(self):
        while not self.done.wait(0.002):
            self.draw()

    def draw(self, watts=None, name=""):
        """Brings the counters up to now; from now on, so many watts are drawn, above idle by `name`."""
        with self.lock:
            now = time.perf_counter()
            seconds, self.at = now - self.at, now
            self.uj += self.watts * seconds * 1e6
            self.worked_j[self.name] += (self.watts - self.idle) * seconds
            if watts is not None:
                self.watts, self.name = watts, name
            for number in range(len(self.zones)):
                write(self.root / f"intel-rapl:{number}/energy_uj", int(self.uj) % self.range_uj)

    def work(self, name, watts, seconds=0.004):
        """One inference that takes so many watts above idle."""

        def run():
            self.draw(self.idle + watts, name)
            time.sleep(seconds)
            self.draw(self.idle)
            self.calls[name] += 1

        return run


def zone(root, place, name, energy_uj, range_uj=10**12):
    folder = root / place
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    write(folder / "energy_uj", energy_uj)
    return folder / "energy_uj"


def write(path, value):
    """In one step: a reader sees the old value or the new one."""
    if path.parent.exists():
        aside = path.with_name(path.name + ".part")
        aside.write_text(f"{value}\n")
        aside.replace(path)


def spin(cpu_s):
    until = time.thread_time() + cpu_s
    while time.thread_time() < until:
        pass


# RAPL


def test_rapl_adds_packages_and_their_dram_and_nothing_twice(tmp_path):
    counted = [
        zone(tmp_path, "intel-rapl:0", "package-0", 5),
        zone(tmp_path, "intel-rapl:1", "package-1", 7),
        zone(tmp_path, "intel-rapl:1/intel-rapl:1:2", "dram", 9),
    ]
    parts = [
        zone(tmp_path, "intel-rapl:0/intel-rapl:0:0", "core", 5),
        zone(tmp_path, "intel-rapl:0/intel-rapl:0:1", "uncore", 5),
        zone(tmp_path, "intel-rapl:2", "psys", 5),
        zone(tmp_path, "intel-rapl-mmio:0", "package-0", 5),
    ]
    rapl = Rapl(tmp_path)
    assert rapl.name == "RAPL package-0, package-1 and its DRAM"
    assert rapl.joules() == 0
    for path in counted:
        write(path, 1_000_009)
    for path in parts:
        write(path, 77_000_000)
    assert rapl.joules() == pytest.approx((1_000_004 + 1_000_002 + 1_000_000) / 1e6)


def test_rapl_goes_on_where_the_counter_starts_anew(tmp_path):
    path = zone(tmp_path, "intel-rapl:0", "package-0", 900_000, range_uj=1_000_000)
    rapl = Rapl(tmp_path)
    for value in (100_000, 950_000, 50_000):
        write(path, value)
        rapl.joules()
    assert rapl.joules() == pytest.approx(0.2 + 0.85 + 0.1)


def test_energy_of_two_models_by_rapl(tmp_path):
    with Powercap(tmp_path, range_uj=12_000_000) as tree:  # starts anew several times
        runs = {"large": tree.work("large", 20), "small": tree.work("small", 5)}
        answer = measure(runs, {"powercap": str(tmp_path)}, 0.75)
    for name, got in answer.items():
        assert (got["instrument"], got["remark"]) == ("counter: RAPL package-0", "")
        assert len(got["windows"]) == 3
        assert all(w["idle_watts"] == pytest.approx(10, rel=0.05) for w in got["windows"])
        found = energy_measurement(json.loads(json.dumps(got)), 3.0, 0.95)
        truth = 1e3 * tree.worked_j[name] / tree.calls[name]
        assert found.value == pytest.approx(truth, rel=0.1)
        assert found.low < found.value < found.high
        assert (found.metric, found.samples) == ("energy_mj", 3)
        assert found.instrument == "counter: RAPL package-0, idle subtracted"


def test_a_counter_that_stands_still_is_no_instrument(tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    with Meter({"powercap": str(tmp_path)}) as meter:
        assert (meter.instrument, meter.joules()) == ("", None)
        assert meter.remark == "RAPL package-0 stands still (a virtual machine?)"


def test_a_counter_for_root_only_says_how_to_open_it():
    folder = Path(tempfile.mkdtemp(dir="/tmp"))
    try:
        zone(folder, "intel-rapl:0", "package-0", 5).chmod(0o400)
        folder.chmod(0o755)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        else:
            (folder / "intel-rapl:0/energy_uj").chmod(0)
        try:
            meter = Meter({"powercap": str(folder)})
        finally:
            if root:
                os.seteuid(0)
    finally:
        shutil.rmtree(folder)
    assert meter.instrument == ""
    assert "readable by root only (CVE-2020-8694)" in meter.remark
    assert meter.remark.endswith(f"sudo chmod a+r {folder}/intel-rapl:*/energy_uj")


def test_a_counter_that_breaks_on_the_way_leaves_the_windows_before(tmp_path):
    with Powercap(tmp_path) as tree:
        run, started = tree.work("a", 5), time.perf_counter()

        def work():
            run()
            if time.perf_counter() - started > 0.6:
                (tmp_path / "intel-rapl:0/energy_uj").unlink(missing_ok=True)
                tree.done.set()

        got = measure({"a": work}, {"powercap": str(tmp_path)}, 1.2)["a"]
    assert got["instrument"] == "counter: RAPL package-0"
    assert got["remark"].startswith("the instrument failed while measuring: ")
    assert got["windows"][-1]["joules"] is None
    assert got["windows"][-1]["cpu_seconds"] >= 0


def test_the_probe_reads_the_counter_that_the_job_names(tmp_path):
    tiny_onnx(tmp_path / "a.onnx")
    np.save(tmp_path / "x.npy", np.zeros((4, 3, 4, 4), np.float32))
    (tmp_path / "powercap").mkdir()
    with Powercap(tmp_path / "powercap"):
        energy, meter = {"powercap": str(tmp_path / "powercap"), "rails": []}, {**METER, "energy_s": 0.6}
        code, answer = run(tmp_path, ["energy"], energy=energy, meter=meter)
    got = answer["models"]["a"]["energy"]
    assert (code, got["instrument"], len(got["windows"])) == (0, "counter: RAPL package-0", 3)
    for window in got["windows"]:
        assert window["joules"] / window["seconds"] == pytest.approx(10, rel=0.1)
        assert window["inferences"] > 100
        assert window["cpu_seconds"] > 0.2 * window["seconds"]


# Rails


def rail(root, number, chip, index, label, mv, ma):
    folder = root / f"hwmon{number}"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "name").write_text(f"{chip}\n")
    if label:
        (folder / f"in{index}_label").write_text(f"{label}\n")
    (folder / f"in{index}_input").write_text(f"{mv}\n")
    (folder / f"curr{index}_input").write_text(f"{ma}\n")
    return folder


@pytest.fixture
def orin(tmp_path):
    """The rails of a Jetson Orin NX."""
    rail(tmp_path, 0, "nvme", 1, "VDD_IN", 1, 1)
    for index, (label, ma) in enumerate({"VDD_IN": 1000, "VDD_CPU_GPU_CV": 200, "VDD_SOC": 300}.items(), 1):
        rail(tmp_path, 3, "ina3221", index, label, 5000, ma)
    (tmp_path / "hwmon3/in7_label").write_text("sum of shunt voltages\n")
    return tmp_path


def test_rails_are_voltage_times_current_integrated(orin):
    rails = Rails(orin, ("VDD_CPU_GPU_CV", "VDD_SOC"))
    assert rails.name == "ina3221 VDD_CPU_GPU_CV + ina3221 VDD_SOC"
    assert rails.watts() == pytest.approx(2.5)
    first, at = rails.joules(), time.perf_counter()
    time.sleep(0.05)
    write(orin / "hwmon3/curr3_input", 1300)
    last, seconds = rails.joules(), time.perf_counter() - at
    assert last - first == pytest.approx((2.5 + 7.5) / 2 * seconds, rel=0.05)


def test_a_chip_of_one_channel_is_called_by_its_own_name(tmp_path):
    folder = rail(tmp_path, 0, "ina226", 1, "", 5000, 100)
    assert Rails(tmp_path, ("ina226",)).watts() == pytest.approx(0.5)
    (folder / "power1_input").write_text("510000\n")  # the chip's own product goes first
    assert Rails(tmp_path, ("ina226",)).watts() == pytest.approx(0.51)
    (folder / "label").write_text("vdd_core\n")
    assert Rails(tmp_path, ("vdd_core",)).name == "ina226 vdd_core"


def test_energy_by_a_rail(orin):
    worked, done = [0.0], threading.Event()

    def follow():  # 5 W, or 10 W while something is worked at
        while not done.wait(0.002):
            write(orin / "hwmon3/curr1_input", 2000 if time.perf_counter() - worked[0] < 0.015 else 1000)

    def run():
        worked[0] = time.perf_counter()
        time.sleep(0.003)
        worked[0] = time.perf_counter()

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        got = measure({"a": run}, {"hwmon": str(orin), "rails": ["VDD_IN"]}, 1.2)["a"]
    finally:
        done.set()
        thread.join()
    assert got["instrument"] == "rail: ina3221 VDD_IN"
    for window in got["windows"]:
        assert window["idle_watts"] == pytest.approx(5, rel=0.1)
        assert window["joules"] / window["seconds"] == pytest.approx(10, rel=0.1)


def test_following_rails_costs_little_and_is_not_charged_to_the_model(orin):
    with Meter({"hwmon": str(orin), "rails": ("VDD_IN",)}) as meter:
        time.sleep(0.5)
        assert 0 < meter.own_cpu_s < 0.1
    got = measure({"a": lambda: time.sleep(0.01)}, {"hwmon": str(orin), "rails": ("VDD_IN",)}, 0.9)["a"]
    assert all(w["cpu_seconds"] < 0.1 * w["seconds"] for w in got["windows"])


def test_a_rail_of_the_whole_board_is_not_added_to_its_parts(orin):
    assert Meter({"hwmon": str(orin), "rails": ["VDD_SOC", "VDD_IN"]}).instrument == "rail: ina3221 VDD_IN"


def test_a_board_without_a_rail_for_the_whole_adds_the_others(tmp_path):
    rails = ["VDD_IN", "VDD_GPU_SOC", "VDD_CPU_CV", "VIN_SYS_5V0"]  # of an Orin NX, and of an AGX Orin
    for index, label in enumerate(rails[1:], 1):
        rail(tmp_path, 2, "ina3221", index, label, 5000, 100)
    meter = Meter({"rails": rails, "hwmon": str(tmp_path), "provider": "TensorrtExecutionProvider"})
    assert meter.instrument == "rail: ina3221 VDD_GPU_SOC + ina3221 VDD_CPU_CV + ina3221 VIN_SYS_5V0"


def test_an_unknown_rail_names_those_that_are_there(orin):
    meter = Meter({"hwmon": str(orin), "rails": ["VDD_SOC", "VDD_TPU"], "powercap": NOWHERE})
    assert meter.instrument == ""
    assert meter.remark.startswith(f"rails: no rail called VDD_TPU in {orin}; there: VDD_CPU_GPU_CV, VDD_IN, VDD_SOC")


# NVML: the library is the driver's, so its place is taken


class FakeNvml(types.ModuleType):
    """GPUs of 50 W each, whose counters move every 0.1 s."""

    class NVMLError(Exception):
        pass

    def __init__(self, names, error=""):
        super().__init__("pynvml")
        self.names, self.error = names, error

    def nvmlInit(self): ...

    def nvmlDeviceGetCount(self):
        return len(self.names)

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetName(self, gpu):
        return self.names[gpu]

    def nvmlDeviceGetUUID(self, gpu):
        return f"GPU-{gpu}abc"

    def nvmlDeviceGetTotalEnergyConsumption(self, gpu):
        if self.error:
            raise self.NVMLError(self.error)
        return int(time.perf_counter() / 0.1) * 5000


CUDA = {"provider": "CUDAExecutionProvider", "powercap": NOWHERE}


def test_windows_by_nvml_begin_and_end_with_a_step(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml([b"T4"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    got = measure({"a": lambda: time.sleep(0.001)}, CUDA, 1.65)["a"]
    assert got["instrument"] == "counter: NVML, GPU 0 (T4)"
    for window in got["windows"]:  # unaligned, 0.55 s hold five steps or six
        assert window["joules"] / window["seconds"] == pytest.approx(50, rel=0.05)
        assert window["idle_watts"] == pytest.approx(50, rel=0.08)


@pytest.mark.parametrize(
    ("visible", "instrument"),
    [
        (None, "counter: NVML, GPU 0 (T4), GPU 1 (L4)"),
        ("1", "counter: NVML, GPU 1 (L4)"),
        ("GPU-0ab", "counter: NVML, GPU 0 (T4)"),
        ("", ""),
        ("7", ""),
    ],
)
def test_only_visible_gpus_are_counted(monkeypatch, visible, instrument):
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(["T4", "L4"]))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert Meter(CUDA).instrument == instrument


def test_the_processor_is_added_to_the_gpu_and_never_stands_for_it(monkeypatch, tmp_path):
    zone(tmp_path, "intel-rapl:0", "package-0", 5)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(["T4"]))
    settings = {**CUDA, "powercap": str(tmp_path)}
    assert Meter(settings).instrument == "counter: NVML, GPU 0 (T4) + RAPL package-0"
    assert Meter({**settings, "provider": "CPUExecutionProvider"}).instrument == "counter: RAPL package-0"
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml(["Orin"], error="Not Supported"))
    assert (Meter(settings).instrument, Meter(settings).remark) == ("", "NVML: Not Supported")
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert "pip install nvidia-ml-py" in Meter(settings).remark
    meter = Meter({**settings, "provider": "ROCMExecutionProvider"})
    assert (meter.instrument, meter.remark) == ("", "no instrument is known for ROCMExecutionProvider")


# No instrument


def test_without_an_instrument_there_is_cpu_time_of_all_threads():
    def run():
        thread = threading.Thread(target=spin, args=(0.004,))
        thread.start()
        thread.join()

    started = time.perf_counter()
    got = measure({"a": run}, {"powercap": NOWHERE}, 3)["a"]
    assert time.perf_counter() - started < 1.5
    assert (got["instrument"], got["remark"]) == ("", "RAPL: no package under /nowhere")
    assert len(got["windows"]) == 3
    for window in got["windows"]:
        assert (window["joules"], window["idle_watts"]) == (None, None)
        assert window["seconds"] >= 0.2
        assert window["cpu_seconds"] / window["inferences"] == pytest.approx(0.004, rel=0.25)
    found = energy_measurement(got, 2.5, 0.95)
    assert found.value == pytest.approx(10, rel=0.25)
    assert found.instrument == "estimate: CPU time x 2.5 W per busy core (stated in the profile)"


def test_models_take_turns_in_opening_a_round():
    order = []
    measure(
        {name: lambda name=name: order.append(name) or time.sleep(0.03) for name in "abc"}, {"powercap": NOWHERE}, 1
    )
    rounds = [key for key, before in zip(order, [None, *order], strict=False) if key != before]
    assert "".join(rounds) == "abcbcacab"


def test_very_slow_inferences_end_early():
    got = measure({"a": lambda: time.sleep(0.3)}, {"powercap": NOWHERE}, 0.1)["a"]
    assert [w["inferences"] for w in got["windows"]] == [1]
    assert energy_measurement(got, 2.5, 0.95) is None


@pytest.mark.parametrize(
    ("provider", "options", "accelerated"),
    [
        ("CPUExecutionProvider", {}, False),
        ("XnnpackExecutionProvider", {}, False),
        ("OpenVINOExecutionProvider", {"device_type": "CPU_FP32"}, False),
        ("OpenVINOExecutionProvider", {"device_type": "NPU"}, True),
        ("QNNExecutionProvider", {}, True),
        ("CUDAExecutionProvider", {}, True),
    ],
)
def test_cpu_time_estimates_nothing_of_an_accelerator(provider, options, accelerated):
    settings = {"powercap": NOWHERE, "provider": provider, "options": options}
    got = measure({"a": lambda: time.sleep(0.001)}, settings, 0.5)["a"]
    assert got["accelerated"] is accelerated
    assert (energy_measurement(got, 2.5, 0.95) is None) is accelerated


# From windows to a measurement


def answer(*windows, instrument="counter: RAPL package-0"):
    keys = ("joules", "seconds", "idle_watts", "cpu_seconds", "inferences")
    return {"instrument": instrument, "windows": [dict(zip(keys, w, strict=True)) for w in windows]}


def test_idle_is_subtracted_from_each_window():
    found = energy_measurement(answer((7, 0.5, 10, 0.5, 100), (12, 1.0, 10, 1.0, 100)), None, 0.95)
    assert found.value == pytest.approx(20)  # both windows
    assert (found.low, found.high, found.samples) == (pytest.approx(20), pytest.approx(20), 2)


def test_a_load_below_the_noise_is_bounded_by_all_that_was_counted():
    windows = [(5.0, 0.5, 10.1, 0.5, 100), (5.0, 0.5, 10.2, 0.5, 100), (5.0, 0.5, 10.3, 0.5, 100)]
    found = energy_measurement(answer(*windows), None, 0.95)
    assert found.value == pytest.approx(-1)
    assert found.low < -1
    assert found.high == pytest.approx(50)
    assert "the load is lost in the noise of idle" in found.instrument
    verdicts = [judge(Budget(energy_mj=limit), {"energy_mj": found})[0].verdict for limit in (49, 51)]
    assert verdicts == ["inconclusive", "met"]


def test_an_estimate_is_cpu_time_times_watts_and_never_meets():
    found = energy_measurement(answer((None, 1, None, 0.2, 100), (None, 1, None, 0.4, 100), instrument=""), 5.0, 0.9)
    assert found.value == pytest.approx(15)  # the mean of 10 and 20 mJ
    verdicts = [judge(Budget(energy_mj=limit), {"energy_mj": found})[0].verdict for limit in (1e6, 20)]
    assert verdicts == ["inconclusive", "inconclusive"]
    sure = energy_measurement(answer((None, 1, None, 0.2, 100), (None, 1, None, 0.2, 100), instrument=""), 5.0, 0.9)
    assert judge(Budget(energy_mj=9), {"energy_mj": sure})[0].verdict == "missed"


def test_no_instrument_and_no_watts_is_no_measurement():
    windows = answer((None, 1, None, 0.2, 100), (None, 1, None, 0.4, 100), instrument="")
    assert energy_measurement(windows, None, 0.95) is None


def test_a_counter_that_broke_at_once_falls_back_to_an_estimate():
    found = energy_measurement(answer((9, 1, 5, 0.2, 100), (None, 1, None, 0.2, 100)), 5.0, 0.95)
    assert found.instrument.startswith("estimate: ")


# What a computation here costs


def test_spent_by_a_counter_holds_idle_and_survives_many_starts_of_the_counter(tmp_path, monkeypatch):
    monkeypatch.setattr(Rapl, "period_s", 0.005)
    with Powercap(tmp_path, range_uj=1_000_000) as tree, counting(Energy(powercap=str(tmp_path))) as spent:
        time.sleep(0.5)
    assert tree.uj > 4e6
    assert spent.joules == pytest.approx(10 * spent.seconds, rel=0.05)
    assert spent.instrument == "counter: RAPL package-0, idle included"


def test_spent_without_a_counter_is_cpu_time_with_children():
    code = "import time\nwhile time.process_time() < 0.2: pass"
    with counting(Energy(powercap=NOWHERE, power_w=4)) as spent:
        spin(0.1)
        subprocess.run([sys.executable, "-c", code], check=True)
    assert 0.3 <= spent.cpu_seconds < 0.6
    assert spent.joules == pytest.approx(4 * spent.cpu_seconds)
    assert spent.instrument == "estimate: CPU time x 4 W per busy core (stated in the profile)"


def test_spent_is_told_where_the_work_fails_and_where_nothing_is_known():
    def fails():
        spin(0.05)
        return 1 / 0

    with pytest.raises(ZeroDivisionError), counting(Energy(powercap=NOWHERE)) as spent:
        fails()
    assert (spent.joules, spent.instrument) == (None, "")
    assert spent.cpu_seconds >= 0.05


def test_steps_add_up_also_from_their_json():
    steps = [Spent(2.0, "counter: x", 1.0, 0.5), Spent(3.5, "counter: x", 2.0, 1.0)]
    stored = [Spent(**json.loads(json.dumps(step.to_json()))) for step in steps]
    assert together(stored) == Spent(5.5, "counter: x", 3.0, 1.5)
    mixed = together([*steps, Spent(1.0, "estimate: y", 1.0, 1.0)])
    assert (mixed.joules, mixed.instrument) == (6.5, "estimate: partly counter: x, partly y")
    assert together([*steps, Spent(None, "", 1.0, 1.0)]) == Spent(None, "", 4.0, 2.5)
    assert together([]).joules is None


def mj(value, low, high, instrument="counter: x, idle subtracted"):
    return Measurement("energy_mj", value, low, high, 6, instrument)


def test_payback_is_cost_over_savings_with_the_worst_of_both_intervals():
    found = payback(Spent(30.0, "counter: x, idle included"), mj(10, 9, 11), mj(4, 3, 5))
    assert (found.inferences, found.saved_mj) == (pytest.approx(5000), pytest.approx(6))
    assert (found.low, found.high) == (pytest.approx(30 / 0.008), pytest.approx(30 / 0.004))
    assert found.instrument == "counter: partly x, idle included, partly x, idle subtracted"


def test_payback_may_never_come():
    perhaps = payback(Spent(30.0, "counter: x"), mj(5, 4, 6), mj(4, 3, 5))
    assert (perhaps.inferences, perhaps.low, perhaps.high) == (pytest.approx(30000), pytest.approx(10000), None)
    never = payback(Spent(30.0, "counter: x"), mj(4, 3.9, 4.1), mj(5, 4.9, 5.1))
    assert (never.inferences, never.low, never.high) == (None, None, None)


def test_payback_of_a_mixture_is_an_estimate_and_of_unlike_instruments_nothing():
    estimated = mj(4, 3, 5, "estimate: y")
    found = payback(Spent(30.0, "counter: x"), mj(10, 9, 11, "estimate: y"), estimated)
    assert found.instrument.startswith("estimate: ")
    assert payback(Spent(30.0, "counter: x"), mj(10, 9, 11), estimated) is None
    assert payback(Spent(), mj(10, 9, 11), mj(4, 3, 5)) is None


# On hardware that has them


@pytest.mark.device
@pytest.mark.parametrize("provider", ["CPUExecutionProvider", "CUDAExecutionProvider"])
def test_the_machines_own_counter(provider):
    got = measure({"a": lambda: spin(0.001)}, {"provider": provider}, 3)["a"]
    if not got["instrument"]:
        pytest.skip(got["remark"])
    for window in got["windows"]:
        assert window["joules"] > 0
        assert 0.1 < window["idle_watts"] < 2000
