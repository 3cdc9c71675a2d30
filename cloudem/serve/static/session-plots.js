// Numbers of micrographs over the session, with their histogram; limits are dragged, points are clicked.

import { add } from "./choice.js";
import { drawn, ending, picture, ticks } from "./session.js";

const HEIGHT = 150, TOP = 8, BOTTOM = 20, LEFT = 46, HISTOGRAM = 44, BINS = 26, NEAR = 26;
const COLOURS = [[0, 114, 178], [213, 94, 0]]; // of those that stay, and of those put aside

export class SessionPlots {
  constructor(area, session, open) {
    this.session = session;
    this.open = open;
    this.selected = null;
    this.grid = add(area, "div", "", { className: "session-plots" });
    this.hint = add(area, "div", "", { className: "session-hint", hidden: true });
    this.picture = add(this.hint, "img", "", { alt: "", width: 150 });
    this.words = add(this.hint, "span", "");
    this.plots = new Map();
    session.listeners.push(() => this.later());
    new ResizeObserver(() => this.later()).observe(this.grid);
    this.renew();
  }

  renew() {
    const columns = this.session.columns.filter((column) => column.plotted);
    if (columns.map((column) => column.key).join() !== [...this.plots.keys()].join()) {
      this.grid.textContent = "";
      this.plots = new Map(columns.map((column) => [column.key, new Plot(this, column.key)]));
    }
    for (const plot of this.plots.values()) { plot.scale(); }
    this.later();
  }

  later() {
    if (this.waiting) { return; }
    this.waiting = requestAnimationFrame(() => { this.waiting = null; for (const plot of this.plots.values()) { plot.draw(); } });
  }

  select(row, event, plot) {
    this.selected = row;
    for (const each of this.plots.values()) { each.mark(row); }
    this.hint.hidden = row === null || !event;
    if (this.hint.hidden) { return; }
    const { session } = this, name = session.names[row];
    const address = session.data.images ? picture("small", name) : "";
    if (this.picture.dataset.at !== address) { this.picture.dataset.at = address; this.picture.src = address; }
    this.picture.hidden = !address;
    const clock = session.data.clock[row];
    this.words.textContent = `${ending(name, 22)}\n${plot.column.heading} ${session.shown(plot.column, row)}${clock ? `\n${clock}` : ""}${session.why[row] ? `\naside: ${session.why[row]}` : ""}`;
    const x = Math.min(event.clientX + 16, innerWidth - 190), y = event.clientY + 16;
    this.hint.style.left = `${Math.max(4, x)}px`;
    this.hint.style.top = `${y + 220 > innerHeight ? Math.max(4, event.clientY - 230) : y}px`;
  }
}

class Plot {
  constructor(all, key) {
    this.all = all;
    this.key = key;
    const figure = add(all.grid, "figure", "");
    const head = add(figure, "figcaption", "");
    add(head, "b", this.column.unit ? `${this.column.heading} (${this.column.unit})` : this.column.heading, { title: this.column.meaning });
    this.told = add(head, "span", "", { className: "limits" });
    const frame = add(figure, "div", "", { className: "plot-frame" });
    this.svg = drawn(frame, "svg", { class: "session", height: HEIGHT, role: "img", "aria-label": `${this.column.heading} of micrographs over the session` });
    this.canvas = add(frame, "canvas", ""); // thousands of points would make a drawing slow
    this.axes = drawn(this.svg, "g", { class: "axes" });
    this.bars = drawn(this.svg, "path", { class: "bars" });
    this.barsAside = drawn(this.svg, "path", { class: "bars aside" });
    this.ring = drawn(this.svg, "circle", { class: "ring", r: 5, visibility: "hidden" });
    this.handles = Object.fromEntries(Object.keys(this.column.options).map((side) => [side, new Handle(this, side)]));
    this.svg.addEventListener("pointermove", (event) => { if (!this.dragging && event.pointerType !== "touch") { all.select(this.near(event), event, this); } });
    this.svg.addEventListener("pointerleave", () => all.select(null));
    this.svg.addEventListener("click", (event) => {
      const row = this.near(event);
      if (row !== null && !this.dragged) { all.select(row); all.open(row); }
      this.dragged = false;
    });
  }

