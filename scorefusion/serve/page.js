"use strict";
// Everything that comes from a client is put into the page as text, never as markup.
const $ = id => document.getElementById(id);

async function call(path, options = {}) {
  const token = sessionStorage.getItem("token");
  const headers = token ? { Authorization: `Bearer ${token}` } : {};
  const answer = await fetch(path, { ...options, headers });
  $("login").hidden = answer.status !== 401;
  if (!answer.ok) {
    const said = await answer.json().catch(() => ({}));
    throw new Error([said.error || `status ${answer.status}`, said.fix].filter(Boolean).join(". "));
  }
  return answer;
}

async function tried(action) {
  try {
    $("message").textContent = "";
    await action();
  } catch (error) {
    $("message").textContent = error.message;
  }
}

function element(kind, text, attributes = {}) {
  return Object.assign(document.createElement(kind), { textContent: text }, attributes);
}

function button(text, action) {
  return element("button", text, { className: "link", type: "button", onclick: () => tried(action) });
}

async function download(scan) {
  const answer = await call(scan.result);
  const link = element("a", "", { href: URL.createObjectURL(await answer.blob()) });
  link.download = scan.name.replace(/\.nii(\.gz)?$/i, "") + "_scorefusion.nii.gz";
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

async function remove(scan) {
  await call(`/scans/${scan.id}`, { method: "DELETE" });
  await list();
}

function row(scan) {
  const line = document.createElement("tr");
  const state = element("td", scan.state, { className: scan.state });
  if (scan.state === "running") state.append(" ", element("progress", "", { value: scan.progress }));
  if (scan.error) state.append(`: ${scan.error}. ${scan.fix || ""}`);
  const actions = document.createElement("td");
  if (scan.result) actions.append(button("Download", () => download(scan)));
  actions.append(button("Delete", () => remove(scan)));
  line.append(element("td", scan.name), state, element("td", scan.seconds ?? ""), actions);
  return line;
}

async function list() {
  const told = await (await call("/scans")).json();
  $("model").textContent = `Model ${told.model}${told.trouble ? `. ${told.trouble}` : ""}`;
  if ($("files").children.length !== told.conditions.length) {
    $("files").replaceChildren(...told.conditions.map(name => {
      const label = element("label", `${name}: `);
      label.append(element("input", "", { type: "file", name: "file", accept: ".nii,.gz", required: true }));
      return label;
    }));
  }
  $("scans").replaceChildren(...told.scans.map(row).reverse());
}

$("upload").addEventListener("submit", event => {
  event.preventDefault();
  tried(async () => {
    const form = $("upload");
    await call("/scans", { method: "POST", body: new FormData(form) });
    form.reset();
    await list();
  });
});

$("login").addEventListener("submit", event => {
  event.preventDefault();
  sessionStorage.setItem("token", $("token").value);
  tried(list);
});

tried(list);
setInterval(() => { if ($("login").hidden) list().catch(error => { $("message").textContent = error.message; }); }, 2000);
