// The page: shows what the address says, and keeps it up to date with the server.

import { request } from "./api.js";
import * as detail from "./detail.js";
import * as grid from "./grid.js";
import { formatNumber, make } from "./make.js";
import { thresholdOf, thresholdOrigin } from "./layers.js";
import * as overview from "./overview.js";
import * as rejecting from "./rejecting.js";
import { link, navigate, notify, onChange, readState, setFirstConditions } from "./state.js";
import * as views from "./views.js";

const REFRESH_MS = 3000;
const byId = (id) => document.getElementById(id);
const main = byId("main");
let about = null;
let images = [];
let shown = "";
let isLost = false;

// Value of the choice of labels that shows all together.
const ALL = "*";

// True if the grid shows the labels of all teachers together.
function isTogether() {
  return readState().view === "images" && readState().store === null && about.stores.length > 0;
}

// The store of the link, by its name or its teacher's; where none is named and one is needed, a teacher's.
function chosenStore() {
  const { store } = readState();
  if (store === "" || isTogether()) return null;
  if (store !== null) return about.stores.find(({ name }) => name === store) ?? about.stores.find(({ maker, newest }) => maker === store && newest) ?? null;
  return about.stores.find(({ learned, newest }) => learned && newest) ?? about.stores[0] ?? null;
}

// Throw if the link names a store that is not there, and is not still to be read.
function checkStore() {
  const { store } = readState();
  if (!store || chosenStore() || about.loaded < about.found) return;
  main.replaceChildren();
  shown = "";
  const known = [...new Set(about.stores.flatMap(({ name, maker, newest, true: isTrue }) => (newest && !isTrue ? [maker, name] : [name])))];
  throw new Error(`There is no label store “${store}”; there are ${known.join(", ")}.`);
}

function comparableStores(store) {
  const isSameTask = (other) => other.name !== store.name && other.task === store.task && other.scale === store.scale && other.classes.join() === store.classes.join();
  return store ? about.stores.filter(isSameTask) : [];
}

function comparedStore() {
  return comparableStores(chosenStore()).find(({ name }) => name === readState().other) ?? null;
}

async function showErrors(work) {
  try {
    await work();
    byId("error").textContent = "";
  } catch (error) {
    byId("error").textContent = error.message;
  }
}

function updateControls() {
  const state = readState();
  const store = chosenStore();
  if (state.view !== "images") rejecting.show(store, 0);
  byId("root").textContent = about.root;
  document.title = `${about.root} · must browse`;
  byId("progress").textContent = about.loaded < about.found ? `${formatNumber(about.loaded)} of ${formatNumber(about.found)} files read` : "";
  for (const anchor of document.querySelectorAll("nav a")) anchor.dataset.view === state.view ? anchor.setAttribute("aria-current", "page") : anchor.removeAttribute("aria-current");
  const options = about.stores.map(({ name, task }) => make("option", { value: name }, `${name} (${task})`));
  const all = state.view === "images" ? [make("option", { value: ALL }, "all teachers together")] : [];
  byId("store").replaceChildren(...all, make("option", { value: "" }, "none"), ...options);
  byId("store").value = isTogether() ? ALL : store?.name ?? "";
  byId("one-threshold").hidden = byId("comparing").hidden = !store;
  byId("threshold-origin").textContent = store?.drops ? `(${thresholdOrigin(store, state, about)})` : "";
  const value = thresholdOf(store, state);
  byId("threshold").value = value;
  byId("threshold-value").textContent = value.toFixed(2);
  byId("threshold-kind").textContent = store?.calibration ? "probability" : store ? "score" : "";
  byId("threshold-kind").href = link({ view: "balance", page: 0 });
  byId("threshold-kind").title = store?.calibration ? "Scores are calibrated: Balance shows how well" : "Scores are not calibrated";
  const others = comparableStores(store);
  byId("other").replaceChildren(make("option", { value: "" }, others.length ? "nothing" : "nothing to compare with"), ...others.map(({ name }) => make("option", { value: name }, name)));
  byId("other").value = comparedStore()?.name ?? "";
  byId("other").disabled = !others.length;
  const differ = comparedStore() ? `${store.name}:${comparedStore().name}.differ` : null;
  const orders = [...(differ ? [[`-${differ}`, "largest difference"], [differ, "smallest difference"]] : []), ["id", "as stored"], ...about.stores.flatMap(scoreOrders), ["source", "name"], ["-bytes", "largest file"]];
  byId("order").replaceChildren(...orders.map(([order, text]) => make("option", { value: order }, text)));
  if (!orders.some(([order]) => order === state.order)) byId("order").append(make("option", { value: state.order }, state.order));
  byId("order").value = state.order;
  byId("conditions").replaceChildren(...state.f.map((condition) => make("li", {}, make("span", {}, condition), make("button", { type: "button", "aria-label": `Remove ${condition}`, onclick: () => navigate({ f: state.f.filter((other) => other !== condition), page: 0 }) }, "×"))));
  const columns = ["labelled=", "set=", "split=", "source~", "key=", ...about.stores.flatMap((store) => [...(store.holds ? ["class="] : []), ...store.columns.map((column) => `${column}<`)].map((column) => `${store.name}.${column}`))];
  byId("columns").replaceChildren(...columns.map((column) => make("option", { value: column })));
}

function scoreOrders(store) {
  const column = grid.scoreColumn(store);
  return [["", "lowest"], ["-", "highest"]].map(([sign, text]) => [`${sign}${store.name}.${column}`, `${store.name}: ${text} ${column}`]);
}

