"""Variables of make: each is one override that means what was typed, or is refused with what is allowed."""

import itertools

import pytest

from adamwprune.composition import CONF_DIR, given_keys
from adamwprune.configure import tracking, variables
from adamwprune.errors import ConfigError

OPTIONS = sorted(file.stem for file in (CONF_DIR / "tracker").glob("*.yaml"))


def refusal(function, *arguments):
    """The one line with which it refuses."""
    with pytest.raises(ConfigError) as caught:
        function(*arguments)
    assert caught.value.exit_code == 2
    (line,) = caught.value.problems
    assert "\n" not in line
    return line


def overrides(*settings):
    return variables.read(list(settings)).overrides


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        (["DEFCONFIG=gpt2-shakespeare-cpu"], ["experiment=gpt2-shakespeare-cpu"]),
        (["EPOCHS=4"], ["trainer.max_epochs=4"]),
        (["MAX_ITERS=300"], ["trainer.max_steps=300"]),
        (["TIME=60"], ["trainer.max_time=60"]),
        (["OPTIMIZER=adamwspam"], ["optimizer=adamwspam"]),
        (["PROJECT=p"], ["project=p"]),
        (["RUN_NAME=r-1.b"], ["run_name=r-1.b"]),
        (["ENTITY=team"], ["tracker.wandb.entity=team"]),
        (["WANDB_OFFLINE=1"], ["tracker.wandb.mode=offline"]),
        (["WANDB_OFFLINE=0"], ["tracker.wandb.mode=auto"]),
        (["TRACKIO_PORT=8080"], ["tracker.trackio.port=8080"]),
        (["ARGS=seed=2 'notes=two words' \"tags=[a,b]\""], ["seed=2", "notes=two words", "tags=[a,b]"]),
        (["optimizer.lr=3e-4", "pruning/scope=global"], ["optimizer.lr=3e-4", "pruning/scope=global"]),
        (["TRACKER=", "EPOCHS=", "ARGS="], []),
        (["seed=2", "EPOCHS=4", "DEFCONFIG=x"], ["experiment=x", "trainer.max_epochs=4", "seed=2"]),
    ],
)
def test_each_variable_is_one_override(settings, expected):
    """In the order of the table, whatever the order of make; an empty one is none."""
    assert overrides(*settings) == expected


def test_each_variable_of_the_table_is_tried_above():
    """A new variable needs a row."""
    (mark,) = test_each_variable_is_one_override.pytestmark
    tried = {word.partition("=")[0] for settings, _ in mark.args[1] for word in settings}
    assert tried >= {*variables.KEYS, variables.ARGS}


@pytest.mark.parametrize(
    "text", ["a b", "it's", 'a"b', "a,b", "1e3", "null", "true", "[x]", "$HOME", "\\", "a=b", "~x"]
)
def test_a_text_is_read_as_that_text(text):
    """Whatever Hydra would make of it unquoted: RUN_NAME=1e3 is no number."""
    (override,) = overrides(f"RUN_NAME={text}")
    assert given_keys([override]) == {"run_name": text}


def test_flags_of_train_py_are_kept_apart():
    """With their values, from ARGS only."""
    given = variables.read(["ARGS=--config-dir my/conf -m seed=1,2 experiment=mine"])
    assert (given.flags, given.overrides) == (
        ["--config-dir", "my/conf", "-m"],
        ["seed=1,2", "experiment=mine"],
    )


# --------------------------------------------------------------------------------------- TRACKER


@pytest.mark.parametrize("option", OPTIONS)
def test_each_option_of_the_group_is_taken(option):
    """Those that come later too."""
    assert overrides(f"TRACKER={option}") == [f"tracker={option}"]


def test_several_trackers_in_any_order():
    """As a list, which Hydra composes; every pair of different trackers."""
    for pair in itertools.permutations(set(OPTIONS) - {"none", "both"}, 2):
        text = ",".join(pair)
        assert overrides(f"TRACKER={text}") == [f"tracker=[{text}]"]
        assert given_keys([f"tracker=[{text}]"])["tracker"] == list(pair)


