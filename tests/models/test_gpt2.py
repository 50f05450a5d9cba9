"""GPT-2: published sizes, causality, initialisation, and Hugging Face's logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch.nn.attention import SDPBackend, sdpa_kernel

from adamwprune.errors import CheckpointError, ConfigError
from adamwprune.models.gpt2 import GPT2
from adamwprune.models.hugging_face import to_hugging_face

PUBLISHED = {"vocab_size": 50257, "block_size": 1024, "dropout": 0.1}
SMALL = {"n_layer": 12, "n_head": 12, "n_embd": 768}
TINY = {"vocab_size": 97, "block_size": 16, "n_layer": 2, "n_head": 4, "n_embd": 32}
CONV1D = ("attn.c_attn.weight", "attn.c_proj.weight", "c_fc.weight", "mlp.c_proj.weight")


def tiny(seed: int = 0, **changes) -> GPT2:
    torch.manual_seed(seed)
    return GPT2(**{**TINY, "dropout": 0.0, **changes})


def random_tokens(batch: int = 2, length: int = 16, vocab_size: int = 97) -> torch.Tensor:
    return torch.randint(vocab_size, (batch, length), generator=torch.Generator().manual_seed(1))


# Sizes


@pytest.mark.parametrize(
    ("n_layer", "n_head", "n_embd", "parameters"),
    [
        (12, 12, 768, 124_439_808),
        (24, 16, 1024, 354_823_168),
        (36, 20, 1280, 774_030_080),
        (48, 25, 1600, 1_557_611_200),
    ],
)
def test_parameter_count(n_layer, n_head, n_embd, parameters):
    """The four published models; on meta, where 6 GB of weights cost nothing."""
    with torch.device("meta"):
        model = GPT2(**PUBLISHED, n_layer=n_layer, n_head=n_head, n_embd=n_embd)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters


def test_without_bias_only_the_bias_is_gone():
    """Each layer of 124M has 11 C biases, the last norm one more C."""
    with torch.device("meta"):
        model = GPT2(**PUBLISHED, **SMALL, bias=False)
    assert not [name for name, _ in model.named_parameters() if name.endswith("bias")]
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808 - (12 * 11 + 1) * 768


def test_output_matrix_is_the_embedding_and_registered_last():
    """One tensor under two names: counted, updated and pruned once."""
    model = tiny()
    assert model.lm_head.weight is model.transformer.wte.weight
    assert next(reversed(model.state_dict())) == "lm_head.weight"
    assert "lm_head.weight" not in dict(model.named_parameters())


def test_flops_per_token_of_124m():
    """6 N + 12 L C T by hand, N without the 1024 x 768 position embeddings."""
    with torch.device("meta"):
        model = GPT2(**PUBLISHED, **SMALL)
    assert model.flops_per_token() == 6 * (124_439_808 - 1024 * 768) + 12 * 12 * 768 * 1024


@pytest.mark.parametrize(("multiple", "rows"), [(1, 50257), (64, 50304), (128, 50304), (50257, 50257)])
def test_parameter_count_of_a_padded_vocabulary(multiple, rows):
    """124,475,904 parameters at 50,304 rows, as in nanoGPT; the padding is no work of the model."""
    with torch.device("meta"):
        model = GPT2(**PUBLISHED, **SMALL, pad_vocab_to_multiple_of=multiple)
        plain = GPT2(**PUBLISHED, **SMALL)
    added = (rows - 50257) * 768
    assert sum(parameter.numel() for parameter in model.parameters()) == 124_439_808 + added
    assert model.flops_per_token() == plain.flops_per_token()
    assert model.lm_head.weight.shape == (rows, 768)


# Behaviour


def test_later_tokens_leave_earlier_logits_alone():
    """1e-6: attention may add masked zeros in another order. The control: later logits move."""
    model, tokens = tiny().eval(), random_tokens()
    changed = tokens.clone()
    changed[:, 10] = (changed[:, 10] + 1) % 97
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :10], after[:, :10], rtol=0, atol=1e-6)
    assert ((before - after)[:, 10:].abs().amax(dim=-1) > 1e-4).all()


def test_a_shorter_sequence_is_a_prefix():
    """Positions count from 0 whatever the length; 1e-6 for the order of sums."""
    model, tokens = tiny().eval(), random_tokens()
    torch.testing.assert_close(model(tokens[:, :7]), model(tokens)[:, :7], rtol=0, atol=1e-6)


def test_initial_loss_is_that_of_a_uniform_guess():
    """ln V. Logits of std 0.02 sqrt(C) = 0.11 add half their variance, 0.006; chance adds 0.01 or less."""
    tokens = random_tokens(batch=16)
    loss = F.cross_entropy(tiny()(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(97), abs=0.03)


def test_initial_spread_of_each_kind_of_weight():
    """0.02, and 0.02 / sqrt(2 L) where a branch ends; 4,096 draws or more: 5 % is above four sigma."""
    model = tiny(n_layer=8, n_embd=64, vocab_size=64, block_size=64)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            expected = 0.02 / 4 if name.endswith("c_proj.weight") else 0.02
            assert parameter.std().item() == pytest.approx(expected, rel=0.05), name
        else:
            assert (parameter == (0 if name.endswith("bias") else 1)).all(), name


def test_dropout_acts_in_training_only():
    """Bitwise. At rate 0 training equals evaluation; at 0.5 it does not, and evaluation draws nothing."""
    model, dropped, tokens = tiny(), tiny(dropout=0.5), random_tokens()
    assert torch.equal(model.train()(tokens), model.eval()(tokens))
    assert not torch.equal(dropped.train()(tokens), model(tokens))
    assert torch.equal(dropped.eval()(tokens), model(tokens))


def test_dropout_follows_the_embeddings_and_each_branch():
    """1 + 2 L places, each used once and at the given rate: 1,024 draws, so 0.1 is six sigma."""
    model, zeros = tiny(dropout=0.5), []
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.register_forward_hook(lambda *call: zeros.append((call[-1] == 0).float().mean().item()))
    model(random_tokens())
    assert zeros == pytest.approx([0.5] * 5, abs=0.1)


def test_dropout_reaches_the_attention_weights():
    """SDPA takes the rate as an argument, so model.eval() alone would not switch it off."""
    attention = tiny(dropout=0.5).transformer.h[0].attn
    attention.resid_dropout.p = 0.0
    x = torch.randn(1, 16, 32)
    assert not torch.equal(attention.train()(x), attention.train()(x))
    assert torch.equal(attention.eval()(x), attention.eval()(x))


def test_heads_that_do_not_divide_the_width_are_refused():
    """One line with both keys and a width that works."""
    for n_embd, works in ((30, 28), (3, 4)):
        message = rf"^model\.n_embd={n_embd}: must be a multiple of model\.n_head=4; use {works}$"
        with pytest.raises(ConfigError, match=message):
            tiny(n_embd=n_embd)


def test_a_sequence_beyond_the_block_is_refused():
    """Before the embedding: an index error on a GPU kills the process without a reason."""
    model = tiny()
    assert model(random_tokens(length=16)).shape == (2, 16, 97)
    with pytest.raises(ValueError, match=r"^17 tokens: must be at most model\.block_size=16; crop them$"):
        model(random_tokens(length=17))


# Vocabulary padding


def loss_and_gradients(model: GPT2, tokens: torch.Tensor, smoothing: float = 0.0):
    torch.manual_seed(1)  # for dropout
    logits = model(tokens)
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten(), label_smoothing=smoothing)
    return loss, dict(
        zip(dict(model.named_parameters()), torch.autograd.grad(loss, [*model.parameters()]), strict=True)
    )


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_a_padded_vocabulary_changes_no_loss_and_no_gradient(smoothing):
    """From one seed, with smoothing over all classes too; 1e-6 for the order of sums. Padding gets none."""
    tokens = random_tokens()
    loss, gradients = loss_and_gradients(tiny(), tokens, smoothing)
    padded_loss, padded = loss_and_gradients(tiny(pad_vocab_to_multiple_of=64), tokens, smoothing)
    torch.testing.assert_close(padded_loss, loss, rtol=1e-6, atol=0)
    assert not padded["transformer.wte.weight"][97:].any()
    padded["transformer.wte.weight"] = padded["transformer.wte.weight"][:97]
    torch.testing.assert_close(padded, gradients, rtol=0, atol=1e-6)


def test_padded_logits_would_change_the_loss():
    """Control: what nanoGPT does, logits of 0 for the padding and all in the sum, is another loss."""
    model, tokens = tiny(pad_vocab_to_multiple_of=64), random_tokens()
    logits = model.lm_head(model.transformer(tokens))
    loss = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert loss - loss_and_gradients(model, tokens)[0] > 0.1


def test_padding_stays_zero_in_training():
    """Under AdamW with decay, so that no export and no comparison meets anything there."""
    model, tokens = tiny(pad_vocab_to_multiple_of=64), random_tokens()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    before = model.transformer.wte.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        F.cross_entropy(model(tokens).flatten(0, 1), tokens.flatten()).backward()
        optimizer.step()
    assert not model.transformer.wte.weight[97:].any()
    assert (model.transformer.wte.weight[:97] != before[:97]).any(dim=1).all()
    model.reset_parameters()
    assert not model.transformer.wte.weight[97:].any()


# Activation checkpointing


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_checkpointing_changes_no_bit_of_loss_and_gradients(dropout):
    """Dropout drops the same in the second pass, and leaves the generator where it would be without."""
    tokens, results = random_tokens(), []
    for checkpointing in (False, True):
        model = tiny(dropout=dropout, activation_checkpointing=checkpointing)
        loss, gradients = loss_and_gradients(model, tokens)
        results.append([loss, *gradients.values(), torch.get_rng_state()])
    assert all(torch.equal(first, second) for first, second in zip(*results, strict=True))


def test_checkpointing_without_the_generator_would_be_noticed(monkeypatch):
    """Control: a second pass that draws other numbers gives other gradients."""
    from adamwprune.models import gpt2

    checkpoint, tokens = gpt2.checkpoint, random_tokens()
    expected = loss_and_gradients(tiny(dropout=0.5, activation_checkpointing=True), tokens)[1]
    monkeypatch.setattr(gpt2, "checkpoint", lambda *a, **k: checkpoint(*a, **k, preserve_rng_state=False))
    actual = loss_and_gradients(tiny(dropout=0.5, activation_checkpointing=True), tokens)[1]
    assert not all(torch.equal(actual[name], expected[name]) for name in expected)


def saved_bytes(model: GPT2, tokens: torch.Tensor) -> int:
    """Bytes that the graph of a forward pass holds beyond the parameters."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    storages: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in parameters:
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        logits = model(tokens)  # which keeps the graph, and its storages, alive
    assert logits.requires_grad
    return sum(storages.values())


