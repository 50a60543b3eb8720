// The state of the page. All of it is in the address, so that every view is a link.
// `store` is one store, "" for none, null for all that `show` names (null: those that are shown to begin with).

// The conditions of a link that has none.
let firstConditions = [];

export function setFirstConditions(conditions) {
  firstConditions = conditions;
}

export function readState() {
  const query = new URLSearchParams(location.search);
  return {
    view: query.get("view") || "images",
    f: query.has("f") ? query.getAll("f").filter(Boolean) : firstConditions,
    t: Object.fromEntries(query.getAll("t").map((text) => [text.slice(0, text.lastIndexOf(":")), Number(text.slice(text.lastIndexOf(":") + 1))])),
    store: query.get("store"),
    show: query.has("show") ? query.get("show").split(",").filter(Boolean) : null,
    other: query.get("other"),
    order: query.get("order") || "id",
    page: Number(query.get("page") || 0),
    image: query.get("image"),
    sql: query.get("sql"),
    has: query.get("has"),
  };
}

export function link(changes) {
  const state = { ...readState(), ...changes };
  const query = new URLSearchParams();
  if (state.view !== "images") query.set("view", state.view);
  if (state.f.join("\n") !== firstConditions.join("\n")) for (const condition of state.f.length ? state.f : [""]) query.append("f", condition);
  for (const [store, threshold] of Object.entries(state.t)) query.append("t", `${store}:${threshold}`);
  if (state.store !== null) query.set("store", state.store);
  if (state.show !== null) query.set("show", state.show.join());
  if (state.other) query.set("other", state.other);
  if (state.order !== "id") query.set("order", state.order);
  if (state.page) query.set("page", state.page);
  if (state.image) query.set("image", state.image);
  if (state.sql) query.set("sql", state.sql);
  if (state.has) query.set("has", state.has);
  const text = query.toString();
  return text ? `/?${text}` : "/";
}

// The thresholds as the server's parameter `t`.
export function thresholdParams(state) {
  return Object.entries(state.t).map(([store, value]) => `${store}:${value}`);
}

const listeners = [];

export function onChange(listener) {
  listeners.push(listener);
}

export function notify() {
  for (const listener of listeners) listener();
}

export function navigate(changes, replace = false) {
  history[replace ? "replaceState" : "pushState"]({}, "", link(changes));
  notify();
}

addEventListener("popstate", notify);
