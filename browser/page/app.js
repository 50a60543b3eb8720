// Puts the page together: what the address says is shown.

import { ask } from "./api.js";
import * as detail from "./detail.js";
import * as grid from "./grid.js";
import { make, number } from "./make.js";
import * as rejecting from "./rejecting.js";
import { go, onChange, read, notify } from "./state.js";
import * as views from "./views.js";

const AGAIN_MS = 3000;
const byId = (id) => document.getElementById(id);
const main = byId("main");
let about = null;
let images = [];
let shown = "";
let isLost = false;

function chosen() {
  const { store } = read();
  if (store === "") return null;
  return about.stores.find((each) => each.name === store) ?? about.stores.find((each) => each.learned && each.newest) ?? about.stores[0] ?? null;
}

function comparable(store) {
  const same = (other) => other.name !== store.name && other.task === store.task && other.scale === store.scale && other.classes.join() === store.classes.join();
  return store ? about.stores.filter(same) : [];
}

function other() {
  return comparable(chosen()).find((each) => each.name === read().other) ?? null;
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
  if (state.view !== "images") rejecting.show(store, 0);
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
  const others = comparable(store);
  byId("other").replaceChildren(make("option", { value: "" }, others.length ? "nothing" : "nothing to compare with"), ...others.map((each) => make("option", { value: each.name }, each.name)));
  byId("other").value = other()?.name ?? "";
  byId("other").disabled = !others.length;
  const differ = other() ? `${store.name}:${other().name}.differ` : null;
  const orders = [...(differ ? [[`-${differ}`, "largest difference"], [differ, "smallest difference"]] : []), ["id", "as stored"], ...about.stores.flatMap((each) => [[`${each.name}.confidence`, `${each.name}: lowest confidence`], [`-${each.name}.confidence`, `${each.name}: highest confidence`]]), ["source", "name"], ["-bytes", "largest file"]];
  byId("order").replaceChildren(...orders.map(([order, text]) => make("option", { value: order }, text)));
  if (!orders.some(([order]) => order === state.order)) byId("order").append(make("option", { value: state.order }, state.order));
  byId("order").value = state.order;
  byId("conditions").replaceChildren(...state.f.map((condition) => make("li", {}, make("span", {}, condition), make("button", { type: "button", "aria-label": `Remove ${condition}`, onclick: () => go({ f: state.f.filter((each) => each !== condition), page: 0 }) }, "×"))));
  const columns = ["set=", "split=", "source~", "key=", ...about.stores.flatMap((each) => [...(each.holds ? ["class="] : []), ...each.columns.map((column) => `${column}<`)].map((column) => `${each.name}.${column}`))];
  byId("columns").replaceChildren(...columns.map((column) => make("option", { value: column })));
}

// One showing at a time: what is asked for meanwhile is shown when it is over.
let again = null;

async function show() {
  if (!about) return;
  const isFirst = again === null;
  again = true;
  main.setAttribute("aria-busy", "true");
  while (isFirst && again) {
    again = false;
    await showOnce();
  }
  if (!isFirst) return;
  again = null;
  main.setAttribute("aria-busy", "false");
}

async function showOnce() {
  controls();
  const state = read();
  const { image, ...rest } = state;
  const wanted = JSON.stringify(rest);
  await guarded(async () => {
    if (wanted !== shown) {
      shown = wanted;
      if (state.view === "balance") await views.balance(main, about, chosen());
      else if (state.view === "sql") await views.sql(main, about);
      else if (state.view === "health") await views.health(main, about, chosen());
      else if (state.view === "left") await views.left(main, about);
      else await showGrid();
    }
    await detail.show(about, images.map((each) => each.key));
  });
}

async function showGrid() {
  const focused = document.activeElement?.dataset?.key;
  const answer = await grid.show(main, about, chosen(), other());
  images = answer.images;
  rejecting.show(chosen(), answer.total);
  if (focused) main.querySelector(`[data-key="${focused}"]`)?.focus();
}

// What is rejected has changed: everything that tells of it is shown anew.
rejecting.onDone(async () => {
  about = await ask("/api/about");
  shown = "";
  const said = byId("done");
  await show();
  if (said) byId("done")?.replaceWith(said);
});

function compared() {
  return about.compared.map((pair) => pair.done).join();
}

async function refresh() {
  try {
    await look();
    if (isLost) byId("error").textContent = "";
    isLost = false;
  } catch (error) {
    isLost = true;
    byId("error").textContent = `The server does not answer (${error.message}).`;
  }
  setTimeout(refresh, AGAIN_MS);
}

// What is new since the last look, shown where nothing is lost by it.
async function look() {
  const before = about ? [about.loaded, about.images, compared()] : [];
  about = await ask("/api/about");
  const now = [about.loaded, about.images, compared()];
  if (before.join() === now.join()) return;
  const grows = read().view === "health" || !images.length || (other() && before[2] !== now[2]);
  if (grows && !read().image) shown = "";
  await show();
}

byId("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("add").value.trim();
  if (!text) return;
  byId("add").value = "";
  go({ f: [...read().f, text], page: 0 });
});
byId("store").addEventListener("change", (event) => go({ store: event.target.value, other: null, order: read().order.includes(":") ? "id" : read().order }));
byId("other").addEventListener("change", (event) => {
  const name = event.target.value;
  go({ other: name || null, store: chosen().name, order: name ? `-${chosen().name}:${name}.differ` : "id", page: 0 });
});
byId("order").addEventListener("change", (event) => go({ order: event.target.value, page: 0 }));
byId("threshold").addEventListener("input", (event) => {
  byId("threshold-value").textContent = Number(event.target.value).toFixed(2);
});
byId("threshold").addEventListener("change", (event) => {
  const store = chosen();
  if (!store) return;
  go({ t: { ...read().t, [store.name]: Number(event.target.value) } }, true);
});
document.addEventListener("click", (event) => {
  const anchor = event.target.closest("a[data-link], nav a");
  if (!anchor || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  if (anchor.dataset.view) return go({ view: anchor.dataset.view, page: 0, image: null });
  history.pushState({}, "", anchor.getAttribute("href"));
  notify();
});
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea, select")) return;
  if (event.key === "/") {
    event.preventDefault();
    byId("add").focus();
  } else if (read().image) {
    if (event.key === " " && event.target.tagName !== "BUTTON" && detail.current()) {
      event.preventDefault();
      guarded(() => rejecting.toggle(detail.current(), rejecting.scope()));
    } else detail.onKey(event, images.map((each) => each.key));
  } else onGrid(event);
});

// Arrows from tile to tile, space to reject the one that has the focus.
function onGrid(event) {
  const tiles = [...main.querySelectorAll(".tile")];
  const here = tiles.indexOf(document.activeElement);
  if (event.key === " " && here >= 0) {
    event.preventDefault();
    return guarded(() => rejecting.toggle(images[here], rejecting.scope()));
  }
  const top = tiles[0]?.offsetTop;
  const across = Math.max(1, tiles.filter((tile) => tile.offsetTop === top).length);
  const by = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: across, ArrowUp: -across }[event.key];
  if (!by || !tiles.length) return undefined;
  event.preventDefault();
  tiles[here < 0 ? 0 : Math.min(tiles.length - 1, Math.max(0, here + by))].focus();
  return undefined;
}

onChange(show);
refresh();
