"use strict";
{
  const LABELS = { failed: "Failed", outlier: "Outlier", done: "Done", waiting: "Waiting" };
  const ORDER = Object.keys(LABELS);
  const find = (id) => document.getElementById(id);
  const data = JSON.parse(find("data").textContent);
  const table = find("table"), head = find("head"), body = find("body"), large = find("large");
  const tools = document.querySelector(".tools");
  const collator = new Intl.Collator(undefined, { numeric: true, sensitivity: "base" });

  /* Text from outside goes through here only, so that it is never read as markup. */
  function make(tag, look, text) {
    const element = document.createElement(tag);
    if (look) element.className = look;
    if (text !== undefined) element.textContent = text;
    return element;
  }

  function cell(look, text) {
    const element = make("div", look, text);
    element.setAttribute("role", "cell");
    return element;
  }

  /* "data:..." of before and after; empty where there is none. They stay text until a row comes near. */
  function pictures(row) {
    const block = find("p" + row.number);
    return block ? block.textContent.split(" ") : ["", ""];
  }

  function scan(row) {
    const element = cell("scan");
    element.append(make("div", "name", row.name));
    const add = (look, texts) => texts.forEach((text) => element.append(make("p", look, text)));
    add("error", row.error);
    add("fix", row.fix);
    add("flag", row.flags);
    add("warning", row.warnings);
    if (row.inputs) add("inputs", [row.inputs]);
    if (row.link) {
      const line = make("p"), link = make("a", "", row.output);
      link.href = row.link;
      line.append(link);
      element.append(line);
    }
    return element;
  }

  function draw(row, number) {
    row.number = number;
    row.text = [row.name, row.inputs, row.output, ...row.error, ...row.fix, ...row.flags, ...row.warnings]
      .join("\n").toLowerCase();
    const element = row.element = make("div");
    element.setAttribute("role", "row");
    const holder = cell("");
    if (find("p" + number)) {
      const shot = make("button", "shot");
      shot.type = "button";
      shot.setAttribute("aria-label", "Enlarge " + row.name);
      for (const kind of row.pictures) {
        const shown = make(kind ? "img" : "span");
        if (kind) shown.alt = kind;
        shot.append(shown);
      }
      shot.addEventListener("click", () => enlarge(row));
      holder.append(shot);
    }
    const state = cell("");
    state.append(make("span", "chip " + row.state, LABELS[row.state]));
    element.append(holder, scan(row), state);
    row.figures.slice(0, data.columns).forEach((figure, place) => {
      const look = "number" + (place > 1 ? " extra" : "") + (!figure ? " none" : figure[2] ? " unusual" : "");
      element.append(cell(look, figure ? figure[1] : "–"));
    });
    element.append(cell("number extra" + (row.warnings.length ? "" : " none"), row.warnings.length || "–"));
    return element;
  }

  /* Columns: what sorts a row, and whether its largest value comes first. */
  const columns = [
    { label: "Scan", key: (row) => row.name },
    { label: "State", key: (row) => ORDER.indexOf(row.state) },
    ...data.figures.slice(0, data.columns).map((label, place) => ({
      label, look: "number" + (place > 1 ? " extra" : ""), largest: true,
      key: (row) => (row.figures[place] ? row.figures[place][0] : null),
    })),
    { label: "Warnings", look: "number extra", largest: true, key: (row) => row.warnings.length },
  ];

  const rows = data.rows;
  let order = rows.slice(), state = "all", current = null;

  function sort(column, turned) {
    const sign = (column.largest ? -1 : 1) * (turned ? -1 : 1);
    const keys = new Map(rows.map((row) => [row, column.key(row)]));
    order = rows.slice().sort((one, other) => {
      const a = keys.get(one), b = keys.get(other);
      if (a === null || b === null) return (a === null) - (b === null);
      return sign * (typeof a === "string" ? collator.compare(a, b) : a - b);
    });
    body.replaceChildren(...order.map((row) => row.element));
    for (const other of columns) {
      other.head.removeAttribute("aria-sort");
      other.turned = other === column && !turned;
    }
    column.head.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
    const above = table.getBoundingClientRect().top - tools.offsetHeight;
    if (above < 0) window.scrollBy(0, above);
  }

  function belongs(row) {
    return state === "all" || row.state === state || (state === "warned" && row.warnings.length > 0);
  }

  function filter() {
    const words = find("filter").value.toLowerCase().split(/\s+/).filter(Boolean);
    let count = 0;
    for (const row of rows) {
      row.shown = belongs(row) && words.every((word) => row.text.includes(word));
      row.element.hidden = !row.shown;
      count += row.shown;
    }
    find("count").textContent = count === rows.length ? rows.length + " scans" : count + " of " + rows.length + " scans";
    find("none").hidden = count > 0;
    table.hidden = count === 0;
  }

  function enlarge(row) {
    current = row;
    const both = pictures(row);
    ["large-before", "large-after"].forEach((id, side) => {
      const image = find(id);
      image.parentElement.hidden = !both[side];
      if (both[side]) image.src = both[side];
    });
    find("large-name").textContent = row.name;
    const figures = row.figures.map((figure, place) => figure && data.figures[place].toLowerCase() + " " + figure[1]);
    find("large-note").textContent = [
      figures.filter(Boolean).join(" · "), ...row.error, ...row.flags, ...row.warnings,
    ].filter(Boolean).join("\n");
    if (!large.open) large.showModal();
  }

  function step(by) {
    const seen = order.filter((row) => row.shown && find("p" + row.number));
    const next = seen[seen.indexOf(current) + by];
    if (next) enlarge(next);
  }

  const near = new IntersectionObserver((entries) => {
    for (const entry of entries) {
      if (!entry.isIntersecting) continue;
      near.unobserve(entry.target);
      const row = rows[entry.target.dataset.number], both = pictures(row);
      for (const image of entry.target.querySelectorAll("img")) image.src = both[image.alt === "before" ? 0 : 1];
    }
  }, { rootMargin: "600px 0px" });

  head.append(make("div", "", "Before and after"));
  head.firstChild.setAttribute("role", "columnheader");
  for (const column of columns) {
    column.head = make("div", column.look);
    column.head.setAttribute("role", "columnheader");
    const button = make("button", "", column.label);
    button.type = "button";
    button.addEventListener("click", () => sort(column, column.turned));
    column.head.append(button);
    head.append(column.head);
  }
  const widths = columns.slice(2).map((column) => (column.look === "number" ? "84px" : "minmax(62px, 80px)"));
  table.style.setProperty("--columns", ["minmax(260px, 480px)", "minmax(220px, 1fr)", "70px", ...widths].join(" "));

  body.append(...rows.map(draw));
  rows.forEach((row, number) => {
    row.element.dataset.number = number;
    if (find("p" + number)) near.observe(row.element);
  });

  const counts = { all: rows.length, warned: rows.filter((row) => row.warnings.length).length };
  for (const name of ORDER) counts[name] = rows.filter((row) => row.state === name).length;
  for (const [name, label] of Object.entries({ all: "All", ...LABELS, warned: "With warnings" })) {
    if (!counts[name]) continue;
    const button = make("button", "", label);
    button.type = "button";
    button.append(make("span", "", counts[name]));
    button.setAttribute("aria-pressed", name === "all");
    button.addEventListener("click", () => {
      state = name;
      for (const other of find("states").children) other.setAttribute("aria-pressed", other === button);
      filter();
    });
    find("states").append(button);
  }

  find("filter").addEventListener("input", filter);
  find("close").addEventListener("click", () => large.close());
  find("previous").addEventListener("click", () => step(-1));
  find("next").addEventListener("click", () => step(1));
  large.addEventListener("click", (event) => { if (event.target === large) large.close(); });
  document.addEventListener("keydown", (event) => {
    if (large.open && event.key === "ArrowLeft") step(-1);
    if (large.open && event.key === "ArrowRight") step(1);
    if (!large.open && event.key === "/" && event.target.tagName !== "INPUT") {
      event.preventDefault();
      find("filter").focus();
    }
  });
  new ResizeObserver(() => table.style.setProperty("--tools", tools.offsetHeight + "px")).observe(tools);
  filter();
}
