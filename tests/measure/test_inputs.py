"""Inputs of a model's kind."""

import torch

from scalebench_lib.measure.inputs import Tokens, combined_maker, random_float_maker


def test_padding_has_the_models_own_id() -> None:
    """RoBERTa counts positions by it."""
    ids, mask = Tokens(seq_len=12, vocabulary=200, pad=1, start=0, end=2).make(6, 0, padded=True)
    assert (ids[mask == 0] == 1).all()
    assert not (ids[mask == 1] == 1).any()
    assert (ids[:, 0] == 0).all()
    assert mask[0].all()
    assert not mask[1:].all()


def test_a_padded_batch_of_one_is_padded() -> None:
    """Or its mask would never be looked at."""
    _, mask = Tokens(seq_len=16, vocabulary=200).make(1, 0, padded=True)
    assert 2 <= int(mask.sum()) < 16


def test_the_shortest_text_can_be_padded() -> None:
    """Two tokens are as short as a text gets."""
    _, mask = Tokens(seq_len=2, vocabulary=200).make(3, 0, padded=True)
    assert mask.all()


def test_inputs_are_those_of_their_seed() -> None:
    """Another seed asks something else."""
    for kind in (Tokens(seq_len=16, vocabulary=200), random_float_maker("32 pixels", 32)):
        first, again, other = (kind.make(2, seed, False)[0] for seed in (1, 1, 2))
        assert torch.equal(first, again)
        assert not torch.equal(first, other)


def test_a_decoder_is_given_ids_alone_and_never_padded() -> None:
    """What it is to say has one length; it begins with the id that the decoder begins with."""
    (ids,) = Tokens(seq_len=16, vocabulary=200, start=7, decoder=True).make(4, 0, padded=True)
    assert (ids[:, 0] == 7).all()
    assert (ids >= 7).all()


def test_several_kinds_are_one_behind_the_other() -> None:
    """A text with a picture; each item has both."""
    kind = combined_maker(
        [Tokens(seq_len=16, vocabulary=200), random_float_maker("4 pixels", 2, 2)]
    )
    ids, mask, pixels = kind.make(3, 0, True)
    assert (ids.shape, pixels.shape) == ((3, 16), (3, 2, 2))
    assert not mask.all()
    assert str(kind) == "16 tokens and 4 pixels"


def test_it_is_said_where_a_model_pads_by_itself() -> None:
    """Longformer's window decides the work of a short text."""
    assert str(Tokens(seq_len=16, vocabulary=200, window=512)) == "16 tokens, padded to 512"
    assert str(Tokens(seq_len=1024, vocabulary=200, window=512)) == "1024 tokens"
