// What choices on a page share: texts to copy or keep, questions to the server, and the button that writes.

export function add(parent, kind, text, given = {}) {
  const element = Object.assign(document.createElement(kind), given);
  element.textContent = text;
  parent.append(element);
  return element;
}

export function copied(parent, title) {
  const row = add(parent, "p", "", { className: "choice-row" });
  const name = add(row, "b", title);
  const button = add(row, "button", "Copy", { type: "button" }), text = add(parent, "pre", "");
  button.addEventListener("click", async () => {
    try { await navigator.clipboard.writeText(text.textContent); button.textContent = "Copied"; } catch {
      getSelection().selectAllChildren(text); // no clipboard without TLS: it is marked, to be copied by hand
      button.textContent = "Marked";
    }
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  return Object.assign(text, { row, name });
}

export function keep(name, text) {
  const link = Object.assign(document.createElement("a"), { href: URL.createObjectURL(new Blob([text], { type: "text/plain" })), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

// What the server makes of a choice; null where it refuses, and then `told` says why.
export async function ask(address, told, given = {}) {
  const headers = given.method === "POST" ? { "X-Cloudem": "write" } : {};
  try {
    const answer = await fetch(address, { headers, ...given });
    const found = (answer.headers.get("Content-Type") ?? "").includes("json") ? await answer.json() : {};
    if (answer.ok) { return found; }
    told.textContent = found.problem ?? `The server answers ${answer.status}.`;
  } catch { told.textContent = "The server does not answer."; }
  return null;
}

export function sentence(text) { return text ? `${text[0].toUpperCase()}${text.slice(1)}.` : ""; }

// A button that writes what was chosen, where that is allowed, and the words beside it.
export function writer(parent, post) {
  const last = add(parent, "p", "", { className: "choice-row" }), allowed = document.body.dataset.writes !== undefined;
  const button = allowed ? add(last, "button", "", { type: "button", className: "write" }) : null;
  const outcome = add(last, "span", allowed ? "" : "To write it from here, use cloudem serve --allow-writing.", { className: "quiet", role: "status" });
  button?.addEventListener("click", async () => {
    button.disabled = true;
    const found = await post(outcome);
    button.disabled = false;
    if (!found) { return; }
    outcome.textContent = "";
    outcome.append(`Written: ${found.written}. Run it with `);
    add(outcome, "code", found.then);
    outcome.append(".");
  });
  return { button, outcome };
}
