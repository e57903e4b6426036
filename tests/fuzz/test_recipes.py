"""Recipe files and overrides of any kind: a recipe that saves and loads as itself, or one line on what is wrong."""

import copy
import datetime
import os

import pytest
import torch
import yaml
from fuzzing import error_line, outcome
from hypothesis import strategies as st

from vss_hf.cli import run_reporting_errors
from vss_hf.files import write_text
from vss_hf.training.recipe import load_recipe, parse_overrides
from vss_hf.training.recipe_files import RECIPES, shipped_recipes
from vss_hf.training.recipe_yaml import RecipeLoader, parse_yaml, to_yaml


SHIPPED_TEXT = {name: (RECIPES / f"{name}.yaml").read_text(encoding="utf-8") for name in shipped_recipes()}
SHIPPED = {name: yaml.load(text, RecipeLoader) for name, text in SHIPPED_TEXT.items()}


@pytest.fixture(autouse=True)
def same_world():
    """TrainingArguments write into the environment and torch's switches; later tests must not notice."""
    environment, precision = dict(os.environ), torch.backends.cuda.matmul.fp32_precision
    yield
    os.environ.clear()
    os.environ.update(environment)
    torch.backends.cuda.matmul.fp32_precision = precision


def check_file(path, words=()):
    """The property: returns the recipe, or None where it was refused."""
    recipe, error = outcome(load_recipe, path, list(words))
    if error is not None:
        text = " ".join(str(error).split())
        assert 10 < len(text) < 6000, text[:300]
        return None
    saved = path.with_name("saved.yaml")
    write_text(saved, to_yaml(recipe.to_dict()))
    assert repr(load_recipe(saved).to_dict()) == repr(recipe.to_dict())
    return recipe


# --- mutations of the shipped recipes

VALUES = st.one_of(
    st.sampled_from([
        None, True, False, 0, -1, 1, 2, 64, 10**6, -(10**30), 10**400, 0.0, -0.0, 0.5, 1e-30, 1e308, -1e308,
        float("nan"),
        float("inf"), float("-inf"), "", " ", "no", "yes", "steps", "none", "epoch", "1e-4", "linear", "../..",
        "/dev/null",
        "~", "a" * 3000, "naïve \u2028 日本 \U0001f600", "line\nline", "\x1b[31m", "{a: 1}", "{\"a\": 1}", "{broken",
        [], {}, [[]],
        [1], [0, 0], [1, 2, 3], [0.5, 2.0], [2.0, 0.5], ["a", "b"], [None, None], [True, True], [[1, 2], [3, 4]],
        {"a": 1},
        {"a": {"b": {"c": []}}}, {1: 2}, {"model_type": "swin"}, {"model_type": "bert"}, {"model_type": ["swin"]},
        datetime.date(2001, 1, 1), b"bytes", [float("nan")], {"k": float("nan")},
    ]),
    st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=8), st.lists(st.integers(-3, 300), max_size=5),
)  # fmt: skip
NAMES = st.one_of(
    st.sampled_from([
        "seed", "max_step", "fp16", "bf16", "fsdp", "fsdp_config", "deepspeed", "report_to", "optim", "optim_args",
        "torch_compile", "torch_compile_mode", "accelerator_config", "lr_scheduler_kwargs", "lr_scheduler_type",
        "hub_token",
        "activation_checkpointing", "gradient_checkpointing_kwargs", "label_names", "debug", "log_level",
        "ddp_backend",
        "tf32", "eval_steps", "warmup_steps", "adam_beta1", "output_dir", "group_by_length", "resume_from_checkpoint",
        "push_to_hub", "hub_strategy", "metric_for_best_model", "model_type", "id2label", "coarse_in_indices",
        "out_indices",
        "init_from", "preset", "base_size", "shortest_edge", "logging_steps", "save_steps",
        "dataloader_prefetch_factor",
        "neftune_noise_alpha", "liger_kernel_config", "parallelism_config", "trackio_space_id", "project",
        "on_bad_sample", "sources", "weight", "sampling", "every_nth", "balance_by", "mix_by", "table", "min_labelled",
    ]),
    st.text(max_size=6),
)  # fmt: skip
MUTATIONS = ("replace", "replace", "replace", "drop", "rename", "add", "add", "wrap", "nest", "move")