def test_checkpointing_keeps_the_input_of_each_block_alone():
    """A ninth block costs B T C floats; without checkpointing more than ten times that."""
    tokens = random_tokens()
    added = {}
    for checkpointing in (False, True):
        eight, nine = (
            saved_bytes(tiny(n_layer=n, activation_checkpointing=checkpointing), tokens) for n in (8, 9)
        )
        added[checkpointing] = nine - eight
    assert added[True] == 4 * tokens.numel() * 32
    assert added[False] > 10 * added[True]


def test_checkpointing_recomputes_nothing_in_an_evaluation(monkeypatch):
    """Without gradients there is nothing to keep."""
    from adamwprune.models import gpt2

    model = tiny(activation_checkpointing=True)
    monkeypatch.setattr(gpt2, "checkpoint", None)
    with torch.no_grad():
        model(random_tokens())
    with pytest.raises(TypeError):
        model(random_tokens())


@pytest.mark.slow
def test_checkpointing_compiles_into_one_graph_with_equal_gradients():
    """Without dropout, which draws otherwise when compiled; 1e-6 for the order of sums."""
    torch.compiler.reset()
    model, tokens = tiny(activation_checkpointing=True), random_tokens()
    compiled = torch.compile(model, backend="aot_eager", fullgraph=True)
    expected = loss_and_gradients(model, tokens)
    loss = F.cross_entropy(compiled(tokens).flatten(0, 1), tokens.flatten())
    gradients = torch.autograd.grad(loss, [*model.parameters()])
    torch.testing.assert_close(list(gradients), [*expected[1].values()], rtol=0, atol=1e-6)


