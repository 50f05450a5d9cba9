"""The configuration tree: each key once, which takes what composing takes; it composes to what it shows."""

import itertools
import random
import re
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from adamwprune.composition import CONF_DIR, complete, compose, given_keys, to_config
from adamwprune.config import flatten, to_plain
from adamwprune.configure.comments import opening, read_keys
from adamwprune.configure.search import search
from adamwprune.configure.tree import Tree, build
from adamwprune.configure.values import Kind, override_text, override_value
from adamwprune.configure.wording import change, differences, help_text
from adamwprune.errors import ConfigError

GROUPS = ("model", "data", "optimizer", "lr_schedule", "hardware", "pruning")
PARTS = ("pruning/schedule", "pruning/scope", "pruning/selection", "pruning/mode")


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF_DIR / group).glob("*.yaml"))


def nth_of_each_group(number: int) -> list[str]:
    """One option of each group, so that few compositions meet all options; not all of these can run."""
    chosen = [f"{group}={options(group)[number % len(options(group))]}" for group in GROUPS]
    if "pruning=none" not in chosen:
        chosen += [f"{part}={options(part)[number % len(options(part))]}" for part in PARTS]
    trackers = [name for name in options("tracker") if name not in ("none", "both")]
    return [*chosen, f"tracker=[{','.join(trackers[: number % (len(trackers) + 1)])}]"]


MOST_OPTIONS = max(len(options(group)) for group in GROUPS)
FEW = 1
NUMBERS = [
    pytest.param(number, marks=() if number < FEW else pytest.mark.slow) for number in range(MOST_OPTIONS)
]
RICH = [
    *("model=resnet18", "data=mnist", "optimizer=adamwspam", "hardware=auto"),
    *("pruning=state", "pruning/scope=erk", "pruning/mode=soft", "tracker=[trackio,wandb]"),
]


@pytest.fixture(scope="module")
def rich() -> Tree:
    """A tree with keys of every kind."""
    return build(RICH)


def leaves(overrides: list[str]) -> dict[str, object]:
    """Key -> unresolved value of a composition, straight from Hydra."""
    plain = OmegaConf.to_container(compose(complete(overrides)), enum_to_str=True)
    del plain["hydra"]
    return {key: value for key, value in flatten(plain) if not key.endswith("_target_") and value != {}}


# ---------------------------------------------------------------------------------- what is in it


@pytest.mark.parametrize("number", NUMBERS)
def test_each_key_is_there_once_with_the_comment_of_the_line_that_sets_it(number):
    """Oracles: Hydra's own composition for the keys, the text of the line that is named for the place."""
    overrides = nth_of_each_group(number)
    tree = build(overrides)
    assert tree.dropped == ()
    assert sorted(key.path for key in tree.keys) == sorted(leaves(overrides))
    assert [key.path for key in tree.keys if not key.comment] == []
    for key in tree.keys:
        if key.line is not None:
            text = key.line.file.read_text().splitlines()[key.line.number - 1]
            assert text.strip().startswith(f"{key.path.rpartition('.')[2]}:"), (key.path, text)


def test_the_options_of_each_group_are_the_files_of_its_folder(rich):
    """In the words of their first comment, without Hydra's directive and the command of an experiment."""
    assert {choice.group for choice in rich.choices} >= {*GROUPS, *PARTS, "tracker", "experiment", "sweep"}
    for choice in rich.choices:
        several = ("none", "both") if choice.takes_several else ()
        assert sorted(option.name for option in choice.options) == [
            name for name in options(choice.group) if name not in several
        ]
        for option in choice.options:
            assert option.help
            assert not re.search(r"@package|^python train", option.help)


def test_a_key_belongs_to_the_innermost_menu():
    """pruning.scope.n to pruning/scope, pruning.criterion.q, which has no group, to pruning."""
    tree = build(["pruning=state", "pruning/scope=nm"])
    holder = {entry.path: menu.path for menu, entry in tree.root.walk()}
    assert holder["pruning.scope.n"] == "pruning.scope"
    assert holder["pruning.criterion.q"] == "pruning"
    assert (holder["pruning.scope"], holder["trainer.max_steps"], holder["seed"]) == (
        "pruning",
        "trainer",
        "",
    )


