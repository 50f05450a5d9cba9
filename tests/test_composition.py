"""Composition: every option and experiment, the order of what wins, and each kind of mistake."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from adamwprune.command_line import prepare
from adamwprune.composition import CONF_DIR, complete, compose, to_config
from adamwprune.config import Config, Device, Precision, flatten, from_plain, to_plain
from adamwprune.errors import ConfigError, RunError

ROOT = CONF_DIR.parent
EXPERIMENTS = sorted(path.stem for path in (CONF_DIR / "experiment").glob("*.yaml"))
OPTIONS = sorted(
    f"{path.parent.relative_to(CONF_DIR)}={path.stem}"
    for path in CONF_DIR.glob("*/*.yaml")
    if path.parent.name not in ("hydra", "hardware_model", "experiment", "sweep")
)
# Of a pruning option: each names the function or class of one part; plan holds the window.
NESTED = sorted(
    f"pruning/{path.parent.name}={path.stem}"
    for path in CONF_DIR.glob("pruning/*/*.yaml")
    if path.parent.name != "plan"
)


def config(*overrides: str) -> Config:
    return to_config(compose(complete(list(overrides))))


# ------------------------------------------------------------------------------- what composes


@pytest.mark.parametrize("option", OPTIONS)
def test_every_option_composes(option):
    """Each file of each group works beside defaults that fit it."""
    fitting = []
    if re.search("^vocab_size:", (CONF_DIR / f"{option.replace('=', '/')}.yaml").read_text(), re.MULTILINE):
        fitting = ["model=gpt2-nano"]
    elif option in ("data=images", "data=imagenet"):
        fitting = ["model=resnet18"]
    assert config(*fitting, option).trainer.global_batch_size > 0


@pytest.mark.parametrize("option", NESTED)
def test_every_nested_option_composes(option):
    """It replaces one part of the pruning, by what its file says, and leaves the rest."""
    part, name = option.removeprefix("pruning/").split("=")
    plain, chosen = (to_plain(config("pruning=magnitude", *more))["pruning"] for more in ([], [option]))
    text = (CONF_DIR / "pruning" / part / f"{name}.yaml").read_text()
    assert f"_target_: {chosen[part]['_target_']}\n" in text
    assert {k: v for k, v in chosen.items() if k not in (part, "target_sparsity")} == {
        k: v for k, v in plain.items() if k not in (part, "target_sparsity")
    }


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_composes_and_opens_with_its_command(experiment):
    """The first comment is the command that runs it; the name says model, data and hardware."""
    lines = (CONF_DIR / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# python train.py experiment={experiment}")
    composed = compose(complete([f"experiment={experiment}"]))
    to_config(composed)
    if experiment.startswith(tuple(path.stem for path in (CONF_DIR / "model").glob("*.yaml"))):
        # As the shipped ones are called; one that `make savedefconfig` wrote may be called anything.
        assert experiment.startswith(composed.hydra.runtime.choices.model.removesuffix("-nano"))


def test_each_shipped_model_has_an_experiment():
    """A user finds a command for whichever model ships."""
    models = {path.stem for path in (CONF_DIR / "model").glob("*.yaml")}
    chosen = {compose([f"experiment={name}"]).hydra.runtime.choices.model for name in EXPERIMENTS}
    assert chosen == models


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ([], {"trainer.max_epochs": 30, "optimizer.lr": 2e-3, "pruning.criterion": None}),
        (["optimizer=adamwprune"], {"pruning.target_sparsity": 0.9, "pruning.criterion.q": 0.25}),
        (
            ["optimizer=adamwprune", "pruning=none"],
            {"pruning.criterion": None, "pruning.target_sparsity": None},
        ),
        (["optimizer=adamwprune", "pruning=magnitude"], {"pruning.target_sparsity": 0.9}),
        (["model=gpt2"], {"data._target_": "adamwprune.data.hub_text.hub_text", "optimizer.lr": 6e-4}),
        (["model=gpt2", "data=shakespeare"], {"data._target_": "adamwprune.data.text.shakespeare"}),
        (["model=gpt2-nano"], {"data.block_size": 64, "model.block_size": 64}),
        (["model=gpt2", "optimizer.lr=3e-4"], {"optimizer.lr": 3e-4}),
        (["experiment=gpt2-finewebedu-a10gx4", "optimizer.lr=3e-4"], {"optimizer.lr": 3e-4}),
        (["experiment=gpt2-finewebedu-a10gx4", "optimizer=sgd"], {"optimizer.lr": 0.1}),
        (["experiment=gpt2-finewebedu-a10gx4", "pruning=none"], {"pruning.target_sparsity": None}),
        (
            ["experiment=lenet5-mnist5k", "trainer.max_steps=5"],
            {"trainer.max_steps": 5, "trainer.max_epochs": None},
        ),
        (["model=gpt2", "trainer.max_epochs=2"], {"trainer.max_epochs": 2, "trainer.max_tokens": None}),
        (
            ["model=gpt2", "hardware=a10gx4"],
            {"hardware.micro_batch_size": 16, "trainer.grad_accum_steps": 8, "hardware.num_devices": 4},
        ),
        (
            ["model=gpt2", "hardware=a10gx4", "hardware.device=cpu", "hardware.num_devices=2"],
            {"hardware.micro_batch_size": 16, "trainer.grad_accum_steps": 16, "hardware.device": "cpu"},
        ),
        (["hardware.num_devices=2"], {"hardware.micro_batch_size": 32, "trainer.grad_accum_steps": 1}),
    ],
)
def test_order_rules(overrides, expected):
    """Command line > experiment > options > defaults; an option chooses for groups above it."""
    flat = dict(flatten(to_plain(config(*overrides))))
    assert {key: flat[key] for key in expected} == expected


def test_adamwprune_is_adamw_plus_state_pruning_in_the_configuration():
    """The alias touches nothing but the choice of pruning."""
    alias, written = (
        to_plain(config("optimizer=adamwprune")),
        to_plain(config("optimizer=adamw", "pruning=state")),
    )
    assert alias.pop("run_name") != written.pop("run_name")
    assert alias == written


@pytest.mark.parametrize(
    ("form", "nodes"),
    [
        ("tracker=none", []),
        ("tracker=trackio", ["trackio"]),
        ("tracker=wandb", ["wandb"]),
        ("tracker=both", ["trackio", "wandb"]),
        ("tracker=[wandb,trackio]", ["trackio", "wandb"]),
        ("tracker=[trackio]", ["trackio"]),
        ("tracker=[]", []),
    ],
)
def test_each_tracker_form_composes_exactly_the_asked_nodes(form, nodes):
    """No substring match, no silent none."""
    assert sorted(config(form).tracker) == nodes


def test_names():
    """Project {model}-{checksum}, run {model}_{optimizer}_{timestamp}; both can be given."""
    default = config("model=gpt2-nano", "optimizer=adamwprune")
    assert re.fullmatch(r"gpt2-nano-[0-9a-f]{5}", default.project)
    assert re.fullmatch(r"gpt2-nano_adamwprune_\d{8}_\d{6}", default.run_name)
    given = config("project=p", "run_name=r")
    assert (given.project, given.run_name) == ("p", "r")


def test_config_round_trips_through_plain_values():
    """What run.json keeps is the whole configuration."""
    one = config("experiment=gpt2-finewebedu-a10gx4", "tracker=both")
    assert from_plain(Config, to_plain(one)) == one
    assert (one.hardware.device, one.hardware.precision) == (Device.cuda, Precision.bf16)


# ------------------------------------------------------------------------------ what is refused

REFUSED = [
    ("optmizer.lr=1", "did you mean optimizer.lr?"),
    ("optimizer.lrr=1", "did you mean optimizer.lr?"),
    ("trainer.gradclip=1", "did you mean trainer.grad_clip?"),
    ("lr=0.1", "did you mean optimizer.lr?"),
    ("model=lenet6", "did you mean lenet5?"),
    ("optimizer=adm", "did you mean adam?"),
    ("tracker=wnadb", "did you mean wandb?"),
    ("tracker=Wandb", "allowed: both, mlflow, none, tensorboard, trackio, wandb"),
    ("tracker=wandb,trackio", "quote a list"),
    ("tracker=", "allowed: both, mlflow, none, tensorboard, trackio, wandb"),
    ("tracker=[none,wandb]", "each tracker once"),
    ("pruning=[none,magnitude]", "-m pruning=none,magnitude"),
    ("data=[mnist5k,fashion3k]", "takes one option"),
    ("optimizer.learning_rate=0.01", "did you mean optimizer.lr?"),
    ("batch_size=32", "did you mean trainer.global_batch_size?"),
    ("sparsity=0.9", "did you mean pruning.target_sparsity?"),
    ("tracker=[wandb,wandb]", "each tracker once"),
    ("tracker=[wandb,nope]", "no such option"),
    ("+foo=1", "foo=1: unknown key"),
    ("++optimizer.foo=1", "adamw has no foo"),
    ("+trainer.foo=1", "trainer.foo=1: unknown key"),
    ("~optimizer.lr", "cannot be removed"),
    ("~seed", "cannot be removed"),
    ("optimizer.lr=-0.1", "optimizer.lr=-0.1: must be > 0"),
    ("optimizer.lr=0", "must be > 0"),
    ("optimizer.lr=nan", "must be > 0 and finite"),
    ("optimizer.lr=inf", "must be > 0 and finite"),
    ("optimizer.lr=abc", "must be a number"),
    ("optimizer.lr=", "must be a number"),
    ("optimizer.lr=null", "must be a number"),
    ("optimizer.lr=true", "must be a number"),
    ("optimizer.lr=0.1 optimizer.lr=0.2", "given twice"),
    ("optimizer.lr=0.1,0.2", "add -m"),
    ("optimizer.betas=[0.9,1.0]", "in [0, 1)"),
    ("optimizer.betas=[0.9]", "2 values"),
    ("optimizer.weight_decay=-1", ">= 0"),
    ("optimizer.eps=0", "> 0"),
    ("optimizer=sgd optimizer.momentum=5", "in [0, 1)"),
    ("optimizer=sgd optimizer.betas=[0.9,0.9]", "the chosen optimizer option has no betas"),
    ("pruning=state pruning.target_sparsity=1.5", "in [0, 1)"),
    ("pruning=state pruning.target_sparsity=-0.1", "in [0, 1)"),
    ("pruning=state pruning.target_sparsity=1", "in [0, 1)"),
    ("pruning=state pruning.target_sparsity=nan", "in [0, 1)"),
    ("pruning=state pruning.target_sparsity=90", "did you mean 0.9?"),
    ("pruning=state pruning.target_sparsity=90%", "did you mean 0.9?"),
    ("pruning=state pruning.target_sparsity=null", "needed by"),
    ("pruning=state pruning.target_sparsty=0.5", "did you mean pruning.target_sparsity?"),
    ("pruning=state pruning.criterion.q=0.7", "from 0 to 0.5"),
    ("pruning=none pruning.target_sparsity=0.5", "prunes nothing"),
    ("pruning.target_sparsity=0.5", "prunes nothing"),
    ("pruning/schedule=oneshot", "prunes nothing"),
    (
        "pruning=state trainer.max_steps=100 pruning.start_step=80 pruning.end_step=60",
        "0 <= start_step <= end_step",
    ),
    ("pruning=state trainer.max_steps=100 pruning.end_step=200", "100, the steps of the run"),
    ("pruning=state pruning.update_every=0", "from 1"),
    ("trainer.global_batch_size=0", "must be >= 1"),
    ("trainer.global_batch_size=-64", "must be >= 1"),
    ("trainer.global_batch_size=2.5", "must be an integer from 1 to 2^53"),
    ("trainer.global_batch_size=1e9", "write 1000000000"),
    ("trainer.global_batch_size=65 hardware.num_devices=2", "nearest: 64 or 66"),
    ("hardware.micro_batch_size=48", "nearest: 48 or 96"),
    ("trainer.grad_accum_steps=0", "from 1"),
    ("trainer.grad_accum_steps=3", "must equal"),
    ("trainer.grad_clip=-1", "> 0"),
    ("trainer.grad_clip=0", "> 0"),
    ("trainer.max_steps=0", "from 1"),
    ("trainer.max_steps=-5", "from 1"),
    ("trainer.max_steps=1e3", "write 1000"),
    ("trainer.max_steps=99999999999999999999", "from 1"),
    ("trainer.max_steps=10 trainer.max_epochs=1", "exactly one budget"),
    ("trainer.max_epochs=null", "exactly one budget"),
    ("lr_schedule.warmup_steps=-1", "from 0 to 2^53"),
    ("trainer.max_steps=20 lr_schedule.warmup_steps=20", "less than the 20 steps"),
    ("lr_schedule.final_ratio=2", "from 0 to 1"),
    ("seed=-1", "from 0 to 4294967295"),
    ("seed=8589934592", "from 0 to 4294967295"),
    ("seed=x", "must be an integer from 0 to 4294967295"),
    ("hardware.num_workers=1000", "from 0 to 512"),
    ("model=gpt2-nano model.dropout=1.5", "in [0, 1)"),
    ("model=gpt2-nano model.n_embd=30", "multiple of model.n_head=4"),
    ("checkpoint.every=0", "from 1"),
    ("checkpoint.keep=1", ">= 2"),
    ("hardware.precision=float17", "fp32, bf16, fp16, auto"),
    ("hardware.precision=fp16", "use hardware.precision=fp32"),
    ("hardware.compile=maybe", "true or false"),
    ("trainer.log_every=0", "from 1"),
    ("trainer.max_steps=5 trainer.eval_every=10", "at most trainer.max_steps=5"),
    ("hardware.timeout=0", "> 0"),
    ("model=lenet5 data=shakespeare", "needs data with num_classes"),
    ("model=gpt2 data=mnist5k", "choose data= one of debian_docs, finewebedu, openwebtext, shakespeare"),
    ("model=resnet18 data=sotu", "needs data with num_classes"),
    ("optimizer._target_=os.system", "not in this package"),
    ("model._target_=adamwprune.launch.os.system", "must be a public name of adamwprune.models"),
    ("+x._target_=torch.load", "x={'_target_': 'torch.load'}: unknown key"),
    ("tracker.x._target_=os.system", "unknown key"),
    ("+tracker.x._target_=os.system", "not in this package"),
    ("project=a/b", "project='a/b'"),
    ("project=..", "project='..'"),
    ("project=", "project=''"),
    ("project=default", "keeps for itself"),
    ("project=model_artifacts", "keeps for itself"),
    ("tags=[a,b/c]", "tags[1]='b/c'"),
    ("tracker=wandb tracker.wandb.project=a/b", "tracker.wandb.project='a/b'"),
    (f"project={'x' * 300}", "1 to 64"),
    ("experiment=nope", "no such option"),
    ("nogroup=3", "unknown key"),
    ("model=3", "must be a string or a list"),
    ("resume_allow=[nope]", "no such key"),
    ("resume_allow=[pruning.target_sparsity]", "masks belong to the pruning"),
    ("--resolve", "go with --cfg"),
    ("a=[1,", "not KEY=VALUE"),
    ("seed", "not KEY=VALUE"),
    ("=3", "the key is missing"),
    ("--nope", "unrecognized arguments: --nope"),
    ("seed=${seed}", "seed: Recursive"),
    ("model=gpt2-nano model.block_size=32", "at least data.block_size=64"),
    ("project=CON", "Windows"),
    ("hydra.run.dir=../../x", "ADAMWPRUNE_OUTPUTS="),
    ("seed=${oc.env:NOPE}", "seed: KeyError"),
    ("seed=???", "required"),
]


@pytest.mark.parametrize(("line", "words"), REFUSED, ids=[line for line, _ in REFUSED])
def test_each_mistake_is_exit_2_in_one_line_and_creates_nothing(line, words, tmp_path, monkeypatch):
    """The line names key and value; no folder appears."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as caught:
        prepare(line.split(" "))
    assert caught.value.exit_code == 2
    assert words in str(caught.value)
    assert all("\n" not in problem for problem in caught.value.problems)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("pruning=state pruning.exclude=[fc9.weight]", "fc9.weight"),
        ("pruning=state pruning.include=[nothing*]", "nothing*"),
        ("model=resnet18 model.stem=imagenet", "image_size"),
        ("trainer.global_batch_size=5000", "larger than the 3600"),
        ("trainer.max_epochs=0.001", "less than one step"),
        ("pruning=state trainer.max_epochs=0.05", "no update inside"),
        ("optimizer=sgd pruning=state", "does not keep"),
        ("trainer.max_tokens=1000", "has no tokens"),
        ("model.in_channels=3", "does not take mnist5k, (1, 28, 28)"),
        ("model.num_classes=5", "has 5 outputs, but mnist5k has the label 9"),
        (
            "pruning=state pruning.scope._target_=adamwprune.pruning.schedules.linear",
            "cannot be used as pruning.scope",
        ),
    ],
)
def test_what_only_the_objects_know_is_refused_before_a_folder_exists(line, words, tmp_path, monkeypatch):
    """Data sizes, parameter names, optimizer state: exit 2 or 3, nothing created."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(RunError) as caught:
        prepare(line.split(" "))
    assert caught.value.exit_code in (2, 3)
    assert words in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_all_problems_of_a_configuration_are_listed_at_once():
    """Three mistakes, three lines."""
    with pytest.raises(ConfigError) as caught:
        config("optimizer.lr=-1", "trainer.grad_clip=0", "checkpoint.keep=1")
    assert len(caught.value.problems) == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer:\n  lrr: 1.0\n", "did you mean lr?"),
        ("trainer:\n  grad_clp: 1.0\n", "did you mean trainer.grad_clip?"),
        ("optmizer:\n  lr: 1.0\n", "did you mean optimizer?"),
        (
            "pruning:\n  criterion:\n    _target_: adamwprune.pruning.criteria.state.state\n    p: 0.5\n",
            "state has no p",
        ),
        ("trainer: {max_steps: 5\n", "not YAML"),
        ("allow_targets: [os.system]\n", "only the command line"),
    ],
)
def test_a_typo_in_an_experiment_file_is_named(text, words, tmp_path):
    """Nested ones too: an experiment is data, checked like a command line."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(f"# @package _global_\n{text}")
    with pytest.raises(ConfigError) as caught:
        prepare(["--config-dir", str(tmp_path), "experiment=mine", "optimizer=adamw"])
    assert words in str(caught.value)


