"""When a run says that one of its networks has won, or that none learns."""

import numpy as np
import pytest

import art_gan


def history(*parts, seed=0, batch_size=32):
    """Metrics that scatter around (iterations, loss and accuracy of D, of G), as batches do."""
    rng = np.random.default_rng(seed)
    rows = []
    for count, d_loss, d_accuracy, g_loss, g_accuracy in parts:
        losses = (
            np.abs([d_loss, g_loss]) * rng.gamma(4, 1 / 4, (count, 2)) * np.sign([d_loss, g_loss])
        )
        accuracies = [
            rng.binomial(n * batch_size, p, count) / (n * batch_size)
            for n, p in ((2, d_accuracy), (1, g_accuracy))
        ]
        rows.append(np.stack([losses[:, 0], accuracies[0], losses[:, 1], accuracies[1]], axis=1))
    return np.concatenate(rows).astype(np.float32)


def said(metrics, step):
    """What is said when the history is updated every `step` iterations, and when first."""
    texts = {}
    known = 0
    for length in [*range(step, len(metrics), step), len(metrics)]:
        if text := art_gan.verdict(metrics[:length], known):
            texts[length] = text
        known = length
    return texts


HEALTHY = (1500, 0.6, 0.72, 1.2, 0.3)
WON = (1500, 0.05, 0.99, 8.0, 0.01)
BLIND = (1500, 0.71, 0.5, 0.72, 0.5)


@pytest.mark.parametrize("step", [1, 7, 100, 620, 10_000])
@pytest.mark.parametrize(
    ("after", "words"), [(WON, "the discriminator has won"), (BLIND, "does not tell paintings")]
)
@pytest.mark.parametrize("batch_size", [4, 32])
def test_it_is_said_once(after, words, step, batch_size):
    """However often a run looks, as it does when it is resumed."""
    texts = said(history(HEALTHY, after, batch_size=batch_size), step)
    ((when, text),) = texts.items()
    assert words in text
    window = art_gan.VERDICT_ITERATIONS
    assert 1500 < when <= 1500 + window + step
    assert "\n" not in text and f"{window} iterations" in text


def test_it_may_be_said_of_one_and_then_of_the_other():
    texts = list(said(history(HEALTHY, BLIND, HEALTHY, WON), 100).values())
    assert len(texts) == 2 and texts[0] != texts[1]


@pytest.mark.parametrize(
    "labels",
    [
        (0.17, 0.98, 7.5, 0.01),  # real ones are 0.9: a loss of 0.33 at the least
        (0.02, 0.976, 13.0, 0.0),  # one picture, batch 4: the loss is 16.1 at most
        (0.02, 1.0, 15.9, 0.0),
    ],
)
def test_it_holds_for_smoothed_labels_and_small_batches(labels):
    (text,) = said(history((620, *labels), batch_size=4), 100).values()
    assert "the discriminator has won" in text


@pytest.mark.parametrize(
    "healthy",
    [
        (0.34, 0.84, 3.9, 0.1),
        (0.68, 0.66, 1.9, 0.3),
        (0.5, 0.75, 2.9, 0.2),
        (0.45, 0.8, 4.5, 0.05),
        (0.66, 0.6, 0.9, 0.4),
    ],
)
@pytest.mark.parametrize("batch_size", [4, 32])
@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_run_hears_nothing(healthy, batch_size, seed):
    assert not said(history((3000, *healthy), seed=seed, batch_size=batch_size), 100)


@pytest.mark.parametrize(
    "other",
    [
        (-30.0, 1.0, 40.0, 0.0),  # WGAN: no probabilities, so accuracies mean nothing
        (-0.5, 0.99, 0.2, 0.0),
        (0.01, 1.0, 0.9, 0.0),  # LSGAN: a loss of 1 at most
        (0.05, 1.0, 30.0, 0.0),  # hinge
        (2.0, 0.5, 0.7, 0.5),
        (0.33, 0.5, 0.7, 0.5),  # LSGAN
        (0.71, 0.5, 4.0, 0.0),  # flipped labels
    ],
)
def test_losses_that_are_not_the_cross_entropy_hear_nothing(other):
    assert not said(history((2000, *other)), 100)


@pytest.mark.parametrize("count", [0, 1, 100, 499])
def test_a_short_run_hears_nothing(count):
    assert not said(history((count, *WON[1:])), 50)


def test_a_spell_of_winning_is_no_victory():
    """Some hundred iterations, again and again."""
    spell = [(300, *WON[1:]), (400, *HEALTHY[1:])]
    assert not said(history(*5 * spell), 100)
