// DOM elements from names, attributes and children. Strings become text, never markup.

export function make(name, attributes = {}, ...children) {
  return fill(document.createElement(name), attributes, children);
}

// An element of a drawing.
export function draw(name, attributes = {}, ...children) {
  return fill(document.createElementNS("http://www.w3.org/2000/svg", name), attributes, children);
}

function fill(element, attributes, children) {
  for (const [key, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (key.startsWith("on")) element.addEventListener(key.slice(2), value);
    else if (key === "style") Object.assign(element.style, value);
    else element.setAttribute(key, value === true ? "" : value);
  }
  element.append(...children.flat().filter((child) => child !== null && child !== undefined));
  return element;
}

export function formatNumber(value) {
  if (typeof value !== "number") return String(value ?? "");
  return Number.isInteger(value) ? value.toLocaleString("en") : String(Number(value.toPrecision(4)));
}

export function table(columns, rows) {
  const isNumber = columns.map((_, place) => rows.some((row) => typeof row[place] === "number"));
  const shown = (value) => (value instanceof Node ? value : typeof value === "object" && value !== null ? JSON.stringify(value) : formatNumber(value));
  const cell = (name) => (value, place) => make(name, { class: isNumber[place] ? "number" : null }, shown(value));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, columns.map(cell("th")))), make("tbody", {}, rows.map((row) => make("tr", {}, row.map(cell("td")))))));
}
