"""Procedural textures: colour at a texture coordinate, as numba functions of a material's row.

All lengths are in the texture coordinates of the surface (mostly world units); colours are linear RGB.
"""

import enum

import numba
import numpy as np

TITLES = ("RADCOMP", "LIGHT AND FORM", "STILL LIFE", "FIELD NOTES", "A ROOM WITH A VIEW", "RADIANCE", "SMALL AND FAST")


class Kind(enum.IntEnum):
    """Textures by number; see the functions of the same names."""

    PLAIN = 0
    CHECKER = 1
    GINGHAM = 2
    STRIPES = 3
    WOOD = 4
    TERRAZZO = 5
    GLAZE = 6
    FRUIT = 7
    TITLE = 8
    TEXT = 9
    PAGES = 10
    LEAF = 11
    TILES = 12
    PLANKS = 13
    RUG = 14
    PAINTING = 15
    FABRIC = 16
    PLASTER = 17
    SKY = 18
    GRASS = 19
    FOLIAGE = 20
    SHADE = 21


_GLYPHS = {
    "A": "01110 10001 10001 11111 10001 10001 10001",
    "B": "11110 10001 10001 11110 10001 10001 11110",
    "C": "01111 10000 10000 10000 10000 10000 01111",
    "D": "11110 10001 10001 10001 10001 10001 11110",
    "E": "11111 10000 10000 11110 10000 10000 11111",
    "F": "11111 10000 10000 11110 10000 10000 10000",
    "G": "01111 10000 10000 10011 10001 10001 01111",
    "H": "10001 10001 10001 11111 10001 10001 10001",
    "I": "01110 00100 00100 00100 00100 00100 01110",
    "J": "00111 00010 00010 00010 00010 10010 01100",
    "K": "10001 10010 10100 11000 10100 10010 10001",
    "L": "10000 10000 10000 10000 10000 10000 11111",
    "M": "10001 11011 10101 10101 10001 10001 10001",
    "N": "10001 11001 10101 10011 10001 10001 10001",
    "O": "01110 10001 10001 10001 10001 10001 01110",
    "P": "11110 10001 10001 11110 10000 10000 10000",
    "Q": "01110 10001 10001 10001 10101 10010 01101",
    "R": "11110 10001 10001 11110 10100 10010 10001",
    "S": "01111 10000 10000 01110 00001 00001 11110",
    "T": "11111 00100 00100 00100 00100 00100 00100",
    "U": "10001 10001 10001 10001 10001 10001 01110",
    "V": "10001 10001 10001 10001 01010 01010 00100",
    "W": "10001 10001 10001 10101 10101 11011 10001",
    "X": "10001 10001 01010 00100 01010 10001 10001",
    "Y": "10001 10001 01010 00100 00100 00100 00100",
    "Z": "11111 00001 00010 00100 01000 10000 11111",
}


def _pack_font() -> tuple[np.ndarray, np.ndarray]:
    """Letters as [27, 7, 5] bits (row 0 on top; the last one is a space) and titles as [n, 24] letter numbers."""
    font = np.zeros((27, 7, 5), np.uint8)
    for letter, rows in _GLYPHS.items():
        font[ord(letter) - 65] = [[int(bit) for bit in row] for row in rows.split()]
    titles = np.full((len(TITLES), 24), -1, np.int64)
    for k, title in enumerate(TITLES):
        titles[k, : len(title)] = [26 if c == " " else ord(c) - 65 for c in title]
    return font, titles


FONT, TITLE_LETTERS = _pack_font()
_jit = numba.njit(cache=True, nogil=True, error_model="numpy")


@_jit
def hash3(x: int, y: int, z: int) -> int:
    """A 32-bit hash of three integers."""
    h = (x * 374761393 + y * 668265263 + z * 1442695041 + 1013904223) & 0xFFFFFFFF
    h = ((h ^ (h >> 15)) * 1274126177) & 0xFFFFFFFF
    h = ((h ^ (h >> 13)) * 1103515245) & 0xFFFFFFFF
    return h ^ (h >> 16)


@_jit
def random3(x: int, y: int, z: int) -> float:
    """A number in 0..1 that three integers pick."""
    return hash3(x, y, z) * (1.0 / 4294967296.0)


@_jit
def smoothstep(a: float, b: float, x: float) -> float:
    """0 below a, 1 above b, a smooth step between."""
    t = min(1.0, max(0.0, (x - a) / (b - a)))
    return t * t * (3.0 - 2.0 * t)


