// Which stores' labels are drawn together: toggles, thresholds and colors, in the column beside the grid.

import { make } from "./make.js";
import { navigate, readState } from "./state.js";

// No teacher's name has a dash.
export const TRUE_LABELS = "true-labels";
const LAYERS = {
  tint: "tints the image",
  outlines: "outlined",
  words: "written in the corner",
  map: "small, below the image",
};

// The newest store of each teacher and each head of the student, and what is shown to begin with.
export function makers(about) {
  return about.stores.filter((store) => !store.true && store.newest);
}

export function shownMakers(about) {
  return readState().show ?? [...makers(about).filter(({ learned }) => learned).map(({ maker }) => maker), TRUE_LABELS];
}

// The stores that are drawn on an image, or on any without one.
export function storesOf(about, image = null) {
  const names = shownMakers(about);
  const truths = names.includes(TRUE_LABELS) ? about.stores.filter((store) => store.true && (!image || store.maker === image.set)) : [];
  return [...makers(about).filter(({ maker }) => names.includes(maker)), ...truths];
}

export function thresholdOf(store, state) {
  return store ? state.t[store.name] ?? state.t[store.maker] ?? store.threshold : 0;
}

// Say where a threshold comes from.
export function thresholdOrigin(store, state, about) {
  const first = store.of_recipe ? `recipe ${about.run.recipe}` : "the task’s own";
  return thresholdOf(store, state) === store.threshold ? first : `moved, ${first}: ${store.threshold}`;
}

export function thresholdSlider(store, state, attributes) {
  const input = make("input", { type: "range", min: 0, max: 1, step: 0.01, ...attributes });
  input.value = thresholdOf(store, state);
  input.addEventListener("change", () => navigate({ t: { ...readState().t, [store.name]: Number(input.value) } }, true));
  return input;
}

// The toggles; each teacher's has its classes' counts and colors to be put into the element of its name.
export function toggles(about, state) {
  const names = shownMakers(about);
  const classLists = new Map();
  const toggle = (name, text, about) => {
    const box = make("input", { type: "checkbox", id: `show-${name}`, onchange: (event) => navigate({ show: event.target.checked ? [...names, name] : names.filter((other) => other !== name) }, true) });
    box.checked = names.includes(name);
    return make("span", { class: "toggle" }, box, make("label", { for: box.id }, make("strong", {}, text)), make("span", {}, about));
  };
  const item = (store) => {
    const isShown = names.includes(store.maker);
    const classes = make("div", {});
    if (isShown) classLists.set(store, classes);
    return make("li", {}, toggle(store.maker, store.maker, store.task), ...(isShown ? [...details(store, state, about), classes] : []));
  };
  const truths = about.stores.some((store) => store.true) ? [make("li", {}, toggle(TRUE_LABELS, "true labels", "dashed"))] : [];
  const [teachers, heads] = [true, false].map((isLearned) => makers(about).filter(({ learned }) => learned === isLearned).map(item));
  const items = [...teachers, ...truths, ...heads];
  return { list: make("ul", { class: "layers", "aria-label": "Labels that are shown" }, items), classLists };
}

function details(store, state, about) {
  const note = make("p", { class: "note" }, store.layer === "map" && store.reading ? `${LAYERS.map}: ${store.reading.split(";")[0]}` : `${LAYERS[store.layer]}${store.clear.length ? `, ${store.clear.join()} stays clear` : ""}`);
  if (!store.drops) return [note];
  const value = make("output", {}, thresholdOf(store, state).toFixed(2));
  const slider = thresholdSlider(store, state, { id: `threshold-${store.maker}`, "aria-label": `Threshold of ${store.maker}` });
  slider.addEventListener("input", () => { value.textContent = Number(slider.value).toFixed(2); });
  const kind = store.calibration ? "probability" : "score";
  return [note, make("div", { class: "slider" }, slider, value), make("p", { class: "note" }, `${kind} ≥ ${thresholdOf(store, state).toFixed(2)} (${thresholdOrigin(store, state, about)})`)];
}
