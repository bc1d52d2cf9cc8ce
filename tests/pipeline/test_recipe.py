"""Recipes: what is read, and every fault with its line, its key path, what is allowed and what to do next."""

import random
import subprocess
import sys
from contextlib import suppress

import pytest
import yaml

from pipeline.recipe import TEMPLATE, DataSpec, Recipe, StageCall, TargetSpec, load, load_text
from stages.data import Preprocessing
from stages.settings import DistillConfig, ExportConfig, PruneConfig, QuantizeConfig
from targets.errors import InputError
from targets.target import load as load_target

GOOD = """\
version: 1
name: good
data: {source: digits, image_size: 32, channels: 3}
model: {source: "stages.zoo:seed_cnn", train: {epochs: 12}}
stages:
  - distill: {students: [{keep: 1.0}, {keep: 0.5}], epochs: 8}
  - prune: {keep: 0.5}
  - distill:
  - quantize: {}
  - export:
targets:
  - use: local
    budget: {size_mb: 0.5}
"""


@pytest.fixture
def faults(tmp_path):
    """Faults of a recipe: the good one with `changes` (old, new) applied, or another text."""

    def read(*changes, text=GOOD):
        for old, new in changes:
            assert old in text
            text = text.replace(old, new, 1)
        with pytest.raises(InputError) as caught:
            load_text(text, str(tmp_path / "r.yaml"))
        assert caught.value.exit_code == 2
        return caught.value.faults

    return read


@pytest.fixture
def fault(faults):
    def read(*changes, text=GOOD):
        found = faults(*changes, text=text)
        assert len(found) == 1, "\n".join(map(str, found))
        return found[0]

    return read


def test_a_recipe_becomes_frozen_values(tmp_path):
    (tmp_path / "good.yaml").write_text(GOOD)
    recipe, document = load(tmp_path / "good.yaml")
    assert (recipe.name, recipe.seed, recipe.task) == ("good", 0, "classification")
    assert recipe.data == DataSpec(source="digits", image_size=32, channels=3)
    assert recipe.model.form == "torch"
    assert recipe.model.train.epochs == 12
    kinds = [DistillConfig, PruneConfig, DistillConfig, QuantizeConfig, ExportConfig]
    assert [type(call.config) for call in recipe.stages] == kinds
    assert recipe.stages[0].config.students[1].keep == 0.5
    assert recipe.stages[2].config == DistillConfig()
    assert document.value["name"] == "good"
    with pytest.raises(ValueError, match="frozen"):
        recipe.seed = 1


def test_settings_of_stages_are_in_the_dump(tmp_path):
    recipe, _ = load_text(GOOD, str(tmp_path / "r.yaml"))
    dumped = recipe.model_dump(mode="json")
    assert dumped["stages"][1] == {"name": "prune", "config": PruneConfig(keep=0.5).model_dump(mode="json")}


def test_the_template_is_a_sound_recipe(tmp_path):
    recipe, _ = load_text(TEMPLATE.format(name="mine"), str(tmp_path / "mine.yaml"))
    assert recipe.name == "mine"


def test_overrides_are_checked_like_the_file(tmp_path):
    (tmp_path / "good.yaml").write_text(GOOD)
    recipe, _ = load(tmp_path / "good.yaml", {"stages.1.prune.keep": "0.75", "seed": "9"})
    assert recipe.stages[1].config.keep == 0.75
    assert recipe.seed == 9
    with pytest.raises(InputError, match=r"--set: stages\[1\]\.prune\.keep: 7 must be above 0 and at most 1"):
        load(tmp_path / "good.yaml", {"stages.1.prune.keep": "7"})
    with pytest.raises(InputError, match=r"--set: data\.source: unknown data source 'digit'"):
        load(tmp_path / "good.yaml", {"data.source": "digit"})


def test_data_specs_carry_the_fields_of_preprocessing():
    fixed = {"resize", "colours", "layout", "order"}  # told to servers, not asked of users
    for name, field in Preprocessing.model_fields.items():
        if name in fixed:
            continue
        mine = DataSpec.model_fields[name]
        assert mine.description
        if name != "divide_by":
            assert (str(mine.annotation), mine.default) == (str(field.annotation), field.default)