def places(value, path=()):
    """The paths of all values inside nested mappings and lists."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield (*path, key)
        yield from places(item, (*path, key))


def mutate(document, kind, path, value, name):
    """One change of a nested document, at a path that may have gone meanwhile."""
    parent = document
    for key in path[:-1]:
        if not isinstance(parent, dict | list) or (isinstance(parent, dict) and key not in parent):
            return
        if isinstance(parent, list) and not (isinstance(key, int) and key < len(parent)):
            return
        parent = parent[key]
    key = path[-1]
    if isinstance(parent, list) and not (isinstance(key, int) and key < len(parent)):
        return
    if not isinstance(parent, dict | list) or (isinstance(parent, dict) and key not in parent):
        return
    old = parent[key]
    if kind == "replace":
        parent[key] = value
    elif kind == "drop":
        del parent[key]
    elif kind == "wrap":
        parent[key] = [old]
    elif kind == "nest":
        parent[key] = {name: old}
    elif isinstance(parent, dict) and kind == "rename":
        parent[name] = parent.pop(key)
    elif isinstance(parent, dict) and kind == "move":
        document[name] = parent.pop(key)
    elif isinstance(old, dict):
        old[name] = value
    elif isinstance(parent, dict):
        parent[name] = value


@st.composite
def mutated_recipes(draw):
    name = draw(st.sampled_from(sorted(SHIPPED)))
    document = copy.deepcopy(SHIPPED[name])
    document.setdefault("data", {})["root"] = "videos"
    for _ in range(draw(st.integers(1, 3))):
        path = draw(st.sampled_from([*places(document)] or [("model",)]))
        value = copy.deepcopy(draw(VALUES))  # a document that holds one object twice could come to hold itself
        mutate(document, draw(st.sampled_from(MUTATIONS)), path, value, draw(NAMES))
    return document


def test_mutated_recipes(fuzz, tmp_path):
    counts = {"loaded": 0, "refused": 0}

    def check(document):
        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False, allow_unicode=True), encoding="utf-8")
        counts["loaded" if check_file(path) else "refused"] += 1

    def changed(section, **fields):
        document = {**copy.deepcopy(SHIPPED["demo-ocrnet"]), "data": {"root": "videos"}}
        document[section] = {**document[section], **fields}
        return (document,)

    known = [
        changed("augmentation", base_size=10**400),  # OverflowError of math.isfinite
        changed("training", learning_rate=10**400),
        changed("training", lr_scheduler_kwargs={"power": float("nan")}),
        changed("training", optim_args=b"bytes"),
        changed("model", config={"backbone_config": {"model_type": "bert"}}),  # AttributeError: no out_indices
        changed("model", config={"auxiliary_loss_weight": float("nan")}),  # nan < 0 is false
        changed("training", report_to=[]),
        changed("training", fsdp_config={"min_num_params": 5, "xla": False}),
        changed("training", accelerator_config={"split_batches": True, "nonsense": 1}),
        changed("training", liger_kernel_config={"a": 1}),
    ]
    fuzz(check, mutated_recipes(), quick=60, slow=3000, known=known)
    assert counts["loaded"] > 5 and counts["refused"] > 5, counts


# --- any text

TAGS = ["!!python/object/apply:pathlib.Path.touch [SENTINEL]", "!!python/object/apply:os.system ['touch SENTINEL']",
        "!!python/object/new:os.system ['touch SENTINEL']", "!!python/name:os.system", "!!python/module:os",
        "!!python/tuple [1]", "!!binary aGVsbG8=", "!!binary é", "!!set {a, b}", "!!omap [a: 1]", "!!pairs [a: 1]",
        "!!int ''", "!!int x", "!!float ''", "!!float x", "!!bool maybe", "!!null x", "!!timestamp x", "!!str 5",
        "!local 5",
        "!!map [1]", "!!seq {a: 1}", "!<tag:yaml.org,2002:int> '1'"]  # fmt: skip
LINES = st.one_of(
    st.sampled_from([
        "model:", "data:", "augmentation:", "training:", "  root: x", "  crop_size: [8, 8]", "  crop_size: [8, 9]",
        "  max_steps: 1", "  seed: 0b_", "  seed: 0x_", "  seed: 1:30", "  seed: 0o17", "  seed: 017", "  seed: 1_000",
        "  output_dir: 2001-99-99", "  output_dir: 2001-01-01", "  seed: " + "9" * 5000, "  max_grad_norm: .nan",
        "  max_grad_norm: .inf", "\tmax_steps: 1", "  hue: *x", "  hue: &x 0.1", "  <<: *x", "  <<: {seed: 1}",
        "  ? [a]", "  : b",
        "---", "...", "%YAML 1.2", "%TAG ! !x", "# only a comment", "", "  config: &a {x: *a}", "  config: &a [*a]",
        "  lr_scheduler_kwargs: &l {power: *l}", "  lr_scheduler_kwargs: &k {power: 1.0}", "  optim_args: |",
        "    text",
        "data: {root: x}", "augmentation: {crop_size: [8, 8]}", "data: {root: y}", "  =: 1", "  '=': 1", "{", "}",
        "[", "]",
        "  true: 1", "  1: 1", "  1.0: 1", "  null: 1", "\ufeff", "\x00", "\x07", "\u2028", "  root: \"\\ud800\"",
        "!", "&", "*",
        "  depths: [1, 2]", "  config: {channels: 8, channels: 16}", "  root: z",
    ]),
    st.sampled_from(TAGS).map(lambda tag: f"  optim_args: {tag}"),
    st.sampled_from(TAGS),
    st.text(max_size=20),
)  # fmt: skip


def bomb(levels, width, merge=False):
    """A document whose values repeat each other: a few hundred bytes that stand for width ** levels values."""
    first = "a0: &a0 {x: 1}" if merge else "a0: &a0 [x, x]"
    lines = [first]
    for level in range(1, levels):
        repeated = ", ".join([f"*a{level - 1}"] * width)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{repeated}]}}" if merge else f"[{repeated}]"))
    return "\n".join(lines)


def test_any_text(fuzz, tmp_path):
    sentinel = tmp_path / "executed"

    def check(text):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.replace("SENTINEL", str(sentinel)).encode("utf-8", "surrogatepass"))
        check_file(path)
        assert not sentinel.exists()

    whole = "data: {root: x}\naugmentation: {crop_size: [8, 8]}\ntraining:\n"
    known = [
        ("data: {root: x}\ndata: {root: y}\naugmentation: {crop_size: [8, 8]}\n",),
        *((f"{whole}  optim_args: {tag}\n",) for tag in TAGS),
        *((f"{whole}  seed: {number}\n",) for number in ("0b_", "0x_", "9" * 5000)),
        (f"{whole}  output_dir: 2001-99-99\n",),
        (f"{whole}  lr_scheduler_kwargs: &l {{power: *l}}\n",),
        (f"{whole}  lr_scheduler_kwargs:\n    {bomb(30, 9).replace(chr(10), chr(10) + '    ')}\n",),
        (f"{whole}  lr_scheduler_kwargs:\n    {bomb(30, 9, merge=True).replace(chr(10), chr(10) + '    ')}\n",),
        (bomb(30, 9),),
        ("[" * 5000,),
        ("{a: " * 5000,),
        ("- " * 5000,),
        (f'{whole}  optim_args: "\\ud800"\n',),
    ]
    texts = st.lists(LINES, max_size=14).map("\n".join) | st.text() | st.binary().map(lambda b: b.decode("latin-1"))
    fuzz(check, texts, quick=150, slow=8000, known=known)


def test_damaged_text_of_shipped_recipes(fuzz, tmp_path):
    def check(name, edits):
        text = SHIPPED_TEXT[name].replace("data:", "data:\n  root: videos", 1)
        for position, cut, insert in edits:
            position = int(position * len(text))
            text = text[:position] + insert + text[position + cut :]
        path = tmp_path / "recipe.yaml"
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        check_file(path)

    inserts = st.sampled_from(
        ["", "", "\n", "\t", " ", ":", "-", "[", "}", "&a ", "*a", "!!int ", "0", "9" * 40, "e", "#", "'"]
    )
    edit = st.tuples(st.floats(0, 1), st.integers(0, 30), inserts | st.text(max_size=3))
    fuzz(check, st.sampled_from(sorted(SHIPPED)), st.lists(edit, min_size=1, max_size=3), quick=60, slow=3000)


def test_bytes_that_are_no_text(fuzz, tmp_path):
    def check(data):
        path = tmp_path / "recipe.yaml"
        path.write_bytes(data)
        check_file(path)

    known = [(b"\xff\xfe{\x00}\x00",), (b"data: {root: \xff}",), (b"",), (b"\xef\xbb\xbfdata: {root: x}",)]
    fuzz(check, st.binary(max_size=60), quick=60, slow=2000, known=known)
    (tmp_path / "latin.yaml").write_bytes(b"data: {root: \xff}")
    with pytest.raises(ValueError, match="latin.yaml.*UTF-8"):
        load_recipe(tmp_path / "latin.yaml")


# --- what a recipe may not be, one by one


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("data: {root: x}\ndata: {root: y}", "'data' twice"),
        ("data: {root: x, root: x}", "'root' twice"),
        ("training: {lr_scheduler_kwargs: {power: 1.0, power: 2.0}}", "'power' twice"),
        ("training: {1: a, true: b}", "twice"),
        ("- {a: 1, 'a': 2}", "'a' twice"),
        ("data: &a {root: x}\ntraining: {<<: *a}", "<<"),
        ("training: {output_dir: 2001-01-01}", "date"),
        ("training: {output_dir: !!binary aGVsbG8=}", "binary|bytes"),
        ("training: {lr_scheduler_kwargs: {power: .nan}}", "nan"),
        ("training: {lr_scheduler_kwargs: &a {power: *a}}", "itself|too often"),
        (bomb(30, 9), "too often"),
        ("training: {seed: 0b_}", "not valid YAML"),
        ("training: {output_dir: 2001-99-99}", "not valid YAML"),
        ("training: {seed: !!int ''}", "not valid YAML"),
        ("training: {seed: !!bool maybe}", "not valid YAML"),
        ("training: {seed: !!timestamp x}", "not valid YAML"),
        ("training: {seed: " + "9" * 5000 + "}", "recipe .*not valid YAML"),
        (
            "data: {root: x}\naugmentation: {crop_size: [8, 8]}\ntraining: {learning_rate: 1" + "0" * 400 + "}",
            "learning_rate",
        ),
        ("data: {root: x}\naugmentation: {crop_size: [8, 8], base_size: 1" + "0" * 400 + "}", "base_size"),
    ],
)
def test_refused_by_name(tmp_path, text, message):
    path = tmp_path / "recipe.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        load_recipe(path)


def test_a_shared_value_is_not_changed_twice(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "data: {root: x}\naugmentation: {crop_size: [8, 8]}\n"
        "training: {lr_scheduler_kwargs: &a {power: 1.0}, activation_checkpointing_kwargs: *a}\n"
    )
    recipe = load_recipe(path, ["--training.lr_scheduler_kwargs.power", "2"])
    assert recipe.training.lr_scheduler_kwargs == {"power": 2}
    assert recipe.training.activation_checkpointing_kwargs == {"power": 1.0}


def test_a_saved_recipe_holds_no_token(tmp_path):
    recipe = load_recipe("demo-ocrnet", ["--root", "x", "--hub_token", "hf_secret"])
    assert recipe.training.hub_token == "hf_secret" and "hf_secret" not in repr(recipe.to_dict())


# --- the command line

WORDS = st.one_of(
    st.sampled_from([
        "--data.root", "--root", "--seed", "--max_steps", "--learning_rate", "--crop_size", "--model.config",
        "--config",
        "--model.config.backbone_config.depths", "--training.lr_scheduler_kwargs.power", "--data.root=", "--data",
        "--", "-",
        "---", "--=", "--=5", "--.", "--..", "--data.", "--data..root", "--.root", "--training.seed.x",
        "--model.preset", "x",
        "videos", "1", "-1", "1e-4", "-.5", "[8, 8]", "[8,", "{a: 1, a: 2}", "null", "true", "no", "--bf16", "--fp16",
        "--no-bf16",
        "--streaming", "--cache", "--shortest-edge", "31", "64", "!!python/object/apply:os.getcwd []", "*a",
        "&a [*a]", "\x00",
        "\udcff", "日本", "", "\n", "2001-01-01", ".nan", "9" * 5000, "--hub_token=hf_abc",
        "--model.config.model_type=swin",
        "ocrnet-swin-tiny", "--init_from", "--warmup_ratio", "0.5", "--eval_strategy", "epoch",
        "--lr_scheduler_type=cosine",
    ]),
    st.text(max_size=6), st.text(max_size=6).map(lambda word: f"--{word}"),
)  # fmt: skip


def test_overrides(fuzz, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(SHIPPED_TEXT["demo-ocrnet"].replace("data:", "data:\n  root: videos", 1))

    def check(words):
        check_file(path, words)

    known = [
        (["--augmentation.base_size", "1" + "0" * 400],),
        (["--hub_token", "hf_abc"],),
        (["--model.config", "{a: 1, a: 2}"],),
    ]
    fuzz(check, st.lists(WORDS, max_size=5), quick=80, slow=4000, known=known)


def test_no_traceback_on_the_command_line(fuzz, tmp_path, capsys):
    path = tmp_path / "recipe.yaml"

    def check(text, words):
        path.write_bytes(text.encode("utf-8", "surrogatepass"))
        _, error = outcome(load_recipe, path, list(words))
        capsys.readouterr()
        try:
            run_reporting_errors(lambda arguments: load_recipe(arguments[0], arguments[1:]), [str(path), *words])
            assert error is None
        except SystemExit as stop:
            assert stop.code == 2 and error is not None
            error_line(capsys.readouterr().err)

    texts = st.lists(LINES, max_size=8).map("\n".join)
    fuzz(check, texts, st.lists(WORDS.filter(lambda w: w != "--debug"), max_size=3), quick=40, slow=1500)


def test_words_and_values_that_yaml_gives(fuzz):
    """A plain value survives the way through a word of the command line."""
    plain = st.none() | st.booleans() | st.integers(-(2**63), 2**63) | st.floats(allow_nan=False) | st.text(max_size=8)
    values = st.recursive(
        plain, lambda v: st.lists(v, max_size=3) | st.dictionaries(st.text(max_size=4), v, max_size=3)
    )

    def check(value):
        word = to_yaml(value)
        assert repr(parse_yaml(word, "here")) == repr(value)
        assert parse_overrides([f"--key={word}"]) == [("key", value)]

    fuzz(check, values, quick=60, slow=2000, known=[("0E0",), ("1e5",), ("\x85",), ({"\x85": None},), ("\u2028",)])
