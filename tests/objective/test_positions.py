"""Moments by position, and the horizon of signals whose end is known."""
import math

import torch

from tasks.opd.objective.positions import BUCKETS, STARTS, Moments, bucket_of, moments_of, signal_horizon

LONGEST = 1024


def noisy(signal, *, rollouts: int = 64, seed: int = 0, noise: float = 1.0) -> Moments:
    """Moments of signal(position) + noise over rollouts of LONGEST tokens."""
    position = torch.arange(LONGEST).repeat(rollouts)
    generator = torch.Generator().manual_seed(seed)
    values = signal(position.double()) + noise * torch.randn(position.numel(), dtype=torch.float64, generator=generator)
    return moments_of(position, values)


def test_buckets_begin_at_0_and_8_and_double():
    assert STARTS[:6].tolist() == [0, 8, 16, 32, 64, 128] and STARTS[-1] == 131072
    assert bucket_of(torch.tensor([0, 7, 8, 15, 16, 63, 64, 10 ** 6])).tolist() == [0, 0, 1, 1, 2, 3, 4, BUCKETS - 1]


def test_moments_by_hand_without_what_is_not_finite():
    moments = moments_of(torch.tensor([0, 9, 7, 1, 2]), torch.tensor([1.0, 5.0, 4.0, math.nan, -math.inf]))
    # bucket 0: 1 and 4, mean 2.5, variance (1.5^2 + 1.5^2) / 2 = 2.25
    assert moments.count[:3].tolist() == [2, 1, 0]
    assert moments.mean[:3].tolist() == [2.5, 5, 0] and moments.variance[:3].tolist() == [2.25, 0, 0]


def test_flat_noise_has_no_horizon():
    found = [signal_horizon(noisy(torch.zeros_like, seed=seed)) for seed in range(100)]
    assert found.count(0) >= 98         # z^2 above ln 65536 = 11.1 is once in 1200 buckets of pure noise, of 8 each


def test_a_signal_everywhere_reaches_to_the_last_bucket():
    assert signal_horizon(noisy(lambda t: torch.full_like(t, -0.3))) == 1024
    assert signal_horizon(noisy(lambda t: torch.full_like(t, 0.3))) == 1024


def test_a_signal_that_decays_ends_where_it_meets_the_noise():
    # bucket [256, 512): mean of exp(-t / 40) over it is 40 / 256 * exp(-6.4) = 2.6e-4, its standard error is
    # 1 / sqrt(64 * 256) = 7.8e-3: noise. Bucket [128, 256): 40 / 128 * (exp(-3.2) - exp(-6.4)) = 0.0122 against
    # 1 / sqrt(64 * 128) = 0.011: 1.1 standard errors, noise. Bucket [64, 128): 0.101 against 0.0156, 6.5: signal.
    found = [signal_horizon(noisy(lambda t: torch.exp(-t / 40), seed=seed)) for seed in range(20)]
    assert found.count(128) >= 19
    slower = [signal_horizon(noisy(lambda t: torch.exp(-t / 120), seed=seed)) for seed in range(20)]
    assert slower.count(512) >= 19      # [256, 512): 0.049 against 0.0078; [512, 1024): 0.0033 against 0.0055


def test_a_step_ends_at_its_step_and_more_noise_ends_it_earlier():
    assert signal_horizon(noisy(lambda t: (t < 256).double())) == 256
    assert signal_horizon(noisy(lambda t: torch.exp(-t / 40), noise=10.0)) < 128


def test_a_first_token_that_is_always_the_same_hides_no_signal_behind_it():
    moments = noisy(lambda t: (t < 64).double())
    moments.mean[0], moments.variance[0] = 0.0, 0.0
    assert signal_horizon(moments) == 64


def test_nothing_and_single_values_have_no_horizon():
    assert signal_horizon(moments_of(torch.tensor([], dtype=torch.long), torch.tensor([]))) == 0
    assert signal_horizon(moments_of(torch.tensor([0, 8]), torch.tensor([1.0, 1.0]))) == 0
