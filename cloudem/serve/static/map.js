// The map: its surface at a level, turned by the mouse, and three slices. Voxels are bytes, as the job left them.
//
// The surface is made by naive surface nets (S. Gibson 1998, 10.1007/BFb0056277): one vertex in each cell that the
// surface crosses, at the mean of where it crosses the cell's edges; one quad across each edge that it crosses.

const box = document.getElementById("map");
const canvas = document.getElementById("surface"), level = document.getElementById("level");
const fineness = document.getElementById("fineness"), what = document.getElementById("map-what");
const of = document.getElementById("of");
let map = null, cut = [0.5, 0.5, 0.5], gl = null, program = null, count = 0;
let turn = [1, 0, 0, 0, 1, 0, 0, 0, 1], zoom = 1.5, waiting = false, buffers = null;

const EDGES = [[0, 1], [2, 3], [4, 5], [6, 7], [0, 2], [1, 3], [4, 6], [5, 7], [0, 4], [1, 5], [2, 6], [3, 7]];

export function surface(data, n, at) {
  const nn = n * n, cells = new Int32Array(n * nn), corner = new Float32Array(8);
  const offset = [0, 1, n, n + 1, nn, nn + 1, nn + n, nn + n + 1];
  let vertices = new Float32Array(1 << 16), normals = new Float32Array(1 << 16), made = 0;
  let indices = new Uint32Array(1 << 17), used = 0;
  const quad = (a, b, c, d) => {
    if (used + 6 > indices.length) { const more = new Uint32Array(2 * indices.length); more.set(indices); indices = more; }
    indices[used++] = a; indices[used++] = b; indices[used++] = c;
    indices[used++] = a; indices[used++] = c; indices[used++] = d;
  };
  for (let z = 0; z < n - 1; z++) {
    for (let y = 0; y < n - 1; y++) {
      let i = z * nn + y * n;
      // the four corners at the left of a cell are those at the right of the one before
      let left = (data[i] > at) | (data[i + n] > at) << 2 | (data[i + nn] > at) << 4 | (data[i + nn + n] > at) << 6;
      for (let x = 0; x < n - 1; x++, i++) {
        const right = (data[i + 1] > at) | (data[i + n + 1] > at) << 2 | (data[i + nn + 1] > at) << 4 | (data[i + nn + n + 1] > at) << 6;
        const inside = left | right << 1;
        left = right;
        if (inside === 0 || inside === 255) { continue; }
        for (let c = 0; c < 8; c++) { corner[c] = data[i + offset[c]]; }
        let sx = 0, sy = 0, sz = 0, crossings = 0;
        for (let e = 0; e < 12; e++) {
          const a = EDGES[e][0], b = EDGES[e][1];
          if ((inside >> a & 1) === (inside >> b & 1)) { continue; }
          const t = (at - corner[a]) / (corner[b] - corner[a]);
          sx += (a & 1) + t * ((b & 1) - (a & 1));
          sy += (a >> 1 & 1) + t * ((b >> 1 & 1) - (a >> 1 & 1));
          sz += (a >> 2) + t * ((b >> 2) - (a >> 2));
          crossings++;
        }
        if (3 * made + 3 > vertices.length) {
          const more = new Float32Array(2 * vertices.length), others = new Float32Array(2 * vertices.length);
          more.set(vertices); others.set(normals); vertices = more; normals = others;
        }
        const v = 3 * made;
        vertices[v] = x + sx / crossings; vertices[v + 1] = y + sy / crossings; vertices[v + 2] = z + sz / crossings;
        normals[v] = corner[0] + corner[2] + corner[4] + corner[6] - corner[1] - corner[3] - corner[5] - corner[7];
        normals[v + 1] = corner[0] + corner[1] + corner[4] + corner[5] - corner[2] - corner[3] - corner[6] - corner[7];
        normals[v + 2] = corner[0] + corner[1] + corner[2] + corner[3] - corner[4] - corner[5] - corner[6] - corner[7];
        cells[i] = made++;
        const here = inside & 1;
        if (here !== (inside >> 1 & 1) && y > 0 && z > 0) { quad(cells[i], cells[i - n], cells[i - n - nn], cells[i - nn]); }
        if (here !== (inside >> 2 & 1) && x > 0 && z > 0) { quad(cells[i], cells[i - 1], cells[i - 1 - nn], cells[i - nn]); }
        if (here !== (inside >> 4 & 1) && x > 0 && y > 0) { quad(cells[i], cells[i - 1], cells[i - 1 - n], cells[i - n]); }
      }
    }
  }
  return { vertices: vertices.subarray(0, 3 * made), normals: smoothed(normals, indices, made, used), indices: indices.subarray(0, used) };
}