def test_the_last_file_that_sets_a_key_is_named_and_the_last_own_comment_is_taken():
    """gpt2.yaml sets max_epochs to null below the comment of max_tokens: that is not about epochs."""
    key = build(["model=gpt2"]).key("trainer.max_epochs")
    assert (key.line.file.name, key.value) == ("gpt2.yaml", None)
    assert "Passes over the training data" in key.comment
    assert build([]).key("trainer.max_epochs").line.file.name == "lenet5.yaml"


def test_comments_are_read_from_the_lines_above(tmp_path):
    """Own, shared by a block, of a section, or none; `#` in a value is no comment."""
    file = tmp_path / "some.yaml"
    file.write_text(
        "# @package _global_\n# What it is,\n# in two lines.\ndefaults:\n  - other\n\n"
        "section:\n  # Of one.\n  one: '# 1'\n  two: 2\n\n  three: 3\n# Of four.\nfour: {five: 5}\n"
    )
    keys = read_keys(file)
    assert opening(file) == "What it is, in two lines."
    assert {name: (line.number, line.comment, line.is_own) for name, line in keys.items()} == {
        "section": (7, "", False),
        "section.one": (9, "Of one.", True),
        "section.two": (10, "Of one.", False),
        "section.three": (12, "", False),
        "four": (14, "Of four.", True),
        "four.five": (14, "Of four.", True),
    }


def test_interpolations_show_what_they_come_to_and_survive():
    """They are values only to the eye: a change of the source moves them."""
    tree = build(["recipe.adam_lr=0.5"])
    key = tree.key("optimizer.lr")
    assert (key.text, key.interpolation, key.override) == ("0.5", "${recipe.adam_lr}", None)
    assert tree.with_value("optimizer.lr", "0.25").key("optimizer.lr").default == 0.5


def test_a_configuration_that_cannot_be_resolved_is_shown_all_the_same():
    """A model and data that do not fit: the problem of the command line, `?` where a value is missing."""
    tree = build(["model=gpt2", "data=mnist5k"])
    assert "this model needs data with vocab_size" in tree.problems[0]
    assert tree.key("model.vocab_size").text == "?"
    assert tree.key("seed").text == "1"


# -------------------------------------------------------------------------- what a key may hold

TEXTS = ("0.5", "1", "-1", "0", "7", "1e3", "abc", "null", "[1,2]", "[0.5,0.9]", "a,b", "true", "", "nan")
# What to_config says of a value that only another key makes wrong, or that no type can tell.
ABOUT_OTHERS = re.compile(
    "not a multiple|must equal|exactly one budget|at most trainer|always exists|1 to 64 of|start_step"
    "|needed by|give one of them|no such key|less than the|not in this package|no update inside"
    # A resolver fails before the range is looked at, as of recipe.micro_batch_size=-1.
    "|while resolving interpolation"
)


def verdict(path: str, typed: str, tree: Tree) -> str | None:
    """What the tree has against a text; None where it takes it."""
    try:
        override_value(path, tree.key(path).kind, typed, tree.composed)
    except ConfigError as error:
        return str(error)
    return None


def objections(overrides: list[str]) -> list[str]:
    """What to_config has against a composition, but for what is a matter of several keys."""
    composed = compose(complete(overrides))
    try:
        to_config(composed)
    except ConfigError as error:
        return [problem for problem in error.problems if not ABOUT_OTHERS.search(problem)]
    return []


def check_against_composing(path: str, typed: str, tree: Tree) -> None:
    """Accepted: it composes, and to_config objects to nothing but the company. Refused: in the same words."""
    refused = verdict(path, typed, tree)
    if refused is None:
        text, value = override_value(path, tree.key(path).kind, typed, tree.composed)
        overrides = [*tree.overrides, f"{path}={text}"]
        assert leaves(overrides)[path] == value
        assert objections(overrides) == []
    else:
        override = f"{path}={override_text(tree.key(path).kind, typed)}"
        with pytest.raises(ConfigError) as caught:
            to_config(compose(complete([*tree.overrides, override])))
        # The command line may add a hint, as in "; did you mean 0.9?".
        words = refused.partition(": ")[2]
        said = [problem for problem in caught.value.problems if words in problem]
        assert said or any(ABOUT_OTHERS.search(problem) for problem in caught.value.problems), refused