  get column() { return this.all.session.column(this.key); }

  // The ends of the axis, which a few values far away do not spoil: those are drawn at its ends.
  scale() {
    const known = this.column.values.filter((value) => value !== null).sort((a, b) => a - b), at = (share) => known[Math.round(share * (known.length - 1))];
    const reach = known.length < 20 ? Infinity : 8 * Math.max(at(0.75) - at(0.25), 1e-3 * Math.abs(at(0.75)), 1e-12);
    let [low, high] = [Math.max(known[0], at(0.25) - reach), Math.min(known.at(-1), at(0.75) + reach)];
    const margin = 0.08 * (high - low) || 0.5 * Math.abs(high) || 0.5;
    if (this.key === "pick_count") { low = 0; }
    this.low = low >= 0 && low < 2 * margin ? 0 : low - margin;
    this.high = high + margin;
  }

  x(row) { const { rank } = this.all.session; return LEFT + 4 + (rank[row] + 0.5) / rank.length * (this.right - LEFT - 8); }

  y(value) { return TOP + (1 - (Math.min(Math.max(value, this.low), this.high) - this.low) / (this.high - this.low)) * (HEIGHT - TOP - BOTTOM); }

  value(y) { return this.low + (1 - (y - TOP) / (HEIGHT - TOP - BOTTOM)) * (this.high - this.low); }

  draw() {
    const { session } = this.all, { values } = this.column, width = this.svg.parentElement.parentElement.clientWidth;
    if (!width) { return; }
    this.width = width;
    this.right = width - HISTOGRAM - 8;
    this.svg.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    this.svg.setAttribute("width", width);
    const counts = [new Array(BINS).fill(0), new Array(BINS).fill(0)], points = [[], []];
    values.forEach((value, row) => {
      if (value === null) { return; }
      const which = session.why[row] ? 1 : 0, y = this.y(value);
      points[which].push(this.x(row), y);
      counts[which][Math.min(BINS - 1, Math.floor((y - TOP) / (HEIGHT - TOP - BOTTOM) * BINS))] += 1;
    });
    this.drawPoints(points);
    const most = Math.max(...counts[0].map((count, bin) => count + counts[1][bin]), 1), high = (HEIGHT - TOP - BOTTOM) / BINS, start = this.right + 6;
    const bar = (from, count, bin) => (count ? `M${start + from / most * HISTOGRAM} ${TOP + bin * high + 0.5}h${count / most * HISTOGRAM}v${high - 1}h${-count / most * HISTOGRAM}z` : "");
    this.bars.setAttribute("d", counts[0].map((count, bin) => bar(0, count, bin)).join(""));
    this.barsAside.setAttribute("d", counts[1].map((count, bin) => bar(counts[0][bin], count, bin)).join(""));
    this.drawAxes();
    for (const handle of Object.values(this.handles)) { handle.draw(); }
    this.told.textContent = ["least", "most"].filter((side) => session.limit(this.column, side) !== null)
      .map((side) => `${side === "least" ? "≥" : "≤"} ${this.text(session.limit(this.column, side))}`).join(", ");
    this.mark(this.all.selected);
  }