@_jit
def noise(x: float, y: float, z: float) -> float:
    """Value noise in 0..1 with a feature size of one unit."""
    fx, fy, fz = np.floor(x), np.floor(y), np.floor(z)
    i, j, k = int(fx), int(fy), int(fz)
    u, v, w = x - fx, y - fy, z - fz
    u, v, w = u * u * (3 - 2 * u), v * v * (3 - 2 * v), w * w * (3 - 2 * w)
    a = random3(i, j, k) * (1 - u) + random3(i + 1, j, k) * u
    b = random3(i, j + 1, k) * (1 - u) + random3(i + 1, j + 1, k) * u
    c = random3(i, j, k + 1) * (1 - u) + random3(i + 1, j, k + 1) * u
    d = random3(i, j + 1, k + 1) * (1 - u) + random3(i + 1, j + 1, k + 1) * u
    return (a * (1 - v) + b * v) * (1 - w) + (c * (1 - v) + d * v) * w


@_jit
def fbm(x: float, y: float, z: float, octaves: int) -> float:
    """Sum of noise octaves in 0..1, each half as strong and twice as fine as the one before."""
    total, weight, scale = 0.0, 0.0, 1.0
    for _ in range(octaves):
        total += noise(x / scale, y / scale, z / scale) * scale
        weight += scale
        scale *= 0.5
    return total / weight


@_jit
def cells(x: float, y: float, z: float) -> tuple[float, float, int]:
    """Voronoi cells of one random point per unit cube: (nearest distance, second nearest, hash of the nearest).

    Only the eight cubes nearest to the place are searched: distances below 0.5 are exact, larger ones may be too large.
    """
    i, j, k = int(np.floor(x - 0.5)), int(np.floor(y - 0.5)), int(np.floor(z - 0.5))
    first, second, owner = 9.0, 9.0, 0
    for a in range(i, i + 2):
        for b in range(j, j + 2):
            for c in range(k, k + 2):
                h = hash3(a, b, c)
                dx = a + (h & 1023) / 1023.0 - x
                dy = b + ((h >> 10) & 1023) / 1023.0 - y
                dz = c + ((h >> 20) & 1023) / 1023.0 - z
                d = dx * dx + dy * dy + dz * dz
                if d < first:
                    first, second, owner = d, first, h
                elif d < second:
                    second = d
    return np.sqrt(first), np.sqrt(second), owner


@_jit
def blend(row, a: int, b: int, t: float) -> tuple[float, float, float]:
    """Mix of the material's colours a and b (0, 1 or 2): b where t is 1."""
    p, q = 1 + 3 * a, 1 + 3 * b
    return (
        row[p] + (row[q] - row[p]) * t,
        row[p + 1] + (row[q + 1] - row[p + 1]) * t,
        row[p + 2] + (row[q + 2] - row[p + 2]) * t,
    )


@_jit
def _mix(c, d, t):
    return c[0] + (d[0] - c[0]) * t, c[1] + (d[1] - c[1]) * t, c[2] + (d[2] - c[2]) * t


@_jit
def _scale(c, f):
    return c[0] * f, c[1] * f, c[2] * f


@_jit
def _gingham(row, x, y):
    """Woven checks of width p0: two colours and their half tone, with visible threads."""
    w = row[10]
    a, b = int(np.floor(x / w)) & 1, int(np.floor(y / w)) & 1
    thread = 0.92 + 0.08 * np.sin(x * 6.28318 / (w * 0.125)) * np.sin(y * 6.28318 / (w * 0.125))
    return _scale(blend(row, 0, 1, 0.5 * (a + b)), thread * (0.94 + 0.12 * noise(x * 60, y * 60, 0.0)))


@_jit
def _wood(row, x, y, z):
    """Rings around an axis along x, ring width p0, stretched fibres."""
    warp = 0.25 * fbm(x * 1.5, y * 6, z * 6, 3)
    r = np.sqrt((y + 0.35) ** 2 + (z + 0.2) ** 2) / row[10] + 6 * warp
    ring = r - np.floor(r)
    grain = smoothstep(0.0, 0.75, ring) * (1.0 - smoothstep(0.85, 1.0, ring))
    fibre = noise(x * 9, y * 160, z * 160)
    return _scale(blend(row, 0, 1, 0.75 * grain + 0.25 * fibre), 0.85 + 0.25 * fbm(x * 3, y * 30, z * 30, 2))


