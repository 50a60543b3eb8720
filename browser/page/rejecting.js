// Reject and take back one image or label, or all images that the conditions select.

import { send } from "./api.js";
import { formatNumber, make } from "./make.js";
import { readState, thresholdParams } from "./state.js";

const REASONS = ["wrong label", "blurred", "not of this domain", "duplicate", "offensive"];
const REASON_KEY = "must reason";
const bar = document.getElementById("rejecting");
let refreshPage = () => {};

export function onDone(listener) {
  refreshPage = listener;
}

// Return the store whose labels the space bar rejects; null if it rejects images.
export function scope() {
  return bar.querySelector("select")?.value || null;
}

function reason() {
  return bar.querySelector("input")?.value.trim() || REASONS[0];
}

export function isRejected(image, store) {
  return (image.rejected ?? []).includes(store ?? "");
}

export function show(chosen, total) {
  const state = readState();
  if (state.view !== "images") return bar.replaceChildren();
  const current = bar.querySelector("input")?.value ?? sessionStorage.getItem(REASON_KEY) ?? REASONS[0];
  const before = bar.querySelector("select")?.value;
  const scopes = [...(chosen && chosen.learned ? [[chosen.name, `labels of ${chosen.name}`]] : []), ["", "images"]];
  const input = make("input", { id: "reason", list: "reasons", value: current, maxlength: 200, onchange: (event) => sessionStorage.setItem(REASON_KEY, event.target.value) });
  const select = make("select", { id: "scope" }, scopes.map(([value, text]) => make("option", { value }, text)));
  if (scopes.some(([value]) => value === before)) select.value = before;
  const all = make("button", { type: "button", onclick: () => rejectAll(total) }, `Reject all ${formatNumber(total)}`);
  const note = make("span", { role: "status", id: "done" });
  bar.replaceChildren(make("label", { for: "scope" }, "Space rejects"), select, make("label", { for: "reason" }, "because"), input, make("datalist", { id: "reasons" }, REASONS.map((value) => make("option", { value }))), state.f.length ? all : "", note);
}

async function rejectAll(total) {
  const store = scope();
  if (!confirm(`Reject ${store ? `the labels of ${store} of` : ""} ${formatNumber(total)} images? The next run does without them; it can be undone.`)) return;
  await reject({ f: readState().f, t: thresholdParams(readState()), store, reason: reason() });
}

// Reject one, or take it back if it is rejected.
export async function toggle(image, store) {
  if (isRejected(image, store)) {
    await send("/api/take-back", { keys: [image.key], store });
    await refreshPage();
    showStatus("Taken back.");
  } else await reject({ keys: [image.key], store, reason: reason() });
}

async function reject(selection) {
  const result = await send("/api/reject", selection);
  await refreshPage();
  const undo = async () => {
    await send(`/api/undo/${result.undo}`, {});
    await refreshPage();
    showStatus("Undone.");
  };
  showStatus(`Rejected ${formatNumber(result.count)}. `, make("button", { type: "button", onclick: undo }, "Undo"));
}

function showStatus(...children) {
  document.getElementById("done")?.replaceChildren(...children);
}