def test_an_experiment_of_the_user_composes(tmp_path):
    """Control for the test above: without the typo it is accepted up to the machine check."""
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text("# @package _global_\noptimizer:\n  lr: 0.5\n")
    composed = compose(["experiment=mine", f"hydra.searchpath=[file://{tmp_path}]"])
    assert to_config(composed).optimizer["lr"] == 0.5


# ------------------------------------------------------------------ every key has a reader and a word


def _leaf_lines(file: Path) -> list[tuple[int, str]]:
    """Line numbers and names of the `key: value` lines of a YAML file, without lists and sections."""
    lines = file.read_text().splitlines()
    return [
        (i, line)
        for i, line in enumerate(lines)
        if re.match(r"\s*\w+: *[^\s{|]", line) and not line.strip().startswith("#")
    ]


@pytest.mark.parametrize(
    "file", sorted(CONF_DIR.glob("**/*.yaml")), ids=lambda f: str(f.relative_to(CONF_DIR))
)
def test_each_yaml_file_opens_with_what_it_is(file):
    """The first line is a comment (the package directive first, where there is one)."""
    first, second = [*file.read_text().splitlines(), ""][:2]
    assert first.startswith("# ")
    assert not first.startswith("# @package") or second.startswith("# ")


@pytest.mark.parametrize(
    "group", ["config.yaml", "hardware/cpu.yaml", "optimizer/adamw.yaml", "pruning/state.yaml"]
)
def test_each_key_has_a_comment(group):
    """Above each key, or above the first of a block of keys."""
    file = CONF_DIR / group
    lines = file.read_text().splitlines()
    for number, line in _leaf_lines(file):
        if line.strip().startswith(("_target_", "- ")) or line.lstrip().startswith("defaults"):
            continue
        above = [text.strip() for text in lines[max(0, number - 4) : number]]
        assert any(text.startswith("#") for text in above), f"{group}:{number + 1} {line}"