// One update runs at a time; requests meanwhile lead to one more when it is over.
let pending = null;

async function show() {
  if (!about) return;
  const isFirst = pending === null;
  pending = true;
  main.setAttribute("aria-busy", "true");
  while (isFirst && pending) {
    pending = false;
    await showOnce();
  }
  if (!isFirst) return;
  pending = null;
  main.setAttribute("aria-busy", "false");
}

async function showOnce() {
  updateControls();
  const state = readState();
  const wanted = JSON.stringify({ ...state, image: null });
  await showErrors(async () => {
    checkStore();
    if (wanted !== shown) {
      shown = wanted;
      if (state.view === "balance") await views.balance(main, about, chosenStore());
      else if (state.view === "sql") await views.sql(main, about);
      else if (state.view === "health") await views.health(main, about, chosenStore());
      else if (state.view === "left") await views.left(main, about);
      else await showGrid();
    }
    await detail.show(about, images.map((image) => image.key));
  });
}

async function showGrid() {
  const { id, dataset } = document.activeElement ?? {};
  const { answer, addHistograms } = await (isTogether() ? grid.showTogether(main, about) : grid.show(main, about, chosenStore(), comparedStore()));
  images = answer.images;
  rejecting.show(chosenStore(), answer.total);
  if (dataset?.key) main.querySelector(`[data-key="${dataset.key}"]`)?.focus();
  else if (id && document.activeElement?.id !== id) byId(id)?.focus();
  await addHistograms();
}

// After a rejection: reload, and keep the status line with its undo button.
rejecting.onDone(async () => {
  about = await request("/api/about");
  shown = "";
  const status = byId("done");
  await show();
  if (status) byId("done")?.replaceWith(status);
});

function comparisonProgress() {
  return about.compared.map((pair) => [pair.done, pair.total]).join();
}

async function refresh() {
  try {
    await poll();
    if (isLost) byId("error").textContent = "";
    isLost = false;
  } catch (error) {
    isLost = true;
    byId("error").textContent = `The server does not answer (${error.message}).`;
  }
  setTimeout(refresh, REFRESH_MS);
}

// Ask the server for news, and update the view unless that would disturb the user.
async function poll() {
  const before = about ? [about.loaded, about.images, comparisonProgress(), JSON.stringify(about.run)] : [];
  about = await request("/api/about");
  setFirstConditions(about.start);
  const now = [about.loaded, about.images, comparisonProgress(), JSON.stringify(about.run)];
  if (before.join() === now.join()) return;
  await overview.show(about);
  const isGrowing = readState().view === "health" || !images.length || (comparedStore() && before[2] !== now[2]);
  if (isGrowing && !readState().image) shown = "";
  await show();
}

byId("filters").addEventListener("submit", (event) => {
  event.preventDefault();
  const text = byId("add").value.trim();
  if (!text) return;
  byId("add").value = "";
  navigate({ f: [...readState().f, text], page: 0 });
});
byId("store").addEventListener("change", (event) => navigate({ store: event.target.value === ALL ? null : event.target.value, other: null, order: readState().order.includes(":") ? "id" : readState().order }));
byId("other").addEventListener("change", (event) => {
  const name = event.target.value;
  navigate({ other: name || null, store: chosenStore().name, order: name ? `-${chosenStore().name}:${name}.differ` : "id", page: 0 });
});
byId("order").addEventListener("change", (event) => navigate({ order: event.target.value, page: 0 }));
byId("threshold").addEventListener("input", (event) => {
  byId("threshold-value").textContent = Number(event.target.value).toFixed(2);
});
byId("threshold").addEventListener("change", (event) => {
  const store = chosenStore();
  if (!store) return;
  navigate({ t: { ...readState().t, [store.name]: Number(event.target.value) } }, true);
});
document.addEventListener("click", (event) => {
  const anchor = event.target.closest("a[data-link], nav a");
  if (!anchor || event.ctrlKey || event.metaKey || event.shiftKey || event.button) return;
  event.preventDefault();
  if (anchor.dataset.view) return navigate({ view: anchor.dataset.view, page: 0, image: null });
  history.pushState({}, "", anchor.getAttribute("href"));
  notify();
});
document.addEventListener("keydown", (event) => {
  if (event.target.matches("input, textarea, select")) return;
  if (event.key === "/") {
    event.preventDefault();
    byId("add").focus();
  } else if (readState().image) {
    if (event.key === " " && event.target.tagName !== "BUTTON" && detail.currentImage()) {
      event.preventDefault();
      showErrors(() => rejecting.toggle(detail.currentImage(), rejecting.scope()));
    } else detail.onKey(event, images.map((image) => image.key));
  } else onGridKey(event);
});

// Arrows move the focus from tile to tile; space rejects the focused one.
function onGridKey(event) {
  const tiles = [...main.querySelectorAll(".tile")];
  const focused = tiles.indexOf(document.activeElement);
  if (event.key === " " && focused >= 0) {
    event.preventDefault();
    const image = images.find(({ key }) => key === tiles[focused].dataset.key);
    return showErrors(() => rejecting.toggle(image, rejecting.scope()));
  }
  const top = tiles[0]?.offsetTop;
  const columns = Math.max(1, tiles.filter((tile) => tile.offsetTop === top).length);
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: columns, ArrowUp: -columns }[event.key];
  if (!step || !tiles.length) return undefined;
  event.preventDefault();
  tiles[focused < 0 ? 0 : Math.min(tiles.length - 1, Math.max(0, focused + step))].focus();
  return undefined;
}

onChange(show);
refresh();
