// One image large, with what every store says of it: zoom together, and the value under the pointer.

import { ask, picture } from "./api.js";
import { make, number } from "./make.js";
import { go, link, read } from "./state.js";
import { threshold } from "./grid.js";
import { isRejected, toggle } from "./rejecting.js";

const SIDE = 768;
const dialog = document.getElementById("detail");
let zoom = { scale: 1, x: 0, y: 0 };
let shown = null;
let now = null;

export function current() {
  return now;
}

export async function show(about, keys) {
  const state = read();
  if (!state.image) {
    if (dialog.open) dialog.close();
    return;
  }
  const t = about.stores.map((store) => `${store.name}:${threshold(store, state)}`);
  const image = await ask(`/api/image/${state.image}`, { t });
  if (shown !== image.key) zoom = { scale: 1, x: 0, y: 0 };
  shown = image.key;
  now = image;
  const place = keys.indexOf(image.key);
  const step = (by, text) => (keys[place + by] && place >= 0 ? make("a", { href: link({ image: keys[place + by] }), "data-link": true }, text) : null);
  const head = make("div", { class: "about" }, make("strong", {}, image.source), make("span", {}, `${image.set}/${image.split}, ${image.shard}, row ${image.row}`), make("span", {}, `${image.width} × ${image.height}`), make("code", {}, image.key), step(-1, "previous"), step(1, "next"), rejectButton(image, null, "image"), make("button", { type: "button", onclick: close }, "Close"));
  const labels = image.labels.filter((label) => label.status !== "none" || label.reason);
  const panels = [panel(image, null, null, state), ...labels.map((label) => panel(image, label, about.stores.find((store) => store.name === label.store), state))];
  dialog.replaceChildren(head, make("div", { class: "panels" }, panels), make("p", { class: "note" }, "Wheel or + and − to zoom, drag to move. Left and right: the images before and after. Space: reject, or take back."));
  move();
  if (!dialog.open) dialog.showModal();
}

export function close() {
  go({ image: null });
}

dialog.addEventListener("cancel", (event) => {
  event.preventDefault();
  close();
});

function panel(image, label, store, state) {
  const shown = make("img", { src: picture(image.key, label?.store, threshold(store, state), SIDE), alt: label ? `${label.store}: ${label.says}` : image.source, draggable: "false" });
  const says = make("output", { "aria-live": "off" });
  const view = make("div", { class: "view" }, shown, says);
  if (label) hover(view, shown, says, image.key, label.store, () => threshold(store, read()));
  movable(view);
  const columns = label ? Object.entries(label.columns).filter(([, value]) => value !== null).map(([name, value]) => `${name} ${number(value)}`).join(" · ") : "";
  const caption = label ? [make("strong", {}, label.store), ` ${label.task}: ${label.reason || label.says}`, make("br"), make("span", {}, columns)] : [make("strong", {}, "image")];
  const button = label && store.learned ? rejectButton(image, label.store, "label") : null;
  return make("figure", { class: "panel" }, view, make("figcaption", {}, caption, button ? make("p", {}, button) : null));
}

function rejectButton(image, store, what) {
  const isOut = isRejected(image, store);
  return make("button", { type: "button", "aria-pressed": String(isOut), onclick: () => toggle(image, store) }, isOut ? `Take ${what} back` : `Reject ${what}`);
}

function hover(view, shown, says, key, store, at) {
  let waiting = null;
  view.addEventListener("pointermove", (event) => {
    const box = shown.getBoundingClientRect();
    const [x, y] = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
    clearTimeout(waiting);
    if (x < 0 || x > 1 || y < 0 || y > 1) return;
    waiting = setTimeout(async () => {
      const answer = await ask(`/api/at/${key}`, { store, x, y, threshold: at() });
      says.textContent = answer.says;
    }, 40);
  });
  view.addEventListener("pointerleave", () => {
    clearTimeout(waiting);
    says.textContent = "";
  });
}

function move() {
  for (const image of dialog.querySelectorAll(".view img")) image.style.transform = `translate(${zoom.x * 100}%, ${zoom.y * 100}%) scale(${zoom.scale})`;
}

// Keep the point (x, y) of the view, in [0, 1], where it is.
function zoomTo(scale, x = 0.5, y = 0.5) {
  const next = Math.min(16, Math.max(1, scale));
  zoom.x = Math.min(0, Math.max(1 - next, x - ((x - zoom.x) * next) / zoom.scale));
  zoom.y = Math.min(0, Math.max(1 - next, y - ((y - zoom.y) * next) / zoom.scale));
  zoom.scale = next;
  move();
}

function movable(view) {
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
    move();
  });
}

export function onKey(event, keys) {
  const here = keys.indexOf(read().image);
  if (event.key === "+" || event.key === "=") zoomTo(zoom.scale * 1.4);
  else if (event.key === "-") zoomTo(zoom.scale / 1.4);
  else if (event.key === "ArrowRight" && keys[here + 1]) go({ image: keys[here + 1] });
  else if (event.key === "ArrowLeft" && here > 0) go({ image: keys[here - 1] });
}