  drawPoints(points) {
    const { canvas, width } = this, count = this.column.values.length, radius = count < 150 ? 2.5 : count < 1500 ? 1.8 : 1.2, fine = devicePixelRatio || 1;
    if (canvas.width !== Math.round(width * fine)) { [canvas.width, canvas.height] = [Math.round(width * fine), Math.round(HEIGHT * fine)]; }
    const pen = canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, canvas.width, canvas.height);
    if (count >= 1500) { stamp(pen, points, fine, Math.max(2, Math.round(2 * radius * fine))); return; }
    pen.scale(fine, fine);
    points.forEach((places, which) => {
      pen.fillStyle = `rgb(${COLOURS[which].join(" ")} / 75%)`;
      for (let at = 0; at < places.length; at += 2) {
        pen.beginPath();
        pen.arc(places[at], places[at + 1], radius, 0, 7);
        pen.fill();
      }
    });
  }

  text(value) { return value.toLocaleString("en", { maximumFractionDigits: this.column.digits + 1 }); }

  drawAxes() {
    const { session } = this.all, { axes } = this, bottom = HEIGHT - BOTTOM;
    axes.textContent = "";
    const marks = ticks(this.low, this.high, 5);
    for (const value of marks.at) {
      drawn(axes, "path", { d: `M${LEFT} ${this.y(value)}H${this.right}` });
      drawn(axes, "text", { x: LEFT - 6, y: this.y(value) + 4, "text-anchor": "end" }).textContent = marks.text(value);
    }
    drawn(axes, "path", { class: "axis", d: `M${LEFT} ${TOP}V${bottom}H${this.right}M${this.right + 6} ${TOP}V${bottom}` });
    const { order, clock } = session.data, count = order.length;
    if (clock.length) {
      for (const [place, anchor] of [[0, "start"], [count - 1, "end"]]) {
        drawn(axes, "text", { x: place ? this.right : LEFT, y: HEIGHT - 6, "text-anchor": anchor }).textContent = moment(clock[order[place]]);
      }
    } else {
      drawn(axes, "text", { x: LEFT, y: HEIGHT - 6 }).textContent = "1";
      drawn(axes, "text", { x: this.right, y: HEIGHT - 6, "text-anchor": "end" }).textContent = count.toLocaleString("en");
    }
  }

  near(event) {
    const box = this.svg.getBoundingClientRect(), at = { x: event.clientX - box.left, y: event.clientY - box.top };
    let best = null, least = NEAR ** 2;
    this.column.values.forEach((value, row) => {
      if (value === null) { return; }
      const d = (this.x(row) - at.x) ** 2 + (this.y(value) - at.y) ** 2;
      if (d < least) { [best, least] = [row, d]; }
    });
    return best;
  }

  mark(row) {
    const value = row === null ? null : this.column.values[row];
    this.ring.setAttribute("visibility", value === null || value === undefined ? "hidden" : "visible");
    if (value === null || value === undefined) { return; }
    this.ring.setAttribute("cx", this.x(row));
    this.ring.setAttribute("cy", this.y(value));
  }
}

