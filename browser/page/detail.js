// One image in a dialog, with its label in every store: panels zoom together and name the value under the pointer.

import { pictureUrl, request } from "./api.js";
import { formatNumber, make } from "./make.js";
import { link, navigate, readState } from "./state.js";
import { withoutRepeated } from "./grid.js";
import { thresholdOf } from "./layers.js";
import { isRejected, toggle } from "./rejecting.js";

const SIDE = 768;
const dialog = document.getElementById("detail");
let zoom = { scale: 1, x: 0, y: 0 };
let shownKey = null;
let shownImage = null;

export function currentImage() {
  return shownImage;
}

export async function show(about, keys) {
  const state = readState();
  if (!state.image) {
    if (dialog.open) dialog.close();
    return;
  }
  const t = about.stores.map((store) => `${store.name}:${thresholdOf(store, state)}`);
  const image = await request(`/api/image/${state.image}`, { t });
  if (shownKey !== image.key) zoom = { scale: 1, x: 0, y: 0 };
  shownKey = image.key;
  shownImage = image;
  const place = keys.indexOf(image.key);
  const step = (by, text) => (keys[place + by] && place >= 0 ? make("a", { href: link({ image: keys[place + by] }), "data-link": true }, text) : null);
  const head = make("div", { class: "about" }, make("strong", {}, image.source), make("span", {}, `${image.set}/${image.split}, ${image.shard}, row ${image.row}`), make("span", {}, `${image.width} × ${image.height}`), make("code", {}, image.key), step(-1, "previous"), step(1, "next"), rejectButton(image, null, "image"), make("button", { type: "button", onclick: close }, "Close"));
  const labels = image.labels.filter((label) => label.status !== "none" || label.reason);
  const panels = [panel(image, null, null, state), ...labels.map((label) => panel(image, label, about.stores.find((store) => store.name === label.store), state))];
  dialog.replaceChildren(head, make("div", { class: "panels" }, panels), make("p", { class: "note" }, "Wheel or + and − to zoom, drag to move. Left and right: the images before and after. Space: reject, or take back."));
  applyZoom();
  if (!dialog.open) dialog.showModal();
}

export function close() {
  navigate({ image: null });
}

dialog.addEventListener("cancel", (event) => {
  event.preventDefault();
  close();
});

function panel(image, label, store, state) {
  const picture = make("img", { src: pictureUrl(image.key, label?.store, thresholdOf(store, state), SIDE), alt: label ? `${label.store}: ${label.says}` : image.source, draggable: "false" });
  const says = make("output", { "aria-live": "off" });
  const view = make("div", { class: "view" }, picture, says);
  if (label) describeOnHover(view, picture, says, image.key, label.store, () => thresholdOf(store, readState()));
  enablePanAndZoom(view);
  const names = label ? withoutRepeated(store, Object.keys(label.columns)).filter((name) => label.columns[name] !== null) : [];
  const columns = names.map((name) => `${name} ${formatNumber(label.columns[name])}`).join(" · ");
  const caption = label ? [make("strong", {}, label.store), ` ${label.task}: ${label.reason || label.says}`, make("br"), make("span", {}, columns)] : [make("strong", {}, "image")];
  const button = label && store.learned ? rejectButton(image, label.store, "label") : null;
  return make("figure", { class: "panel" }, view, make("figcaption", {}, caption, button ? make("p", {}, button) : null));
}

function rejectButton(image, store, what) {
  const rejected = isRejected(image, store);
  return make("button", { type: "button", "aria-pressed": String(rejected), onclick: () => toggle(image, store) }, rejected ? `Take ${what} back` : `Reject ${what}`);
}

function describeOnHover(view, picture, says, key, store, threshold) {
  let timer = null;
  view.addEventListener("pointermove", (event) => {
    const box = picture.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    clearTimeout(timer);
    if (x < 0 || x > 1 || y < 0 || y > 1) return;
    timer = setTimeout(async () => {
      const answer = await request(`/api/at/${key}`, { store, x, y, threshold: threshold() });
      says.textContent = answer.says;
    }, 40);
  });
  view.addEventListener("pointerleave", () => {
    clearTimeout(timer);
    says.textContent = "";
  });
}

function applyZoom() {
  for (const image of dialog.querySelectorAll(".view img")) image.style.transform = `translate(${zoom.x * 100}%, ${zoom.y * 100}%) scale(${zoom.scale})`;
}

// Zoom around the point (x, y) of the view, in [0, 1], which stays in place.
function zoomTo(scale, x = 0.5, y = 0.5) {
  const next = Math.min(16, Math.max(1, scale));
  zoom.x = Math.min(0, Math.max(1 - next, x - ((x - zoom.x) * next) / zoom.scale));
  zoom.y = Math.min(0, Math.max(1 - next, y - ((y - zoom.y) * next) / zoom.scale));
  zoom.scale = next;
  applyZoom();
}

function enablePanAndZoom(view) {
  view.addEventListener("wheel", (event) => {
    event.preventDefault();
    const box = view.getBoundingClientRect();
    zoomTo(zoom.scale * Math.exp(-event.deltaY / 300), (event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height);
  }, { passive: false });
  view.addEventListener("pointermove", (event) => {
    if (!(event.buttons & 1) || zoom.scale === 1) return;
    const box = view.getBoundingClientRect();
    zoom.x = Math.min(0, Math.max(1 - zoom.scale, zoom.x + event.movementX / box.width));
    zoom.y = Math.min(0, Math.max(1 - zoom.scale, zoom.y + event.movementY / box.height));
    applyZoom();
  });
}

export function onKey(event, keys) {
  const place = keys.indexOf(readState().image);
  if (event.key === "+" || event.key === "=") zoomTo(zoom.scale * 1.4);
  else if (event.key === "-") zoomTo(zoom.scale / 1.4);
  else if (event.key === "ArrowRight" && keys[place + 1]) navigate({ image: keys[place + 1] });
  else if (event.key === "ArrowLeft" && place > 0) navigate({ image: keys[place - 1] });
}