function smoothed(normals, indices, made, used) {
  // bytes are coarse, and so are their gradients: each vertex takes the mean over the quads about it
  const sum = new Float32Array(3 * made);
  for (let q = 0; q < used; q += 6) {
    const four = [indices[q], indices[q + 1], indices[q + 2], indices[q + 5]];
    for (let k = 0; k < 3; k++) {
      const total = normals[3 * four[0] + k] + normals[3 * four[1] + k] + normals[3 * four[2] + k] + normals[3 * four[3] + k];
      for (let c = 0; c < 4; c++) { sum[3 * four[c] + k] += total; }
    }
  }
  return sum;
}

const VERTEX = `#version 300 es
in vec3 place; in vec3 normal; uniform mat3 turn; uniform float zoom; uniform float size; out vec3 facing; out float depth;
void main() {
  vec3 p = turn * ((place - 0.5 * size) / (0.5 * size));
  facing = turn * normal; depth = p.z;
  gl_Position = vec4(p.xy * zoom, -p.z * 0.5, 1.0);
}`;
const FRAGMENT = `#version 300 es
precision highp float; in vec3 facing; in float depth; out vec4 colour;
void main() {
  vec3 n = normalize(facing); n = n.z < 0.0 ? -n : n;
  float light = 0.32 + 0.55 * max(dot(n, normalize(vec3(-0.4, 0.5, 0.8))), 0.0) + 0.13 * n.z;
  vec3 base = vec3(0.40, 0.63, 0.80);
  float shine = pow(max(dot(n, normalize(vec3(-0.2, 0.25, 0.95))), 0.0), 24.0) * 0.18;
  colour = vec4(mix(vec3(1.0), base * light + shine, clamp(0.78 + 0.35 * depth, 0.25, 1.0)), 1.0);
}`;

function prepare() {
  gl = canvas.getContext("webgl2", { antialias: true, preserveDrawingBuffer: true });
  if (!gl) { return false; }
  program = gl.createProgram();
  for (const [kind, text] of [[gl.VERTEX_SHADER, VERTEX], [gl.FRAGMENT_SHADER, FRAGMENT]]) {
    const shader = gl.createShader(kind);
    gl.shaderSource(shader, text);
    gl.compileShader(shader);
    if (!gl.getShaderParameter(shader, gl.COMPILE_STATUS)) { return false; }
    gl.attachShader(program, shader);
  }
  gl.linkProgram(program);
  buffers = { place: gl.createBuffer(), normal: gl.createBuffer(), indices: gl.createBuffer() };
  gl.enable(gl.DEPTH_TEST);
  gl.clearColor(1, 1, 1, 1);
  return gl.getProgramParameter(program, gl.LINK_STATUS);
}

function build() {
  if (!gl || !map) { return; }
  const began = performance.now(), made = surface(map.data, map.n, threshold());
  for (const [name, values] of [["place", made.vertices], ["normal", made.normals]]) {
    gl.bindBuffer(gl.ARRAY_BUFFER, buffers[name]);
    gl.bufferData(gl.ARRAY_BUFFER, values, gl.DYNAMIC_DRAW);
    const where = gl.getAttribLocation(program, name);
    gl.enableVertexAttribArray(where);
    gl.vertexAttribPointer(where, 3, gl.FLOAT, false, 0, 0);
  }
  gl.bindBuffer(gl.ELEMENT_ARRAY_BUFFER, buffers.indices);
  gl.bufferData(gl.ELEMENT_ARRAY_BUFFER, made.indices, gl.DYNAMIC_DRAW);
  count = made.indices.length;
  canvas.dataset.triangles = count / 3;
  draw();
  canvas.dataset.ms = (performance.now() - began).toFixed(1);
}

