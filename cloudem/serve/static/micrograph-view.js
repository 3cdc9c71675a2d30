// One micrograph, large: picks as circles, spectrum, motion, numbers; picks are added and removed by clicks.

import { add } from "./choice.js";
import { drawn, picture, ticks } from "./session.js";

const USUAL_A = 150, CURVE = { width: 340, height: 150, left: 30, right: 8, top: 8, bottom: 30 }, TRACK = 170;

export class MicrographView {
  constructor(area, session, order) {
    Object.assign(this, { session, order, row: null, details: null, editing: false, latest: 0 });
    this.dialog = add(area, "dialog", "", { className: "micrograph-view" });
    const head = add(this.dialog, "header", "");
    this.title = add(head, "b", "");
    this.place = add(head, "span", "", { className: "quiet" });
    const buttons = add(head, "span", "", { className: "buttons" });
    const button = (text, label, act) => { const found = add(buttons, "button", text, { type: "button", title: label }); found.setAttribute("aria-label", label); found.addEventListener("click", act); return found; };
    button("←", "Previous micrograph (left arrow)", () => this.step(-1));
    button("→", "Next micrograph (right arrow)", () => this.step(1));
    this.turner = button("Put aside", "Put aside or take back (x)", () => this.session.turn(this.row));
    button("Close", "Close (Esc)", () => this.dialog.close());
    this.why = add(this.dialog, "p", "", { className: "why", role: "status" });
    const columns = add(this.dialog, "div", "", { className: "view-columns" }), left = add(columns, "div", "", { className: "view-image" });
    this.frame = add(add(left, "div", "", { className: "scroller" }), "div", "", { className: "frame" });
    this.image = add(this.frame, "img", "", { alt: "The micrograph" });
    this.image.addEventListener("error", () => this.lose(this.image.dataset.at));
    this.frame.style.setProperty("--aspect", session.data.aspect);
    this.image.addEventListener("load", () => { delete this.frame.dataset.lost; });
    this.over = drawn(this.frame, "svg", { class: "over", preserveAspectRatio: "none" });
    this.over.addEventListener("click", (event) => this.click(event));
    const row = add(left, "p", "", { className: "choice-row" });
    const tick = (text, on, act) => { const label = add(row, "label", ""), box = add(label, "input", "", { type: "checkbox", checked: on }); label.append(` ${text}`); box.addEventListener("change", act); return box; };
    this.showing = tick("picks", true, () => this.drawPicks());
    this.smooth = tick("without noise", false, () => this.load());
    this.editor = tick("edit picks", false, () => { this.editing = this.editor.checked; if (this.editing) { this.showing.checked = true; } this.drawPicks(); });
    const larger = tick("twice as large", false, () => { this.frame.classList.toggle("larger", larger.checked); });
    this.undo = add(row, "button", "As before", { type: "button", hidden: true });
    this.undo.addEventListener("click", () => { this.session.unedit(this.row); this.drawPicks(); });
    this.count = add(row, "span", "", { className: "quiet", role: "status" });
    this.side = add(columns, "div", "", { className: "view-side" });
    this.dialog.addEventListener("keydown", (event) => this.press(event));
    session.listeners.push(() => { if (this.dialog.open) { this.drawStanding(); } });
  }

  open(row) {
    if (!this.dialog.open) { this.dialog.showModal(); }
    this.show(row);
  }

  renew(name) { if (this.dialog.open) { const row = this.session.names.indexOf(name); if (row >= 0) { this.show(row); } else { this.dialog.close(); } } }

  get name() { return this.row === null ? "" : this.session.names[this.row]; }

  press(event) {
    if (event.target.matches("input:not([type=checkbox]), select") || event.ctrlKey || event.metaKey || event.altKey) { return; }
    const act = { ArrowLeft: () => this.step(-1), ArrowRight: () => this.step(1), x: () => this.session.turn(this.row), p: () => { this.showing.checked = !this.showing.checked; this.drawPicks(); } }[event.key];
    if (act) { event.preventDefault(); act(); }
  }

  step(by) {
    const rows = this.order(), at = rows.indexOf(this.row), next = rows[at < 0 ? 0 : at + by];
    if (next !== undefined) { this.show(next); }
  }

  async show(row) {
    this.row = row;
    this.details = null;
    const number = this.latest += 1;
    this.title.textContent = this.name;
    this.drawStanding();
    this.load();
    this.over.textContent = this.count.textContent = "";
    const answer = await fetch(picture("details", this.name)).catch(() => null), found = answer?.ok ? await answer.json() : null;
    if (number !== this.latest) { return; }
    this.side.textContent = "";
    if (!found) { add(this.side, "p", "What is known of this micrograph cannot be read."); return; }
    this.details = found;
    this.drawSide();
    this.drawPicks();
    const rows = this.order(), next = rows[rows.indexOf(row) + 1];
    if (next !== undefined && this.session.data.images) { new Image().src = picture(this.kind, this.session.names[next]); }
  }

