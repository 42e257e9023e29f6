// Draws one or two submodels into the canvas, at its own resolution or at a lower one.

import { ViewerError } from "./errors.js";
import { invert } from "./matrix.js";
import { interpolate, uniformCount } from "./network.js";
import { centre } from "./scene.js";
import { fragmentSource, VERTEX } from "./shader.js";
import { bindTextures, samplerUnits } from "./textures.js";

const CONTEXT = {
  alpha: false,
  antialias: false,
  depth: false,
  stencil: false,
  powerPreference: "high-performance",
};

export function createContext(canvas) {
  const gl = canvas.getContext("webgl2", CONTEXT);
  if (!gl) {
    throw new ViewerError(
      "This browser has no WebGL2, which the viewer needs: use a current Chrome, Edge, Firefox or Safari, and see " +
        "that hardware acceleration is not switched off in its settings",
    );
  }
  return gl;
}

function compile(gl, type, source) {
  const shader = gl.createShader(type);
  gl.shaderSource(shader, source);
  gl.compileShader(shader);
  return shader;
}

export class Renderer {
  // The context may be lost at any time: everything made here is made again by calling this again.
  constructor(gl, layout, network, background) {
    this.gl = gl;
    this.layout = layout;
    this.network = network;
    const program = gl.createProgram();
    const shaders = [
      compile(gl, gl.VERTEX_SHADER, VERTEX),
      compile(gl, gl.FRAGMENT_SHADER, fragmentSource(layout, network, background)),
    ];
    for (const shader of shaders) gl.attachShader(program, shader);
    gl.bindAttribLocation(program, 0, "aCorner");
    gl.linkProgram(program);
    if (!gl.getProgramParameter(program, gl.LINK_STATUS) && !gl.isContextLost()) {
      const log = shaders.map((shader) => gl.getShaderInfoLog(shader)).concat(gl.getProgramInfoLog(program));
      throw new ViewerError(`this machine's graphics driver refuses the shader: ${log.filter(Boolean).join(" ")}`);
    }
    this.program = program;
    gl.useProgram(program);
    this.uniforms = {};
    for (const name of ["uClipToCamera", "uCameraToSubmodel", "uOrigin", "uStep", "uHurry", "uAtlasInverse"]) {
      this.uniforms[name] = gl.getUniformLocation(program, name);
    }
    for (const [name, unit] of samplerUnits()) gl.uniform1i(gl.getUniformLocation(program, name), unit);
    gl.uniformBlockBinding(program, gl.getUniformBlockIndex(program, "Parameters"), 0);
    this.parameters = gl.createBuffer();
    gl.bindBufferBase(gl.UNIFORM_BUFFER, 0, this.parameters);
    gl.bufferData(gl.UNIFORM_BUFFER, 16 * uniformCount(network), gl.DYNAMIC_DRAW);
    const corners = gl.createBuffer();
    gl.bindBuffer(gl.ARRAY_BUFFER, corners);
    gl.bufferData(gl.ARRAY_BUFFER, new Float32Array([-1, -1, 3, -1, -1, 3]), gl.STATIC_DRAW);
    gl.enableVertexAttribArray(0);
    gl.vertexAttribPointer(0, 2, gl.FLOAT, false, 0, 0);
    this.small = null;
  }

  // `pose`: {position [3], rotation [16], projection [16]}. `layers`: [{submodel, textures, opacity}], the first one
  // opaque. `quality`: {scale, step, hurry}; a scale below 1 draws into a smaller picture that is then stretched.
  draw(pose, layers, quality) {
    const gl = this.gl;
    const width = Math.max(1, Math.round(gl.drawingBufferWidth * quality.scale));
    const height = Math.max(1, Math.round(gl.drawingBufferHeight * quality.scale));
    const whole = width === gl.drawingBufferWidth && height === gl.drawingBufferHeight;
    gl.bindFramebuffer(gl.FRAMEBUFFER, whole ? null : this.smaller(width, height));
    gl.viewport(0, 0, width, height);
    for (const { submodel, textures, opacity } of layers) {
      if (opacity < 1) {
        gl.enable(gl.BLEND);
        gl.blendColor(0, 0, 0, opacity);
        gl.blendFunc(gl.CONSTANT_ALPHA, gl.ONE_MINUS_CONSTANT_ALPHA);
      }
      this.drawSubmodel(pose, submodel, textures, quality);
      gl.disable(gl.BLEND);
    }
    if (!whole) {
      gl.bindFramebuffer(gl.READ_FRAMEBUFFER, this.small.framebuffer);
      gl.bindFramebuffer(gl.DRAW_FRAMEBUFFER, null);
      const to = [0, 0, gl.drawingBufferWidth, gl.drawingBufferHeight];
      gl.blitFramebuffer(0, 0, width, height, ...to, gl.COLOR_BUFFER_BIT, gl.LINEAR);
      gl.bindFramebuffer(gl.FRAMEBUFFER, null);
    }
  }

  drawSubmodel(pose, submodel, textures, quality) {
    const { gl, layout, uniforms } = this;
    const inverse = invert(pose.projection);
    if (!inverse) throw new ViewerError("this camera's projection cannot be inverted");
    const c = centre(layout, submodel);
    const local = pose.position.map((value, axis) => value - c[axis]);
    const r = pose.rotation;
    const rotation = [r[0], r[1], r[2], r[4], r[5], r[6], r[8], r[9], r[10]];
    gl.uniformMatrix4fv(uniforms.uClipToCamera, false, inverse);
    gl.uniformMatrix3fv(uniforms.uCameraToSubmodel, false, rotation.map((value) => value * layout.scale));
    gl.uniform3fv(uniforms.uOrigin, local.map((value) => value * layout.scale));
    gl.uniform1f(uniforms.uStep, (4 / layout.triplane) * quality.step);
    gl.uniform1f(uniforms.uHurry, quality.hurry ? 1 : 0);
    gl.uniform3fv(uniforms.uAtlasInverse, textures.atlas.size.map((size) => 1 / size));
    // The network's grid spans the cell, which is 2 / K wide; a scene of one submodel spans [-1, 1].
    const cellSize = layout.single ? 1 : layout.perAxis;
    const parameters = interpolate(this.network, submodel, local.map((value) => value * cellSize));
    gl.bufferSubData(gl.UNIFORM_BUFFER, 0, parameters);
    bindTextures(gl, textures);
    gl.drawArrays(gl.TRIANGLES, 0, 3);
  }

  smaller(width, height) {
    const gl = this.gl;
    if (this.small && this.small.width === width && this.small.height === height) return this.small.framebuffer;
    if (this.small) {
      gl.deleteRenderbuffer(this.small.buffer);
      gl.deleteFramebuffer(this.small.framebuffer);
    }
    const buffer = gl.createRenderbuffer();
    gl.bindRenderbuffer(gl.RENDERBUFFER, buffer);
    gl.renderbufferStorage(gl.RENDERBUFFER, gl.RGBA8, width, height);
    const framebuffer = gl.createFramebuffer();
    gl.bindFramebuffer(gl.FRAMEBUFFER, framebuffer);
    gl.framebufferRenderbuffer(gl.FRAMEBUFFER, gl.COLOR_ATTACHMENT0, gl.RENDERBUFFER, buffer);
    this.small = { width, height, buffer, framebuffer };
    return framebuffer;
  }
}