function draw() {
  gl.viewport(0, 0, canvas.width, canvas.height);
  gl.clear(gl.COLOR_BUFFER_BIT | gl.DEPTH_BUFFER_BIT);
  if (!map || !count) { return; }
  gl.useProgram(program);
  gl.uniformMatrix3fv(gl.getUniformLocation(program, "turn"), false, turn);
  gl.uniform1f(gl.getUniformLocation(program, "zoom"), zoom);
  gl.uniform1f(gl.getUniformLocation(program, "size"), map.n);
  gl.drawElements(gl.TRIANGLES, count, gl.UNSIGNED_INT, 0);
}

function soon(work) {
  if (waiting) { return; }
  waiting = true;
  requestAnimationFrame(() => { waiting = false; work(); });
}

function threshold() {
  const value = level.value / 100 * map.about.maximum;
  return 255 * (value - map.about.minimum) / (map.about.maximum - map.about.minimum);
}

function tell() {
  const value = level.value / 100 * map.about.maximum;
  document.getElementById("level-text").textContent = `${level.value} % of the maximum, ${((value - map.about.mean) / map.about.sigma).toFixed(1)} σ`;
}

// turning: v' = R v, by angles about the axes of the screen; columns first, as WebGL has them
function turned(about, angle) {
  const c = Math.cos(angle), s = Math.sin(angle);
  const r = about === "y" ? [c, 0, -s, 0, 1, 0, s, 0, c] : about === "x" ? [1, 0, 0, 0, c, s, 0, -s, c] : [c, s, 0, -s, c, 0, 0, 0, 1];
  const result = new Array(9);
  for (let column = 0; column < 3; column++) {
    for (let row = 0; row < 3; row++) {
      result[3 * column + row] = r[row] * turn[3 * column] + r[3 + row] * turn[3 * column + 1] + r[6 + row] * turn[3 * column + 2];
    }
  }
  turn = result;
}

function slices() {
  if (!map) { return; }
  const { data, n, about } = map, span = about.maximum - about.minimum;
  const byte = (value) => 255 * (value - about.minimum) / span;
  const black = byte(about.mean - 2 * about.sigma), white = byte(Math.min(about.maximum, about.mean + 7 * about.sigma));
  const at = cut.map((share) => Math.min(n - 1, Math.max(0, Math.round(share * n))));
  const voxel = { z: (u, v) => at[2] * n * n + v * n + u, y: (u, v) => v * n * n + at[1] * n + u, x: (u, v) => v * n * n + u * n + at[0] };
  for (const axis of ["z", "y", "x"]) {
    const target = document.getElementById("slice-" + axis), picture = new ImageData(n, n);
    for (let v = 0; v < n; v++) {
      for (let u = 0; u < n; u++) {
        const grey = 255 * (data[voxel[axis](u, v)] - black) / (white - black), p = 4 * ((n - 1 - v) * n + u);
        picture.data[p] = picture.data[p + 1] = picture.data[p + 2] = grey;
        picture.data[p + 3] = 255;
      }
    }
    const small = new OffscreenCanvas(n, n);
    small.getContext("2d").putImageData(picture, 0, 0);
    const pen = target.getContext("2d"), size = target.width;
    pen.drawImage(small, 0, 0, size, size);
    const [u, v] = { z: [0, 1], y: [0, 2], x: [1, 2] }[axis];
    pen.strokeStyle = "#d55e0099";
    pen.beginPath();
    pen.moveTo(cut[u] * size, 0); pen.lineTo(cut[u] * size, size);
    pen.moveTo(0, (1 - cut[v]) * size); pen.lineTo(size, (1 - cut[v]) * size);
    pen.stroke();
  }
  const Å = (share) => ((share - 0.5) * n * about.pixel_size_A).toFixed(0);
  document.getElementById("slices-told").textContent = `At x, y, z = ${Å(cut[0])}, ${Å(cut[1])}, ${Å(cut[2])} Å from the centre.`;
}