@_jit
def _terrazzo(row, x, y, z):
    """Stone chips of two sizes (p0 the larger) in a light binder."""
    base = blend(row, 0, 0, 0.0)
    base = _scale(base, 0.95 + 0.1 * fbm(x * 40, y * 40, z * 40, 2))
    for size in range(2):
        f = (1.0, 2.7)[size] / row[10]
        first, second, owner = cells(x * f, y * f, z * f)
        keep = (owner >> 5) % 100 < (42, 30)[size]
        if keep and second - first > 0.16 and first < 0.42:
            pick = (owner >> 12) % 4
            chip = blend(row, 1, 2, (0.0, 1.0, 0.5, 0.2)[pick])
            if pick == 3:
                chip = _scale(chip, 0.35)
            base = _scale(chip, 0.8 + 0.4 * noise(x * 90, y * 90, z * 90))
    return base


@_jit
def _glaze(row, x, y, z):
    """Glaze that runs from colour 0 to colour 1 below height p0 in drips of length p1, speckled with colour 2."""
    turn = np.arctan2(y, x)
    drip = 0.6 * noise(turn * 3.0, 0.0, 3.0) + 0.4 * noise(turn * 9.0, 1.0, 3.0)
    level = row[10] - row[11] * drip
    c = blend(row, 0, 1, smoothstep(level + 0.02, level - 0.02, z))
    tone = 0.86 + 0.28 * fbm(x * 7, y * 7, z * 7, 3)
    first, second, owner = cells(x * 26, y * 26, z * 26)
    spot = smoothstep(0.32, 0.2, first) if owner % 100 < 34 else 0.0
    return _mix(_scale(c, tone), (row[7], row[8], row[9]), 0.85 * spot)


@_jit
def _fruit(row, x, y, z):
    """Skin from colour 0 to colour 1 towards one side, with pale or dark dots (colour 2); p0 the dots per unit."""
    side = fbm(x * 2.2 + 4, y * 2.2, z * 2.2, 3) + 1.1 * (0.6 * x - 0.5 * z)
    c = blend(row, 0, 1, smoothstep(0.28, 0.85, side))
    first, second, owner = cells(x * row[10], y * row[10], z * row[10])
    dot = smoothstep(0.3, 0.14, first) * (0.35 + 0.5 * (owner % 64) / 64.0)
    streak = 0.9 + 0.2 * fbm(np.arctan2(y, x) * 6, z * 3, 1.0, 3)
    return _scale(_mix(c, (row[7], row[8], row[9]), dot * row[11]), streak)


@_jit
def _letter(letter, u, v):
    """Whether a letter inks the place (u, v) of its cell, both 0..1 with v upwards; the cell is 6 x 9 dots."""
    col, line = int(u * 6.0), int((1.0 - v) * 9.0) - 1
    if letter < 0 or letter > 25 or col < 0 or col > 4 or line < 0 or line > 6:
        return False
    return FONT[letter, line, col] == 1


@_jit
def _title(row, x, y, z):
    """A book cover: title number p0 in letters of width p1 centred at the origin, in a double frame p2 x p3."""
    c = _scale(blend(row, 0, 0, 0.0), 0.9 + 0.2 * noise(x * 300, y * 300, z * 300))
    title = int(row[10])
    count = 0
    while count < TITLE_LETTERS.shape[1] and TITLE_LETTERS[title, count] >= 0:
        count += 1
    u = x / row[11] + 0.5 * count
    v = y / (1.6 * row[11]) + 0.5
    ink = False
    if 0.0 <= u < count and 0.0 <= v < 1.0:
        ink = _letter(TITLE_LETTERS[title, int(u)], u - np.floor(u), v)
    if row[12] > 0.0:
        edge = max(abs(x) - row[12], abs(y) - row[13])
        ink = ink or abs(edge) < 0.006 or abs(edge + 0.022) < 0.0025
    return blend(row, 1, 1, 0.0) if ink else c