// A limit: a line that is dragged from the end of the axis, or moved with the arrow keys; at the end there is none.
class Handle {
  constructor(plot, side) {
    this.plot = plot;
    this.side = side;
    this.group = drawn(plot.svg, "g", { class: "handle", tabindex: 0, role: "slider", "aria-orientation": "vertical", "aria-label": `${side === "least" ? "Least" : "Most"} ${plot.column.heading}` });
    this.beyond = drawn(plot.svg, "rect", { class: "beyond" });
    plot.svg.insertBefore(this.beyond, plot.axes);
    this.line = drawn(this.group, "path", { class: "line" });
    this.grip = drawn(this.group, "path", { class: "grip" });
    this.hold = drawn(this.group, "rect", { class: "hold", height: 18 });
    this.group.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      this.group.focus({ preventScroll: true });
      this.group.setPointerCapture(event.pointerId);
      plot.dragging = plot.dragged = true;
      plot.all.select(null);
    });
    this.group.addEventListener("pointermove", (event) => { if (plot.dragging) { this.move(event.clientY - plot.svg.getBoundingClientRect().top); } });
    for (const end of ["pointerup", "pointercancel"]) { this.group.addEventListener(end, () => { plot.dragging = false; setTimeout(() => { plot.dragged = false; }, 50); }); }
    this.group.addEventListener("dblclick", () => this.set(null));
    this.group.addEventListener("keydown", (event) => this.press(event));
  }

  get end() { return this.side === "least" ? this.plot.low : this.plot.high; }

  get at() { return this.plot.all.session.limit(this.plot.column, this.side); }

  set(value) { this.plot.all.session.setLimit(this.plot.column, this.side, value); }

  move(y) {
    const { plot } = this, edge = this.side === "least" ? HEIGHT - BOTTOM - 3 : TOP + 3;
    if (this.side === "least" ? y > edge : y < edge) { this.set(null); return; }
    this.set(this.rounded(plot.value(Math.min(Math.max(y, TOP), HEIGHT - BOTTOM))));
  }

  rounded(value) { const { step } = ticks(this.plot.low, this.plot.high, 150); return Math.round(value / step) * step; }

  press(event) {
    const { step } = ticks(this.plot.low, this.plot.high, 50), sign = { ArrowUp: 1, ArrowDown: -1 }[event.key];
    if (event.key === "Delete" || event.key === "Backspace") { event.preventDefault(); this.set(null); }
    if (!sign) { return; }
    event.preventDefault();
    const value = this.rounded((this.at ?? this.end) + sign * step);
    this.set(this.side === "least" ? (value <= this.plot.low ? null : Math.min(value, this.plot.high)) : (value >= this.plot.high ? null : Math.max(value, this.plot.low)));
  }

  draw() {
    const { plot } = this, set = this.at !== null, y = plot.y(set ? this.at : this.end), low = this.side === "least", end = plot.right + 6 + HISTOGRAM;
    this.group.classList.toggle("set", set);
    this.line.setAttribute("d", `M${LEFT} ${y}H${end}`);
    this.grip.setAttribute("d", low ? `M${end - 13} ${y}h14l-7 -9z` : `M${end - 13} ${y}h14l-7 9z`);
    for (const [name, value] of Object.entries({ x: set ? LEFT : end - 24, y: y - 9, width: set ? end - LEFT : 28 })) { this.hold.setAttribute(name, value); }
    const [top, bottom] = low ? [y, HEIGHT - BOTTOM] : [TOP, y];
    for (const [name, value] of Object.entries({ x: LEFT, y: top, width: end - LEFT, height: Math.max(0, bottom - top) })) { this.beyond.setAttribute(name, value); }
    this.beyond.setAttribute("visibility", set ? "visible" : "hidden");
    this.group.setAttribute("aria-valuemin", plot.low);
    this.group.setAttribute("aria-valuemax", plot.high);
    this.group.setAttribute("aria-valuenow", set ? this.at : this.end);
    this.group.setAttribute("aria-valuetext", set ? `${plot.text(this.at)} ${plot.column.unit}` : "no limit");
  }
}

// Points as squares of pixels: browsers without a GPU take a second for as many calls of fillRect.
function stamp(pen, points, fine, size) {
  const { width, height } = pen.canvas, image = pen.createImageData(width, height), pixels = new Uint32Array(image.data.buffer);
  points.forEach((places, which) => {
    const [red, green, blue] = COLOURS[which], colour = ((190 << 24) | (blue << 16) | (green << 8) | red) >>> 0;
    for (let at = 0; at < places.length; at += 2) {
      const left = Math.max(0, Math.round(places[at] * fine - size / 2)), top = Math.max(0, Math.round(places[at + 1] * fine - size / 2));
      for (let y = top; y < Math.min(top + size, height); y += 1) { pixels.fill(colour, y * width + left, y * width + Math.min(left + size, width)); }
    }
  });
  pen.putImageData(image, 0, 0);
}

function moment(text) { const found = /(\d\d-\d\d)[ T](\d\d:\d\d)/.exec(text); return found ? `${found[1]} ${found[2]}` : text.slice(0, 16); }
