"""What a SMERF student is trained on: each loss a pure function of tensors, unweighted, mean over rays.

Sources: Duckworth et al. 2024 (SMERF) and the official implementation's defaults, Reiser et al. 2023 (MERF), Barron et
al. 2022 (mip-NeRF 360), Barron et al. 2023 (Zip-NeRF), Yu et al. 2021 (PlenOctrees).
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

_ROBUST_FLOOR = 1e-6
_SSIM_C1, _SSIM_C2 = 0.01**2, 0.03**2
"""Constants of Wang et al. 2004 for values in [0, 1]."""


def robust_rgb(student: Float[Tensor, "N 3"], target: Float[Tensor, "N 3"]) -> Float[Tensor, ""]:
    """Charbonnier distance of colours: the mean of sqrt(1e-6 + d^2) over rays and channels.

    Like an absolute error, but smooth at 0, where it is 1e-3. Also the consistency loss between two submodels' pictures
    of the same rays (Duckworth et al. 2024).

    Args:
        student: colours, any range.
        target: colours; the gradient goes to both.
    """
    return (_ROBUST_FLOOR + (student - target).square()).sqrt().mean()


def patch_dssim(student: Float[Tensor, "P 9 3"], target: Float[Tensor, "P 9 3"]) -> Float[Tensor, ""]:
    """Structural dissimilarity (1 - SSIM) / 2 of whole 3 x 3 patches, mean over patches and channels.

    The window is the patch and the filter its mean, so a patch and a channel give one SSIM (Wang et al. 2004).

    Args:
        student: colours of the 9 pixels of each patch, in any order, about [0, 1].
        target: the same pixels' colours as they should be.

    Returns:
        In [0, 1]: 0 where equal, 1 where every patch is its target's negative around the same mean.
    """
    mean_s, mean_t = student.mean(dim=1), target.mean(dim=1)
    # Variances from the deviations, never as E[x^2] - E[x]^2: in float32 that goes below 0 in flat patches.
    deviation_s, deviation_t = student - mean_s[:, None], target - mean_t[:, None]
    covariance = (deviation_s * deviation_t).mean(dim=1)
    variances = deviation_s.square().mean(dim=1) + deviation_t.square().mean(dim=1)
    luminance = (2 * mean_s * mean_t + _SSIM_C1) / (mean_s.square() + mean_t.square() + _SSIM_C1)
    structure = (2 * covariance + _SSIM_C2) / (variances + _SSIM_C2)
    return (1 - luminance * structure).mean() / 2


def geometry(student_weights: Float[Tensor, "N n"], teacher_weights: Float[Tensor, "N n"]) -> Float[Tensor, ""]:
    """Where along the ray the light comes from: the sum over intervals of |w_T - w_S|, mean over rays.

    What `geometry_bounds` is where student and teacher share their intervals, as they do in training.

    Args:
        student_weights: the student's weights, summed over its samples in each of the teacher's intervals, in [0, 1].
        teacher_weights: the teacher's weights, in [0, 1].
    """
    return (teacher_weights - student_weights).abs().sum(dim=-1).mean()


def geometry_bounds(
    student_edges: Float[Tensor, "N student_edges"],
    student_weights: Float[Tensor, "N student"],
    teacher_edges: Float[Tensor, "N teacher_edges"],
    teacher_weights: Float[Tensor, "N teacher"],
) -> Float[Tensor, ""]:
    """The geometry loss for any two sets of intervals (Duckworth et al. 2024).

    A student's interval may weigh no less than the teacher's intervals that lie inside it, and no more than those that
    it touches with more than an edge: the sum of max(0, inside - w_S) + max(0, w_S - touched), mean over rays.

    Args:
        student_edges: [N, n + 1] distances, ascending.
        student_weights: [N, n] in [0, 1].
        teacher_edges: [N, m + 1] distances in the same unit, ascending.
        teacher_weights: [N, m] in [0, 1].
    """
    edges = teacher_edges.contiguous()
    starts, ends = student_edges[:, :-1].contiguous(), student_edges[:, 1:].contiguous()
    # Float64, so that a difference of two sums of the same weights is not off by more than the weights' own rounding.
    summed = torch.nn.functional.pad(teacher_weights.double().cumsum(dim=-1), (1, 0))
    last = edges.shape[1] - 1

    def sum_between(first: Int[Tensor, "N n"], past: Int[Tensor, "N n"]) -> Float[Tensor, "N n"]:
        first, past = first.clamp(0, last), past.clamp(0, last)
        past = torch.maximum(first, past)
        return (summed.gather(1, past) - summed.gather(1, first)).to(student_weights.dtype)

    inside = sum_between(torch.searchsorted(edges, starts), torch.searchsorted(edges, ends, right=True) - 1)
    touched = sum_between(torch.searchsorted(edges, starts, right=True) - 1, torch.searchsorted(edges, ends))
    below, above = (inside - student_weights).clamp(min=0), (student_weights - touched).clamp(min=0)
    return (below + above).sum(dim=-1).mean()


def distortion(edges: Float[Tensor, "N edges"], weights: Float[Tensor, "N n"]) -> Float[Tensor, ""]:
    """How far a ray's weights are spread out (Barron et al. 2022, Eq. 15), mean over rays.

    sum_ij w_i w_j |m_i - m_j| + 1/3 sum_i w_i^2 (s_{i+1} - s_i), with midpoints m, in O(n): midpoints ascend, so the
    first sum is twice sum_i w_i (m_i W_i - M_i), W_i and M_i being the sums of w and w m over the intervals before i.

    Args:
        edges: [N, n + 1] normalised distances, in [0, 1], ascending.
        weights: in [0, 1].

    Returns:
        In [0, 1].
    """
    middles = (edges[:, 1:] + edges[:, :-1]) / 2
    before = weights.cumsum(dim=-1) - weights
    moments = weights * middles
    between = 2 * (weights * (middles * before - (moments.cumsum(dim=-1) - moments))).sum(dim=-1)
    within = (weights.square() * (edges[:, 1:] - edges[:, :-1])).sum(dim=-1) / 3
    return (between + within).mean()


def distortion_packed(
    starts: Float[Tensor, " M"],
    ends: Float[Tensor, " M"],
    weights: Float[Tensor, " M"],
    ray_index: Int[Tensor, " M"],
    ray_offsets: Int[Tensor, " R_plus_1"],
) -> Float[Tensor, ""]:
    """`distortion` of rays with any number of intervals each, one ray's after the other's.

    Intervals may leave gaps; what lies in a gap has no weight.

    Args:
        starts: normalised distances at which intervals begin, in [0, 1], ascending within a ray.
        ends: where they end.
        weights: in [0, 1].
        ray_index: ray of each interval, ascending.
        ray_offsets: [R + 1] first interval of each ray, and M; a ray without intervals counts as 0 in the mean.
    """
    middles = (starts + ends) / 2
    moments = weights * middles

    def sums_before(values: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
        # One running sum over the whole batch: float32 would lose the digits that a ray's own sums need.
        summed = torch.nn.functional.pad(values.double().cumsum(dim=0), (1, 0))
        return (summed[:-1] - summed[ray_offsets[ray_index]]).to(values.dtype)

    between = 2 * (weights * (middles * sums_before(weights) - sums_before(moments))).sum()
    within = (weights.square() * (ends - starts)).sum() / 3
    return (between + within) / (len(ray_offsets) - 1)


def sparsity(density: Float[Tensor, " M"], step_unit: Float[Tensor, " M"]) -> Float[Tensor, ""]:
    """Opacity of a voxel at random points of space: the mean of 1 - exp(-density * step) (Yu et al. 2021).

    Args:
        density: at each point, per unit of `step_unit`, at least 0.
        step_unit: length of a marching step there, unit frame.

    Returns:
        In [0, 1].
    """
    return -torch.expm1(-density * step_unit).mean()


def hash_decay(table: Float[Tensor, "rows F"], levels: int = 1) -> Float[Tensor, ""]:
    """Normalised weight decay of a hash table: the sum over its levels of the mean of theta^2 / 2 (Barron et al. 2023).

    A mean over each level's own entries, unlike a plain sum, decays coarse and fine levels alike.

    Args:
        table: all levels' entries, the same number for each.
        levels: number of levels that share the table. The official SMERF code keeps one table a level and adds up
            their means, so leave it at 1 only where a table is one level.
    """
    return 0.5 * levels * table.square().mean()


def network_variation(*parameters: Float[Tensor, "n P P P ..."]) -> Float[Tensor, ""]:
    """Total variation of networks on a grid: the mean squared difference of neighbours' parameters.

    The mean is over the three grid axes, submodels and all parameters together, as in the official implementation.

    Args:
        *parameters: a layer's kernels or biases each, on the same P^3 grid for every submodel.

    Returns:
        0 where P is 1.
    """
    total = parameters[0].new_zeros(())
    count = 0
    for parameter in parameters:
        for axis in (1, 2, 3):
            difference = parameter.diff(dim=axis)
            total, count = total + difference.square().sum(), count + difference.numel()
    return total / max(count, 1)


def opacity_likelihood(
    student_depth: Float[Tensor, "N n"], teacher_weights: Float[Tensor, "N n"], seen: Bool[Tensor, "N n"]
) -> Float[Tensor, ""]:
    """How unlikely the student's intervals make what the teacher's stop: the cross entropy of their opacities.

    The teacher's opacity of an interval is its weight over what light reaches it, and each interval counts by that
    light. Unlike `geometry` it does not depend on what the student has put in front, and its gradient towards more
    density does not vanish with the density: from an empty start it finds the surface, where the L1 of weights stays.
    Not in the paper, whose samples lie at the teacher's surfaces alone.

    Args:
        student_depth: optical depth of each of the teacher's intervals, at least 0.
        teacher_weights: of the same intervals, in [0, 1].
        seen: which intervals the student has samples in; the others say nothing.

    Returns:
        The mean over rays of the sum over intervals.
    """
    reaching = (1.0 - (teacher_weights.cumsum(dim=-1) - teacher_weights)).clamp(0.0, 1.0)
    opacity = (teacher_weights / reaching.clamp(min=1e-3)).clamp(0.0, 1.0)
    depth = student_depth.clamp(1e-6, 15.0)
    entropy = (1.0 - opacity) * student_depth - opacity * torch.log(-torch.expm1(-depth))
    return (torch.where(seen, entropy, 0.0) * reaching).sum(dim=-1).mean()
