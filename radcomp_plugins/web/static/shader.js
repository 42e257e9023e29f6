// The marching shader: a baked submodel as seen along one ray per pixel.
//
// Contracted space (Duckworth et al. 2024, Sec. 3; Reiser et al. 2023, Eq. 4) has seven regions, a cube and six
// pyramids around it, in each of which a straight ray stays straight. With n the outward normal of a region (0 for the
// cube), w(x) = dot(n, x) (1 for the cube) and x = o + t d, the contraction is z = x / w + n (1 - 1 / w), so that
//   - the direction of z does not depend on t: it is d w(o) - o w(d) + n w(d);
//   - 1 / w = 2 - dot(n, z) is linear along the contracted ray;
//   - the contraction is continuous between the cube and a pyramid; between pyramids two coordinates change places;
//   - a piece ds of the contracted ray is as long as ds * w1 * w2 * |d| / |d w(o) - o w(d) + n w(d)| before contraction.
// The region's faces are met exactly, with no search for the t at which the region changes, and without the
// cancellation of points that are far away.

import { networkSource } from "./network.js";

export const VERTEX = `#version 300 es
precision highp float;
in vec2 aCorner;
uniform mat4 uClipToCamera;
uniform mat3 uCameraToSubmodel;  // rotation times the submodel's scale
out vec3 vDirection;
void main() {
  vec4 near = uClipToCamera * vec4(aCorner, -1.0, 1.0);
  vDirection = uCameraToSubmodel * (near.xyz / near.w);
  gl_Position = vec4(aCorner, 0.0, 1.0);
}
`;

const float = (value) => {
  const text = String(Number(value));
  return /[.e]/.test(text) ? text : `${text}.0`;
};

