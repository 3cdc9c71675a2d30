// Classes are chosen by clicking their averages; the server says what the choice becomes: a command, a step, a file.

import { add, ask, copied, sentence, writer } from "./choice.js";

const body = document.body, area = document.getElementById("sections");
const chosen = new Map(); // by number, so that a sheet that is drawn anew shows the same choice
let latest = 0;

function prepare(sheet) {
  const figures = [...sheet.querySelectorAll("figure[data-class]")];
  const panel = add(sheet.parentElement, "div", "", { className: "choice" });
  sheet.after(panel);
  const row = add(panel, "p", "", { className: "choice-row" });
  const count = add(row, "b", "", { role: "status" });
  for (const [name, wanted] of [["All", () => true], ["None", () => false], ["Invert", (is) => !is], ["As before", (is, figure) => figure.dataset.chosen === "1"]]) {
    add(row, "button", name, { type: "button" }).addEventListener("click", () => {
      for (const figure of figures) { mark(figure, wanted(chosen.get(figure.dataset.class), figure)); }
      say();
    });
  }
  add(row, "span", "Click the classes to keep, or use the arrow keys and space.", { className: "quiet" });
  const told = add(panel, "div", "", { hidden: true });
  const command = copied(told, "Command"), step = copied(told, "Step of a workflow");
  const { button: write, outcome } = writer(told, (words) => ask(address(), words, { method: "POST" }));

  function mark(figure, is) {
    chosen.set(figure.dataset.class, is);
    figure.setAttribute("aria-checked", String(is));
  }

  function numbers() { return figures.filter((each) => chosen.get(each.dataset.class)).map((each) => each.dataset.class); }

  async function say() {
    const number = latest += 1, some = figures.filter((each) => chosen.get(each.dataset.class));
    const images = (those) => those.reduce((sum, each) => sum + Number(each.dataset.images), 0).toLocaleString("en");
    count.textContent = `${some.length} of ${figures.length} classes, ${images(some)} of ${images(figures)} images`;
    told.hidden = some.length === 0;
    if (!some.length) { return; }
    const found = await ask(address(), outcome);
    if (number !== latest || !found) { return; } // somebody has clicked on meanwhile
    command.textContent = found.command;
    step.textContent = found.step;
    if (write) {
      write.hidden = !found.file;
      write.textContent = `Write ${found.file}`;
      outcome.textContent = sentence(found.said);
    }
  }

  function address() { return `${body.dataset.choice}?classes=${numbers().join(",")}`; }

  for (const figure of figures) {
    figure.tabIndex = 0;
    figure.setAttribute("role", "checkbox");
    figure.setAttribute("aria-label", `Class ${figure.dataset.class}, ${figure.dataset.images} images`);
    mark(figure, chosen.get(figure.dataset.class) ?? figure.dataset.chosen === "1");
    const turn = () => { mark(figure, !chosen.get(figure.dataset.class)); say(); };
    figure.addEventListener("click", turn);
    figure.addEventListener("keydown", (event) => {
      if (event.key === " " || event.key === "Enter") { event.preventDefault(); turn(); }
      const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
      if (step) { event.preventDefault(); figures[figures.indexOf(figure) + step]?.focus(); }
    });
  }
  say();
}

function look() {
  for (const sheet of area.querySelectorAll("[data-classes]:not([data-ready])")) {
    sheet.dataset.ready = "1";
    prepare(sheet);
  }
}

new MutationObserver(look).observe(area, { childList: true });
look();
