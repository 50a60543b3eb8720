// The other views: what thresholds keep, SQL, files that were left out, and the state of the shards.

import { request, send } from "./api.js";
import { formatNumber, make, table } from "./make.js";
import { INAPPLICABLE } from "./grid.js";
import { thresholdOf } from "./layers.js";
import { reliability } from "./reliability.js";
import { link, navigate, readState, thresholdParams } from "./state.js";

export async function balance(main, about, chosen) {
  const state = readState();
  if (!chosen) return main.replaceChildren(make("p", { class: "note" }, "Choose labels above: this is about one store."));
  const found = await request("/api/balance", { store: chosen.name, threshold: thresholdOf(chosen, state), f: state.f, t: thresholdParams(state) });
  const largest = Math.max(1e-9, ...found.held);
  const rows = found.classes.map((name, place) => [name, found.held[place], found.kept[place]]).filter((row) => row[1] > 0).sort((one, other) => other[1] - one[1]);
  const body = rows.map(([name, held, kept]) =>
    make("tr", {}, make("td", {}, name), make("td", { class: "number" }, formatNumber(held)), make("td", { class: "number" }, formatNumber(kept)), make("td", { class: "number" }, `${Math.round((100 * kept) / held)} %`), make("td", {}, make("span", { class: "bar", style: { width: `${(12 * kept) / largest}rem` } }), make("span", { class: "bar lost", style: { width: `${(12 * (held - kept)) / largest}rem` } }))),
  );
  const chart = chosen.calibration?.reliability ? reliability(chosen, thresholdOf(chosen, state)) : make("p", { class: "note" }, chosen.scored || chosen.columns.includes("probability") ? "The scores are not calibrated: the threshold is compared with them as they are." : "");
  const head = make("tr", {}, ["class", "there", "kept", "share", ""].map((text, place) => make("th", { class: place > 0 && place < 4 ? "number" : null }, text)));
  main.replaceChildren(
    make("h2", {}, `What the threshold ${formatNumber(thresholdOf(chosen, state))} keeps of ${chosen.name}`),
    make("p", { class: "note" }, `${found.unit}, in ${formatNumber(found.images)} of ${formatNumber(found.of)} images`),
    make("div", { class: "scroll" }, make("table", {}, make("thead", {}, head), make("tbody", {}, body))),
    chart,
  );
}

export async function sql(main, about) {
  const state = readState();
  const newest = about.stores.find((store) => store.learned)?.name ?? about.stores[0]?.name;
  const example = `SELECT images.source, labels.confidence\nFROM images JOIN "${newest}" AS labels USING (id)\nORDER BY labels.confidence LIMIT 20`;
  const text = make("textarea", { "aria-label": "SQL", spellcheck: "false" });
  text.value = state.sql || example;
  const form = make("form", { onsubmit: (event) => { event.preventDefault(); navigate({ sql: text.value }); } }, text, make("button", { class: "main" }, "Ask"));
  const tables = [["images", "id, key, set, split, shard, row, width, height, bytes, source"], ["failures", "id, store, status, reason"], ["rejected", "id, key, store, reason, time"], ...about.stores.map((store) => [`"${store.name}"`, ["id", ...store.columns, ...(store.holds ? ["classes", "amounts"] : [])].join(", ")])];
  const answer = make("section", { "aria-label": "Answer" });
  main.replaceChildren(form, answer, make("h2", {}, "Tables, joined by id"), table(["table", "columns"], tables));
  if (!state.sql) return;
  const found = await send("/api/sql", { sql: state.sql });
  answer.replaceChildren(make("p", { class: "note" }, `${formatNumber(found.rows.length)} rows${found.more ? ", and more that are not shown" : ""}`), table(found.columns, found.rows));
}

export async function health(main, about, chosen) {
  const stores = about.stores.map((store) => [store.name, store.task, store.counts.ok ?? 0, store.counts.none ?? 0, store.counts.failed ?? 0, store.made ? new Date(store.made * 1000).toLocaleString() : ""]);
  const damaged = Object.entries(about.damaged);
  const { unlike } = await request("/api/overview");
  main.replaceChildren(
    make("h2", {}, "Label stores"),
    table(["store", "task", "labels", "without", "failed", "teacher made"], stores),
    ...(unlike.length ? unlikeBySet(unlike) : []),
    make("h2", {}, "Files that can't be read"),
    damaged.length ? table(["file", "what is wrong"], damaged) : make("p", { class: "note" }, "None."),
  );
  if (!chosen) return;
  const found = await request("/api/shards", { store: chosen.name });
  const shardLink = (row) => make("a", { href: link({ view: "images", f: [`set=${row[0]}`, `split=${row[1]}`, `shard=${row[2]}`], page: 0 }), "data-link": true }, row[2]);
  const rows = found.rows.map((row) => [...row.slice(0, 2), shardLink(row), ...row.slice(3)]);
  main.append(make("h2", {}, `Shards by their labels of ${chosen.name}${shownPart(found)}, the worst first`), table(found.columns, rows));
}

// The share of each set's labels with an applicability below that at which they are marked, teacher by teacher.
function unlikeBySet(rows) {
  const sets = [...new Set(rows.map((row) => row.set))].sort();
  const filtered = (row) => make("a", { href: link({ view: "images", store: row.teacher, f: [`set=${row.set}`, `${row.teacher}.applicability<${INAPPLICABLE}`], page: 0 }), "data-link": true }, `${Math.round((100 * row.unlike) / row.known)} %`);
  const cell = (teacher, set) => rows.filter((row) => row.teacher === teacher && row.set === set).map(filtered)[0] ?? "";
  const teachers = [...new Set(rows.map((row) => row.teacher))];
  return [make("h2", {}, "Labels of images that are unlike those that a teacher knows, by set"), table(["teacher", ...sets], teachers.map((teacher) => [teacher, ...sets.map((set) => cell(teacher, set))])), make("p", { class: "note" }, "Of images like those that it was trained on, about 5 % count as unlike.")];
}

export async function left(main, about) {
  const sets = [...new Set(about.sets.map((entry) => entry.name))];
  const { has } = readState();
  const text = make("input", { id: "has", value: has ?? "", autocomplete: "off", spellcheck: "false" });
  const form = make("form", { onsubmit: (event) => { event.preventDefault(); navigate({ has: text.value.trim() || null }); } }, make("label", { for: "has" }, "Name or reason has "), text);
  const parts = [];
  for (const name of sets) {
    for (const kind of ["quarantine", "duplicates", "notes"]) {
      const found = await request(`/api/left-out/${encodeURIComponent(name)}/${kind}`, { has: has ?? "" });
      if (found.total) parts.push(make("h2", {}, `${name}: ${kind}, ${formatNumber(found.total)}${shownPart(found)}`), table(found.columns, found.rows));
    }
  }
  const rejected = await send("/api/sql", { sql: "SELECT DISTINCT key, store, reason, time FROM rejected ORDER BY time DESC LIMIT 1000" });
  if (rejected.rows.length) parts.push(make("h2", {}, `Rejected by hand, ${formatNumber(about.rejected)}`), table(rejected.columns, rejected.rows));
  const emptyText = has ? "Nothing that was left out is called so." : "Every file of every set is used, and nothing is rejected.";
  main.replaceChildren(form, ...(parts.length ? parts : [make("p", { class: "note" }, emptyText)]));
}

function shownPart(found) {
  return found.total > found.rows.length ? `, the first ${formatNumber(found.rows.length)}` : "";
}