# Attention


def test_attention_holds_no_matrix_of_length_times_length():
    """On the CPU without dropout flash attention is chosen: twice the tokens keep twice the bytes."""
    sizes = {"n_layer": 1, "n_head": 1, "n_embd": 8, "block_size": 2048, "vocab_size": 8}
    short, long = (saved_bytes(tiny(**sizes), torch.zeros(1, n, dtype=torch.int64)) for n in (1024, 2048))
    assert long == pytest.approx(2 * short, rel=0.02)
    with sdpa_kernel(SDPBackend.MATH):  # the control: 2048 x 2048 floats
        assert saved_bytes(tiny(**sizes), torch.zeros(1, 2048, dtype=torch.int64)) > long + 2048 * 2048


# Hugging Face's weights


def as_hugging_face(model: GPT2) -> dict[str, torch.Tensor]:
    """The state dict that a GPT2LMHeadModel with the same weights would have."""
    state = model.state_dict()
    return {
        key: (value.t() if key.endswith(CONV1D) else value).contiguous().clone()
        for key, value in state.items()
    }


def loaded(folder, state: dict[str, torch.Tensor], **changes) -> GPT2:
    """A GPT2 whose `weights` are a file with `state`."""
    save_file({name: tensor.contiguous().clone() for name, tensor in state.items()}, folder / "m.safetensors")
    return tiny(seed=1, **changes, weights=str(folder / "m.safetensors"))