@_jit
def _text(row, x, y):
    """Paragraphs of random words in lines of height p0 within the rectangle p1 x p2 about the origin."""
    h = row[10]
    c = _scale(blend(row, 0, 0, 0.0), 0.96 + 0.06 * noise(x * 50, y * 50, 0.0))
    if abs(x) > row[11] or abs(y) > row[12]:
        return c
    line, pen = np.floor(y / h), x / (0.55 * h)
    i, j = int(line), int(np.floor(pen))
    if random3(i, 7, 1) < 0.12 and x > row[11] * (2.0 * random3(i, 3, 9) - 1.0):
        return c
    letter = -1 if random3(j, i, 5) < 0.17 else hash3(j, i, 2) % 26
    return blend(row, 1, 1, 0.0) if _letter(letter, pen - j, y / h - line) else c


@_jit
def _leaf(row, s, t):
    """Midrib and side veins (colour 2) on a blade that pales from colour 0 to colour 1."""
    c = blend(row, 0, 1, 0.5 * s + 0.5 * noise(s * 5, t * 3, 1.0))
    rib = smoothstep(0.09, 0.03, abs(t))
    vein = np.abs((s - 0.22 * abs(t)) * 9.0 % 1.0 - 0.5)
    rib = max(rib, 0.6 * smoothstep(0.1, 0.03, vein) * (1 - abs(t)))
    return _mix(c, (row[7], row[8], row[9]), rib)


@_jit
def _tiles(row, x, y):
    """Square tiles of side p0 in two colours with grout (colour 2) of width p1."""
    i, j = np.floor(x / row[10]), np.floor(y / row[10])
    a, b = x - i * row[10], y - j * row[10]
    edge = min(min(a, row[10] - a), min(b, row[10] - b))
    if edge < row[11]:
        return blend(row, 2, 2, 0.0)
    c = blend(row, 0, 1, float((int(i) + int(j)) & 1))
    tone = 0.9 + 0.2 * random3(int(i), int(j), 3)
    return _scale(c, tone * (0.92 + 0.16 * fbm(x * 14, y * 14, tone * 40, 3)))


@_jit
def _planks(row, x, y):
    """Floor boards along x, width p0, length p1, each with its own grain and tone."""
    j = np.floor(y / row[10])
    shift = random3(int(j), 5, 1) * row[11]
    i = np.floor((x + shift) / row[11])
    a, b = x + shift - i * row[11], y - j * row[10]
    gap = min(min(a, row[11] - a), min(b, row[10] - b))
    own = random3(int(i), int(j), 11)
    rings = fbm(x * 1.2 + 31 * own, y * 16 + 17 * own, own * 9, 4) * 9
    grain = rings - np.floor(rings)
    fibre = noise(x * 12, y * 260, own * 30)
    c = blend(row, 0, 1, 0.5 * grain * (1 - smoothstep(0.8, 1.0, grain)) + 0.2 * fibre + 0.45 * own)
    return _scale(c, 0.45 if gap < 0.003 else 0.92 + 0.14 * own)


@_jit
def _rug(row, x, y):
    """A woven rug of half size p0 x p1: borders, diamonds and a fine weave."""
    ax, ay = abs(x) / row[10], abs(y) / row[11]
    edge = min(row[10] - abs(x), row[11] - abs(y))
    weave = 0.86 + 0.28 * noise(x * 160, y * 90, 0.5)
    if edge < 0.05 or 0.12 < edge < 0.15 or 0.2 < edge < 0.215:
        return _scale(blend(row, 1, 1, 0.0), weave)
    if edge < 0.12:
        tooth = abs(((x + y) * 9.0) % 1.0 - 0.5)
        return _scale(blend(row, 2, 0, 1.0 if tooth > 0.25 else 0.0), weave)
    u, v = x * 2.3, y * 2.3
    d = abs(u - np.floor(u) - 0.5) + abs(v - np.floor(v) - 0.5)
    c = blend(row, 0, 1, 1.0 if 0.30 < d < 0.37 or d < 0.07 else 0.0)
    if 0.12 < d < 0.2:
        c = blend(row, 2, 2, 0.0)
    return _scale(c, weave * (1.0 - 0.08 * (ax + ay)))


