"""Samples added up along rays on the CPU, pass by pass, and the rays that are done left out of the next pass."""

import numpy as np
from numba import njit

_F0 = np.float32(0.0)


@njit(nogil=True, cache=True)
def sort_lanes(networks, count, histogram, starts, order):
    """Sort lanes by network, those of one network in the order they came in.

    Args:
        networks: [*] int32 of the lanes, `count` of them.
        count: see above.
        histogram: [N] int64 lanes of each network; set to 0.
        starts: [N + 1] int64, written: first of each network in `order`, then `count`.
        order: [*] int32, written: lanes.
    """
    total = 0
    for network in range(len(histogram)):
        starts[network] = total
        total += histogram[network]
        histogram[network] = starts[network]
    starts[len(histogram)] = total
    for lane in range(count):
        network = networks[lane]
        order[histogram[network]] = lane
        histogram[network] += 1
    histogram[:] = 0


@njit(nogil=True, cache=True, error_model="numpy")
def composite(
    active, count, lanes, first, last, out, weights, away, networks, termination,
    light, color, depth, samples, heaviest, network, lit,
):  # fmt: skip
    """Add a pass's samples to their rays, and keep the rays that go on.

    Lanes of the same sample have the same distance; their colours and alphas are blended by their weights.

    Args:
        active: [*] int32 rows of the rays of this pass, `count` of them; then those of the next.
        count: see above.
        lanes: [*] int32 lanes of each ray.
        first: [R] int32 number of each ray's next sample.
        last: [R] int32 number of its last.
        out: [*, 4] float32 colour and alpha of each lane.
        weights: [*] float32 of each lane in its sample.
        away: [*] float32 distance of each lane along its ray.
        networks: [*] int32 of each lane.
        termination: light below which a ray ends.
        light: [R] float32 share of light that still comes from behind, updated.
        color: [R, 3] float32, added to.
        depth: [R] float32 distance times weight, added to.
        samples: [R] int32 samples that counted, added to.
        heaviest: [R] float32 weight of the heaviest lane so far, updated.
        network: [R] int32 the network of that lane, updated.
        lit: [*] bool, written: whether the lane counted.

    Returns:
        Number of rays that go on.
    """
    kept, lane = 0, 0
    for i in range(count):
        row = active[i]
        reaching = light[row]
        end = lane + lanes[i]
        while lane < end:
            if not reaching >= termination:
                for rest in range(lane, end):
                    lit[rest] = False
                lane = end
                break
            t, alpha = away[lane], _F0
            while lane < end and away[lane] == t:
                weight = reaching * (weights[lane] * out[lane, 3])
                for channel in range(3):
                    color[row, channel] += weight * out[lane, channel]
                depth[row] += weight * t
                alpha += weights[lane] * out[lane, 3]
                if weight > heaviest[row]:
                    heaviest[row], network[row] = weight, networks[lane]
                lit[lane] = True
                lane += 1
            reaching -= reaching * alpha
            samples[row] += 1
        light[row] = reaching
        if reaching >= termination and first[row] <= last[row]:
            active[kept] = row
            kept += 1
    return kept


@njit(nogil=True, cache=True)
def finish(
    count, ids, background, light, color, depth, samples, network,
    rgb, accumulation, distance, all_samples, all_networks,
):  # fmt: skip
    """Write the rays that came near the scene to where the others already are: in front of the background.

    Args:
        count: rays.
        ids: [R] int64 number of each.
        background: [3] float32.
        light: see `composite`, as the next ones.
        color: see above.
        depth: see above.
        samples: see above.
        network: see above.
        rgb: [N, 3] float32, written.
        accumulation: [N] float32, written.
        distance: [N] float32, written: mean distance of what was seen, 0 where nothing was.
        all_samples: [N] int32, written.
        all_networks: [N] int32, written.
    """
    for row in range(count):
        ray = ids[row]
        for channel in range(3):
            rgb[ray, channel] = color[row, channel] + light[row] * background[channel]
        seen = np.float32(1.0) - light[row]
        accumulation[ray] = seen
        distance[ray] = depth[row] / seen if seen > np.float32(1e-6) else _F0
        all_samples[ray], all_networks[ray] = samples[row], network[row]