def shuffled(model: torch.nn.Module) -> None:
    """Move every parameter off its initial value, so that no bias is 0 and no scale is 1."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)


def hugging_face_model(vocab_size: int, block_size: int, n_layer: int, n_head: int, n_embd: int):
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        vocab_size=vocab_size,
        n_positions=block_size,
        n_layer=n_layer,
        n_head=n_head,
        n_embd=n_embd,
        bos_token_id=None,
        eos_token_id=None,
        attn_implementation="eager",
    )
    model = transformers.GPT2LMHeadModel(config).eval()
    shuffled(model)
    return model


def test_logits_and_gradients_equal_hugging_face(tmp_path):
    """1e-5 in float32: eager attention there, SDPA here; the same sums in another order."""
    torch.manual_seed(0)
    theirs, tokens = hugging_face_model(**TINY), random_tokens()
    ours = loaded(tmp_path, theirs.state_dict())
    ours_logits, theirs_logits = ours(tokens), theirs(tokens).logits
    torch.testing.assert_close(ours_logits, theirs_logits, rtol=0, atol=1e-5)
    for logits in (ours_logits, theirs_logits):
        F.cross_entropy(logits.flatten(0, 1), tokens.flatten()).backward()
    for name, parameter in theirs.named_parameters():
        gradient = ours.get_parameter(name).grad
        expected = parameter.grad.t() if name.endswith(CONV1D) else parameter.grad
        torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-5, msg=name)


def test_the_comparison_notices_another_gelu(monkeypatch, tmp_path):
    """Control of the test above, with the smallest fault that we can think of: the exact GELU."""
    torch.manual_seed(0)
    theirs, tokens = hugging_face_model(**TINY), random_tokens()
    ours = loaded(tmp_path, theirs.state_dict())
    for block in [*theirs.transformer.h, *ours.transformer.h]:
        with torch.no_grad():  # the forms differ by 5e-4 near |x| = 2, by nothing near 0
            block.mlp.c_fc.weight.mul_(20)
    expected = theirs(tokens).logits
    torch.testing.assert_close(ours(tokens), expected, rtol=0, atol=1e-5)
    gelu = F.gelu
    monkeypatch.setattr(F, "gelu", lambda x, approximate: gelu(x))
    assert (ours(tokens) - expected).abs().max() > 3e-5


@pytest.mark.slow
def test_logits_equal_hugging_face_at_124m(tmp_path):
    """1e-5 in float32 through 12 layers of 768 channels."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 50257, "block_size": 1024, **SMALL}
    theirs = hugging_face_model(**sizes)
    ours = loaded(tmp_path, theirs.state_dict(), **sizes, pad_vocab_to_multiple_of=64).eval()
    tokens = random_tokens(batch=1, length=256, vocab_size=50257)
    with torch.no_grad():
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("prefix", ["transformer.", ""])
@pytest.mark.parametrize("has_head", [True, False])
@pytest.mark.parametrize("multiple", [1, 64])
def test_both_spellings_load(tmp_path, prefix, has_head, multiple):
    """The published file has neither prefix nor head, but buffers with causal masks. Bitwise."""
    source, tokens = tiny(seed=0), random_tokens()
    shuffled(source)
    state = {key.replace("transformer.", prefix): value for key, value in as_hugging_face(source).items()}
    state[f"{prefix}h.0.attn.bias"] = torch.ones(1, 1, 16, 16)
    state[f"{prefix}h.0.attn.masked_bias"] = torch.tensor(-1e4)
    if not has_head:
        del state["lm_head.weight"]
    target = loaded(tmp_path, state, pad_vocab_to_multiple_of=multiple)
    torch.testing.assert_close(source(tokens), target(tokens), rtol=0, atol=0 if multiple == 1 else 1e-6)
    assert not torch.equal(source(tokens), tiny(seed=1)(tokens))
    assert target.lm_head.weight is target.transformer.wte.weight