def test_five_faults_at_once_each_with_its_line(faults):
    found = faults(
        ("source: digits", "sourse: digits"),
        ("prune: {keep: 0.5}", "prune: {keep: 1.3}"),
        ("- quantize", "- quantise"),
        ("use: local", "use: locl"),
        ("size_mb: 0.5", "size_mb: -1"),
    )
    assert [(f.line, f.key, f.what) for f in found] == [
        (3, "data.sourse", "unknown key"),
        (7, "stages[1].prune.keep", "1.3 must be above 0 and at most 1"),
        (9, "stages[3].quantise", "unknown stage"),
        (12, "targets[0].use", "no target is called 'locl'"),
        (13, "targets[0].budget.size_mb", "-1 must be above 0"),
    ]
    assert "did you mean 'source'?" in found[0].help
    assert "attar stages show prune" in found[1].help
    assert "did you mean 'quantize'?" in found[2].help
    assert "did you mean 'local'?" in found[3].help
    assert "megabytes" in found[4].help


def test_a_fault_is_shown_with_file_line_and_help(fault, tmp_path):
    shown = str(fault(("prune: {keep: 0.5}", "prune: {keep: 1.3}")))
    assert shown.splitlines() == [
        f"{tmp_path}/r.yaml:7: stages[1].prune.keep: 1.3 must be above 0 and at most 1",
        "    7 |   - prune: {keep: 1.3}",
        "   help: share of channels that stay; see `attar stages show prune`",
    ]


@pytest.mark.parametrize(
    ("old", "new", "key", "what"),
    [
        ("version: 1", "version: 2", "version", "2 must be one of 1"),
        ("version: 1\n", "", "version", "is required and missing"),
        ("name: good", "name: a/b", "name", "'a/b'"),
        ("name: good", "name: ..", "name", "'..'"),
        ("name: good", "name: good\nsede: 1", "sede", "unknown key"),
        ("name: good", "name: good\nseed: -1", "seed", "-1 must be at least 0"),
        ("name: good", "name: good\ntask: detection", "task", "'detection' must be one of 'classification'"),
        ("{source: digits, ", "{source: digits, validation: 0.5, test: 0.5, ", "data", "leave nothing to train on"),
        ("{source: digits, ", "{source: digits, limit: 0, ", "data.limit", "0 must be at least 1"),
        ("channels: 3}", "channels: 3, mean: [0.1, 0.2]}", "data.mean", "has 2 values, where one, or one per channel"),
        ("channels: 3}", "channels: 3, std: []}", "data.std", "has 0 values"),
        ("channels: 3}", "channels: 3, std: [0.0]}", "data.std[0]", "0.0 must be above 0"),
        ("channels: 3}", "channels: 3, args: {a: 1}}", "data.args", "are for data that a function gives"),
        ("{source: digits, image_size: 32, channels: 3}", "digits", "data", "'digits' must be a mapping"),
        ("source: digits", "source: digit", "data.source", "unknown data source 'digit'"),
        ("source: digits", "source: ./gone.npz", "data.source", "'./gone.npz': no such file or folder"),
        ("source: digits", f"source: {'x' * 300}", "data.source", "unknown data source"),
        ("source: digits", "source: r.txt", "data.source", "'r.txt' is no data that attar reads"),
        ("source: digits", "source: 'stages.zoo:resnett'", "data.source", "stages.zoo has no function 'resnett'"),
        ("epochs: 12", "epochs: 0", "model.train.epochs", "0 must be at least 1"),
        ("epochs: 12", "epochs: twelve", "model.train.epochs", "'twelve' must be a whole number"),
        (", train: {epochs: 12}", "", "model", "the teacher has neither weights nor train"),
        (", train: {epochs: 12}", ", weights: gone.pt", "model.weights", "'gone.pt': no such file"),
        ("stages.zoo:seed_cnn", "seed_cnn", "model.source", "is neither 'module:function' nor an .onnx file"),
        ("stages.zoo:seed_cnn", "stages.zoo:seed_cn", "model.source", "stages.zoo has no function 'seed_cn'"),
        ("stages.zoo:seed_cnn", "stages.zo:seed_cnn", "model.source", "there is no module 'stages.zo'"),
        ("keep: 1.0}", "keep: 1.0, by: layers}", "stages[0].distill.students[0].by", "'layers' must be one of"),
        ("keep: 1.0}", "source: net}", "stages[0].distill.students[0].source", "must be 'module:function'"),
        ("keep: 1.0}", "source: 'stages.zoo:no'}", "stages[0].distill.students[0].source", "has no function 'no'"),
        ("keep: 1.0}", "keep: 0.5}", "stages[0].distill.students[1]", "'keep 0.5' is what students[0] is called"),
        (
            "- distill:\n",
            "- distill: {students: [{keep: 0.1}]}\n",
            "stages[2].distill.students",
            "a recipe branches once",
        ),
        ("prune: {keep: 0.5}", "prune: {}", "stages[1].prune", "one of to, keep and speedup must be given"),
        ("prune: {keep: 0.5}", "prune: {kep: 0.5, keep: 1.0}", "stages[1].prune.kep", "unknown key"),
        ("prune: {keep: 0.5}", "prune: 0.5", "stages[1].prune", "0.5 must be a mapping"),
        ("- quantize: {}", "- quantize", "stages[3]", "'quantize' must be a stage with its settings"),
        ("- quantize: {}", "- 5", "stages[3]", "5 must be a stage with its settings"),
        ("- quantize: {}", "- {}", "stages[3]", "{} must be a stage with its settings"),
        ("- quantize: {}", "- {quantize: {}, prune: {}}", "stages[3]", "holds 2 stages (quantize, prune)"),
        ("prune: {keep: 0.5}", "prune:\n    keep: 0.5", "stages[1]", "keep stands beside prune, not below it"),
        ("  - use: local\n    budget: {size_mb: 0.5}\n", "  []\n", "targets", "is empty"),
        ("use: local", "use: gone.yaml", "targets[0].use", "no such file"),
        ("size_mb: 0.5", "size: 0.5", "targets[0].budget.size", "unknown key"),
        ("use: local\n", "use: local\n    name: '..'\n", "targets[0].name", "'..'"),
        ("  - use: local\n", "  - use: local\n  - use: local\n", "targets[1]", "'local' is the name of targets[0] too"),
    ],
)
def test_each_fault_alone(fault, tmp_path, old, new, key, what):
    (tmp_path / "r.txt").touch()
    found = fault((old, new))
    assert found.key == key
    assert what in found.what
    assert found.line > 0 or what == "is required and missing"
    assert found.help