  get kind() { return this.smooth.checked ? "smooth" : "large"; }

  load() {
    const address = picture(this.kind, this.name);
    if (this.session.data.images && this.image.dataset.at !== address) {
      this.image.dataset.at = address;
      this.frame.style.backgroundImage = `url("${picture("small", this.name)}")`; // what is there at once, until the large one is
      this.image.src = address;
    }
  }

  // Says why there is no picture, in the words of the server.
  async lose(address) {
    this.frame.dataset.lost = "Its picture cannot be read.";
    const answer = await fetch(address).catch(() => null), why = answer?.status === 404 ? await answer.text() : "";
    if (why && !why.startsWith("<") && this.image.dataset.at === address && this.frame.dataset.lost) { this.frame.dataset.lost = why; }
  }

  drawStanding() {
    const { session, row } = this, rows = this.order(), at = rows.indexOf(row), why = session.why[row];
    this.place.textContent = at < 0 ? "" : `${(at + 1).toLocaleString("en")} of ${rows.length.toLocaleString("en")}`;
    this.why.textContent = why ? `Put aside: ${why}` : session.marks.get(row) === "keep" ? "Kept by hand" : "";
    this.why.classList.toggle("kept", !why);
    this.turner.textContent = why ? "Take back" : "Put aside";
  }

  drawSide() {
    const { details: found, side } = this;
    const table = add(add(side, "div", ""), "table", "", { className: "facts" });
    const size = found.shape[0] ? [["size", `${found.shape[1].toLocaleString("en")} × ${found.shape[0].toLocaleString("en")} px`, "Columns and rows."]] : [];
    const pixel = found.pixel_size_A ? [["pixel size", `${Number(found.pixel_size_A.toPrecision(4))} Å`, ""]] : [];
    for (const [heading, text, meaning] of [...found.numbers, ...size, ...pixel]) {
      const row = add(table, "tr", "", { title: meaning });
      add(row, "td", heading);
      add(row, "td", text, { className: text.length < 24 ? "n" : "" });
    }
    const beside = add(side, "div", "", { className: "beside" });
    if (found.spectrum) { this.drawSpectrum(found.spectrum, beside); }
    if (found.track) { this.drawTrack(found.track, beside); }
  }