@_jit
def _painting(row, x, y, z):
    """Hills under a low sun, in the material's three colours; half size p0 x p1, a passe-partout p2 wide, seed p3."""
    if max(abs(x) - row[10], abs(y) - row[11]) > -row[12]:
        return (0.82, 0.8, 0.76)
    seed = row[13]
    sun = np.sqrt((x - 0.3 * row[10]) ** 2 + (y - 0.25 * row[11]) ** 2) / row[11]
    c = blend(row, 0, 1, smoothstep(0.9, -0.5, y / row[11]))
    if sun < 0.26:
        c = (0.9, 0.45, 0.22)
    for k in range(4):
        ridge = row[11] * (
            0.15 - 0.27 * k + 0.7 * (fbm(x / row[10] * (1.2 + 0.5 * k) + 9 * k + seed, seed, k * 1.0, 4) - 0.5)
        )
        if y < ridge:
            c = _scale(blend(row, 1, 2, 0.25 + 0.25 * k), 1.0 - 0.12 * k)
    return _scale(c, 0.88 + 0.24 * fbm(x * 25, y * 60, seed, 3))


@_jit
def _sky(x, y, z):
    """Hazy sky with soft clouds by direction; the coordinates are a position on the dome."""
    r = np.sqrt(x * x + y * y + z * z)
    x, y, up = x / r, y / r, max(z / r, 0.0)
    f = 1.0 / (up + 0.25)
    cloud = smoothstep(0.5, 0.8, fbm(x * f * 2.1, y * f * 2.1, 3.0, 5))
    haze = np.exp(-5.0 * up)
    c = _mix((0.22, 0.42, 0.78), (0.78, 0.84, 0.9), haze)
    return _mix(c, (1.0, 0.98, 0.95), 0.8 * cloud)


@_jit
def _foliage(row, x, y, z):
    """Clumps of leaves, light and dark."""
    n = 0.5 * fbm(x * 2, y * 2, z * 2, 2) + 0.5 * fbm(x * 8, y * 8, z * 8, 3)
    return blend(row, 0, 1, smoothstep(0.25, 0.8, n))


@_jit
def albedo(row, x: float, y: float, z: float) -> tuple[float, float, float]:
    """Colour of the material `row` at texture coordinates (x, y, z)."""
    kind = int(row[0])
    if kind == 0:
        return row[1], row[2], row[3]
    if kind == 1:
        odd = (int(np.floor(x / row[10])) + int(np.floor(y / row[11]))) & 1
        return blend(row, 0, 1, float(odd))
    if kind == 2:
        return _gingham(row, x, y)
    if kind == 3:
        band = y / row[10] - np.floor(y / row[10])
        return blend(row, 0, 1 + (int(np.floor(y / row[10])) & 1), 1.0 if band < row[11] else 0.0)
    if kind == 4:
        return _wood(row, x, y, z)
    if kind == 5:
        return _terrazzo(row, x, y, z)
    if kind == 6:
        return _glaze(row, x, y, z)
    if kind == 7:
        return _fruit(row, x, y, z)
    if kind == 8:
        return _title(row, x, y, z)
    if kind == 9:
        return _text(row, x, y)
    if kind == 10:
        return blend(row, 0, 1, 0.7 * noise(x * 3, y * 420, z * 3) + 0.3 * noise(x * 8, y * 60, 4.0))
    if kind == 11:
        return _leaf(row, x, y)
    if kind == 12:
        return _tiles(row, x, y)
    return _room_albedo(kind, row, x, y, z)


@_jit
def _room_albedo(kind, row, x, y, z):
    if kind == 13:
        return _planks(row, x, y)
    if kind == 14:
        return _rug(row, x, y)
    if kind == 15:
        return _painting(row, x, y, z)
    if kind == 16:
        weave = noise(x * row[10], y * row[10] * 0.3, z * row[10]) * noise(x * row[10] * 0.3, y * row[10], z * row[10])
        return _scale(blend(row, 0, 1, fbm(x * 6, y * 6, z * 6, 2)), 0.8 + 0.7 * weave)
    if kind == 17:
        return _scale(blend(row, 0, 1, fbm(x * 1.3, y * 1.3, z * 1.3, 4)), 0.97 + 0.06 * noise(x * 70, y * 70, z * 70))
    if kind == 18:
        return _sky(x, y, z)
    if kind == 19:
        mown = 0.85 + 0.15 * float(int(np.floor(x * 0.7)) & 1)
        return _scale(blend(row, 0, 1, fbm(x * 1.5, y * 1.5, 0.0, 5)), mown)
    if kind == 20:
        return _foliage(row, x, y, z)
    weave = 0.9 + 0.2 * noise(x * 40, y * 90, 2.0)
    return _scale(blend(row, 0, 1, smoothstep(0.0, 1.0, y / row[10])), weave)