def test_stages_that_are_no_list(fault):
    text = GOOD.partition("stages:")[0] + "stages: {export: {}}\ntargets: [{use: local}]\n"
    found = fault(text=text)
    assert (found.key, found.what) == ("stages", "must be a list: one stage per item")


def _chain(*names, model='{source: "stages.zoo:seed_cnn", train: {}}'):
    settings = {"prune": "{keep: 0.5}"}
    stages = "".join(f"  - {name}: {settings.get(name, '{}')}\n" for name in names) or "  []\n"
    return (
        f"version: 1\nname: chain\ndata: {{source: digits}}\nmodel: {model}\n"
        f"stages:\n{stages}targets: [{{use: local}}]\n"
    )


@pytest.mark.parametrize(
    "names",
    [
        ("export",),
        ("export", "quantize"),
        ("quantize", "export"),
        ("distill", "prune", "distill", "export", "quantize"),
        ("prune", "distill", "quantize", "export"),
    ],
)
def test_chains_that_fit(tmp_path, names):
    recipe, _ = load_text(_chain(*names), str(tmp_path / "r.yaml"))
    assert [call.name for call in recipe.stages] == list(names)


@pytest.mark.parametrize(
    ("names", "key", "what"),
    [
        ((), "stages", "ends in a torch network, where an ONNX file is wanted"),
        (("distill",), "stages", "ends in a torch network, where an ONNX file is wanted"),
        (("quantize",), "stages", "ends in a torch network, where an ONNX file is wanted"),
        (
            ("prune", "export", "distill"),
            "stages[2].distill",
            "distill takes a torch network; stages[1].export already made it onnx",
        ),
        (
            ("export", "export"),
            "stages[1].export",
            "export takes a torch network; stages[0].export already made it onnx",
        ),
        (
            ("quantize", "prune", "export"),
            "stages[1].prune",
            "prune takes a torch network; stages[0].quantize works on the exported one",
        ),
        (("quantize", "export", "quantize"), "stages[2].quantize", "quantize is done already, at stages[0].quantize"),
    ],
)
def test_chains_that_do_not_fit(fault, names, key, what):
    found = fault(text=_chain(*names))
    assert (found.key, found.what) == (key, what)


def test_a_misspelled_export_is_one_fault_and_not_two(fault):
    assert fault(text=_chain("prune", "exprt")).key == "stages[1].exprt"


def test_an_onnx_model_needs_no_stages(tmp_path):
    (tmp_path / "net.onnx").touch()
    for names in ((), ("quantize",)):
        recipe, _ = load_text(_chain(*names, model="{source: net.onnx}"), str(tmp_path / "r.yaml"))
        assert recipe.model.form == "onnx"


def test_stages_that_need_torch_are_refused_for_an_onnx_model(faults, tmp_path):
    (tmp_path / "net.onnx").touch()
    found = faults(text=_chain("distill", "export", "quantize", model="{source: net.onnx, train: {epochs: 1}}"))
    assert [(f.key, f.what) for f in found] == [
        ("model.train", "is for torch networks; an .onnx file is complete"),
        (
            "stages[0].distill",
            "distill takes a torch network; model.source is an ONNX file, which is not turned back into one",
        ),
        (
            "stages[1].export",
            "export takes a torch network; model.source is an ONNX file, which is not turned back into one",
        ),
    ]