@pytest.mark.parametrize(
    "text",
    [
        *("Wandb", "wnadb", "wand", "wandbx", "null", "0", "../data/mnist"),
        *("wandb,,trackio", "wandb,", ",", "wandb, trackio", "wandb trackio", " wandb", "[wandb,trackio]"),
        *("wandb,wandb", "none,wandb", "both,wandb", "wandb;ls"),
    ],
)
def test_any_other_tracker_is_refused_with_the_list(text):
    """No substring matches, no case is folded, nothing is dropped."""
    line = refusal(overrides, f"TRACKER={text}")
    assert line.startswith(f"TRACKER={text}: must be one of {', '.join(OPTIONS)}; or several of ")
    assert line.endswith("each once, as in wandb,trackio")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            ["WANDB_OFFLINE=1", "TRACKER=trackio"],
            "WANDB_OFFLINE=1: is for wandb, and the trackers are trackio",
        ),
        (["ENTITY=t"], "ENTITY=t: is for wandb, and the trackers are none; add TRACKER=wandb"),
        (["TRACKIO_PORT=1", "TRACKER=wandb"], "TRACKIO_PORT=1: is for trackio, and the trackers are wandb"),
        (["WANDB_OFFLINE=yes"], "WANDB_OFFLINE=yes: must be 1 for offline, or 0 for auto"),
        (["EPOCH=4"], "EPOCH=4: no such variable here; did you mean EPOCHS?"),
        (["TRACKR=both"], "did you mean TRACKER?"),
        (["NAME=x"], "NAME=x: no such variable here"),
        (["-m"], "-m: not KEY=VALUE"),
        (["TRACKER=both", "ARGS=tracker=none"], "tracker is given twice (first tracker=both)"),
        (["ARGS='seed=1"], "No closing quotation"),
        (["RUN_NAME=${oc.env:HOME}"], "must not contain ${"),
    ],
)
def test_what_cannot_be_meant_is_refused(settings, words):
    """One line, before anything is started."""

    def check():
        given = variables.read(settings)
        variables.check_trackers(given, given.overrides)

    assert words in refusal(check)


def test_variables_of_a_chosen_tracker_are_taken():
    """Control of the test above: the tracker may come from any option or list."""
    for tracker in ("both", "wandb,trackio"):
        given = variables.read([f"TRACKER={tracker}", "WANDB_OFFLINE=1", "ENTITY=t", "TRACKIO_PORT=1"])
        variables.check_trackers(given, given.overrides)


# -------------------------------------------------------------------------------- tracker targets


@pytest.mark.parametrize(
    ("target", "settings", "expected"),
    [
        ("dashboard", [], (["dashboard"], {})),
        (
            "dashboard",
            ["TRACKIO_PORT=8080", "PROJECT=a b"],
            (["dashboard", "--project=a b", "--port=8080"], {}),
        ),
        ("trackio-show", ["PROJECT=p"], (["dashboard", "--project=p"], {})),
        ("metrics", ["RUN=outputs/a b"], (["metrics", "outputs/a b"], {})),
        ("wandb-sync", ["RUN=d"], (["sync", "d"], {})),
        ("wandb-sync", [], (["sync"], {})),
        ("wandb-test", [], (["test", "wandb"], {})),
        ("wandb-test", ["WANDB_ONLINE=1"], (["test", "wandb"], {"WANDB_ONLINE": "1"})),
        ("trackio-test", [], (["test", "trackio"], {})),
    ],
)
def test_targets_are_commands_of_track(target, settings, expected):
    """With the flags that their variables are."""
    assert tracking.arguments(target, settings) == expected


@pytest.mark.parametrize(
    ("target", "word"), [("dashboard", "PROJEKT=p"), ("trackio-test", "RUN=d"), ("metrics", "seed=1")]
)
def test_a_target_refuses_what_it_would_not_read(target, word):
    """A typo is not ignored."""
    assert refusal(tracking.arguments, target, [word]).startswith(f"{word}: no such variable here; ")


def test_every_target_is_a_command_that_exists():
    """The commands of adamwprune.track take these words."""
    from adamwprune.track.__main__ import parser

    for name, target in tracking.TARGETS.items():
        words, _ = tracking.arguments(name, [f"{key}=7860" for key in target.flags])
        assert parser().parse_args(words).command, name