def test_schema_and_yaml_have_the_same_keys():
    """A key without a reader is an error: config.yaml and the options fill exactly the dataclasses."""
    plain = yaml.safe_load((CONF_DIR / "config.yaml").read_text())
    assert set(plain["trainer"]) == set(to_plain(Config())["trainer"])
    assert set(plain["checkpoint"]) == set(to_plain(Config())["checkpoint"])
    base = yaml.safe_load((CONF_DIR / "hardware" / "cpu.yaml").read_text())
    assert set(base) == set(to_plain(Config())["hardware"])
    dense = yaml.safe_load((CONF_DIR / "pruning" / "none.yaml").read_text())
    ramp = yaml.safe_load((CONF_DIR / "pruning" / "plan" / "ramp.yaml").read_text())
    parts = {"criterion", "schedule", "scope", "selection", "mode"}
    assert set(dense) == set(ramp["pruning"]) | parts == set(to_plain(Config())["pruning"])


# ------------------------------------------------------------------------------------- real process


def test_help_and_cfg_are_free_of_torch_and_complete():
    """--help names every group; neither imports torch."""
    code = (
        "import sys, runpy; sys.argv = ['train.py', *{args}]\n"
        "try:\n    runpy.run_path('train.py', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "assert 'torch' not in sys.modules\n"
    )
    for args in (["--help"], ["--cfg", "job"], ["--cfg", "job", "trainer.max_steps=7"]):
        done = subprocess.run(
            [sys.executable, "-c", code.format(args=args)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
        if args == ["--help"]:
            for group in (
                "data",
                "model",
                "pruning",
                "optimizer",
                "lr_schedule",
                "hardware",
                "tracker",
                "experiment",
                "sweep",
            ):
                assert re.search(rf"^{group}: ", done.stdout, re.MULTILINE), group
    assert "max_steps: 7" in done.stdout
    assert "max_epochs: null" in done.stdout


def test_missing_devices_are_exit_4_before_anything_exists(tmp_path, monkeypatch):
    """The mission's command on a machine without four CUDA devices."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(RunError) as caught:
        prepare(["model=gpt2", "hardware=a10gx4", "tracker=both"])
    assert caught.value.exit_code == 4
    assert "hardware=cpu" in str(caught.value)
    assert list(tmp_path.iterdir()) == []