// Texels of the four textures, as textures.js packs them:
//   uPlanesA: density, diffuse rgb;  uPlanesB: features 3 to 6
//   uBlocksA: density, gate, diffuse rg;  uBlocksB: diffuse b, features 3 to 5
//   uCells: distance, occupancy bits;  uIndices: place in the atlas, 255 where there is no block
export function fragmentSource(layout, network, background) {
  const T = layout.triplane;
  const constants = `
const float kMinFeatures = ${float(layout.rangeFeatures[0])};
const float kSpanFeatures = ${float(layout.rangeFeatures[1] - layout.rangeFeatures[0])};
const float kMinDensity = ${float(layout.rangeDensity[0])};
const float kSpanDensity = ${float(layout.rangeDensity[1] - layout.rangeDensity[0])};
const float kVoxel = ${float(4 / T)};
const float kCell = ${float(32 / T)};        // of the distance grid: 8 voxels
const float kHalfCell = ${float(16 / T)};    // of the occupancy bits: 4 voxels
const float kHalfCells = ${float(T / 16)};   // half cells per unit
const int kLastCell = ${layout.cells - 1};
const float kSparsePerUnit = ${float(layout.sparse / 4)};
const float kBlock = ${float(layout.block)};
const int kLastBlock = ${layout.blocks - 1};
const int kMaxSteps = ${Math.ceil(Math.SQRT2 * T)};
const float kScale = ${float(layout.scale)};
const vec3 kBackground = vec3(${background.map(float).join(", ")});
#define CONCAT ${layout.concat ? 1 : 0}
#define GATING ${layout.gating ? 1 : 0}
#define VFR ${layout.mode === "vfr" ? 1 : 0}
`;
  return `#version 300 es
precision highp float;
precision highp int;
precision highp sampler3D;
precision highp sampler2DArray;
precision highp usampler3D;
in vec3 vDirection;
out vec4 outColor;
uniform vec3 uOrigin;
uniform float uStep;      // contracted length of a step: a voxel, or more where quality gives way to speed
uniform float uHurry;     // 0: plain steps; 1: steps grow to ten times as the ray is used up
uniform sampler2DArray uPlanesA, uPlanesB;
uniform sampler3D uBlocksA, uBlocksB;
uniform usampler3D uCells, uIndices;
uniform vec3 uAtlasInverse;
${constants}
${networkSource(network, layout)}
#define SIGMOID(x) (1.0 / (1.0 + exp(-(x))))

float least(vec3 v) { return min(v.x, min(v.y, v.z)); }

// Outward normal of the region a point lies in, 0 for the cube; of equal coordinates the first one counts.
vec3 regionOf(vec3 x) {
  vec3 a = abs(x);
  float m = max(a.x, max(a.y, a.z));
  vec3 axis = a.x >= m ? vec3(1, 0, 0) : a.y >= m ? vec3(0, 1, 0) : vec3(0, 0, 1);
  return m <= 1.0 ? vec3(0.0) : axis * sign(x);
}

void main() {
  vec3 o = uOrigin;
  vec3 d = vDirection;
  float lengthD = length(d);

  float visibility = 1.0;
  float lag = 1.0;  // visibility, following behind
  vec3 color = vec3(0.0), coarseColor = vec3(0.0);
  vec4 features = vec4(0.0), coarseFeatures = vec4(0.0);
  int steps = 0;

  // Rays begin on the near plane.
  vec3 x = o + d;
  vec3 n = regionOf(x);
  float w0 = n == vec3(0.0) ? 1.0 : dot(n, x);
  vec3 z0 = x / w0 + n * (1.0 - 1.0 / w0);
  float phase = 0.0;
  bool skippedOne = true;

  for (int region = 0; region < 10; region++) {
    bool inner = n == vec3(0.0);
    float wo = inner ? 1.0 : dot(n, o);
    float wd = dot(n, d);
    vec3 dir = d * wo - o * wd + n * wd;
    float lengthDir = length(dir);
    dir /= lengthDir;
    dir = mix(dir, vec3(1e-12), lessThan(abs(dir), vec3(1e-12)));
    vec3 inverse = 1.0 / dir;
    // The region is a box: from -1 to 1, and from 1 to 2 along its normal.
    vec3 side = mix(vec3(-1.0), vec3(1.0), greaterThan(dir, vec3(0.0)));
    vec3 face = abs(n) * (0.5 * side + 1.5 * n) + (1.0 - abs(n)) * side;
    vec3 exits = (face - z0) * inverse;
    float sExit = max(0.0, least(exits));

    float u0 = inner ? 1.0 : 2.0 - dot(n, z0);
    float ud = dot(n, dir);
    float toWorld = lengthD / (lengthDir * kScale);

    // A region that a ray only nips at a corner of is passed over, one at a time; as the official viewer does it, by
    // the length of the piece in distances to the near plane.
    float piece = sExit / (max(1e-6, u0) * max(1e-6, u0 - sExit * ud) * lengthDir);
    bool nip = !skippedOne && piece <= 16.0 * uStep;
    skippedOne = nip;
    float s = nip ? sExit + 1.0 : phase * uStep;

    // A region is looked at once even where half a step already leads out of it, as the official viewer does; far away,
    // that last look decides what is behind everything.
    bool fresh = !nip;

    while ((fresh || s <= sExit) && visibility > 1.0 / 255.0 && steps < kMaxSteps) {
      // Empty space: by the distance to the nearest occupied cell, then by half cells.
      float sBlock = -1.0;
      bool empty = true;
      while (empty && (fresh || s <= sExit) && steps < kMaxSteps) {
        steps++;
        vec3 half_ = floor((z0 + s * dir + 2.0) * kHalfCells);
        ivec3 cell = ivec3(half_) >> 1;
        uvec2 entry = texelFetch(uCells, clamp(cell, ivec3(0), ivec3(kLastCell)), 0).xy;
        ivec3 odd = ivec3(half_) & 1;
        uint bit = uint(4 * odd.x + 2 * odd.y + odd.z);
        bool anything = entry.y != 0u;
        bool something = ((entry.y >> bit) & 1u) != 0u;
        // The exit from the half cell, or from the whole one where nothing is in it.
        vec3 corner = anything ? half_ * kHalfCell : vec3(cell) * kCell;
        float size = anything ? kHalfCell : kCell;
        vec3 walls = (corner + mix(vec3(0.0), vec3(size), greaterThan(dir, vec3(0.0))) - 2.0 - z0) * inverse;
        sBlock = least(walls);
        empty = entry.x != 0u || !something;
        if (entry.x != 0u) s += float(entry.x) * kCell;
        else if (empty) s = max(s, sBlock) + 0.5 * uStep;
        fresh = fresh && !empty;
      }

      // Occupied space.
      bool go = !empty;
      while (go && (fresh || s <= sExit) && visibility > 1.0 / 255.0 && steps < kMaxSteps) {
        fresh = false;
        lag = 0.95 * lag + 0.05 * visibility;
        float stride = uStep * mix(1.0, 10.0 - 9.0 * sqrt(min(1.0, lag / 0.8)), uHurry);
        vec3 z = z0 + s * dir;
        vec3 p = (z + 2.0) * kSparsePerUnit - 0.5;
        vec3 block = floor(p / kBlock);
        uvec3 place = texelFetch(uIndices, clamp(ivec3(block), ivec3(0), ivec3(kLastBlock)), 0).xyz;
        if (place.x != 255u) {
          vec3 atlas = (clamp(p - block * kBlock, 0.0, kBlock) + vec3(place) * (kBlock + 1.0) + 0.5) * uAtlasInverse;
          vec3 uvw = 0.25 * z + 0.5;
          vec4 blockA = texture(uBlocksA, atlas);
          vec4 planesA = texture(uPlanesA, vec3(uvw.yz, 0.0)) + texture(uPlanesA, vec3(uvw.xz, 1.0)) +
              texture(uPlanesA, vec3(uvw.xy, 2.0));
          float density = kMinDensity + kSpanDensity * blockA.x;
          float gate = kMinFeatures + kSpanFeatures * blockA.y;
          float weight = GATING == 1 ? gate : 1.0;
          density += weight * (3.0 * kMinDensity + kSpanDensity * planesA.x);
          float sNext = min(s + stride, sExit);
          // Past the outermost wall 2 - |z| counts as 1e-6, and lengths there are only scaled.
          float u1 = max(1e-6, u0 - s * ud);
          float u2 = max(1e-6, u0 - sNext * ud);
          float stretch = u1 > 1e-6 ? toWorld / (u1 * u2) : 1e6 / kScale;
          float alpha = 1.0 - exp(-exp(density - 1.0) * (abs(sNext - s) * stretch));
          if (alpha > 0.25 / 255.0) {
            vec4 blockB = texture(uBlocksB, atlas);
            vec4 planesB = texture(uPlanesB, vec3(uvw.yz, 0.0)) + texture(uPlanesB, vec3(uvw.xz, 1.0)) +
                texture(uPlanesB, vec3(uvw.xy, 2.0));
            vec3 fineColor = kMinFeatures + kSpanFeatures * vec3(blockA.zw, blockB.x);
            vec4 fine = vec4(kMinFeatures + kSpanFeatures * blockB.yzw, gate);
            float share = visibility * alpha;
            color += share * SIGMOID(fineColor + weight * (3.0 * kMinFeatures + kSpanFeatures * planesA.yzw));
            features += share * SIGMOID(fine + weight * (3.0 * kMinFeatures + kSpanFeatures * planesB));
#if CONCAT
            coarseColor += share * SIGMOID(fineColor);
            coarseFeatures += share * SIGMOID(fine);
#endif
          }
          visibility *= 1.0 - alpha;
        }
        s += stride;
        steps++;
        go = s <= sBlock;
      }
    }
    if (visibility <= 1.0 / 255.0 || steps >= kMaxSteps) break;

    // Out through the nearest face: into the cube, into another pyramid, or out of everything.
    bvec3 through = lessThanEqual(exits, vec3(least(exits)));
    vec3 axis = through.x ? vec3(1, 0, 0) : through.y ? vec3(0, 1, 0) : vec3(0, 0, 1);
    vec3 leave = axis * side;
    if (dot(leave, n) > 0.5) break;
    z0 += sExit * dir;
    if (dot(leave, n) < -0.5) {
      n = vec3(0.0);
    } else {
      // Where two pyramids touch, the contraction jumps: the larger of the two coordinates becomes the other one.
      if (!inner) z0 += (dot(n, z0) - 1.0) * (leave - n);
      n = leave;
    }
    phase = 0.5;
    if (!nip) skippedOne = false;
  }

  vec3 direction = d / lengthD;
  vec3 seenFrom = vec3(-direction.x, direction.z, direction.y);  // the network's axes are the exporter's
#if VFR
  vec3 result = visibility * kBackground + appearance(color, features, coarseColor, coarseFeatures, seenFrom);
#else
  vec3 result = color +
      appearance(visibility * kBackground + color, features, coarseColor, coarseFeatures, seenFrom);
#endif
  outColor = vec4(result, 1.0);
}
`;
}