@pytest.mark.parametrize("multiple", [1, 64])
def test_a_file_in_our_own_layout_loads(tmp_path, multiple):
    """A checkpoint's, padded or not, into a model that is padded or not. The shape of c_attn tells."""
    source, tokens = tiny(seed=0, pad_vocab_to_multiple_of=multiple), random_tokens()
    state = dict(source.named_parameters())
    torch.testing.assert_close(
        loaded(tmp_path, state, pad_vocab_to_multiple_of=multiple)(tokens), source(tokens)
    )
    unpadded = {**state, "transformer.wte.weight": state["transformer.wte.weight"][:97]}
    torch.testing.assert_close(
        loaded(tmp_path, unpadded, pad_vocab_to_multiple_of=64)(tokens), source(tokens)
    )


def test_trained_rows_are_not_cut_off_as_padding(tmp_path):
    """A file with a larger vocabulary, of just as many rows as ours has with its padding."""
    state = dict(tiny(pad_vocab_to_multiple_of=64).named_parameters())
    embedding = state["transformer.wte.weight"].detach().clone()
    embedding[98:100] = 1e-3
    message = r"wte.weight has 128 rows, 2 of them trained beyond data.vocab_size=97: .* data.vocab_size=128"
    with pytest.raises(CheckpointError, match=message):
        loaded(tmp_path, {**state, "transformer.wte.weight": embedding}, pad_vocab_to_multiple_of=64)


@pytest.mark.parametrize("bias", [True, False])
def test_saved_weights_are_theirs(bias):
    """GPT2LMHeadModel loads them without a missing or unknown name, and gives our logits: 1e-5 as above."""
    source, tokens = tiny(pad_vocab_to_multiple_of=64, bias=bias), random_tokens()
    shuffled(source)
    weights = to_hugging_face(source)
    assert weights["transformer.wte.weight"].shape == (97, 32)
    theirs = hugging_face_model(**TINY)
    missing, unknown = theirs.load_state_dict(weights, strict=False)
    assert (missing, unknown) == (["lm_head.weight"], [])  # tied
    torch.testing.assert_close(theirs(tokens).logits, source.eval()(tokens), rtol=0, atol=1e-5)


C_FC = "transformer.h.1.mlp.c_fc.weight"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({C_FC: None}, f"{C_FC} is missing;"),
        ({C_FC: None, "transformer.ln_f.bias": None}, r"is missing \(1 of 2 problems\);"),
        ({"transformer.h.2.ln_1.bias": torch.ones(32)}, "transformer.h.2.ln_1.bias is unknown to the model;"),
        ({C_FC: torch.ones(128, 32)}, rf"{C_FC} has shape \(32, 128\), the model needs \(128, 32\);"),
        ({C_FC: torch.full((32, 128), torch.nan)}, f"{C_FC} has values that are not finite;"),
        ({"lm_head.weight": torch.ones(97, 32)}, "lm_head.weight differs from transformer.wte.weight"),
        ({"transformer.wte.weight": torch.ones(98, 32), "lm_head.weight": None}, r"has shape \(98, 32\)"),
    ],
    ids=["missing", "two missing", "unknown", "not transposed", "not finite", "untied", "other vocabulary"],
)
def test_weights_that_do_not_fit_are_refused(tmp_path, changes, message):
    """One line that names the file."""
    state = {**as_hugging_face(tiny(seed=0)), **changes}
    with pytest.raises(
        CheckpointError, match=rf"^model\.weights=\S*m\.safetensors: .*{message}.*$"
    ) as caught:
        loaded(tmp_path, {key: value for key, value in state.items() if value is not None})
    assert "\n" not in str(caught.value)