def one_key_of_each_kind(tree: Tree) -> list[str]:
    return list({key.kind.words: key.path for key in reversed(tree.keys)}.values())


def test_of_each_kind_a_value_that_is_taken_composes_and_of_some_one_that_is_not_is_refused(rich):
    """Oracle: compose and to_config, which know nothing of the tree. The slow test below has all of each."""
    draw = random.Random(0)
    paths = one_key_of_each_kind(rich)
    for path in draw.sample([path for path in paths if verdict(path, "x=", rich)], 5):
        check_against_composing(path, draw.choice(["-1", "abc", "nan", "x="]), rich)
    # All accepted values in one composition, but for the budgets, which exclude each other.
    taken = []
    for path in paths:
        key = rich.key(path)
        typed = next((text for text in TEXTS if verdict(path, text, rich) is None), key.text)
        if not path.startswith("trainer.max_"):
            taken.append(f"{path}={override_value(path, key.kind, typed, rich.composed)[0]}")
    assert objections([*RICH, *taken]) == []


@pytest.mark.slow
@pytest.mark.parametrize("typed", TEXTS)
def test_every_key_takes_and_refuses_what_composing_does(typed, rich):
    """The same for each key and each text."""
    for key in rich.keys:
        check_against_composing(key.path, typed, rich)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(exclude_categories=("C", "Z"), include_characters=" "), max_size=20))
def test_any_text_can_be_typed_as_it_is(text):
    """Quoted where Hydra would read it otherwise: commas, brackets, quotes, backslashes, numbers, null."""
    assume("${" not in text)
    assert given_keys([f"project={override_text(Kind(str), text)}"]) == {"project": text}


def test_null_is_no_text_where_a_key_may_be_null(rich):
    """And a text that looks like a number stays one."""
    assert override_value("notes", rich.key("notes").kind, "null", rich.composed) == ("null", None)
    assert override_value("notes", rich.key("notes").kind, "5", rich.composed) == ("'5'", "5")
    assert override_value("data.path", rich.key("data.path").kind, "~/x", rich.composed) == ("'~/x'", "~/x")


def test_lists_may_be_typed_without_brackets(rich):
    """As in betas: .9, .95."""
    betas = rich.key("optimizer.betas")
    assert override_value(betas.path, betas.kind, ".9, .95", rich.composed) == ("[.9, .95]", [0.9, 0.95])
    tags = rich.key("tags")
    assert override_value(tags.path, tags.kind, "a, *.attn.*", rich.composed)[1] == ["a", "*.attn.*"]


@pytest.mark.parametrize(
    ("path", "typed", "words"),
    [
        ("optimizer.lr", "-1", "optimizer.lr=-1: must be > 0 and finite"),
        ("optimizer.lr", "1,2", "several values need a sweep"),
        ("optimizer.lr", "${seed}", "an interpolation belongs in a file"),
        ("optimizer.lr", "[1", "not KEY=VALUE"),
        ("trainer.max_steps", "1e3", "write 1000"),
        ("hardware.precision", "float17", "fp32, bf16, fp16, auto"),
        ("seed", "???", "required"),
    ],
)
def test_a_refusal_is_the_line_of_the_command_line(path, typed, words, rich):
    """One line, as the command line has it."""
    assert words in (refused := verdict(path, typed, rich))
    assert "\n" not in refused


def test_types_are_in_words(rich):
    """Those of the schema, and those in the signature of a target."""
    words = {key.path: key.kind.words for key in rich.keys}
    assert words["optimizer.betas"] == "list of 2 numbers in [0, 1)"
    assert words["tracker.trackio.port"] == "integer from 1 to 65535"
    assert words["pruning.target_sparsity"] == "number in [0, 1), or null"
    assert words["pruning.mode.grow"] == "momentum, gradient, none"
    assert words["hardware.device"] == "cpu, cuda, mps, auto"
    assert words["tags"] == "list of texts"
    assert rich.key("pruning.unseen").kind.choices == ("keep", "prune", "null")
    assert rich.key("hardware.compile").kind.is_switch


# --------------------------------------------------------------------------------------- changing


