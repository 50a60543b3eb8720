// Puts the page together: what the address says is shown.

import { ask } from "./api.js";
import * as detail from "./detail.js";
import * as grid from "./grid.js";
import { make, number } from "./make.js";
import { go, onChange, read, tell } from "./state.js";
import * as views from "./views.js";

const AGAIN_MS = 3000;
const byId = (id) => document.getElementById(id);
const main = byId("main");
let about = null;
let keys = [];
let shown = "";

function chosen() {
  const { store } = read();
  if (store === "") return null;
  return about.stores.find((each) => each.name === store) ?? about.stores.find((each) => !each.true && each.newest) ?? about.stores[0] ?? null;
}

async function guarded(work) {
  try {
    await work();
    byId("error").textContent = "";
  } catch (error) {
    byId("error").textContent = error.message;
  }
}

function controls() {
  const state = read();
  const store = chosen();
  byId("root").textContent = about.root;
  document.title = `${about.root} · must browse`;
  byId("progress").textContent = about.loaded < about.found ? `${number(about.loaded)} of ${number(about.found)} files read` : `${number(about.images)} images`;
  for (const each of document.querySelectorAll("nav a")) each.dataset.view === state.view ? each.setAttribute("aria-current", "page") : each.removeAttribute("aria-current");
  const options = about.stores.map((each) => make("option", { value: each.name }, `${each.name} (${each.task})`));
  byId("store").replaceChildren(make("option", { value: "" }, "none"), ...options);
  byId("store").value = store?.name ?? "";
  const value = grid.threshold(store, state);
  byId("threshold").value = value;
  byId("threshold-value").textContent = value.toFixed(2);
  const orders = [["id", "as stored"], ...about.stores.flatMap((each) => [[`${each.name}.confidence`, `${each.name}: lowest confidence`], [`-${each.name}.confidence`, `${each.name}: highest confidence`]]), ["source", "name"], ["-bytes", "largest file"]];
  byId("order").replaceChildren(...orders.map(([order, text]) => make("option", { value: order }, text)));
  if (!orders.some(([order]) => order === state.order)) byId("order").append(make("option", { value: state.order }, state.order));
  byId("order").value = state.order;
  byId("conditions").replaceChildren(...state.f.map((condition) => make("li", {}, make("span", {}, condition), make("button", { type: "button", "aria-label": `Remove ${condition}`, onclick: () => go({ f: state.f.filter((each) => each !== condition), page: 0 }) }, "×"))));
  const columns = ["set=", "split=", "source~", "key=", ...about.stores.flatMap((each) => [...(each.classes.length ? ["class="] : []), ...each.columns.map((column) => `${column}<`)].map((column) => `${each.name}.${column}`))];
  byId("columns").replaceChildren(...columns.map((column) => make("option", { value: column })));
}

async function show() {
  if (!about) return;
  controls();
  const state = read();
  const { image, ...rest } = state;
  const wanted = JSON.stringify(rest);
  await guarded(async () => {
    if (wanted !== shown) {
      shown = wanted;
      if (state.view === "balance") await views.balance(main, about, chosen());
      else if (state.view === "sql") await views.sql(main, about);
      else if (state.view === "health") views.health(main, about);
      else keys = await grid.show(main, about, chosen());
    }
    await detail.show(about, keys);
  });
}

async function refresh() {
  await guarded(async () => {
    const before = about ? `${about.loaded} ${about.images}` : "";
    about = await ask("/api/about");
    if (before !== `${about.loaded} ${about.images}`) {
      if (read().view === "health" || !keys.length) shown = "";
      await show();
    }
  });
  setTimeout(refresh, AGAIN_MS);
}

byId("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("add").value.trim();
  if (!text) return;
  byId("add").value = "";
  go({ f: [...read().f, text], page: 0 });
});
byId("store").addEventListener("change", (event) => go({ store: event.target.value }));
byId("order").addEventListener("change", (event) => go({ order: event.target.value, page: 0 }));
byId("threshold").addEventListener("input", (event) => {
  byId("threshold-value").textContent = Number(event.target.value).toFixed(2);
});
byId("threshold").addEventListener("change", (event) => {
  const store = chosen();
  if (!store) return;
  history.replaceState({}, "", location.href);
  go({ t: { ...read().t, [store.name]: Number(event.target.value) } }, true);
});
document.addEventListener("click", (event) => {
  const anchor = event.target.closest("a[data-link], nav a");
  if (!anchor || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  if (anchor.dataset.view) return go({ view: anchor.dataset.view, page: 0, image: null });
  history.pushState({}, "", anchor.getAttribute("href"));
  tell();
});
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea, select")) return;
  if (event.key === "/") {
    event.preventDefault();
    byId("add").focus();
  } else if (read().image) detail.onKey(event, keys);
});

onChange(show);
refresh();
