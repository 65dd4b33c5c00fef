"""The networks of `lrpilot.tasks.language.transformer`, apart from any training."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from lrpilot.tasks.data.texts import PADDING
from lrpilot.tasks.language.transformer import GPT, Attention, Encoder
from lrpilot.tasks.networks.randomness import RunDropout

LENGTH = 12
NUM_TOKENS = 20


def make_gpt(dropout: float = 0.0, **changes: Any) -> GPT:
    arguments: dict[str, Any] = {"num_layers": 3, "num_heads": 2, "width": 16, **changes}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = RunDropout(dropout)
        return GPT(NUM_TOKENS, LENGTH, dropout=module, **arguments)


def make_encoder(dropout: float = 0.0) -> Encoder:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = RunDropout(dropout)
        return Encoder(
            NUM_TOKENS, LENGTH, num_classes=3, num_layers=2, num_heads=2, width=16, dropout=module
        )


def random_tokens(*shape: int) -> Tensor:
    return torch.randint(1, NUM_TOKENS, shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
@pytest.mark.parametrize("changed", range(LENGTH))
def test_future_tokens_do_not_change_past_logits(changed: int) -> None:
    gpt, tokens = make_gpt(), random_tokens(4, LENGTH)
    other = tokens.clone()
    other[:, changed] = (other[:, changed] + 1) % NUM_TOKENS
    before, after = gpt(tokens), gpt(other)

    assert torch.equal(before[:, :changed], after[:, :changed])
    assert (before[:, changed:] != after[:, changed:]).any(-1).all()


def test_logits_of_a_beginning_are_those_of_the_whole() -> None:
    gpt, tokens = make_gpt(), random_tokens(4, LENGTH)

    torch.testing.assert_close(gpt(tokens[:, :5]), gpt(tokens)[:, :5])


def test_order_matters_to_a_gpt() -> None:
    gpt = make_gpt()
    first, second = gpt(torch.tensor([[1, 2, 3]])), gpt(torch.tensor([[2, 1, 3]]))

    assert not torch.allclose(first[:, -1], second[:, -1])


def test_input_and_output_embedding_are_one_parameter() -> None:
    gpt = make_gpt()
    tokens = random_tokens(4, LENGTH)
    hidden: list[Tensor] = []
    gpt.norm.register_forward_hook(lambda *args: hidden.append(args[-1]))
    logits = gpt(tokens)

    assert torch.equal(logits, hidden[0] @ gpt.token_embedding.weight.T)
    shapes = [tuple(parameter.shape) for parameter in gpt.parameters()]
    assert shapes.count((NUM_TOKENS, 16)) == 1


def test_no_layer_has_a_bias() -> None:
    assert not [name for name, _ in make_gpt().named_parameters() if "bias" in name]


def test_a_new_network_guesses_all_tokens_alike() -> None:
    gpt, tokens = make_gpt(), random_tokens(8, LENGTH)
    loss = functional.cross_entropy(gpt(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())

    assert float(loss.detach()) == pytest.approx(math.log(NUM_TOKENS), abs=0.02)


@pytest.mark.parametrize("num_layers", [2, 8])
def test_branches_end_in_weights_scaled_by_their_number(num_layers: int) -> None:
    gpt = make_gpt(num_layers=num_layers, width=128)
    for name, weight in gpt.named_parameters():
        if weight.dim() == 1:
            assert torch.equal(weight, torch.ones(128))
            continue
        is_branch_end = name.endswith(("attention_output.weight", "mlp_output.weight"))
        expected = 0.02 / math.sqrt(2 * num_layers) if is_branch_end else 0.02
        assert float(weight.detach().std()) == pytest.approx(expected, rel=0.06), name
        assert float(weight.detach().mean()) == pytest.approx(0.0, abs=0.002), name


@pytest.mark.parametrize("is_causal", [False, True])
def test_attention_equals_the_formula(is_causal: bool) -> None:
    torch.manual_seed(0)
    attention = Attention(12, 3, is_causal=is_causal).double()
    x = torch.randn(2, 5, 12, dtype=torch.float64)
    q, k, v = attention.query_key_value(x).split(12, dim=-1)
    heads = []
    for i in range(0, 12, 4):
        scores = q[..., i : i + 4] @ k[..., i : i + 4].mT / math.sqrt(4)
        if is_causal:
            scores = scores.masked_fill(torch.ones(5, 5).triu(1).bool(), -math.inf)
        heads.append(scores.softmax(-1) @ v[..., i : i + 4])
    expected = attention.attention_output(torch.cat(heads, -1))

    torch.testing.assert_close(attention(x), expected)


def test_padding_does_not_change_the_logits_of_a_sentence() -> None:
    encoder, sentence = make_encoder(), random_tokens(1, 5)
    padded = functional.pad(sentence, (0, LENGTH - 5), value=PADDING)
    batch = torch.cat([padded, random_tokens(1, LENGTH)])

    torch.testing.assert_close(encoder(batch)[:1], encoder(sentence))


def test_the_padding_word_learns_nothing() -> None:
    encoder = make_encoder()
    encoder(functional.pad(random_tokens(4, 5), (0, 3), value=PADDING)).sum().backward()
    gradient = encoder.token_embedding.weight.grad

    assert gradient is not None
    assert not gradient[PADDING].any()


def test_later_words_change_what_an_encoder_makes_of_earlier_ones() -> None:
    encoder, tokens = make_encoder(), random_tokens(1, 5)
    other = tokens.clone()
    other[:, 4] = tokens[:, 4] % (NUM_TOKENS - 1) + 1
    seen: list[Tensor] = []
    encoder.norm.register_forward_hook(lambda *args: seen.append(args[-1]))
    encoder(tokens)
    encoder(other)

    assert not torch.allclose(seen[0][:, 0], seen[1][:, 0])


@pytest.mark.parametrize("make", [make_gpt, make_encoder])
def test_dropout_acts_in_training_only(make: Any) -> None:
    network, tokens = make(0.3), random_tokens(4, LENGTH)
    assert not torch.equal(network(tokens), network(tokens))
    network.eval()
    assert torch.equal(network(tokens), network(tokens))


@pytest.mark.parametrize("make", [make_gpt, make_encoder])
def test_stacked_networks_compute_as_each_alone(make: Any) -> None:
    networks: list[nn.Module] = [make(), make()]
    with torch.no_grad():
        for parameter in networks[1].parameters():
            parameter.mul_(1.1)
    parameters, _ = torch.func.stack_module_state(networks)
    tokens = random_tokens(2, 4, LENGTH)

    def call(values: dict[str, Tensor], inputs: Tensor) -> Tensor:
        output: Tensor = torch.func.functional_call(networks[0], values, (inputs,))
        return output

    # the CPU's flash attention is the one operation that cannot be mapped
    with sdpa_kernel(SDPBackend.MATH):
        together = torch.func.vmap(call)(parameters, tokens)
    alone = torch.stack([network(x) for network, x in zip(networks, tokens, strict=True)])
    torch.testing.assert_close(together, alone)