def shown(tree: Tree) -> dict[str, object]:
    return {key.path: key.value for key in tree.keys}


def check_it_composes_to_what_it_shows(tree: Tree) -> None:
    """Oracle: to_config of the overrides, as train.py gets them."""
    config = to_config(compose(complete(list(tree.overrides))))
    assert tree.problems == ()
    plain = {path: value for path, value in flatten(to_plain(config)) if not path.endswith("_target_")}
    assert {path: value for path, value in plain.items() if value != {}} == shown(tree)


@pytest.mark.parametrize(
    "overrides",
    [
        [],
        ["seed=1"],  # a pin: it stays although it is the default
        [
            *("optimizer=sgd", "+tracker.mine._target_=adamwprune.trackers.trackio.trackio", "notes='a, b'"),
            *("trainer={log_every: 5}", "hydra.run.dir=x", "tracker=both", "sweep=seeds"),
        ],
    ],
)
def test_overrides_come_out_as_they_went_in(overrides):
    """Also those that no entry of the tree stands for."""
    tree = build(overrides)
    assert (list(tree.overrides), tree.dropped) == (overrides, ())


def test_a_walk_through_the_menus_composes_to_what_is_shown_and_has_no_needless_override():
    """Choices and values at random; without any one of its overrides the last tree would be another one."""
    steps = [
        lambda tree: tree.with_choice("optimizer", ["adamwprune"]),
        lambda tree: tree.with_value("pruning.target_sparsity", "0.5"),
        lambda tree: tree.with_choice("tracker", ["wandb", "trackio"]),
        lambda tree: tree.with_value("trainer.max_steps", "50"),
        lambda tree: tree.with_value("notes", "a, b"),
    ]
    tree = build([])
    for step in steps:
        tree = step(tree)
    check_it_composes_to_what_it_shows(tree)
    assert set(tree.overrides) == {
        *("optimizer=adamwprune", "pruning.target_sparsity=0.5"),
        *("tracker=[trackio,wandb]", "trainer.max_steps=50", "notes='a, b'"),
    }
    everything = leaves(list(tree.overrides))
    for override in tree.overrides:
        assert leaves([other for other in tree.overrides if other != override]) != everything, override


def test_what_an_option_brings_shows_and_what_it_lacks_is_dropped_with_the_reason():
    """adamwprune brings state; sgd has no betas, and without pruning there is no schedule."""
    tree = build(["optimizer=adamwprune", "optimizer.betas=[0.9,0.9]", "pruning/schedule=linear"])
    assert tree.choice("pruning").chosen == ("state",)
    after = tree.with_choice("optimizer", ["sgd"])
    assert after.overrides == ("optimizer=sgd",)
    assert [override for override, _ in after.dropped] == [
        "pruning/schedule=linear",
        "optimizer.betas=[0.9,0.9]",
    ]
    assert "has no betas" in after.dropped[1][1]
    told = change(tree, after)
    assert "brings pruning=none" in told
    assert "dropped optimizer.betas=[0.9,0.9]" in told
    check_it_composes_to_what_it_shows(after)


def test_the_default_needs_no_override_and_reset_gives_it_back():
    """By choosing it, by typing it, or by reset; a computed one too."""
    tree = build(["optimizer=sgd", "optimizer.lr=0.3", "pruning=none"])
    assert tree.key("optimizer.lr").default == 0.05
    assert tree.with_value("optimizer.lr", "0.05").overrides == ("optimizer=sgd", "pruning=none")
    assert tree.without("optimizer.lr").overrides == ("optimizer=sgd", "pruning=none")
    assert tree.with_choice("pruning", ["none"]).overrides == ("optimizer=sgd", "optimizer.lr=0.3")
    assert differences(tree) == ["optimizer=sgd", "optimizer.lr=0.3 (was 0.05)", "pruning=none"]


def test_a_budget_takes_the_place_of_another():
    """A run has one; that of the model comes back without an override."""
    tree = build([]).with_value("trainer.max_steps", "50")
    assert (tree.overrides, tree.key("trainer.max_epochs").value) == (("trainer.max_steps=50",), None)
    epochs = tree.with_value("trainer.max_epochs", "2")
    assert (epochs.overrides, epochs.dropped[0][0]) == (("trainer.max_epochs=2",), "trainer.max_steps=50")
    assert tree.with_value("trainer.max_epochs", "30").overrides == ()
    assert epochs.problems == ()