def test_a_missing_onnx_file(fault):
    assert "'gone.onnx': no such file" in fault(text=_chain(model="{source: gone.onnx}")).what


def test_faults_of_independent_keys_in_one_part_are_all_told(faults):
    found = faults(
        ("source: digits, image_size: 32", "source: gone, image_size: 0"),
        ("stages.zoo:seed_cnn", "stages.zoo:seed"),
        ("epochs: 12", "epochs: 0"),
        ("- export:", "- export: {opset: 3}"),
    )
    assert {f.key for f in found} == {
        "data.source",
        "data.image_size",
        "model.source",
        "model.train.epochs",
        "stages[4].export.opset",
    }


def test_a_fault_inside_a_target_of_the_users_points_there(fault, tmp_path):
    (tmp_path / "board.yaml").write_text("extends: local\nchannel_multiple: 0\n")
    found = fault(("use: local", "use: board.yaml"))
    assert (found.file, found.line, found.key) == (str(tmp_path / "board.yaml"), 2, "channel_multiple")


def test_user_code_beside_the_recipe_is_found_and_not_run(tmp_path):
    (tmp_path / "never_run.py").write_text("raise SystemExit\ndef net(): ...\ndef data(): ...\n")
    text = GOOD.replace("stages.zoo:seed_cnn", "never_run:net").replace("source: digits", "source: 'never_run:data'")
    recipe, _ = load_text(text, str(tmp_path / "r.yaml"))
    assert recipe.model.source == "never_run:net"
    assert "never_run" not in sys.modules


def test_budgets_are_laid_over_the_profiles(tmp_path):
    (tmp_path / "board.yaml").write_text("extends: local\nname: board\nbudget: {size_mb: 9, latency_p50_ms: 2}\n")
    spec = TargetSpec.model_validate({"use": "board.yaml", "budget": {"size_mb": 1, "latency_p50_ms": None}})
    target = spec.resolve(tmp_path)
    assert target.name == "board"
    assert target.budget.size_mb == 1
    assert target.budget.latency_p50_ms is None
    assert TargetSpec(use="board.yaml").resolve(tmp_path).budget.latency_p50_ms == 2
    assert TargetSpec(use="local", name="mine").resolve(tmp_path).name == "mine"


def test_all_targets_of_a_recipe_are_resolved(tmp_path):
    recipe, _ = load_text(GOOD + "  - {use: local, name: again}\n", str(tmp_path / "r.yaml"))
    first, second = recipe.resolved_targets(tmp_path)
    assert (first.name, second.name) == ("local", "again")
    assert first.runtime == second.runtime == load_target("local").runtime
    assert first.budget.size_mb == 0.5


def test_recipes_can_be_made_in_python():
    recipe = Recipe(
        version=1,
        name="made",
        data=DataSpec(source="digits"),
        model={"source": "stages.zoo:resnet", "train": {}},
        stages=(StageCall(name="export", config=ExportConfig(samples=3)),),
        targets=(TargetSpec(use="local"),),
    )
    assert recipe.stages[0].config.samples == 3


def test_reading_a_recipe_wakes_neither_torch_nor_onnx(tmp_path):
    (tmp_path / "r.yaml").write_text(GOOD)
    script = (
        "import sys\nfrom pipeline.recipe import load\n"
        f"load({str(tmp_path / 'r.yaml')!r})\n"
        "print({'torch', 'onnx', 'onnxruntime', 'sklearn', 'PIL'} & set(sys.modules) or 'none')"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "none"


def _paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield from _paths(inner, (*path, key))


def test_no_recipe_ends_in_anything_but_faults(tmp_path):
    """Spoiled recipes: values replaced, keys renamed or lost."""
    dice = random.Random(0)
    values = [None, True, -1, 0, 1.5, float("nan"), 10**30, "x", "a:b", "../x", "/etc", "\0", "x" * 300, [], {}, [[1]]]
    for _ in range(200):
        recipe = yaml.safe_load(GOOD)
        for _ in range(dice.randint(1, 3)):
            *above, last = dice.choice([path for path in _paths(recipe) if path] or [("version",)])
            here = recipe
            for key in above:
                here = here[key]
            here[last] = dice.choice([*values, here.get(last) if isinstance(here, dict) else None])
            if isinstance(here, dict) and dice.random() < 0.3:
                here[dice.choice([f"{last}x", "unknown"])] = here.pop(last)
        with suppress(InputError):
            load_text(yaml.safe_dump(recipe), str(tmp_path / "r.yaml"))