  drawSpectrum(spectrum, beside) {
    const part = add(beside, "figure", "", { className: "spectrum" });
    const image = add(part, "img", "", { alt: "Spectrum: data on the left, the fitted CTF on the right", src: picture("spectrum", this.name), width: 170, height: 170 });
    image.addEventListener("error", () => image.remove());
    add(part, "figcaption", spectrum.highest ? `Spectrum to ${(1 / spectrum.highest).toFixed(1)} Å: data left, model right.` : "Spectrum: data left, model right.");
    if (!spectrum.data || !spectrum.highest) { return; }
    const { width, height, left, right, top, bottom } = CURVE, figure = add(this.side, "figure", "");
    const svg = drawn(figure, "svg", { class: "curve", viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Curves of data, model and agreement over the resolution" });
    const [low, high] = [-1.25, 1.25], x = (k) => left + k / spectrum.highest * (width - left - right), y = (value) => top + (1 - (Math.min(Math.max(value, low), high) - low) / (high - low)) * (height - top - bottom);
    const axes = drawn(svg, "g", { class: "axes" });
    for (const value of [-1, 0, 1]) { drawn(axes, "path", { d: `M${left} ${y(value)}H${width - right}` }); drawn(axes, "text", { x: left - 5, y: y(value) + 4, "text-anchor": "end" }).textContent = value; }
    for (const resolution of [20, 10, 7, 5, 4, 3, 2.5, 2, 1.5]) {
      if (1 / resolution > spectrum.highest * 1.001) { continue; }
      drawn(axes, "path", { d: `M${x(1 / resolution)} ${top}V${height - bottom}` });
      drawn(axes, "text", { x: x(1 / resolution), y: height - bottom + 13, "text-anchor": "middle" }).textContent = resolution;
    }
    drawn(axes, "text", { x: width - right, y: height - 3, "text-anchor": "end" }).textContent = "resolution (Å)";
    const fit = this.session.column("ctf_fit_resolution")?.values[this.row];
    if (fit && 1 / fit <= spectrum.highest) { drawn(svg, "path", { class: "fit", d: `M${x(1 / fit)} ${top}V${height - bottom}` }); }
    for (const name of ["data", "model", "quality"]) {
      const values = spectrum[name];
      if (!values) { continue; }
      let pen = "M", path = "";
      values.forEach((value, at) => { if (value === null) { pen = "M"; } else { path += `${pen}${x(at / (values.length - 1) * spectrum.highest).toFixed(1)} ${y(value).toFixed(1)}`; pen = "L"; } });
      drawn(svg, "path", { class: name, d: path });
    }
    const caption = add(figure, "figcaption", "");
    for (const [name, text] of [["data", "data"], ["model", "model"], ["quality", "agreement"]]) { if (spectrum[name]) { add(caption, "span", text, { className: `key ${name}` }); } }
    if (fit) { add(caption, "span", "CTF fit", { className: "key fit" }); }
  }

  drawTrack(track, beside) {
    const figure = add(beside, "figure", "", { className: "track" }), svg = drawn(figure, "svg", { class: "curve", viewBox: `0 0 ${TRACK} ${TRACK}`, width: TRACK, role: "img", "aria-label": "Motion over the frames" });
    const spans = [0, 1].map((axis) => track.map((point) => point[axis])).map((values) => [Math.min(...values), Math.max(...values)]);
    const across = Math.max(...spans.map(([low, high]) => high - low), 1) * 1.25, middle = spans.map(([low, high]) => (low + high) / 2);
    const at = (point) => [0, 1].map((axis) => ((point[axis] - middle[axis]) / across + 0.5) * TRACK);
    const bar = [50, 20, 10, 5, 2, 1, 0.5].find((length) => length <= across * 0.4) ?? 0.5;
    drawn(svg, "path", { class: "path", d: `M${track.map((point) => at(point).map((value) => value.toFixed(1)).join(" ")).join("L")}` });
    drawn(svg, "path", { class: "frames", d: track.map((point) => `M${at(point).map((value) => value.toFixed(1)).join(" ")}h0`).join("") });
    const [first, last] = [at(track[0]), at(track.at(-1))];
    drawn(svg, "circle", { class: "first", cx: first[0], cy: first[1], r: 4 });
    drawn(svg, "circle", { class: "last", cx: last[0], cy: last[1], r: 4 });
    drawn(svg, "path", { class: "bar", d: `M8 ${TRACK - 8}h${bar / across * TRACK}` });
    drawn(svg, "text", { x: 8, y: TRACK - 14 }).textContent = `${bar} Å`;
    add(figure, "figcaption", `Motion over ${track.length} frames, from the ring to the dot.`);
  }

  get picks() { return this.session.edits.get(this.row) ?? this.details?.picks?.at.map((at, number) => [...at, this.details.picks.scores[number]]) ?? []; }

  get size() {
    const [rows, columns] = this.details?.shape ?? [0, 0];
    return rows && columns ? [columns, rows] : [this.image.naturalWidth || 1, this.image.naturalHeight || 1];
  }

  get radius() {
    const [columns] = this.size, pixel = this.details?.pixel_size_A || 1;
    return Math.max((this.details?.picks?.diameter_A || USUAL_A) / pixel / 2, columns / 200);
  }

  drawPicks() {
    const { details, over, session, row } = this;
    if (!details) { return; }
    const [width, height] = this.size, { picks, radius } = this, known = details.picks || session.edits.has(row);
    over.textContent = "";
    over.setAttribute("viewBox", `0 0 ${width} ${height}`);
    over.classList.toggle("editing", this.editing);
    if (this.showing.checked) {
      for (const [x, y, score] of picks) { drawn(over, "circle", { cx: x + 0.5, cy: y + 0.5, r: radius, class: score === null ? "added" : "" }); }
    }
    const change = session.changes.get(row);
    this.undo.hidden = !change;
    this.count.textContent = `${known ? `${picks.length.toLocaleString("en")} picks` : "no picks yet"}${change ? `: ${change.added} added, ${change.removed} removed` : ""}${this.editing ? ". Click to add one; click a circle to remove it." : ""}`;
  }

  click(event) {
    if (!this.editing || !this.details) { return; }
    const box = this.over.getBoundingClientRect(), [width, height] = this.size;
    const x = (event.clientX - box.left) / box.width * width - 0.5, y = (event.clientY - box.top) / box.height * height - 0.5;
    const { picks } = this, away = picks.map(([a, b]) => Math.hypot(a - x, b - y)), at = away.indexOf(Math.min(...away));
    const removed = at >= 0 && away[at] < this.radius;
    this.session.edit(this.row, removed ? picks.filter((_, number) => number !== at) : [...picks, [Math.round(x * 10) / 10, Math.round(y * 10) / 10, null]], removed ? -1 : 1);
    this.drawPicks();
  }
}