@pytest.mark.slow
def test_an_experiment_chooses_and_what_is_given_stays_on_top():
    """Its options are no overrides; the user's are, until they are what it says."""
    tree = build(["optimizer=sgd", "seed=3"]).with_choice("experiment", ["gpt2-shakespeare-cpu"])
    assert tree.overrides == ("optimizer=sgd", "seed=3", "experiment=gpt2-shakespeare-cpu")
    assert (tree.choice("model").text, tree.choice("optimizer").text) == ("gpt2-nano", "sgd")
    chosen = tree.with_choice("optimizer", ["adamwprune"])
    assert chosen.overrides == ("seed=3", "experiment=gpt2-shakespeare-cpu")
    assert chosen.with_choice("experiment", []).overrides == ("seed=3",)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("names", "override"),
    [
        ([], ()),
        (["wandb"], ("tracker=wandb",)),
        (["wandb", "trackio"], ("tracker=[trackio,wandb]",)),
    ],
)
def test_trackers_add_up(names, override):
    """None, one, or a list; `both` is the two that it stands for."""
    tree = build(["tracker=both"])
    assert tree.choice("tracker").chosen == ("trackio", "wandb")
    after = tree.with_choice("tracker", names)
    assert (after.overrides, after.choice("tracker").chosen) == (override, tuple(sorted(names)))


def test_what_no_key_can_hold_is_refused_and_changes_nothing():
    """A part that an option brings, a section, an unknown path."""
    tree = build([])
    for path, words in [
        ("pruning.criterion", "choose another pruning"),
        ("trainer", "is a section"),
        ("nope.lr", "no such key"),
    ]:
        with pytest.raises(ConfigError, match=words):
            tree.with_value(path, "1")


def test_options_of_the_users_own_folder_are_there(tmp_path):
    """hydra.searchpath, as --config-dir sets it."""
    file = tmp_path / "experiment" / "mine.yaml"
    file.parent.mkdir()
    file.write_text("# @package _global_\n# python train.py experiment=mine\n#\n# Mine.\nseed: 9\n")
    tree = build([f"hydra.searchpath=[file://{tmp_path}]", "experiment=mine"])
    assert {option.name: option.help for option in tree.choice("experiment").options}["mine"] == "Mine."
    assert (tree.key("seed").value, tree.key("seed").line.file) == (9, file)


# ------------------------------------------------------------------------------- search and words


def test_search_finds_names_before_comments_and_what_is_not_chosen():
    """Every word must be in a hit; an option's keys are found before it is chosen."""
    tree = build([])
    first = search(tree, "lr")[0]
    assert (first.path, first.option) == ("optimizer.lr", None)
    momentum = search(tree, "momentum")
    assert {(hit.path, hit.option) for hit in momentum} >= {("optimizer", "sgd"), ("optimizer", "muon")}
    assert all("optimizer.momentum of" in hit.title for hit in momentum[:2])
    assert [hit.title for hit in search(tree, "MUON nesterov")] == ["optimizer.nesterov of optimizer=muon"]
    assert search(tree, "  ") == search(tree, "no such words at all") == []
    for hit in itertools.chain(momentum, search(tree, "gpt2")):
        tree.find(hit.path)


def test_help_says_type_file_override_default_and_options():
    """Within the width."""
    tree = build(["optimizer.lr=0.5"])
    text = help_text(tree.key("optimizer.lr"), 60)
    for words in ("number > 0 and finite", "conf/optimizer/adamw.yaml, line 5", "optimizer.lr=0.5", "0.002"):
        assert words in text
    assert "AdamW (Loshchilov" in help_text(tree.find("optimizer"), 60)
    assert max(map(len, help_text(tree.find("optimizer"), 60).splitlines())) <= 60


def test_the_tree_is_free_of_torch_and_of_textual():
    """So that it is fast, and of use without the menu."""
    code = (
        "import sys; from adamwprune.configure import menu, tree, wording, search; tree.build([])\n"
        "assert not {'torch', 'textual'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[2], check=True)