// of half-maps and mask there is the coarse preview alone, and of results only
const NAMES = { map: "map", half1: "half-map 1", half2: "half-map 2", mask: "mask" };
const LEVELS = {};

function offer() {
  const offered = ["map", ...box.dataset.others.split(" ").filter((name) => name in NAMES)];
  const before = offered.includes(of.value) ? of.value : "map";
  of.replaceChildren(...offered.map((name) => new Option(NAMES[name], name, false, name === before)));
  document.getElementById("choice").hidden = offered.length < 2;
  fineness.disabled = before !== "map";
}

async function load() {
  offer();
  const name = of.value, size = name === "map" ? fineness.value : "64";
  const answer = await fetch(`${box.dataset.preview}${name}-${size}`);
  if (!answer.ok || of.value !== name) { return; }
  const about = JSON.parse(answer.headers.get("X-Map"));
  const data = new Uint8Array(await answer.arrayBuffer());
  map = { data, n: Math.round(Math.cbrt(data.length)), about };
  box.hidden = false;
  what.textContent = about.iteration ? `after iteration ${about.iteration}` : "";
  const usual = name === "mask" ? 50 : 100 * (about.mean + 4 * about.sigma) / about.maximum;
  level.value = LEVELS[name] ?? Math.round(Math.min(90, Math.max(5, usual)));
  canvas.setAttribute("aria-label", `Surface of the ${NAMES[name]}; drag to turn it, or use the arrow keys`);
  tell();
  build();
  slices();
  box.dataset.ready = String(Math.round(performance.now()));
  document.dispatchEvent(new CustomEvent("map-ready"));
}

level.addEventListener("input", () => { LEVELS[of.value] = level.value; if (map) { tell(); soon(build); } });
fineness.addEventListener("change", load);
of.addEventListener("change", load);
document.addEventListener("map-changed", load);

let held = null;
canvas.addEventListener("pointerdown", (event) => { held = [event.clientX, event.clientY]; canvas.setPointerCapture(event.pointerId); });
canvas.addEventListener("pointerup", () => { held = null; });
canvas.addEventListener("pointermove", (event) => {
  if (!held || !gl) { return; }
  turned("y", (event.clientX - held[0]) / 120);
  turned("x", (event.clientY - held[1]) / 120);
  held = [event.clientX, event.clientY];
  soon(draw);
});
canvas.addEventListener("wheel", (event) => {
  event.preventDefault();
  zoom = Math.min(8, Math.max(0.4, zoom * Math.exp(-event.deltaY / 700)));
  if (gl) { soon(draw); }
}, { passive: false });
canvas.addEventListener("keydown", (event) => {
  const step = { ArrowLeft: ["y", -0.1], ArrowRight: ["y", 0.1], ArrowUp: ["x", -0.1], ArrowDown: ["x", 0.1] }[event.key];
  if (!step || !gl) { return; }
  event.preventDefault();
  turned(...step);
  soon(draw);
});
for (const [axis, first, second] of [["z", 0, 1], ["y", 0, 2], ["x", 1, 2]]) {
  document.getElementById("slice-" + axis).addEventListener("click", (event) => {
    const area = event.target.getBoundingClientRect();
    cut[first] = (event.clientX - area.left) / area.width;
    cut[second] = 1 - (event.clientY - area.top) / area.height;
    slices();
  });
}
document.getElementById("picture").addEventListener("click", () => {
  draw();
  canvas.toBlob((blob) => {
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${of.value}.png`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 10000);
  });
});

if (!prepare()) {
  gl = null;
  canvas.hidden = true;
  document.getElementById("picture").hidden = true;
  document.getElementById("surface-told").textContent = "This browser offers no WebGL2, so there are slices only.";
}
if (!box.hidden) { load(); }
