// Throwing out and taking back: one image or label, or all that the conditions leave.

import { send } from "./api.js";
import { make, number } from "./make.js";
import { read, thresholdParams } from "./state.js";

const REASONS = ["wrong label", "blurred", "not of this domain", "duplicate", "offensive"];
const KEPT = "must reason";
const bar = document.getElementById("rejecting");
let afterwards = () => {};

export function onDone(listener) {
  afterwards = listener;
}

// What the space bar rejects: the labels of the chosen store, or the image.
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
  const state = read();
  if (state.view !== "images") return bar.replaceChildren();
  const kept = bar.querySelector("input")?.value ?? sessionStorage.getItem(KEPT) ?? REASONS[0];
  const before = bar.querySelector("select")?.value;
  const scopes = [...(chosen && chosen.learned ? [[chosen.name, `labels of ${chosen.name}`]] : []), ["", "images"]];
  const input = make("input", { id: "reason", list: "reasons", value: kept, maxlength: 200, onchange: (event) => sessionStorage.setItem(KEPT, event.target.value) });
  const select = make("select", { id: "scope" }, scopes.map(([value, text]) => make("option", { value }, text)));
  if (scopes.some(([value]) => value === before)) select.value = before;
  const all = make("button", { type: "button", onclick: () => everything(total) }, `Reject all ${number(total)}`);
  const note = make("span", { role: "status", id: "done" });
  bar.replaceChildren(make("label", { for: "scope" }, "Space rejects"), select, make("label", { for: "reason" }, "because"), input, make("datalist", { id: "reasons" }, REASONS.map((value) => make("option", { value }))), state.f.length ? all : null ?? "", note);
}

async function everything(total) {
  const store = scope();
  if (!confirm(`Reject ${store ? `the labels of ${store} of` : ""} ${number(total)} images? The next run does without them; it can be undone.`)) return;
  await carryOut({ f: read().f, t: thresholdParams(read()), store, reason: reason() });
}

// Reject one, or take it back if it is rejected.
export async function toggle(image, store) {
  if (isRejected(image, store)) {
    await send("/api/take-back", { keys: [image.key], store });
    await afterwards();
    tell("Taken back.");
  } else await carryOut({ keys: [image.key], store, reason: reason() });
}

async function carryOut(what) {
  const done = await send("/api/reject", what);
  await afterwards();
  const undo = async () => {
    await send(`/api/undo/${done.undo}`, {});
    await afterwards();
    tell("Undone.");
  };
  tell(`Rejected ${number(done.count)}. `, make("button", { type: "button", onclick: undo }, "Undo"));
}

function tell(...what) {
  document.getElementById("done")?.replaceChildren(...what);
}
